"""One run: its sections, and the keys that stand by themselves."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from normlab.config.data import DataConfig
from normlab.config.model import ModelConfig
from normlab.config.norm import NormConfig
from normlab.config.optim import OptimConfig
from normlab.config.section import ConfigError, Section, check_folder_name, setting


class Precision(Enum):
    """Numbers that the model computes with."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp64 = "fp64"


class Device(Enum):
    """Where ranks compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def check_tf32(precision: Precision, device: str) -> None:
    """Raises: ConfigError for tf32 on a CPU, which has none: a result would be called what it is not."""
    if precision is Precision.tf32 and device == "cpu":
        raise ConfigError("precision=tf32 exists on CUDA alone, and this computes on the CPU; set precision=fp32.")


@dataclass(kw_only=True)
class Config(Section):
    """One run, apart from the content of its data: one cell of the table."""

    norm: NormConfig = MISSING
    """The normalization layer."""

    model: ModelConfig = MISSING
    """The network."""

    data: DataConfig = MISSING
    """The data to train and evaluate on."""

    optim: OptimConfig = MISSING
    """The optimizer and its schedule."""

    batch_size: int = setting(32, minimum=1)
    """Samples per rank and step."""

    world_size: int | None = setting(None, minimum=1, maximum=65536)
    """Ranks. null: what torchrun or SLURM gives, else 1."""

    virtual_ranks: int = setting(1, minimum=1)
    """Ranks that each process stands in for: it computes what that many real ranks would."""

    accumulate: int = setting(1, minimum=1)
    """Batches per rank whose gradients are summed before a step. It does not enlarge BatchNorm's batch."""

    epochs: int = setting(10, minimum=1)
    """Length of the run in passes over the training data."""

    max_samples: int | None = setting(None, minimum=1, maximum=2**53)
    """Length of the run in samples seen, if that is shorter than epochs. null: epochs decides."""

    eval_every_epochs: int = setting(1, minimum=1, identity=False)
    """Epochs between evaluations; the last step is always evaluated."""

    eval_batch_size: int | None = setting(None, minimum=1, identity=False)
    """Samples per rank and evaluation step, never the training batch size. null: 250, or 8 for segmentation."""

    eval_train_samples: int = setting(1000, minimum=1)
    """Number of unaugmented training samples on which train/accuracy or train/miou is evaluated."""

    label_smoothing: float = setting(0.0, minimum=0, below=1)
    """Share of the training target that is spread over all classes; not used in evaluation."""

    seed: int = setting(0, minimum=0, maximum=2**63 - 1)
    """Determines the initial weights, the order of the data and the augmentation."""

    precision: Precision = Precision.fp32
    """fp32 (IEEE, on every device), tf32 (CUDA alone: fp32, but convolutions and matrix products round their
    inputs to TF32), bf16 (autocast, with statistics in fp32) or fp64."""

    device: Device = setting(Device.auto, identity=False)
    """auto: cuda if every rank has a device of its own, else cpu."""

    threads: int | None = setting(None, minimum=1, maximum=1024, identity=False)
    """CPU threads per rank. null: the machine's cores divided among its ranks."""

    compile: bool = False
    """torch.compile the model."""

    channels_last: bool = False
    """Keep images and weights in memory with the channel as the fastest axis."""

    deterministic: bool = setting(False, identity=False)
    """On CUDA, compute the same bits each time, which is slower; then a run that is resumed ends as an undisturbed
    one to the last bit. On the CPU this holds without it. Refused for segmentation on CUDA."""

    output_dir: str = setting("runs", identity=False)
    """Folder under which studies and their runs are kept."""

    study: str | None = setting(None, identity=False)
    """Folder under output_dir. null: the experiment's name, else default."""

    rerun: bool = setting(False, identity=False)
    """Start over if the run has begun or finished; its earlier files are deleted."""

    sweep_metric: str | None = setting(None, identity=False)
    """The metric of result.json that a run returns to the sweeper; a run without it returns the worst value.
    null: val/accuracy, or val/miou for segmentation."""

    log_every: int = setting(10, minimum=1, identity=False)
    """Steps between logged training points."""

    checkpoint_every_s: float = setting(600.0, minimum=0, identity=False)
    """Seconds between checkpoints within an epoch; 0 saves at every step."""

    diagnostics: bool = setting(True, identity=False)
    """At each evaluation, log what the norm layers do, and val/train_mode_gap."""

    diagnostics_samples: int = setting(128, minimum=1, identity=False)
    """Samples of train, and of val, for the diagnostics; at least one normalization batch."""

    progress: bool = setting(True, identity=False)
    """Show a progress bar, or plain lines without a terminal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study is not None:
            check_folder_name("study", self.study)
        if self.device is Device.cpu:
            check_tf32(self.precision, "cpu")
        if self.deterministic and self.device is not Device.cpu and self.data.task == "segmentation":
            raise ConfigError(
                "deterministic=true: torch has no deterministic loss and interpolation of pixels on CUDA; set "
                "deterministic=false, or device=cpu."
            )
        if self.data.task != self.model.task:
            fits = {"classification": "model=resnet20", "segmentation": "model=fcn_resnet20"}[self.data.task]
            raise ConfigError(
                f"model={self.model.name} is for {self.model.task}, and data={self.data.name} for "
                f"{self.data.task}; choose a model for that, as {fits}, or other data."
            )

    @property
    def main_metric(self) -> str:
        """What the task is judged by: accuracy, or miou."""
        return {"classification": "accuracy", "segmentation": "miou"}[self.data.task]

    @property
    def eval_batch(self) -> int:
        """`eval_batch_size`, or its default for the task."""
        return self.eval_batch_size or {"classification": 250, "segmentation": 8}[self.data.task]

    @property
    def returned_metric(self) -> str:
        """`sweep_metric`, or its default for the task."""
        return self.sweep_metric or f"val/{self.main_metric}"

    def logical_ranks(self, world_size: int) -> int:
        return world_size * self.virtual_ranks

    def global_batch_size(self, world_size: int) -> int:
        return self.batch_size * self.logical_ranks(world_size) * self.accumulate
