"""Every norm on every input and number of ranks, in rounds; each figure relative to BN's of the same round."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from torch import nn

from normlab.bench.measure import Case, Facts, examine, norm_config, time_steps
from normlab.bench.ranks import RankGroup
from normlab.bench.summary import Summary, relative_to, summarize
from normlab.config import ConfigError, Device, Precision
from normlab.distributed import available_cores
from normlab.norms import NORMS, check_norms

REFERENCE = "bn"
Times = tuple[float, float]
"""Seconds of a forward and of a backward."""


@dataclass(frozen=True)
class Row:
    """What a case costs."""

    case: Case
    threads: int
    """Of each rank."""
    oversubscribed: bool
    """More ranks than cores: they also wait for each other's turn on a core."""
    facts: Facts
    forward_s: Summary
    backward_s: Summary
    step_s: Summary
    """Both together."""
    forward_to_bn: Summary
    backward_to_bn: Summary
    step_to_bn: Summary
    saved_to_bn: float

    def as_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "norm": case.norm,
            "shape": list(case.shape),
            "dtype": case.precision.value,
            "memory_format": memory_format(case),
            "world_size": case.world_size,
            "threads": self.threads,
            "oversubscribed": self.oversubscribed,
            "forward_s": asdict(self.forward_s),
            "backward_s": asdict(self.backward_s),
            "step_s": asdict(self.step_s),
            "forward_to_bn": asdict(self.forward_to_bn),
            "backward_to_bn": asdict(self.backward_to_bn),
            "step_to_bn": asdict(self.step_to_bn),
            "saved_bytes": self.facts.saved_bytes,
            "saved_to_bn": self.saved_to_bn,
            "collectives": [asdict(call) for call in self.facts.collectives],
            "message_bytes": sum(call.message_bytes for call in self.facts.collectives),
        }


def memory_format(case: Case) -> str:
    return "channels_last" if case.channels_last else "contiguous"


def talks(norm: str) -> bool:
    """Whether its statistics are of several ranks' samples."""
    config = norm_config(norm)
    return config.normalization_batch_size(1, 2) != config.normalization_batch_size(1, 1)


def plan(
    norms: Sequence[str] | None,
    shapes: Sequence[tuple[int, int, int, int]],
    precisions: Sequence[Precision],
    memory_formats: Sequence[str],
    world_sizes: Sequence[int],
) -> tuple[list[Case], dict[str, str]]:
    """The cases, BN's first among those that are compared, and why what cannot be built is left out.

    `norms` None: all; on several ranks those alone that talk, since the others do there what they do on one.
    Raises: ConfigError on an unknown norm, or an input that BN cannot take.
    """
    for name in norms or ():
        if name not in NORMS:
            raise ConfigError(f"--norms {name} is unknown; choose from {', '.join(NORMS)}.")
    cases: list[Case] = []
    refused: dict[str, str] = {}
    for shape, precision, layout, world_size in product(shapes, precisions, memory_formats, world_sizes):
        chosen = norms or [name for name in NORMS if world_size == 1 or talks(name)]
        for name in dict.fromkeys([REFERENCE, *chosen]):
            problem = why_not(name, shape, world_size)
            if problem is None:
                cases.append(Case(name, shape, precision, layout == "channels_last", world_size))
                continue
            where = f"{name} on {'x'.join(map(str, shape))}, {world_size} rank(s)"
            if name == REFERENCE:
                raise ConfigError(f"--shapes: {where}: {problem}, and all is relative to it; give more samples.")
            refused[where] = problem
    return cases, refused


def why_not(norm: str, shape: tuple[int, int, int, int], world_size: int) -> str | None:
    """Why a norm cannot train on this input; None where it can."""
    batch_size, *image_shape = shape
    layer = nn.Sequential(nn.BatchNorm2d(shape[1], device="meta"))
    try:
        check_norms(layer, tuple(image_shape), batch_size, world_size, norm_config(norm))  # type: ignore[arg-type]
    except ConfigError as error:
        return str(error)
    return None


def measure(
    cases: Sequence[Case],
    on_cpu: bool,
    device: Device,
    *,
    rounds: int,
    sample_s: float,
    say: Callable[[str], None],
) -> list[Row]:
    """Rounds over all cases, in each of which a case's steps take about `sample_s`."""
    seen: dict[Case, list[Times]] = {case: [] for case in cases}
    with ExitStack() as held:
        sizes = sorted({case.world_size for case in cases})
        groups = {size: held.enter_context(RankGroup(size, device)) for size in sizes}
        say(f"{len(cases)} cases on {', '.join(map(str, sizes))} rank(s)")
        facts = {case: worst(groups[case.world_size].call(examine, case)) for case in cases}
        began = time.monotonic()
        for done in range(1, rounds + 1):
            for case in cases:
                steps = max(1, math.ceil(sample_s / facts[case].step_s))
                times = groups[case.world_size].call(time_steps, case, steps)
                forward_s, backward_s = (max(of_ranks) for of_ranks in zip(*times, strict=True))
                seen[case].append((forward_s, backward_s))
            left_s = (time.monotonic() - began) / done * (rounds - done)
            say(f"round {done}/{rounds}, {left_s:.0f} s left")
        threads = {size: group.threads for size, group in groups.items()}
    rows = []
    for case in cases:
        reference = Case(REFERENCE, case.shape, case.precision, case.channels_last, case.world_size)
        shares_cores = on_cpu and case.world_size > available_cores()
        rows.append(_row(case, threads[case.world_size], shares_cores, facts, seen, reference))
    return rows


def worst(facts: list[Facts]) -> Facts:
    """Rank 0's, with the longest step of any rank: all must take as many steps."""
    first = facts[0]
    return Facts(first.saved_bytes, first.collectives, max(f.step_s for f in facts))


def _row(
    case: Case,
    threads: int,
    oversubscribed: bool,
    facts: dict[Case, Facts],
    seen: dict[Case, list[Times]],
    reference: Case,
) -> Row:
    forward, backward = (list(column) for column in zip(*seen[case], strict=True))
    bn_forward, bn_backward = (list(column) for column in zip(*seen[reference], strict=True))
    step, bn_step = ([sum(times) for times in seen[c]] for c in (case, reference))
    return Row(
        case=case,
        threads=threads,
        oversubscribed=oversubscribed,
        facts=facts[case],
        forward_s=summarize(forward),
        backward_s=summarize(backward),
        step_s=summarize(step),
        forward_to_bn=relative_to(forward, bn_forward),
        backward_to_bn=relative_to(backward, bn_backward),
        step_to_bn=relative_to(step, bn_step),
        saved_to_bn=facts[case].saved_bytes / facts[reference].saved_bytes,
    )
