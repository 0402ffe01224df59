"""Parameter groups, optimizers, and the learning rate as a function of the step."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normlab.config.optim import AdamWConfig, LrScaling, OptimConfig, Schedule, SgdConfig

ParameterGroups = list[dict[str, Any]]
"""As torch's optimizers take them."""


def build_optimizer(model: nn.Module, cfg: OptimConfig, head: Collection[str] = ()) -> torch.optim.Optimizer:
    """The optimizer of all parameters. Norm parameters and biases decay by `norm_weight_decay`.

    Parameters that must not decay (gates, thresholds) are exempt: a module's `no_weight_decay()`, timm's
    convention, returns their names, also inside wrappers (DDP, torch.compile).
    The learning rate of a group is set before every step to that of `LearningRate` times the group's
    `lr_factor`, which is `head_lr_factor` for the parameters named in `head`.
    """
    norm_decay = cfg.weight_decay if cfg.norm_weight_decay is None else cfg.norm_weight_decay
    exempt = _exempt_from_decay(model)
    params_of: dict[tuple[float, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = cfg.head_lr_factor if name in head else 1.0
            kind = "exempt" if parameter in exempt else "weight" if parameter.ndim > 1 else "norm"
            params_of.setdefault((factor, kind), []).append(parameter)
    decay = {"exempt": 0.0, "weight": cfg.weight_decay, "norm": norm_decay}
    groups: ParameterGroups = [
        {"params": params, "weight_decay": decay[kind], "lr_factor": factor}
        for (factor, kind), params in params_of.items()
    ]
    optimizer: torch.optim.Optimizer = cfg.made_by()(cfg, groups)
    return optimizer


# fused: one kernel per group. At small batches, the time of a Python loop over parameters is noticeable.


def sgd(cfg: SgdConfig, groups: ParameterGroups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, cfg.lr, cfg.momentum, nesterov=cfg.nesterov, fused=True)


def adamw(cfg: AdamWConfig, groups: ParameterGroups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, cfg.lr, (cfg.beta1, cfg.beta2), cfg.eps, fused=True)


def _exempt_from_decay(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that modules of `model` declare must not decay."""
    exempt = set()
    for module in model.modules():
        # Looked up on the class, because torch.compile's wrapper forwards attributes but renames parameters.
        declare = getattr(type(module), "no_weight_decay", None)
        if declare is not None:
            named = declare(module)
            exempt |= {parameter for name, parameter in module.named_parameters() if name in named}
    return exempt


def scaled_lr(cfg: OptimConfig, global_batch_size: int) -> float:
    """lr x s, with s = batch / reference (linear), its root (sqrt), or 1 (none)."""
    ratio = global_batch_size / cfg.lr_reference_batch
    factor = {LrScaling.none: 1.0, LrScaling.linear: ratio, LrScaling.sqrt: math.sqrt(ratio)}
    return cfg.lr * factor[cfg.lr_scaling]


@dataclass(frozen=True)
class LearningRate:
    """The rate of each step: a linear warm-up to `peak`, then the schedule over the remaining steps.

    warm-up:  peak (t + 1) / warmup
    cosine:   peak (1 + cos(pi (t - warmup) / (total - warmup))) / 2
    poly:     peak (1 - (t - warmup) / (total - warmup))^poly_power
    step:     peak step_factor^k, with k the milestones m for which t >= m total
    """

    peak: float
    schedule: Schedule
    warmup_steps: int
    total_steps: int
    milestones: tuple[float, ...]
    step_factor: float
    poly_power: float

    @classmethod
    def from_config(
        cls, cfg: OptimConfig, *, global_batch_size: int, steps_per_epoch: int, total_steps: int
    ) -> "LearningRate":
        return cls(
            peak=scaled_lr(cfg, global_batch_size),
            schedule=cfg.schedule,
            warmup_steps=round(cfg.warmup_epochs * steps_per_epoch),
            total_steps=total_steps,
            milestones=tuple(cfg.milestones),
            step_factor=cfg.step_factor,
            poly_power=cfg.poly_power,
        )

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        match self.schedule:
            case Schedule.constant:
                return self.peak
            case Schedule.cosine:
                done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
                return self.peak * (1 + math.cos(math.pi * done)) / 2
            case Schedule.step:
                passed = sum(step >= milestone * self.total_steps for milestone in self.milestones)
                return self.peak * self.step_factor**passed
            case Schedule.poly:
                done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
                return self.peak * (1 - done) ** self.poly_power
        raise AssertionError(self.schedule)
