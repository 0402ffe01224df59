"""What SyncBN and the gradients would cost on 2 to 1,024 ranks: a model on paper, beside what is measured here.

python -m normlab.bench.scaling                     tables
python -m normlab.bench.scaling --write docs        docs/scaling.md, .json and .png

Latency and bandwidth are fitted to collectives of several sizes on 2 and 4 real ranks (gloo, or nccl on CUDA,
where as many GPUs are needed); the model then predicts the collectives of a training step, and whole training
steps on the same ranks say how far off it is. Close other programs first.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from normlab.bench.cli import Parser, about, call, parser, pick_device, say
from normlab.bench.cost_model import ALGORITHMS, Link, Network, Point, fit
from normlab.bench.links import VARIANTS, Training, prepare_step, time_collective, time_step
from normlab.bench.measure import Collective
from normlab.bench.ranks import RankGroup
from normlab.bench.summary import Summary, summarize
from normlab.config import Device
from normlab.distributed import available_cores

MEASURED_RANKS = (2, 4)
PREDICTED_RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
NODE = 8
"""Ranks of one node: the GPUs that most nodes have."""

MESSAGE_BYTES = {
    "all_gather": (128, 1 << 10, 1 << 13, 1 << 16, 1 << 19),
    "all_reduce": (128, 1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 25),
}
TRAININGS = (Training("resnet20", 8, 32), Training("resnet50", 2, 224))
THREADS = 1
"""Of each rank: the same on any number of them."""

MEASURED_TRAININGS = TRAININGS[:1]
"""Those whose steps are measured; a step of resnet50 takes a CPU too long."""


@dataclass(frozen=True)
class MeasuredCollective:
    collective: str
    ranks: int
    message_bytes: int
    measured_s: Summary

    @property
    def point(self) -> Point:
        return Point(self.collective, self.ranks, self.message_bytes, self.measured_s.median)

    def relative_error(self, links: Mapping[str, Link]) -> float:
        """(model - measured) / measured."""
        terms = ALGORITHMS["ring"][self.collective](self.ranks, self.message_bytes)
        return links[self.collective].seconds(terms) / self.measured_s.median - 1


@dataclass(frozen=True)
class MeasuredStep:
    """What whole steps on `ranks` ranks took, and so what communication did: differences within a round."""

    training: Training
    ranks: int
    alone_s: Summary
    """bn, each rank for itself."""
    gradients_s: Summary
    """bn under DDP, less alone."""
    sync_batch_norm_s: Summary
    """syncbn under DDP, less bn under DDP: its collectives, its own kernels, and the wait for slower ranks."""
    collectives: list[Collective]
    """Of one syncbn step, as this rank made them."""


@dataclass(frozen=True)
class Measurements:
    collectives: list[MeasuredCollective]
    steps: list[MeasuredStep]
    compute_s: dict[str, Summary]
    """A step of each network on one rank."""

    def links(self, ranks: Sequence[int]) -> dict[str, Link]:
        """Latency and bandwidth fitted to what was measured on so many ranks."""
        return {
            name: fit([m.point for m in self.collectives if m.collective == name and m.ranks in ranks])
            for name in MESSAGE_BYTES
        }


def measure(device: Device, rounds: int, say: Callable[[str], None]) -> Measurements:
    """Everything in rounds."""
    keys = [(name, size, n) for n in MEASURED_RANKS for name in MESSAGE_BYTES for size in MESSAGE_BYTES[name]]
    collectives: dict[tuple[str, int, int], list[float]] = {key: [] for key in keys}
    step_keys = [(t, variant, n) for t in MEASURED_TRAININGS for n in MEASURED_RANKS for variant in VARIANTS]
    step_keys += [(t, "alone", 1) for t in MEASURED_TRAININGS]
    steps: dict[tuple[Training, str, int], list[float]] = {key: [] for key in step_keys}
    with ExitStack() as held:
        groups = {n: held.enter_context(RankGroup(n, device, THREADS)) for n in (1, *MEASURED_RANKS)}
        say("ranks are there; preparing")
        sent = {
            (t, variant, n): groups[n].call(prepare_step, t, variant)[0] for t, variant, n in step_keys
        }  # of rank 0
        say(f"{len(keys)} collectives and {len(step_keys)} training steps on 1, 2 and 4 ranks")
        began = time.monotonic()
        for done in range(1, rounds + 1):
            for name, size, n in keys:
                repeats = 3 if size > 1 << 20 else 10
                collectives[name, size, n].append(max(groups[n].call(time_collective, name, size, repeats)))
            for training, variant, n in step_keys:
                steps[training, variant, n].append(max(groups[n].call(time_step, training, variant, 3)))
            say(f"round {done}/{rounds}, {(time.monotonic() - began) / done * (rounds - done):.0f} s left")
    return Measurements(
        [MeasuredCollective(name, n, size, summarize(collectives[name, size, n])) for name, size, n in keys],
        [_measured_step(t, n, steps, sent[t, "syncbn", n]) for t in MEASURED_TRAININGS for n in MEASURED_RANKS],
        {t.model: summarize(steps[t, "alone", 1]) for t in MEASURED_TRAININGS},
    )


def _measured_step(
    training: Training,
    ranks: int,
    steps: Mapping[tuple[Training, str, int], list[float]],
    sent: list[Collective],
) -> MeasuredStep:
    alone, bn, syncbn = (steps[training, variant, ranks] for variant in VARIANTS)
    return MeasuredStep(
        training,
        ranks,
        summarize(alone),
        summarize([b - a for a, b in zip(alone, bn, strict=True)]),
        summarize([s - b for b, s in zip(bn, syncbn, strict=True)]),
        sent,
    )


def predict(network: Network, links: Mapping[str, Link], compute_s: float | None) -> list[dict[str, Any]]:
    """For each algorithm and number of ranks: seconds of SyncBN's collectives, of the gradients, of a step.

    Shares of the step are None where its compute was not measured.
    """
    rows = []
    for algorithm in ALGORITHMS:
        for ranks in PREDICTED_RANKS:
            sync_s = network.sync_batch_norm_s(links, algorithm, ranks)
            node_s = network.sync_batch_norm_s(links, algorithm, min(ranks, NODE))
            gradients_s = network.gradients_s(links, algorithm, ranks)
            rest_s = None if compute_s is None else compute_s + gradients_s
            rows.append(
                {
                    "algorithm": algorithm,
                    "ranks": ranks,
                    "sync_batch_norm_s": sync_s,
                    "sync_batch_norm_in_groups_s": node_s,
                    "gradients_s": gradients_s,
                    "sync_batch_norm_share": rest_s and sync_s / (rest_s + sync_s),
                    "sync_batch_norm_in_groups_share": rest_s and node_s / (rest_s + node_s),
                    "gradients_share": rest_s and gradients_s / (rest_s + sync_s),
                    "step_s": rest_s and rest_s + sync_s,
                }
            )
    return rows


def report(measured: Measurements) -> dict[str, Any]:
    """Measurements, model, its error at them, and its predictions, as plain values."""
    links, from_two = measured.links(MEASURED_RANKS), measured.links(MEASURED_RANKS[:1])
    networks = []
    for training in TRAININGS:
        network = training.network()
        steps = []
        for step in (s for s in measured.steps if s.training == training):
            steps.append(
                {
                    "ranks": step.ranks,
                    "alone_s": asdict(step.alone_s),
                    "gradients_s": asdict(step.gradients_s),
                    "sync_batch_norm_s": asdict(step.sync_batch_norm_s),
                    "model_gradients_s": network.gradients_s(links, "ring", step.ranks),
                    "model_sync_batch_norm_s": network.sync_batch_norm_s(links, "ring", step.ranks),
                    "collectives": len(step.collectives),
                    "message_bytes": sum(c.message_bytes for c in step.collectives),
                }
            )
        compute = measured.compute_s.get(training.model)
        networks.append(
            {
                **asdict(training),
                "norm_layers": len(network.norm_channels),
                "gradient_bytes": network.gradient_bytes,
                "compute_s": None if compute is None else asdict(compute),
                "steps": steps,
                "predictions": predict(network, links, None if compute is None else compute.median),
            }
        )
    return {
        "node_ranks": NODE,
        "links": {name: asdict(link) for name, link in links.items()},
        "collectives": [
            {
                "collective": m.collective,
                "ranks": m.ranks,
                "message_bytes": m.message_bytes,
                "measured_s": asdict(m.measured_s),
                "relative_error": m.relative_error(links),
                "relative_error_fitted_to_2_ranks": m.relative_error(from_two),
            }
            for m in measured.collectives
        ],
        "networks": networks,
    }


def run(args: argparse.Namespace) -> None:
    from normlab.bench import scaling_page

    here = pick_device(args.device, MEASURED_RANKS[-1])
    surroundings = about(here, args.rounds)
    result = {**surroundings, **report(measure(Device(here.type), args.rounds, say))}
    crowded = here.type == "cpu" and available_cores() < MEASURED_RANKS[-1]
    result["oversubscribed"] = [n for n in MEASURED_RANKS if crowded and n > available_cores()]
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        scaling_page.show(result)
    if args.write:
        scaling_page.write_scaling(args.write, result)


def options() -> Parser:
    made = parser("normlab.bench.scaling", __doc__)
    made.set_defaults(rounds=9)
    return made


if __name__ == "__main__":
    call(run, options().parse_args())
