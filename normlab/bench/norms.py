"""Every norm on every input and number of ranks, in rounds; each figure relative to bn's of the same round."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from torch import nn

from normlab.bench.measure import Case, Facts, Times, examine, norm_config, time_steps
from normlab.bench.ranks import RankPool
from normlab.bench.summary import relative_to, summarize
from normlab.config import ConfigError
from normlab.distributed import available_cores
from normlab.norms import NORMS, check_norms

REFERENCE = "bn"


def plan(
    norms: Sequence[str] | None,
    shapes: Sequence[tuple[int, int, int, int]],
    dtypes: Sequence[str],
    memory_formats: Sequence[str],
    world_sizes: Sequence[int],
) -> tuple[list[Case], dict[str, str]]:
    """The cases, bn first among those that are compared, and why each norm that is left out cannot be built.

    `norms` None: all; on several ranks only those that need other ranks, since the others do the same as on one.
    Raises: ConfigError on an unknown norm, or an input that bn cannot take.
    """
    for name in norms or ():
        if name not in NORMS and ":" not in name:
            raise ConfigError(f"--norms {name} is unknown; choose from {', '.join(NORMS)}, or give module:name.")
    cases: list[Case] = []
    refused: dict[str, str] = {}
    for shape, dtype, memory_format, world_size in product(shapes, dtypes, memory_formats, world_sizes):
        chosen = norms or [name for name in NORMS if world_size == 1 or NORMS[name].needs_ranks]
        for name in dict.fromkeys([REFERENCE, *chosen]):
            problem = why_not(name, shape, world_size)
            if problem is None:
                cases.append(Case(name, shape, dtype, memory_format, world_size))
                continue
            where = f"{name} on {'x'.join(map(str, shape))}, {world_size} rank(s)"
            if name == REFERENCE:
                raise ConfigError(f"--shapes: {where}: {problem}, and all is relative to it; give more samples.")
            refused[where] = problem
    return cases, refused


def why_not(norm: str, shape: tuple[int, int, int, int], world_size: int) -> str | None:
    """Why a norm cannot train on this input; None if it can."""
    batch_size, *image_shape = shape
    layer = nn.Sequential(nn.BatchNorm2d(shape[1], device="meta"))
    try:
        check_norms(layer, tuple(image_shape), batch_size, world_size, norm_config(norm))  # type: ignore[arg-type]
    except ConfigError as error:
        return str(error)
    return None


def measure(
    cases: Sequence[Case], device: str, rounds: int, sample_s: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The cost of each case, as plain values: medians over `rounds`, each of about `sample_s` seconds."""
    facts: dict[Case, Facts] = {}
    times: dict[Case, list[Times]] = {case: [] for case in cases}
    by_size: dict[int, list[Case]] = {}
    for case in cases:
        by_size.setdefault(case.world_size, []).append(case)
    say(f"{len(cases)} cases on {', '.join(map(str, sorted(by_size)))} rank(s)")
    with RankPool(max(by_size), device) as pool:
        for size, same in by_size.items():
            of_ranks = pool.run(examine, same, device, world_size=size)
            facts |= {case: _worst(seen) for case, *seen in zip(same, *of_ranks, strict=True)}
        began = time.monotonic()
        for done in range(1, rounds + 1):
            for size, same in by_size.items():
                steps = [(case, max(1, math.ceil(sample_s / facts[case].step_s))) for case in same]
                of_ranks = pool.run(time_steps, steps, device, world_size=size)
                for case, *seen in zip(same, *of_ranks, strict=True):
                    forward_s, backward_s = (max(each) for each in zip(*seen, strict=True))
                    times[case].append((forward_s, backward_s))
            left_s = (time.monotonic() - began) / done * (rounds - done)
            say(f"round {done}/{rounds}, {left_s:.0f} s left")
    return [_row(case, device, facts, times) for case in cases]


def _worst(facts: Sequence[Facts]) -> Facts:
    """Rank 0's facts, with the longest step of any rank: all must take the same number of steps."""
    return replace(facts[0], step_s=max(f.step_s for f in facts))


def _row(case: Case, device: str, facts: dict[Case, Facts], times: dict[Case, list[Times]]) -> dict[str, Any]:
    reference = replace(case, norm=REFERENCE)
    ours, bns, sent = _columns(times[case]), _columns(times[reference]), facts[case].collectives
    return {
        **asdict(case),
        "threads": facts[case].threads,
        # If there are more ranks than cores, they also wait for a core.
        "oversubscribed": device == "cpu" and case.world_size > available_cores(),
        **{f"{part}_s": asdict(summarize(ours[part])) for part in ours},
        **{f"{part}_to_bn": asdict(relative_to(ours[part], bns[part])) for part in ours},
        "saved_bytes": facts[case].saved_bytes,
        "saved_to_bn": facts[case].saved_bytes / facts[reference].saved_bytes,
        "collectives": [asdict(call) for call in sent],
        "message_bytes": sum(call.message_bytes for call in sent),
    }


def _columns(times: Sequence[Times]) -> dict[str, list[float]]:
    forward_s, backward_s = (list(column) for column in zip(*times, strict=True))
    return {"forward": forward_s, "backward": backward_s, "step": [sum(each) for each in times]}
