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

from normlab.console import plain_console, print_table
from normlab.markdown import markdown_table
from normlab.report.statistics import Estimate, estimate

HERE = Path(__file__).parent
CHANCE = 0.1
"""Accuracy that a cell counts as where most of its runs diverged: ten classes."""
SCALE = "model.init_scale"

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
    chance: float | None = CHANCE
    """What the metric is in a cell most of whose runs diverged; None leaves such a cell without a value."""
    prepare: Callable[[pd.DataFrame], pd.DataFrame] = lambda runs: runs
    """What is done to the study's runs first."""


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    effects: tuple[Estimate, ...]
    """One for each difference, at the level that holds for all of the claim together."""
    word: str
    """confirmed, refuted, inconclusive, or not run."""
    diverged: int = 0
    """Runs of the claim's cells that diverged."""


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


def largest_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each norm, initialisation and seed: the largest rate within 0.1 of its norm's best mean."""
    made = []
    for (name, scale), of_norm in runs[runs["state"] == "finished"].groupby(["norm", SCALE]):
        best = of_norm.groupby("optim.lr")["test/accuracy"].mean().max()
        kept = of_norm[of_norm["test/accuracy"] >= best - 0.1].groupby("seed")["optim.lr"].max()
        place = {"norm": name, SCALE: scale, "state": "finished"}
        made += [place | {"seed": seed, "largest_lr": lr} for seed, lr in kept.items()]
    return pd.DataFrame(made)


GN_WS = {"norm__weight_standardization": True}
INNER = [norm("gn", 16, norm__num_groups=groups) for groups in (4, 8)]
EXTREMES = [norm("gn", 16, norm__num_groups=1), norm("gn", 16, norm__channels_per_group=1)]
EVALUATED = {policy: norm("bn", 2, norm__running_stats=policy) for policy in ("rank0", "pooled", "precise")}

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
            minus(norm("bn", model__init_scale=scale), norm("none", model__init_scale=scale))
            for scale in (1.0, 2.0)
        ),
        lows(1),
        any_high(1),
        lambda runs: np.log2(runs["largest_lr"]),
        chance=None,
        prepare=largest_rates,
    ),
    Claim(
        10,
        "The noise of BN's statistics regularises: it narrows the gap between train and test",
        "regularization",
        (minus(norm("ghost_bn", normalization_batch_size=64), norm("ghost_bn", normalization_batch_size=4)),),
        lows(0.005),
        highs(0.005),
        gap,
        chance=0.0,
    ),
    Claim(
        11,
        "Segmentation at a small per-rank batch gains from SyncBN",
        "segmentation",
        tuple(minus(norm("syncbn", batch), norm("bn", batch)) for batch in (1, 2)),
        lows(0.01),
        highs(0.01),
        lambda runs: runs["test/miou"],
        chance=None,
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


def cell(runs: pd.DataFrame, keys: Keys) -> pd.DataFrame:
    """The runs that have all `keys`; one that was not swept and is False here is the default of all runs."""
    for key, value in keys.items():
        if key in runs:
            held = runs[key].fillna(False) if isinstance(value, bool) else runs[key]
            runs = runs[held == value]
        elif value is not False:
            return runs.iloc[:0]
    return runs


def values(runs: pd.DataFrame, claim: Claim) -> dict[int, float]:
    """Seed -> the claim's metric of a cell's finished runs; chance for each seed where more than half diverged.

    Raises: ValueError where a seed has several runs, so that the cell is no cell.
    """
    if runs["seed"].duplicated().any():
        raise ValueError(f"claim {claim.number}: a seed has several runs in one cell; a swept key is not named")
    if 2 * int((runs["state"] == "diverged").sum()) > len(runs):
        return {} if claim.chance is None else dict.fromkeys(runs["seed"].astype(int), claim.chance)
    finished = runs[runs["state"] == "finished"]
    found = dict(zip(finished["seed"].astype(int), claim.metric(finished), strict=True)) if len(finished) else {}
    return {seed: float(value) for seed, value in found.items() if math.isfinite(value)}


def judge(claim: Claim, runs: pd.DataFrame | None) -> Verdict:
    """Apply a claim's rule to the runs of its study."""
    if runs is None:
        return Verdict(claim, (), "not run")
    prepared = claim.prepare(runs)
    level = 1 - 0.05 / len(claim.differences)
    effects = []
    for difference in claim.differences:
        a, b = (values(cell(prepared, keys), claim) for keys in (difference.keys, difference.minus))
        effects.append(estimate([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], level))
    if any(effect.n < 2 for effect in effects):
        word = "inconclusive"
    elif claim.confirmed(effects):
        word = "confirmed"
    else:
        word = "refuted" if claim.refuted(effects) else "inconclusive"
    cells = [cell(runs, keys) for each in claim.differences for keys in (each.keys, each.minus)]
    there = pd.concat(cells) if cells else runs
    diverged = there[there["state"] == "diverged"].drop_duplicates("run") if "run" in there else there.iloc[:0]
    return Verdict(claim, tuple(effects), word, len(diverged))


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
        word = verdict.word + (f" ({verdict.diverged} runs diverged)" if verdict.diverged else "")
        shown.append([str(verdict.claim.number), verdict.claim.text, "; ".join(effects), n, word])
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description="The verdicts of claims.md.")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    head = ["", "claim", "effects, with intervals that hold together with 95 percent", "n", "verdict"]
    shown = rows([judge(claim, read(claim.study)) for claim in CLAIMS])
    if parser.parse_args().markdown:
        print(markdown_table(head, shown), end="")
    else:
        print_table(plain_console(), head, shown)


if __name__ == "__main__":
    main()
