"""A training step asks the device for nothing: with the model and the batch on meta, it runs to its end.

Tensors on meta have shapes and no values, so a value that is read on the host (`.item()`, `.tolist()`, `bool()`)
raises, as does an operation on tensors of two devices. On CUDA the first would wait for the device, and the second
would fail.
"""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from normlab import data, optimizer
from normlab.config.config import Precision
from normlab.distributed import Ranks
from normlab.norms import NORMS
from normlab.run import name_run
from normlab.trainer import Trainer
from tests.runs import SEGMENTATION, TINY, build, typed

TASKS = {"classification": [], "segmentation": [*SEGMENTATION, "data.crop_size=32"]}
SMALL = [*TINY, "batch_size=4", "data.num_train=16", "data.num_test=10", "eval_train_samples=4"]
FEW = {"ghost_bn": ["norm.ghost_batch_size=2"]}


class OnMeta(Ranks):
    """One rank, whose agreement, the one thing that a step tells the host, is always that all is well."""

    def start_max(self, flags):
        assert flags.device.type == "meta"
        return lambda: [0.0] * len(flags)


@pytest.fixture
def trainer_on_meta(tmp_path, monkeypatch):
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for name in ("SGD", "AdamW"):  # whose fused kernels take no tensors on meta
        kind = getattr(torch.optim, name)
        monkeypatch.setattr(
            optimizer.torch.optim, name, lambda *args, kind=kind, fused, **rest: kind(*args, foreach=True, **rest)
        )

    def build_it(*overrides):
        cfg = typed(*SMALL, f"output_dir={tmp_path}", *overrides)
        run = name_run(cfg, world_size=1, study="test", data_fingerprint="")
        trainer = Trainer(run, data.load(cfg.data), OnMeta(0, 1, 1, torch.device("meta")))
        trainer.started = trainer.saved_at = 0.0
        return trainer

    yield build_it
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def step(trainer, number=0):
    return trainer._step(number, next(trainer.batches.epoch(0)))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_each_norm_task_and_precision_reads_nothing_on_the_host(norm, task, trainer_on_meta):
    for precision in Precision:
        trainer = trainer_on_meta(f"norm={norm}", *FEW.get(norm, []), *TASKS[task], f"precision={precision.value}")
        trainer._warm_up()
        assert step(trainer).finite
        assert {p.device.type for p in trainer.module.parameters()} <= {"meta"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim=adamw", "optim.clip_grad_norm=1", "label_smoothing=0.1", "log_every=1"],
        ["virtual_ranks=2", "accumulate=2", "channels_last=true"],
        [*TASKS["segmentation"], "data.class_weights=[0,1,2,3,4,5,6,7,8,9,10]", "model.aux_weight=0.4"],
        [*TASKS["segmentation"], "data.class_weighting=median_frequency"],
        ["norm=gn", "norm.weight_standardization=true"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_options_of_a_step_read_nothing_on_the_host_either(overrides, trainer_on_meta):
    trainer = trainer_on_meta(*overrides)
    trainer._warm_up()
    assert step(trainer).finite


@pytest.mark.parametrize(
    "mistake",
    [
        lambda loss: loss.item(),
        lambda loss: loss.reshape(1).tolist(),
        lambda loss: bool(loss > 0),
        lambda loss: loss[loss > 0],
        lambda loss: loss + torch.zeros(1),
    ],
    ids=["item", "tolist", "bool", "mask", "another device"],
)
def test_a_step_that_reads_a_value_or_mixes_devices_does_fail_here(mistake, trainer_on_meta, monkeypatch):
    trainer = trainer_on_meta()
    loss_sum = trainer.task.loss_sum

    def mistaken(output, labels):
        loss = loss_sum(output, labels)
        mistake(loss.detach())
        return loss

    monkeypatch.setattr(trainer.task, "loss_sum", mistaken)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"[Mm]eta|nonzero"):
        step(trainer)


class HostReads(TorchFunctionMode):
    """Inside the block, `seen` collects the calls that read a tensor's value on the host."""

    NAMES = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.NAMES:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class ReadsOfKernels(TorchDispatchMode):
    """The same of what C++ reads by itself."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::bincount"):
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", TASKS)
def test_between_two_logged_steps_the_host_reads_only_what_the_ranks_agreed_on(task, tmp_path):
    trainer = build(0, [*SMALL, *TASKS[task], f"output_dir={tmp_path}", "norm=bn", "log_every=10"])
    trainer.started = trainer.saved_at = 0.0
    trainer._warm_up()
    micro_batches = next(trainer.batches.epoch(0))  # made on the CPU, on every device
    with HostReads() as calls, ReadsOfKernels() as kernels:
        trainer._step(0, micro_batches)
    assert (calls.seen, kernels.seen) == (["tolist"], [])
