"""The verdicts of claims.md: its rules, applied to the results of the studies.

python -m experiments.claims [--markdown]
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from normlab.report.statistics import Estimate, estimate

HERE = Path(__file__).parent
CHANCE = 0.1
"""Accuracy that a cell counts as where most of its runs diverged: ten classes."""

Keys = Mapping[str, object]
Rule = Callable[[Sequence[Estimate]], bool]


@dataclass(frozen=True)
class Difference:
    """`metric` of the runs with `keys`, less that of the runs with `minus`, paired by seed."""

    name: str
    keys: Keys
    minus: Keys


@dataclass(frozen=True)
class Claim:
    """A row of claims.md."""

    number: int
    text: str
    study: str
    differences: tuple[Difference, ...]
    confirmed: Rule
    refuted: Rule
    metric: Callable[[pd.DataFrame], pd.Series] = lambda runs: runs["test/accuracy"]


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    effects: tuple[Estimate, ...]
    """One for each difference, at the level that holds for all of the claim together."""
    word: str
    """confirmed, refuted, inconclusive, or not run."""


def norm(name: str, batch_size: int | None = None, **keys: object) -> Keys:
    """The keys of a cell. GN is without weight standardization unless that is asked for."""
    chosen: dict[str, object] = {"norm": name, "norm.weight_standardization": False}
    if batch_size is not None:
        chosen["batch_size"] = batch_size
    return chosen | {key.replace("__", "."): value for key, value in keys.items()}


def minus(a: Keys, b: Keys) -> Difference:
    """a - b, named by what sets the two apart."""
    shared = [key for key in a if key in b and a[key] == b[key]]

    def word(keys: Keys) -> str:
        shown = [f"{k.removeprefix('norm.')}={v}" for k, v in keys.items() if k not in shared and k != "norm"]
        shown = [text for text in shown if text != "weight_standardization=False"]
        return " ".join([str(keys["norm"]), *shown])

    common = " ".join(f"{key}={a[key]}" for key in shared if key not in ("norm", "norm.weight_standardization"))
    return Difference(f"{word(a)} - {word(b)}" + (f" at {common}" if common else ""), a, b)


def lows(bound: float) -> Rule:
    return lambda effects: all(effect.low > bound for effect in effects)


def any_low(bound: float) -> Rule:
    return lambda effects: any(effect.low > bound for effect in effects)


def highs(bound: float) -> Rule:
    return lambda effects: all(effect.high < bound for effect in effects)


def any_high(bound: float) -> Rule:
    return lambda effects: any(effect.high < bound for effect in effects)


def gap(runs: pd.DataFrame) -> pd.Series:
    return runs["train/accuracy"] - runs["test/accuracy"]


GN_WS = {"norm__weight_standardization": True}
INNER = [norm("gn", 16, norm__num_groups=groups) for groups in (4, 8)]
EXTREMES = [norm("gn", 16, norm__num_groups=1), norm("gn", 16, norm__channels_per_group=1)]
EVALUATED = {policy: norm("bn", 2, running_stats=policy) for policy in ("rank0", "pooled", "precise")}

CLAIMS = (
    Claim(
        1,
        "BN gets worse as the per-rank batch shrinks",
        "batch_size",
        (minus(norm("bn", 32), norm("bn", 2)),),
        lows(0.01),
        highs(0.01),
    ),
    Claim(
        2,
        "SyncBN undoes that: at a small batch on many ranks it is as good as BN at a large batch",
        "batch_size",
        (minus(norm("syncbn", 2), norm("bn", 2)), minus(norm("syncbn", 2), norm("bn", 32))),
        lambda effects: effects[0].low > 0.01 and effects[1].low > -0.02,
        lambda effects: effects[0].high < 0.01 or effects[1].high < -0.02,
    ),
    Claim(
        3,
        "Evaluating BN with the running statistics of one rank costs accuracy at small batches",
        "running_stats",
        tuple(minus(EVALUATED[policy], EVALUATED["rank0"]) for policy in ("pooled", "precise")),
        any_low(0.005),
        highs(0.005),
    ),
    Claim(
        4,
        "GN, LN and IN do not depend on the batch size",
        "batch_size",
        tuple(minus(norm(name, 32), norm(name, 2)) for name in ("gn", "ln", "in")),
        lambda effects: all(effect.low > -0.02 and effect.high < 0.02 for effect in effects),
        lambda effects: any(effect.low > 0.02 or effect.high < -0.02 for effect in effects),
    ),
    Claim(
        5,
        "GN beats BN when the per-rank batch is below 16",
        "batch_size",
        tuple(minus(norm("gn", batch), norm("bn", batch)) for batch in (2, 4, 8)),
        lows(0),
        any_high(0),
    ),
    Claim(
        6,
        "At a large batch BN beats GN, and GN beats LN",
        "batch_size",
        (minus(norm("bn", 32), norm("gn", 32)), minus(norm("gn", 32), norm("ln", 32))),
        lows(0),
        any_high(0),
    ),
    Claim(
        7,
        "IN is the worst of the five for classification at a large batch",
        "batch_size",
        tuple(minus(norm("in", 32), norm(other, 32)) for other in ("bn", "syncbn", "gn", "ln")),
        highs(0),
        any_low(0),
    ),
    Claim(
        8,
        "GN is best between its extremes, one group and one channel per group",
        "groups",
        tuple(minus(inner, extreme) for inner in INNER for extreme in EXTREMES),
        lows(0),
        any_high(0),
    ),
    Claim(
        9,
        "BN tolerates larger learning rates than no norm",
        "learning_rate",
        tuple(
            minus(norm("bn", initialisation=one), norm("none", initialisation=one))
            for one in ("default", "doubled")
        ),
        lows(1),
        any_high(1),
        lambda runs: np.log2(runs["largest_lr"]),
    ),
    Claim(
        10,
        "The noise of BN's statistics regularises: it narrows the gap between train and test",
        "regularization",
        (minus(norm("ghost_bn", normalization_batch_size=64), norm("ghost_bn", normalization_batch_size=4)),),
        lows(0.005),
        highs(0.005),
        gap,
    ),
    Claim(
        11,
        "Segmentation at a small per-rank batch gains from SyncBN",
        "segmentation",
        tuple(minus(norm("syncbn", batch), norm("bn", batch)) for batch in (1, 2)),
        lows(0.01),
        highs(0.01),
        lambda runs: runs["test/miou"],
    ),
    Claim(
        12,
        "Weight standardization closes GN's gap to BN",
        "batch_size",
        (
            *(minus(norm("gn", batch, **GN_WS), norm("gn", batch)) for batch in (2, 32)),
            minus(norm("gn", 32, **GN_WS), norm("bn", 32)),
        ),
        lambda effects: all(effect.low > 0.02 for effect in effects[:2]) and effects[2].low > -0.02,
        lambda effects: any(effect.high < 0.02 for effect in effects[:2]) or effects[2].high < -0.02,
    ),
)


def values(runs: pd.DataFrame, keys: Keys, metric: Callable[[pd.DataFrame], pd.Series]) -> dict[int, float]:
    """Seed -> metric of the runs that have all `keys`; chance for each seed where most of them diverged.

    A key that no run of the study sets is one that was not swept: all runs have its default.
    """
    for key, value in keys.items():
        if key in runs:
            held = runs[key].fillna(False) if isinstance(value, bool) else runs[key]
            runs = runs[held == value]
        elif value is not False:
            return {}
    finished = runs[runs["state"] == "finished"]
    diverged = runs[runs["state"] == "diverged"]
    if len(diverged) > len(finished):
        return {int(seed): CHANCE for seed in runs["seed"]}
    found = dict(zip(finished["seed"].astype(int), metric(finished), strict=True)) if len(finished) else {}
    return {seed: float(value) for seed, value in found.items() if math.isfinite(value)}


def judge(claim: Claim, runs: pd.DataFrame | None) -> Verdict:
    """Apply a claim's rule to the runs of its study."""
    if runs is None:
        return Verdict(claim, (), "not run")
    level = 1 - 0.05 / len(claim.differences)
    effects = []
    for difference in claim.differences:
        a, b = (values(runs, keys, claim.metric) for keys in (difference.keys, difference.minus))
        effects.append(estimate([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], level))
    if any(effect.n < 2 for effect in effects):
        word = "inconclusive"
    elif claim.confirmed(effects):
        word = "confirmed"
    else:
        word = "refuted" if claim.refuted(effects) else "inconclusive"
    return Verdict(claim, tuple(effects), word)


def read(study: str, root: Path = HERE) -> pd.DataFrame | None:
    """results.csv of a study, a row a run; None where it was not run."""
    path = root / study / "results.csv"
    return pd.read_csv(path) if path.exists() else None


def rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """Number, claim, effects, n and verdict, as text."""
    shown = []
    for verdict in verdicts:
        effects = [
            f"{difference.name}: " + (f"{e.mean:+.3f} ± {e.half_width:.3f}" if e.n > 1 else "too few seeds")
            for difference, e in zip(verdict.claim.differences, verdict.effects, strict=False)
        ]
        n = ", ".join(dict.fromkeys(str(effect.n) for effect in verdict.effects))
        shown.append([str(verdict.claim.number), verdict.claim.text, "; ".join(effects), n, verdict.word])
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description="The verdicts of claims.md.")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    head = ["", "claim", "effects, with intervals that hold together with 95 percent", "n", "verdict"]
    shown = rows([judge(claim, read(claim.study)) for claim in CLAIMS])
    if parser.parse_args().markdown:
        print("\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *shown]))
        return
    table = Table(*head, box=None, header_style="bold")
    for row in shown:
        table.add_row(*row)
    Console(markup=False).print(table)


if __name__ == "__main__":
    main()
