"""A converted model in others' trainers, on two gloo ranks. The oracle: the same steps in a bare DDP loop."""

import importlib.util
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normlab.config.norm import SyncBatchNormConfig
from normlab.norms import SyncBatchNorm, convert_norms
from tests.runs import assert_same_bits

CLASSES, STEPS, LR, MOMENTUM = 4, 3, 0.1, 0.9


def converted() -> nn.Module:
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(c, 8, 3), nn.BatchNorm2d(8), nn.ReLU()) for c in (3, 8)]
    net = nn.Sequential(*sum(blocks, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    convert_norms(net, SyncBatchNormConfig())
    assert sum(isinstance(layer, SyncBatchNorm) for layer in net) == 2
    return net


def batches(rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1 + rank)
    return [
        (torch.randn(4, 3, 9, 9, generator=generator), torch.randint(CLASSES, (4,), generator=generator))
        for _ in range(STEPS)
    ]


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def bare_loop(rank: int) -> dict[str, torch.Tensor]:
    net = converted().train()
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
    for images, labels in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return state_of(net)


@pytest.fixture(scope="module")
def expected(ranks):
    states = ranks.run(bare_loop, world_size=2)
    assert_same_bits(*states)  # running statistics too
    assert not torch.equal(states[0]["0.weight"], converted()[0].weight)
    return states[0]


def lightning_trainer(rank: int) -> dict[str, torch.Tensor]:
    import pytorch_lightning as lightning
    from pytorch_lightning.plugins.environments import TorchElasticEnvironment
    from pytorch_lightning.strategies import DDPStrategy

    class Classifier(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), LR, MOMENTUM)

    model = Classifier(converted())
    with pytest.MonkeyPatch.context() as patch:  # as torchrun leaves it; the ranks have joined before
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            patch.setenv(name, str(value))
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=DDPStrategy(cluster_environment=TorchElasticEnvironment()),
            max_epochs=1,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings(action="ignore"):  # of a loader without workers, and of torch's old names
            trainer.fit(model, torch.utils.data.DataLoader(batches(rank), batch_size=None))
        assert (trainer.world_size, trainer.global_step) == (2, STEPS)
    return state_of(model.net)


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_lightning") is None, reason="pip install pytorch-lightning, or normlab[dev]"
)
def test_lightnings_trainer_trains_a_converted_model_as_a_bare_loop_does(expected, ranks):
    for state in ranks.run(lightning_trainer, world_size=2):
        assert_same_bits(state, expected)


def timms_loop(rank: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """What timm's train.py does in an epoch, of its own parts: the model, its average, and a reduced loss."""
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn, reduce_tensor, unwrap_model

    model = DistributedDataParallel(converted())
    average = ModelEmaV3(model.module, decay=0.0)  # which is the model itself, after each step
    optimizer = create_optimizer_v2(model, opt="momentum", lr=LR, momentum=MOMENTUM, weight_decay=0.0)
    model.train()
    for images, labels in batches(rank):
        F.cross_entropy(model(images), labels).backward()
        dispatch_clip_grad(model.parameters(), value=1e6, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        average.update(model.module)
    distribute_bn(model, dist.get_world_size(), reduce=True)
    model.eval()
    with torch.inference_mode():
        images, labels = batches(rank)[0]
        loss = reduce_tensor(F.cross_entropy(model(images), labels), dist.get_world_size())
    return state_of(unwrap_model(model)), state_of(average.module), float(loss)


def test_timms_loop_trains_a_converted_model_as_a_bare_loop_does(expected, ranks):
    pytest.importorskip("timm")
    net = converted().eval()
    net.load_state_dict(expected)
    with torch.no_grad():
        loss = sum(float(F.cross_entropy(net(x), y)) for x, y in (batches(0)[0], batches(1)[0])) / 2
    for state, average, reduced in ranks.run(timms_loop, world_size=2):
        assert_same_bits(state, expected)
        assert_same_bits(average, expected)
        assert reduced == pytest.approx(loss, rel=1e-6)
