"""The training loop: one rank's part of a run."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normlab import checkpoint, data
from normlab.data.batches import TrainBatches
from normlab.data.dataset import Dataset, near
from normlab.distributed import Ranks, device_name
from normlab.evaluator import Buffers, Evaluator, Stopped
from normlab.logger import Logger
from normlab.models import build_model, seeded
from normlab.models.initial_weights import head_parameters, load_initial_weights
from normlab.norms import LEFT_ALONE, NormLayer, convert_norms, format_report
from normlab.norms.diagnostics import PerLayer
from normlab.numerics import Numerics
from normlab.older_torch import NO_BUFFER_SYNC
from normlab.optimizer import LearningRate, build_optimizer
from normlab.run import Run
from normlab.tasks import build_task

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Outcome:
    """How a run ended: finished, diverged, or stopped by `stop_signal`, to be resumed."""

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    stop_signal: int = 0


@dataclass(frozen=True)
class Step:
    """What the ranks agreed on in one optimizer step."""

    stop_signal: int
    save_due: bool
    finite: bool
    """Whether the loss was finite on all ranks. If not, the weights were not updated."""

    grad_norm: torch.Tensor | None
    """The norm of the gradient before clipping, if it was measured."""


class Trainer:
    """Builds a run in this order: model, device, norm, optimizer, DDP; `train` is the loop.

    Collective: every rank must build it and call `train`.
    """

    def __init__(self, run: Run, dataset: Dataset, ranks: Ranks) -> None:
        self.run, self.cfg, self.ranks = run, run.config, ranks
        self.dataset = dataset = near(dataset, ranks.device)
        cfg = self.cfg
        self.threads = ranks.set_threads(cfg.threads)
        self.global_batch_size = cfg.global_batch_size(ranks.world_size)
        self.steps_per_epoch, self.total_steps = run.steps(len(dataset.train))
        self.numerics = Numerics.of(
            cfg.precision,
            ranks.device,
            channels_last=cfg.channels_last,
            deterministic=cfg.deterministic,
            one_size=cfg.data.task == "classification",
        )
        self.task = build_task(cfg, dataset, ranks.device)
        inputs = data.inputs(cfg.data, dataset, self.numerics, ranks)
        self.batches = TrainBatches(
            dataset.train,
            inputs,
            seed=cfg.seed,
            batch_size=cfg.batch_size,
            accumulate=cfg.accumulate,
            logical_ranks=cfg.logical_ranks(ranks.world_size),
            ranks_here=range(ranks.rank * cfg.virtual_ranks, (ranks.rank + 1) * cfg.virtual_ranks),
            augment=cfg.data.augment,
        )
        self.norms: list[NormLayer] = []
        model = build_model(cfg.model, len(dataset.classes), seed=cfg.seed)
        num_classes, head = len(dataset.classes), set[str]()
        if cfg.optim.head_lr_factor != 1:
            head = head_parameters(model, cfg.model, num_classes)
        self.initial_weights = None
        if cfg.model.init_from is not None:
            self.initial_weights = load_initial_weights(model, cfg.model, num_classes)
        model = self.numerics.module(model)
        with seeded(cfg.seed):  # a user's own norm may have random initial parameters
            self.module = convert_norms(model, cfg.norm, cfg.virtual_ranks, self.norms).train()
        self.optimizer = build_optimizer(self.module, cfg.optim, head)
        self.learning_rate = LearningRate.from_config(
            cfg.optim,
            global_batch_size=self.global_batch_size,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
        )
        self.ddp: nn.Module = self.module
        if ranks.world_size > 1:
            self.ddp = DistributedDataParallel(
                self.module,
                device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Evaluation copies rank 0's buffers anyway, so a broadcast in each forward would be wasted.
                **NO_BUFFER_SYNC,
            )
        self.model = torch.compile(self.ddp) if cfg.compile else self.ddp
        converted = [row.name for row in self.norms if row.now != LEFT_ALONE]
        self.evaluator = Evaluator(self.module, cfg, dataset, ranks, self.task, inputs, converted)
        self.evaluated: Buffers = {}
        self.spread: dict[str, float] = {}
        self.evaluated_step = -1
        self.unlogged_sums = self.task.zero_sums(ranks.device)
        self.train_s = self.earlier_wall_s = 0.0
        self.resumed = 0
        self.devices = [ranks.device.type]
        """The types of device that the run has trained on so far, in order."""
        self.stop_signal: Callable[[], int] = lambda: 0

    # --- the loop --------------------------------------------------------------------------------------

    def train(self, logger: Logger, stop_signal: Callable[[], int]) -> Outcome:
        """Train to the end, until the loss is not finite, or until the first stop signal on any rank.

        A run that stops or is killed continues from its last checkpoint when it is trained again, and ends with
        the same parameters bit for bit (with the same ranks and threads, on the CPU).
        """
        self.logger, self.stop_signal = logger, stop_signal
        self._warm_up()
        step, logged = self._restore()
        self.ranks.on_rank0(lambda: logger.start(step, step * self.global_batch_size, logged))
        logger.document("norms", format_report(self.norms))
        if self.initial_weights is not None:
            logger.document("initial_weights", self.initial_weights)
            if step == 0:
                logger.note(f"initial weights: {self.initial_weights}")
        self.started = self.saved_at = self.logged_at = time.monotonic()
        self.logged_step = step
        try:
            return self._train_from(step)
        except Stopped as stopped:
            return Outcome("stopped", stop_signal=stopped.signal)

    def _train_from(self, step: int) -> Outcome:
        """Raises: Stopped after a stop signal on any rank, once there is a checkpoint to continue from."""
        metrics: dict[str, float] = {}
        while True:
            # The checkpoint at the end of an epoch is saved before the evaluation, which may take long. A run that
            # continues from it evaluates first.
            if self._evaluation_due(step):
                metrics = self._evaluate(step)
            if step == self.total_steps:
                break
            epoch, first_step = divmod(step, self.steps_per_epoch)
            for micro_batches in self.batches.epoch(epoch, first_step):
                done = self._step(step, micro_batches)
                if not done.finite:
                    return self._diverged(step)
                step += 1
                if step % self.cfg.log_every == 0 or step == self.total_steps:
                    self._log(step, done.grad_norm)
                epoch_ends = step % self.steps_per_epoch == 0 or step == self.total_steps
                if epoch_ends or done.save_due or done.stop_signal:
                    self._save(step)
                if done.stop_signal:
                    raise Stopped(done.stop_signal)
                if step == self.total_steps:
                    break
        # No later step would notice that the last one ruined the weights.
        if not (_all_finite(metrics) and all(p.isfinite().all() for p in self.module.parameters())):
            return self._diverged(step)
        return Outcome("finished", metrics, self._measured(step))

    def _evaluation_due(self, step: int) -> bool:
        epochs, steps = divmod(step, self.steps_per_epoch)
        return step == self.total_steps or (step > 0 and steps == 0 and epochs % self.cfg.eval_every_epochs == 0)

    def _step(self, step: int, micro_batches: list[Batch]) -> Step:
        """Forward, backward, and an update unless the loss is not finite on some rank."""
        scale = self._start_scale(micro_batches)
        loss = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for index, (images_BCHW, labels) in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last or self.ddp is self.module else self.ddp.no_sync():  # type: ignore[operator]
                with self.numerics.autocast:
                    output = self.model(images_BCHW)
                    loss_sum = self.task.loss_sum(output, labels)
                loss += loss_sum.detach()
                with torch.no_grad():
                    self.task.add_training(self.unlogged_sums, loss_sum, output, labels)
                if last:
                    agree = self._start_agreement(loss)
                (loss_sum * scale()).backward()
        stop_signal, save_due, not_finite = agree()
        grad_norm = None
        if not not_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(step) * group["lr_factor"]
            grad_norm = self._clip_gradients(measure=(step + 1) % self.cfg.log_every == 0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return Step(int(stop_signal), bool(save_due), not not_finite, grad_norm)

    def _start_scale(self, micro_batches: list[Batch]) -> Callable[[], float | torch.Tensor]:
        """The factor for the summed loss: 1 / the total weight of the step's samples over all ranks.

        It is multiplied by the number of ranks, since DDP averages gradients. If weights differ between samples,
        their sum over ranks starts here, overlapped with the forward.
        """
        weights = [self.task.weight(labels) for _, labels in micro_batches]
        known = [weight for weight in weights if weight is not None]
        if not known:  # each sample has weight 1
            return lambda: self.ranks.world_size / self.global_batch_size
        total = self.ranks.start_sum(torch.stack(known).sum())
        # If every pixel is ignored, the sum of losses is 0, and so is the gradient.
        return lambda: torch.where(total() > 0, self.ranks.world_size / total(), 0.0)

    def _start_agreement(self, loss: torch.Tensor) -> Callable[[], list[float]]:
        """Start a small all-reduce, overlapped with the backward, in which ranks share what each sees."""
        # Only rank 0's clock decides when a checkpoint is due.
        due = self.ranks.rank == 0 and time.monotonic() - self.saved_at >= self.cfg.checkpoint_every_s
        flags = torch.tensor([self.stop_signal(), due, 0], dtype=torch.float32, device=self.ranks.device)
        flags[2] = ~torch.isfinite(loss)
        return self.ranks.start_max(flags)

    def _clip_gradients(self, *, measure: bool) -> torch.Tensor | None:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if self.cfg.optim.clip_grad_norm is not None:
            return nn.utils.clip_grad_norm_(self.module.parameters(), self.cfg.optim.clip_grad_norm)
        return nn.utils.get_total_norm(gradients) if measure else None

    # --- points ----------------------------------------------------------------------------------------

    def _point(self, step: int, metrics: dict[str, float]) -> None:
        self.logger.log(step, step * self.global_batch_size, step / self.steps_per_epoch, metrics)

    def _log(self, step: int, grad_norm: torch.Tensor | None) -> None:
        means = self.task.metrics(self.ranks.sum(self.unlogged_sums))
        self.unlogged_sums.zero_()
        now, main = time.monotonic(), self.cfg.main_metric
        samples = (step - self.logged_step) * self.global_batch_size
        metrics = {
            "train/loss": means["loss"],
            f"train/batch_{main}": means.get(main, math.nan),
            "lr": self.learning_rate(step - 1),
            "images_per_second": samples / (now - self.logged_at),
        }
        if grad_norm is not None:
            metrics["grad_norm"] = float(grad_norm)
        self._point(step, metrics)
        self.train_s += now - self.logged_at
        self.logged_at, self.logged_step = time.monotonic(), step

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluate on val and training samples, and at the end on test, and log it. Raises: Stopped."""
        began = time.monotonic()
        self._update_evaluated(step)
        metrics = self.evaluator.metrics(
            self.evaluated, final=step == self.total_steps, stop_signal=self.stop_signal
        )
        more = self.spread
        of_layers: PerLayer = {}
        if self.cfg.diagnostics and _all_finite(metrics):  # ruined weights are not worth diagnosing
            diagnosed, of_layers = self.evaluator.diagnose(self.evaluated, self.stop_signal)
            more = diagnosed | more
        self._point(step, metrics | more)
        for tag, values in of_layers.items():
            self.logger.histogram(step * self.global_batch_size, f"layers/{tag}", values)
        for name, draw in self.evaluator.pictures(self.evaluated).items():
            self.logger.picture(step * self.global_batch_size, name, draw)
        self.logged_at += time.monotonic() - began
        return metrics

    def _update_evaluated(self, step: int) -> None:
        """Compute the buffers to be evaluated and saved at `step`, and their spread, once."""
        if self.evaluated_step != step:
            self.evaluated, self.spread = self.evaluator.buffers()
            self.evaluated_step = step

    def _diverged(self, step: int) -> Outcome:
        self._point(step, {"train/loss": float("nan")})
        self.logger.flush()
        return Outcome("diverged", {}, self._measured(step))

    def _measured(self, step: int) -> dict[str, Any]:
        logged = self.logged_step * self.global_batch_size  # the time of later samples is not known
        return {
            "samples_seen": step * self.global_batch_size,
            "images_per_second": logged / self.train_s if self.train_s else None,
            "wall_s": self.earlier_wall_s + time.monotonic() - self.started,
            "device": str(self.ranks.device),
            "devices": self.devices,
            "device_name": device_name(self.ranks.device),
            "threads": self.threads,
            "torch": torch.__version__,
            "eval_split": self.dataset.eval_split,
            "resumed": self.resumed,
        }

    # --- state -----------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """A forward and backward without effect: the module's state is restored afterwards.

        DDP reorders its buckets after the first iteration, and gloo's sums with them. Doing that before the state
        is set, in fresh and resumed runs alike, keeps a resumed run bitwise equal. This also compiles the model.
        """
        state = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        images_BCHW, labels = next(self.batches.epoch(0))[0]
        with self.numerics.autocast:
            output = self.model(images_BCHW)
            loss_sum = self.task.loss_sum(output, labels)
        loss_sum.backward()
        self.optimizer.zero_grad()
        self.module.load_state_dict(state)

    def _save(self, step: int) -> None:
        """Save, on rank 0, what every rank needs to continue. Collective: every rank must call it.

        `model` is the model as evaluated; `rank_state` has each rank's own buffers, with which it continues.
        """
        began = time.monotonic()
        self._update_evaluated(step)
        own = [t.detach().to(torch.float64).flatten() for t in self._rank_state()]
        rank_state = self.ranks.gather(torch.cat(own))
        logged = self.logger.flush()
        if self.ranks.rank == 0:
            checkpoint.save(
                self.run.checkpoint_path,
                {
                    "hash": self.run.hash,
                    "step": step,
                    "logged": logged,
                    "model": self._exported(),
                    "rank_state": rank_state.cpu(),
                    "optimizer": self.optimizer.state_dict(),
                    "threads": self.threads,
                    "devices": self.devices,
                    "train_s": self.train_s + began - self.logged_at,
                    "wall_s": self.earlier_wall_s + began - self.started,
                    "resumed": self.resumed,
                },
            )
        self.saved_at = time.monotonic()
        self.logged_at += self.saved_at - began

    def _exported(self) -> dict[str, torch.Tensor]:
        """The model as evaluated, with the policy's statistics, under the names of a model with BatchNorm."""
        names = {id(buffer): name for name, buffer in self.module.named_buffers()}
        return {
            key: self.evaluated[names[id(tensor)]] if id(tensor) in names else tensor.detach()
            for key, tensor in self.module.state_dict(keep_vars=True).items()
        }

    def _restore(self) -> tuple[int, dict[str, int]]:
        """The step to continue from and what was logged up to it; 0 and nothing if there is no checkpoint.

        Collective: every rank must call it. Raises: ConfigError if the checkpoint is damaged or another run's.
        """
        path = self.run.checkpoint_path
        if not self.ranks.on_rank0(lambda: checkpoint.recover(path)):
            return 0, {}
        state = checkpoint.load(path)
        checkpoint.check(path, state, self.run.hash, self.total_steps, self.module)
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        checkpoint.copy_into(self._rank_state(), state["rank_state"][self.ranks.rank])
        self.train_s, self.earlier_wall_s = state["train_s"], state["wall_s"]
        self.resumed = state["resumed"] + 1
        self.logger.note(f"resuming after {state['step'] * self.global_batch_size} samples")
        if state["threads"] != self.threads:
            self.logger.note(
                f"warning: saved with threads={state['threads']}, resumed with {self.threads}: "
                "the result will not be bitwise that of an undisturbed run"
            )
        earlier = state.get("devices", self.devices)  # older checkpoints do not have them
        if earlier[-1] != self.devices[-1]:
            self.logger.note(
                f"warning: trained on {earlier[-1]} so far and on {self.devices[-1]} from here, so the result is "
                f"neither's; stop it and set device={earlier[-1]}, or start over with rerun=true"
            )
            self.devices = [*earlier, *self.devices]
        else:
            self.devices = earlier
        return state["step"], state["logged"]

    def _rank_state(self) -> list[torch.Tensor]:
        """What differs between ranks: buffers, whose values are exact in float64, and unlogged sums."""
        return [*self.module.buffers(), self.unlogged_sums]


def _all_finite(metrics: dict[str, float]) -> bool:
    return all(map(math.isfinite, metrics.values()))
