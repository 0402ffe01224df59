"""The learning rates and the precision of the studies, chosen from `rates` by the rules of claims.md.

python -m experiments.tuned_rates > conf/experiment/tuned_rates.yaml
"""

import math
import sys
from collections.abc import Mapping

import pandas as pd

from experiments.claims import read
from normlab.report.statistics import Estimate, estimate

WS = "norm.weight_standardization"
FIRST_GRID = (0.05, 0.1, 0.2, 0.4)
TUNED_AT = (2, 32)
BATCH_SIZES = (2, 4, 8, 16, 32)
WITHIN = 0.02
"""bf16 is used if it changes val/accuracy by less than this."""

PRECISION_LINE = "val/accuracy, bf16 - fp32: {0.mean:+.4f} ± {0.half_width:.4f}, n = {0.n}"

CELLS = (("bn", False), ("syncbn", False), ("gn", False), ("gn", True), ("ln", False), ("in", False))
"""(norm, whether with weight standardization)."""

Rates = Mapping[tuple[str, bool], Mapping[int, float]]


class Missing(Exception):
    """Runs that the rules ask for and that are not there: one line each, as overrides."""


def _with_standardization(runs: pd.DataFrame) -> pd.Series:
    held = runs[WS] if WS in runs else pd.Series(False, index=runs.index)
    return held.map(str) == "True"


def precision_difference(runs: pd.DataFrame) -> Estimate:
    """val/accuracy, bf16 - fp32, over bn and syncbn at both batch sizes and the first four rates.

    Raises: Missing.
    """
    accuracy = runs.set_index(["precision", "norm", "batch_size", "optim.lr"])["val/accuracy"]
    pairs, missing = [], []
    for cell in [(norm, b, lr) for norm in ("bn", "syncbn") for b in TUNED_AT for lr in FIRST_GRID]:
        there = [(precision, *cell) in accuracy for precision in ("bf16", "fp32")]
        if all(there):
            pairs.append(float(accuracy["bf16", *cell] - accuracy["fp32", *cell]))
        missing += [
            f"precision={precision} norm={cell[0]} batch_size={cell[1]} optim.lr={cell[2]}"
            for precision, found in zip(("bf16", "fp32"), there, strict=True)
            if not found
        ]
    if missing:
        raise Missing("\n".join(missing))
    return estimate(pairs)


def chosen_precision(difference: Estimate) -> str:
    return "bf16" if max(-difference.low, difference.high) < WITHIN else "fp32"


def best_rates(runs: pd.DataFrame, precision: str) -> Rates:
    """For each cell, the rate with the best val/accuracy at each batch size of `TUNED_AT`.

    Raises: Missing where the first grid is not whole, or the best rate is the lowest or the highest tried.
    """
    runs = runs[runs["precision"] == precision]
    best: dict[tuple[str, bool], dict[int, float]] = {}
    missing = []
    for norm, standardized in CELLS:
        for batch_size in TUNED_AT:
            of_norm = runs[(runs["norm"] == norm) & (_with_standardization(runs) == standardized)]
            of_cell = of_norm[of_norm["batch_size"] == batch_size].set_index("optim.lr")["val/accuracy"]
            asked = [rate for rate in FIRST_GRID if rate not in of_cell]
            if not asked:
                # Where two are equal, the lower one; a diverged run counts as the worst.
                rate = float(of_cell.sort_index().fillna(-math.inf).idxmax())
                if rate == of_cell.index.max():
                    asked = [2 * rate]
                elif rate == of_cell.index.min():
                    asked = [rate / 2]
                best.setdefault((norm, standardized), {})[batch_size] = rate
            ws = f" {WS}=true" if standardized else ""
            missing += [f"norm={norm}{ws} batch_size={batch_size} optim.lr={rate:g}" for rate in asked]
    if missing:
        raise Missing("\n".join(missing))
    return best


def between(low: float, high: float, batch_size: int) -> float:
    """The rate at a batch size from those at 2 and at 32: linear in both logarithms, to three digits."""
    share = math.log(batch_size / TUNED_AT[0]) / math.log(TUNED_AT[1] / TUNED_AT[0])
    return float(f"{low * (high / low) ** share:.3g}")


def preset(best: Rates, difference: Estimate) -> str:
    """conf/experiment/tuned_rates.yaml."""

    def table(cell: tuple[str, bool]) -> str:
        at = {size: between(*(best[cell][edge] for edge in TUNED_AT), size) for size in BATCH_SIZES}
        return "${lookup:${batch_size},{" + ", ".join(f"{size}: {rate:g}" for size, rate in at.items()) + "}}"

    plain = [cell for cell in CELLS if cell != ("gn", True) and cell != ("gn", False)]
    gn = f"${{lookup:${{{WS}}},{{false: {table(('gn', False))},\n    true: {table(('gn', True))}}}}}"
    entries = [f"{name}: {table((name, ws))}" for name, ws in plain] + [f"gn: {gn}"]
    joined = ",\n    ".join(entries)
    return f"""\
# @package _global_
# Not a study: the rate of each norm and batch size, and the precision, which the studies have in common.
# Made from experiments/rates by the rules of experiments/claims.md: python -m experiments.tuned_rates
# {PRECISION_LINE.format(difference)}
precision: {chosen_precision(difference)}
optim:
  lr: >-
    ${{lookup:${{norm.name}},{{
    {joined}}}}}
"""


def main() -> int:
    runs = read("rates")
    assert runs is not None, "experiments/rates/results.csv is not there"
    try:
        difference = precision_difference(runs)
        print(f"{PRECISION_LINE.format(difference)}: {chosen_precision(difference)}", file=sys.stderr)
        text = preset(best_rates(runs, chosen_precision(difference)), difference)
    except Missing as missing:
        print(f"experiments/rates lacks these runs:\n{missing}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
