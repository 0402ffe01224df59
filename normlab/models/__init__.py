"""Networks, built with BatchNorm; `normlab.norms.convert_norms` gives them the norm of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normlab.config.model import ModelConfig


def build_model(cfg: ModelConfig, num_classes: int, *, seed: int) -> nn.Module:
    """The network with its initial weights, which follow from `cfg` and `seed`; the global RNG is left unchanged.

    Shape: images (B, 3, H, W) -> logits (B, num_classes); for segmentation, a dict of logits
    (B, num_classes, H, W): `out`, and with model.aux_weight `aux`.
    Raises: ConfigError for a name that does not exist.
    """
    with seeded(seed):
        model: nn.Module = cfg.made_by()(cfg, num_classes)
    if cfg.init_scale != 1:
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.modules.conv._ConvNd):
                    layer.weight.mul_(cfg.init_scale)
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's RNG inside the block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # only the CPU's: torch.manual_seed reseeds CUDA's too
        yield


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` returns, on the meta device: shapes without memory, almost at once.

    `torch.device("meta")` would do for most models, but some compute their widths with small tensors while being
    built. The few that even run a forward then are built in full and moved.
    """
    try:
        with _ParametersOnMeta():
            model = build()
    except Exception:  # raised again below if it has another cause
        model = build()
    return model.to("meta")


class _ParametersOnMeta(TorchFunctionMode):
    """Layers allocate their parameters with torch.empty, and models their small tensors with anything else."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
