"""The user's own models."""

import torch
from torch import nn

from normlab.config import ConfigError
from normlab.config.model import CustomModelConfig, CustomSegmentationModelConfig
from normlab.targets import call_target, named, said_in, without_gradient


def custom_model(cfg: CustomModelConfig, num_classes: int) -> nn.Module:
    """What `model.target` returns for `num_classes` and `model.args`, unchanged.

    Shape: images (B, 3, H, W) -> logits (B, num_classes); for segmentation, a dict with `out`, logits
    (B, num_classes, H, W), and with model.aux_weight `aux`.
    Raises: ConfigError if the target cannot be imported, raises, or does not return a module.
    """
    model = call_target("model.target", cfg.target, cfg.args, num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model.target={cfg.target} gave {named(model)}; let it return an nn.Module built with BatchNorm."
        )
    return model


def check_output(
    cfg: CustomModelConfig,
    model: nn.Module,
    images_shape: tuple[int, int, int],
    num_classes: int,
    world_size: int = 1,
) -> None:
    """Check that the model returns what its task needs, in one forward of two images, best on meta.

    On several ranks, also check that every parameter has a gradient after a training step, as DDP requires.
    Raises: ConfigError that says what it returned, where it raised, or which parameters have no gradient.
    """
    like = next(model.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(2, *images_shape, device=like.device, dtype=like.dtype))
    except Exception as error:
        raise ConfigError(f"model.target={cfg.target}: {said_in(error)}.") from error
    names: list[str] = [""]
    shape: tuple[int, ...] = (2, num_classes)
    if isinstance(cfg, CustomSegmentationModelConfig):
        names = ["out", "aux"] if cfg.aux_weight > 0 else ["out"]
        shape = (2, num_classes, *images_shape[1:])
    for name in names:
        given = output.get(name) if name and isinstance(output, dict) else None if name else output
        if not isinstance(given, torch.Tensor) or tuple(given.shape) != shape:
            wanted = f"logits {shape}" if not name else f"a dict whose {name} holds logits {shape}"
            gave = named(output) if given is None or not name else f"a dict whose {name} is {named(given)}"
            raise ConfigError(
                f"model.target={cfg.target}: for images (2, {', '.join(map(str, images_shape))}) of {num_classes} "
                f"classes the model gave {gave}; let it give {wanted}."
            )
    if world_size > 1:
        _check_gradients(cfg, model, [name for name in names if name], images_shape, world_size)


def _check_gradients(
    cfg: CustomModelConfig, model: nn.Module, names: list[str], images_shape: tuple[int, int, int], world_size: int
) -> None:
    like = next(model.parameters(), torch.zeros(()))
    try:
        output = model.train()(torch.zeros(2, *images_shape, device=like.device, dtype=like.dtype))
        outputs = [output[name] for name in names] if names else [output]
        torch.stack([each.sum() for each in outputs]).sum().backward()
    except Exception:  # the first step of a run shows what shapes alone do not
        return
    finally:
        model.eval()
    if without := without_gradient(model):
        raise ConfigError(
            f"model.target={cfg.target}: {without} in a training step, which world_size={world_size} does not "
            "allow (DistributedDataParallel); use each parameter in every forward, remove it, or set its "
            "requires_grad to False."
        )
