"""Initial weights from a file: for a whole model, or for the trunk below another head."""

from collections.abc import Iterable

import torch
from torch import nn

from normlab.checkpoint import load_tensors
from normlab.config import ConfigError
from normlab.config.model import ModelConfig, TorchvisionConfig
from normlab.models import build_model, on_meta
from normlab.run import weights_path

TRUNK = "backbone."
"""What a segmentation model calls its trunk."""

MOST_NAMES = 3
"""How many of the layers that only the file has are named."""


def head_parameters(model: nn.Module, cfg: ModelConfig, num_classes: int) -> set[str]:
    """Names of the parameters that belong to a task, and not to the trunk that tasks share.

    In a segmentation model, these are all but the trunk's. In other models, they are those whose shape depends on
    the number of classes, found by building the same model with one more class. `model` is what `cfg` builds for
    `num_classes`.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if any(name.startswith(TRUNK) for name in shapes):
        return {name for name in shapes if not name.startswith(TRUNK)}
    other = on_meta(lambda: build_model(cfg, num_classes + 1, seed=0))
    others = {name: parameter.shape for name, parameter in other.named_parameters()}
    return {name for name, shape in shapes.items() if others[name] != shape}


def load_initial_weights(model: nn.Module, cfg: ModelConfig, num_classes: int) -> str:
    """Copy into `model`, still built with BatchNorm, what the file of `cfg.init_from` holds for it.

    Each name is looked up as it is, and without the prefix of the segmentation model's trunk. The head keeps its
    own initial values if the file's has other classes or is missing, and so do running statistics, which a
    norm may not have had. Returns a sentence that says what was loaded, which layers only the file has (the model
    may be smaller), and which layers are new.
    Raises: ConfigError if the file cannot be read, or lacks weights of the trunk, naming the first.
    """
    assert cfg.init_from is not None
    path = weights_path(cfg.init_from)
    found = load_tensors(path)
    head, buffers = head_parameters(model, cfg, num_classes), {name for name, _ in model.named_buffers()}
    own, kept = dict(model.state_dict()), []
    for name, tensor in own.items():
        source = found.get(name, found.get(name.removeprefix(TRUNK)))
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
        elif name in head | buffers:
            kept.append(name)
        else:
            there = f"has a {name} {tuple(source.shape)}" if source is not None else f"has no {name}"
            raise ConfigError(
                f"model.init_from={cfg.init_from}: {path.name} {there}, and the model's is {tuple(tensor.shape)}; "
                f"{_fix(cfg, name, source)}."
            )
    summary = f"{len(own) - len(kept)} of {len(own)} tensors from {path}"
    left = _layers(name for name in found if name not in own and TRUNK + name not in own)
    more = f" and {len(left) - MOST_NAMES} more" if len(left) > MOST_NAMES else ""
    anew = _layers(name for name in kept if name in head)
    unknown = [layer for layer in _layers(name for name in kept if name in buffers) if layer not in anew]
    return (
        summary
        + (f"; left in the file: {', '.join(left[:MOST_NAMES])}{more}" if left else "")
        + (f"; made anew: {', '.join(anew)}" if anew else "")
        + (f"; running statistics as initialised: {', '.join(unknown)}" if unknown else "")
    )


def _fix(cfg: ModelConfig, name: str, source: torch.Tensor | None) -> str:
    if isinstance(cfg, TorchvisionConfig) and name == "conv1.weight" and source is not None:
        # A ResNet has the stem for pictures of 32 pixels, unless its own is asked for.
        kernel = "x".join(map(str, source.shape[2:]))
        return f"set model.stem={'own' if kernel == '7x7' else 'cifar'}, whose first convolution is {kernel}"
    return "choose weights of the same architecture"


def _layers(names: Iterable[str]) -> list[str]:
    """The layers that tensors belong to, each once."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))
