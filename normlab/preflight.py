"""The checks of a run, made in one process before any rank trains."""

import json
import math
import os
from dataclasses import replace

import torch
from torch import nn

from normlab import data
from normlab.checkpoint import load_tensors
from normlab.config import Config, ConfigError
from normlab.config.model import CustomModelConfig
from normlab.config.norm import BatchStatisticsConfig, FrozenBatchNormConfig, RunningStats
from normlab.config.optim import SgdConfig
from normlab.config.schema import plain
from normlab.data.dataset import Dataset
from normlab.data.listing import gigabytes
from normlab.models import build_model, on_meta
from normlab.models.custom import check_output
from normlab.models.initial_weights import TRUNK, load_initial_weights
from normlab.norms import check_norms
from normlab.norms.convert import norm_layers
from normlab.run import Run, name_run, weights_path
from normlab.tasks import Task, build_task


def plan(cfg: Config, dataset: Dataset, *, world_size: int, study: str, checked: set[str] | None = None) -> Run:
    """The run of `cfg` on `world_size` ranks, checked. Writes nothing.

    A sweep remembers in `checked` which models fit their norms and data, so that runs that differ only in seed or
    learning rate do not build the model again.
    Raises: ConfigError if batches do not fit the data or the memory, or the norm does not fit the layers.
    """
    run = name_run(cfg, world_size=world_size, study=study, data_fingerprint=dataset.fingerprint)
    run.steps(len(dataset.train))
    without_these = replace(cfg, seed=0, optim=SgdConfig(), study=None, epochs=1, max_samples=None)
    what = json.dumps([plain(without_these), world_size, dataset.fingerprint])
    if checked is None or what not in checked:
        _check_model(cfg, dataset, world_size)
    if checked is not None:
        checked.add(what)
    return run


def _check_model(cfg: Config, dataset: Dataset, world_size: int) -> None:
    """Check that model, norm, data and batch fit each other. Raises: ConfigError."""
    logical_ranks = cfg.logical_ranks(world_size)
    _check_precise_samples(cfg, logical_ranks)
    image_shape = data.augmentation(cfg.data, dataset).image_shape
    _check_memory(cfg, image_shape)
    model = on_meta(lambda: build_model(cfg.model, len(dataset.classes), seed=cfg.seed))
    if cfg.model.init_from is not None:
        load_initial_weights(model, cfg.model, len(dataset.classes))
    _check_frozen(cfg, model)
    task = build_task(cfg, dataset, torch.device("cpu"))
    _check_sweep_metric(cfg, dataset, task)
    if isinstance(cfg.model, CustomModelConfig):
        check_output(cfg.model, model, image_shape, len(dataset.classes), world_size)
    check_norms(model, image_shape, cfg.batch_size, logical_ranks, cfg.norm, cfg.virtual_ranks)


def _check_memory(cfg: Config, image_shape: tuple[int, int, int]) -> None:
    """Check the memory for a batch, as bytes and as float32. What the model needs is not known beforehand."""
    needed = 5 * cfg.batch_size * cfg.virtual_ranks * math.prod(image_shape)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        _, height, width = image_shape
        raise ConfigError(
            f"batch_size={cfg.batch_size} with virtual_ranks={cfg.virtual_ranks} and pictures of {width}x{height} "
            f"takes {gigabytes(needed)} of the {gigabytes(there)} of memory here; lower one of them."
        )


def _check_sweep_metric(cfg: Config, dataset: Dataset, task: Task) -> None:
    """Check that finished runs will have the metric; otherwise that would show only after all had trained."""
    splits = ["val"] if dataset.test is None else ["val", "test"]
    known = [f"{split}/{name}" for split in splits for name in task.metric_names()]
    known.append(f"train/{cfg.main_metric}")
    if cfg.returned_metric not in known:
        raise ConfigError(
            f"sweep_metric={cfg.sweep_metric} is not a metric of these runs; choose one of {', '.join(known)}."
        )


def _check_precise_samples(cfg: Config, logical_ranks: int) -> None:
    norm = cfg.norm
    if isinstance(norm, BatchStatisticsConfig) and norm.running_stats is RunningStats.precise:
        chunk_size = norm.normalization_batch_size(cfg.batch_size, logical_ranks)
        if norm.precise_samples < chunk_size:
            raise ConfigError(
                f"norm.precise_samples={norm.precise_samples} is less than the {chunk_size} samples that share "
                f"statistics in training; raise it to a multiple of {chunk_size}."
            )


def _check_frozen(cfg: Config, model: nn.Module) -> None:
    """Check that frozen statistics come from a file: those of an untrained model, 0 and 1, mean nothing."""
    if not isinstance(cfg.norm, FrozenBatchNormConfig):
        return
    if cfg.model.init_from is None:
        raise ConfigError(
            "norm=frozen_bn freezes the statistics of a trained model, and a new one has none; give "
            "model.init_from, the run or the weights of a model trained with BatchNorm."
        )
    there = load_tensors(weights_path(cfg.model.init_from))
    for name in norm_layers(model):
        if not any(f"{known}.running_var" in there for known in (name, name.removeprefix(TRUNK))):
            raise ConfigError(
                f"norm=frozen_bn: model.init_from={cfg.model.init_from} has no running statistics for layer "
                f"{name}; give a model that was trained with BatchNorm there, or choose another norm."
            )
