"""Every key a user may set: its type, meaning, unit and range. Imports no torch.

The YAML files under conf/ hold values only; these dataclasses are their schema, so a misspelt key or a bad
value fails while Hydra composes, before any rank starts. Library code takes these typed sections or plain
values, never a DictConfig.
"""

import ast
import inspect
import math
import sys
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from itertools import pairwise
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf


class ConfigError(ValueError):
    """A user's mistake: one line that names the key, the value and the fix. Entry points exit with code 2."""


def setting(
    default: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    identity: bool = True,
) -> Any:
    """A dataclass field with its range, and whether it is part of a run's identity (changes its result)."""
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"limits": {k: v for k, v in limits.items() if v is not None}, "identity": identity}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_HOLDS = {
    "minimum": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}
_WORDS = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}


@dataclass(kw_only=True)
class Section:
    """A part of the configuration whose fields are checked against their ranges when it is made."""

    group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            values = value if isinstance(value, list) else [value]
            for number in values:
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    self._check_number(spec.name, number, spec.metadata.get("limits", {}))

    def _check_number(self, name: str, value: float, limits: dict[str, float]) -> None:
        broken = not math.isfinite(value) or any(not _HOLDS[k](value, v) for k, v in limits.items())
        if broken:
            words = " and ".join(f"{_WORDS[k]} {v:g}" for k, v in limits.items()) or "a finite number"
            raise ConfigError(f"{self.key(name)}={value} is out of range: it must be {words}.")

    def key(self, name: str) -> str:
        """The name by which a user sets this field."""
        return f"{self.group}.{name}" if self.group else name


# --- norm ----------------------------------------------------------------------------------------------


class Nondivisible(Enum):
    """What to do where the groups do not divide a layer's channels."""

    error = "error"
    nearest = "nearest"


@dataclass(kw_only=True)
class NormConfig(Section):
    """What every norm has."""

    group: ClassVar[str] = "norm"

    name: str = MISSING
    """Which normalization: the name of a file under conf/norm."""

    eps: float = setting(1e-5, above=0)
    """Added to the variance before the square root."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        """Samples that share statistics (NBS), at `batch_size` samples on each of `ranks` logical ranks."""
        return 1


class RunningStats(Enum):
    """Which running statistics a model is evaluated and exported with, where each rank has its own."""

    rank0 = "rank0"
    pooled = "pooled"
    precise = "precise"


@dataclass(kw_only=True)
class BatchNormConfig(NormConfig):
    """BatchNorm: statistics over the samples and pixels of one rank."""

    name: str = "bn"

    running_stats: RunningStats = RunningStats.rank0
    """Evaluation sees rank 0's (what DDP amounts to), all ranks' pooled, or precise ones, computed for it."""

    precise_samples: int = setting(1024, minimum=2)
    """For running_stats=precise: training samples, unaugmented, that the statistics are computed on."""

    momentum: float | None = setting(0.1, above=0, maximum=1)
    """Share of the new batch in the running statistics; null averages over all batches seen."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size


@dataclass(kw_only=True)
class SyncBatchNormConfig(BatchNormConfig):
    """SyncBatchNorm: statistics over the samples and pixels of every rank in a sync group."""

    name: str = "syncbn"

    sync_group_size: int | None = setting(None, minimum=1)
    """Contiguous logical ranks that share statistics, a divisor of how many there are. null: all."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size * (self.sync_group_size or ranks)


@dataclass(kw_only=True)
class GroupNormConfig(NormConfig):
    """GroupNorm: statistics over groups of channels and all pixels of each sample."""

    name: str = "gn"

    num_groups: int | None = setting(None, minimum=1)
    """Groups per layer, 8 where neither this nor channels_per_group is given. They exclude each other."""

    channels_per_group: int | None = setting(None, minimum=1)
    """Channels in a group; the paper found 16 to work well (arXiv:1803.08494, table 3)."""

    nondivisible: Nondivisible = Nondivisible.error
    """Where the groups do not divide a layer's channels: an error, or the nearest divisor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_groups is not None and self.channels_per_group is not None:
            raise ConfigError(
                f"norm.num_groups={self.num_groups} and norm.channels_per_group={self.channels_per_group} "
                "exclude each other; give one of them."
            )
        if self.num_groups is None and self.channels_per_group is None:
            self.num_groups = 8


