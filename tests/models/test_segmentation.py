"""Segmentation models: shapes, strides, heads, and norms in every part of them."""

import pytest
import torch
from torch import nn

from normlab.config import ConfigError
from normlab.config.model import FcnCifarResNetConfig, TorchvisionSegmentationConfig
from normlab.config.norm import GroupNormConfig, InstanceNormConfig, NormConfig, SyncBatchNormConfig
from normlab.models import build_model, on_meta
from normlab.models.segmentation import BY_NAME, ResNet18Trunk
from normlab.norms import NormLayer, check_norms, convert_norms

NAMES = [*BY_NAME, "deeplabv3_resnet18"]


def torchvision_model(name, aux_weight=0.0):
    cfg = TorchvisionSegmentationConfig(name=name, aux_weight=aux_weight)
    return on_meta(lambda: build_model(cfg, 5, seed=0))


def fcn(**options):
    return build_model(FcnCifarResNetConfig(**{"depth": 8, "width": 4, **options}), 5, seed=0)


@pytest.mark.parametrize("aux_weight", [0.0, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_gives_logits_for_each_pixel(name, aux_weight):
    if name.startswith("lraspp") and aux_weight:
        pytest.skip("it has no auxiliary head")
    model = torchvision_model(name, aux_weight)
    output = model(torch.zeros(2, 3, 65, 97, device="meta"))
    assert set(output) == ({"out", "aux"} if aux_weight else {"out"})
    assert {logits.shape for logits in output.values()} == {(2, 5, 65, 97)}
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {0.0}


@pytest.mark.parametrize("output_stride", [4, 8])
def test_fcn_has_the_stride_it_is_asked_for_at_any_size(output_stride):
    model = fcn(output_stride=output_stride)
    maps = model.backbone(torch.zeros(2, 3, 64, 96))
    assert maps["out"].shape == (2, 16, 64 // output_stride, 96 // output_stride)
    assert maps["aux"].shape == (2, 8, 16, 24)
    assert model(torch.zeros(1, 3, 33, 50))["out"].shape == (1, 5, 33, 50)


def test_dilation_gives_at_every_second_pixel_what_the_stride_gives():
    strided, dilated = (fcn(output_stride=s).double().eval() for s in (8, 4))
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    coarse, dense = strided.backbone(x)["out"], dilated.backbone(x)["out"]
    inner = (..., slice(3, 5), slice(3, 5))  # away from the border, which padding reaches in other ways
    torch.testing.assert_close(dense[..., ::2, ::2][inner], coarse[inner], rtol=1e-12, atol=1e-12)


def test_the_dilated_resnet18_gives_at_every_fourth_pixel_what_torchvisions_gives():
    from torchvision.models import resnet18

    plain, trunk = resnet18(weights=None).double().eval(), ResNet18Trunk().double().eval()
    trunk.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 480, 480, dtype=torch.float64)
    y = plain.layer2(plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(x))))))
    coarse, dense = plain.layer4(plain.layer3(y)), trunk(x)["out"]
    assert coarse.shape[-1] * 4 == dense.shape[-1]
    middle = (..., slice(7, 8), slice(7, 8))
    torch.testing.assert_close(dense[..., ::4, ::4][middle], coarse[middle], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [*NAMES, "fcn"])
def test_conversion_reaches_trunk_and_heads(name):
    aux = 0.0 if name.startswith("lraspp") else 0.4
    model = fcn(aux_weight=0.4) if name == "fcn" else torchvision_model(name, aux)
    report: list[NormLayer] = []
    convert_norms(model, GroupNormConfig(num_groups=2), report=report)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    parts = {row.name.partition(".")[0] for row in report}
    assert parts == {"backbone", "classifier"} | ({"aux_classifier"} if aux else set())


def refused(name: str, norm: NormConfig, batch_size: int, ranks: int = 1) -> str:
    with pytest.raises(ConfigError) as raised:
        check_norms(torchvision_model(name), (3, 65, 65), batch_size, ranks, norm)
    return str(raised.value)


def test_the_pooled_branch_of_aspp_is_refused_by_name_where_it_leaves_one_value():
    from normlab.config.norm import BatchNormConfig

    pooled = "classifier.0.convs.4.2"
    assert pooled in refused("deeplabv3_resnet18", BatchNormConfig(), batch_size=1)
    assert pooled in refused("deeplabv3_resnet50", InstanceNormConfig(), batch_size=8)  # would give zeros
    for norm, batch_size, ranks in ((BatchNormConfig(), 2, 1), (SyncBatchNormConfig(), 1, 2)):
        check_norms(torchvision_model("deeplabv3_resnet18"), (3, 65, 65), batch_size, ranks, norm)


def test_names_and_heads_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match=r"model\.name=deeplabv4 .*deeplabv3_resnet18, fcn_resnet50"):
        torchvision_model("deeplabv4")
    with pytest.raises(ConfigError, match=r"model\.aux_weight: lraspp_mobilenet_v3_large has no auxiliary head"):
        torchvision_model("lraspp_mobilenet_v3_large", 0.4)
    with pytest.raises(ConfigError, match=r"model\.output_stride=6 is neither 4 nor 8"):
        FcnCifarResNetConfig(output_stride=6)
