"""Optimizers, and how their learning rate is scaled and scheduled."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from normlab.config.section import Choice, ConfigError, choice, setting


class LrScaling(Enum):
    """How the learning rate follows the global batch size."""

    none = "none"
    linear = "linear"
    sqrt = "sqrt"


class Schedule(Enum):
    """How the learning rate falls over the run."""

    constant = "constant"
    cosine = "cosine"
    step = "step"
    poly = "poly"


@dataclass(kw_only=True)
class OptimConfig(Choice):
    """Settings of every optimizer."""

    group: ClassVar[str] = "optim"

    name: str = MISSING
    """Which optimizer: `optim=<name>` chooses it."""

    lr: float = setting(0.1, above=0)
    """Learning rate for a global batch of lr_reference_batch samples."""

    lr_reference_batch: int = setting(128, minimum=1)
    """Global batch size, in samples, that lr is meant for."""

    lr_scaling: LrScaling = LrScaling.linear
    """linear: lr x batch / reference; sqrt: lr x sqrt(batch / reference); none: lr."""

    warmup_epochs: float = setting(0.0, minimum=0)
    """Epochs during which the rate rises linearly from zero."""

    schedule: Schedule = Schedule.cosine
    """cosine: to zero; step: times step_factor at each milestone; poly: (1 - t / T) ^ poly_power; constant."""

    milestones: list[float] = setting([0.5, 0.75], above=0, below=1)
    """For schedule=step: fractions of the run after which the rate is multiplied by step_factor."""

    step_factor: float = setting(0.1, above=0, maximum=1)
    """For schedule=step: the factor at each milestone."""

    poly_power: float = setting(0.9, above=0)
    """For schedule=poly: the power."""

    head_lr_factor: float = setting(1.0, above=0)
    """The head's rate is multiplied by this; the head is the layers that a pretrained trunk does not bring."""

    weight_decay: float = setting(5e-4, minimum=0)
    """Weight decay of convolution and linear weights."""

    norm_weight_decay: float | None = setting(None, minimum=0)
    """Weight decay of norm parameters and biases. 0: none; null: as weight_decay. What a norm has besides gamma
    and beta (gates, thresholds, mixture weights) never decays."""

    clip_grad_norm: float | None = setting(None, above=0)
    """Largest norm of the whole gradient; larger ones are scaled down to it. null: no limit."""


@choice("sgd")
@dataclass(kw_only=True)
class SgdConfig(OptimConfig):
    """Stochastic gradient descent with momentum."""

    builder = "normlab.optimizer:sgd"

    name: str = "sgd"

    momentum: float = setting(0.9, minimum=0, below=1)
    """Share of the previous update in the next one."""

    nesterov: bool = False
    """Nesterov momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ConfigError("optim.nesterov=true needs optim.momentum above 0.")


@choice("adamw")
@dataclass(kw_only=True)
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    builder = "normlab.optimizer:adamw"
    in_yaml: ClassVar[bool] = True

    name: str = "adamw"

    beta1: float = setting(0.9, minimum=0, below=1)
    """Decay of the running mean of gradients."""

    beta2: float = setting(0.999, minimum=0, below=1)
    """Decay of the running mean of squared gradients."""

    eps: float = setting(1e-8, above=0)
    """Added to the root of the mean square of gradients."""