@dataclass(kw_only=True)
class LayerNormConfig(NormConfig):
    """LayerNorm on images: statistics over the channels and pixels of each sample."""

    name: str = "ln"


@dataclass(kw_only=True)
class InstanceNormConfig(NormConfig):
    """InstanceNorm: statistics over the pixels of each sample and channel."""

    name: str = "in"


# --- model ---------------------------------------------------------------------------------------------


class Stem(Enum):
    """The layers before the first residual block."""

    cifar = "cifar"
    own = "own"


@dataclass(kw_only=True)
class ModelConfig(Section):
    """What every model has."""

    group: ClassVar[str] = "model"

    name: str = MISSING
    """The architecture's name, as it stands in the run's directory."""


@dataclass(kw_only=True)
class CifarResNetConfig(ModelConfig):
    """The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2)."""

    name: str = "resnet8"

    depth: int = setting(8, minimum=8)
    """Weighted layers: 6n + 2, with n blocks in each of three stages."""

    width: int = setting(16, minimum=1)
    """Channels of the first stage; the second has twice and the third four times as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.depth - 2) % 6:
            below = self.depth - (self.depth - 2) % 6
            raise ConfigError(f"model.depth={self.depth} is not 6n + 2; choose {below} or {below + 6}.")


@dataclass(kw_only=True)
class TorchvisionConfig(ModelConfig):
    """A classification model of torchvision, without weights and without dropout."""

    name: str = "resnet18"
    """Its builder in torchvision.models."""

    stem: Stem | None = None
    """cifar: a 3x3 convolution of stride 1 and no max-pool, for small images (ResNets only); own:
    torchvision's; null: cifar for ResNets, own for the rest."""


@dataclass(kw_only=True)
class TimmConfig(ModelConfig):
    """A model of timm, without weights and without dropout."""

    name: str = "resnet18"
    """Its name in timm.list_models()."""


# --- data ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class DataConfig(Section):
    """What all data have."""

    group: ClassVar[str] = "data"

    name: str = MISSING
    """Which data: the name of a file under conf/data."""

    train_samples: int | None = setting(None, minimum=1)
    """Samples to train on: a fixed subset, the same for every seed. null: all."""

    val_fraction: float = setting(0.0, minimum=0, below=1)
    """Share of the training folder that is held out as val; test is then evaluated once, at the end."""

    augment: bool = True
    """Random crop after padding by 4 pixels, and random horizontal flip."""


@dataclass(kw_only=True)
class ShapesConfig(DataConfig):
    """Pictures of ten shapes, 32x32 RGB, drawn in the process: nothing to download."""

    name: str = "shapes"

    num_train: int = setting(8000, minimum=10)
    """Training pictures to draw."""

    num_test: int = setting(2000, minimum=10)
    """Test pictures to draw."""


