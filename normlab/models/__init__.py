"""Networks, built with BatchNorm; `normlab.norms.convert_norms` gives them the norm of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normlab.config.model import ModelConfig


def build_model(cfg: ModelConfig, num_classes: int, *, seed: int) -> nn.Module:
    """The network with its initial weights, which follow from `cfg` and `seed`; the global RNG stays as it was.

    Shape: images (B, 3, H, W) -> logits (B, num_classes); of segmentation, a dict of logits
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
    """What is drawn on the CPU inside the block follows from `seed`; the global RNG stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed reseeds those of CUDA too
        yield


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` builds, on the meta device: shapes without memory, in a moment.

    `torch.device("meta")` would do for most, but some models compute their widths with small tensors as they
    are built. Those few that even run themselves then are built in full and moved.
    """
    try:
        with _ParametersOnMeta():
            model = build()
    except Exception:  # whatever it was, it is raised again if it has another cause
        model = build()
    return model.to("meta")


class _ParametersOnMeta(TorchFunctionMode):
    """Layers allocate their parameters by torch.empty, and models their small tensors by anything else."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