@dataclass(kw_only=True)
class CifarConfig(DataConfig):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), through torchvision."""

    name: str = "cifar10"

    root: str = setting("data", identity=False)
    """Folder that holds the archive, or gets it."""

    download: bool = setting(True, identity=False)
    """Fetch the archive where it is missing (its checksum is verified either way)."""


@dataclass(kw_only=True)
class ImageFolderConfig(DataConfig):
    """Class folders of images under train/ and test/ (or val/)."""

    name: str = "image_folder"

    root: str | None = setting(None, identity=False)
    """Folder that holds train/<class>/ and test/<class>/ (or val/<class>/)."""

    image_size: int = setting(32, minimum=4)
    """Side in pixels: the shorter side is resized to it, then the centre is cut out."""

    cache_dir: str | None = setting(None, identity=False)
    """Where decoded pixels are kept. null: $XDG_CACHE_HOME/normlab, or ~/.cache/normlab."""


# --- optim ---------------------------------------------------------------------------------------------


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


@dataclass(kw_only=True)
class OptimConfig(Section):
    """What every optimizer has."""

    group: ClassVar[str] = "optim"

    name: str = MISSING
    """Which optimizer: the name of a file under conf/optim."""

    lr: float = setting(0.1, above=0)
    """Learning rate at a global batch of lr_reference_batch samples."""

    lr_reference_batch: int = setting(128, minimum=1)
    """Global batch size, in samples, at which lr holds."""

    lr_scaling: LrScaling = LrScaling.linear
    """linear: lr x batch / reference; sqrt: lr x sqrt(batch / reference); none: lr."""

    warmup_epochs: float = setting(0.0, minimum=0)
    """Passes over the data during which the rate rises linearly from zero."""

    schedule: Schedule = Schedule.cosine
    """cosine to zero; step: times step_factor at each milestone; constant."""

    milestones: list[float] = setting([0.5, 0.75], above=0, below=1)
    """For schedule=step: shares of the run after which the rate is multiplied by step_factor."""

    step_factor: float = setting(0.1, above=0, maximum=1)
    """For schedule=step: what the rate is multiplied by."""

    weight_decay: float = setting(5e-4, minimum=0)
    """Decay of convolution and linear weights."""

    norm_weight_decay: float | None = setting(None, minimum=0)
    """Decay of norm parameters and biases; 0 leaves them out, null treats them as the weights."""

    clip_grad_norm: float | None = setting(None, above=0)
    """Largest norm of the whole gradient; longer ones are scaled down to it. null: no limit."""


@dataclass(kw_only=True)
class SgdConfig(OptimConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"

    momentum: float = setting(0.9, minimum=0, below=1)
    """Share of the last update in the next."""

    nesterov: bool = False
    """Look ahead by one momentum step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ConfigError("optim.nesterov=true needs optim.momentum above 0.")


@dataclass(kw_only=True)
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    name: str = "adamw"

    beta1: float = setting(0.9, minimum=0, below=1)
    """Decay of the mean of gradients."""

    beta2: float = setting(0.999, minimum=0, below=1)
    """Decay of the mean of squared gradients."""

    eps: float = setting(1e-8, above=0)
    """Added to the root of the mean square."""


# --- the whole -----------------------------------------------------------------------------------------


class Precision(Enum):
    """Numbers that the model computes with."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp64 = "fp64"


class Device(Enum):
    """Where ranks compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True)
class Config(Section):
    """One run, but for its data's content: one cell of the table."""

    norm: NormConfig = MISSING
    """The normalization layer."""

    model: ModelConfig = MISSING
    """The network."""

    data: DataConfig = MISSING
    """What it is trained and evaluated on."""

    optim: OptimConfig = MISSING
    """The optimizer and its schedule."""

    batch_size: int = setting(32, minimum=1)
    """Samples per rank and step."""

    world_size: int | None = setting(None, minimum=1)
    """Ranks. null: what torchrun or SLURM gives, else 1."""

    virtual_ranks: int = setting(1, minimum=1)
    """Ranks that each process stands in for: the mathematics of that many real ranks, in one."""

    accumulate: int = setting(1, minimum=1)
    """Per-rank batches whose gradients are summed before a step. It does not enlarge the batch of BN."""

    epochs: int = setting(10, minimum=1)
    """Length: passes over the training data."""

    max_samples: int | None = setting(None, minimum=1)
    """Length: samples; where both end the run, the smaller wins. null: epochs alone."""

    eval_every_epochs: int = setting(1, minimum=1, identity=False)
    """Passes between evaluations; the last step is always evaluated."""

    eval_batch_size: int = setting(250, minimum=1, identity=False)
    """Samples per rank and evaluation step, never the training batch size."""

    eval_train_samples: int = setting(1000, minimum=1)
    """Training samples, unaugmented, on which train/accuracy is evaluated."""

    label_smoothing: float = setting(0.0, minimum=0, below=1)
    """Share of the training target that is spread over all classes; evaluation has none."""

    seed: int = setting(0, minimum=0)
    """Decides the initial weights, the order of the data and the augmentation."""

    precision: Precision = Precision.fp32
    """fp32, bf16 (autocast, statistics in fp32) or fp64."""

    device: Device = setting(Device.auto, identity=False)
    """auto: cuda where there is a device, else cpu."""

    threads: int | None = setting(None, minimum=1, identity=False)
    """CPU threads per rank. null: the machine's cores shared among its ranks."""

    compile: bool = False
    """torch.compile the model."""

    channels_last: bool = False
    """Keep images and weights with the channel as the fastest axis."""

    output_dir: str = setting("runs", identity=False)
    """Folder under which studies and their runs are kept."""

    study: str | None = setting(None, identity=False)
    """Folder under output_dir. null: the experiment's name, else default."""

    rerun: bool = setting(False, identity=False)
    """Start over where the run is finished or begun; what it left is deleted."""

    sweep_metric: str = setting("val/accuracy", identity=False)
    """What a run returns to the sweeper: a metric of result.json, or its worst value where it has none."""

    log_every: int = setting(10, minimum=1, identity=False)
    """Steps between logged training points."""

    checkpoint_every_s: float = setting(600.0, minimum=0, identity=False)
    """Seconds between checkpoints within an epoch; 0 saves at every step."""

    progress: bool = setting(True, identity=False)
    """Show a progress bar, or plain lines where there is no terminal."""

    def logical_ranks(self, world_size: int) -> int:
        return world_size * self.virtual_ranks

    def global_batch_size(self, world_size: int) -> int:
        return self.batch_size * self.logical_ranks(world_size) * self.accumulate


SCHEMAS: dict[str, dict[str, type[Section]]] = {
    "norm": {
        "bn": BatchNormConfig,
        "syncbn": SyncBatchNormConfig,
        "gn": GroupNormConfig,
        "ln": LayerNormConfig,
        "in": InstanceNormConfig,
    },
    "model": {"cifar_resnet": CifarResNetConfig, "torchvision": TorchvisionConfig, "timm": TimmConfig},
    "data": {"shapes": ShapesConfig, "cifar": CifarConfig, "image_folder": ImageFolderConfig},
    "optim": {"sgd": SgdConfig, "adamw": AdamWConfig},
}
"""Config group -> schema name -> its dataclass. YAML choices name theirs in their defaults list."""


def register_schemas() -> None:
    """Make the schemas, and `--help`'s list of keys, known to Hydra; call before composing."""
    OmegaConf.register_new_resolver("normlab_keys", describe_keys, replace=True)
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)


def describe_keys() -> str:
    """Every key with its default and meaning, from the dataclasses and the docstrings under their fields."""
    lines = []
    for node in ast.parse(inspect.getsource(sys.modules[__name__])).body:
        schema = globals().get(node.name) if isinstance(node, ast.ClassDef) else None
        if not (isinstance(schema, type) and issubclass(schema, Section)) or schema is Section:
            continue
        assert isinstance(node, ast.ClassDef)
        lines += ["", (ast.get_docstring(node) or "").rstrip(".")]
        specs = {spec.name: spec for spec in fields(schema)}
        for declared, text in pairwise(node.body):
            if isinstance(declared, ast.AnnAssign) and isinstance(text, ast.Expr):
                name = ast.unparse(declared.target)
                key = f"{schema.group}.{name}" if schema.group else name
                lines.append(f"  {key} = {_default(specs[name])}".removesuffix(f" = {MISSING}"))
                lines.append(f"      {' '.join(ast.literal_eval(text.value).split())}")
    return "\n".join(lines).replace("$", "$$")  # Hydra reads $ as its own


def _default(spec: "Field[Any]") -> str:
    """A field's default as a command line would give it."""
    default = plain(spec.default_factory() if callable(spec.default_factory) else spec.default)
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)


def to_typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, every range and exclusion checked.

    Raises: ConfigError.
    """
    typed = OmegaConf.to_object(composed)
    assert isinstance(typed, Config)
    return typed


def plain(section: Any, *, identity_only: bool = False) -> Any:
    """A section as plain dicts, lists, strings and numbers; `identity_only` keeps what changes a result."""
    if is_dataclass(section):
        return {
            spec.name: plain(getattr(section, spec.name), identity_only=identity_only)
            for spec in fields(section)
            if not identity_only or spec.metadata.get("identity", True)
        }
    if isinstance(section, Enum):
        return section.value
    return list(section) if isinstance(section, list) else section
