"""Comparisons of cells with those of the baseline, or of another study."""

from collections.abc import Mapping
from dataclasses import dataclass

from normlab.report.cells import Cell
from normlab.report.statistics import Difference, paired_difference, with_p_values
from normlab.report.study import Study


@dataclass(frozen=True)
class Contrast:
    """Cells, each paired with the one that is subtracted from it."""

    of: str
    """The study whose cells these are; empty if they are all cells but the baseline's."""
    to: str
    """What is subtracted: the baseline's series, or a study."""
    pairs: Mapping[Cell, Cell]

    @property
    def label(self) -> str:
        return f"{self.of} minus {self.to}".strip()

    def differences(self, metric: str) -> dict[Cell, Difference]:
        """Paired by seed. p-values are adjusted for all of these together."""
        found = [
            paired_difference(one.by_seed(metric), other.by_seed(metric)) for one, other in self.pairs.items()
        ]
        return dict(zip(self.pairs, with_p_values(found), strict=True))

    def title(self, metric: str) -> str:
        """The title of a table of these differences."""
        count = family(self.differences(metric))
        of = f" of {self.of}" if self.of else ""
        adjusted = f", p adjusted by Holm for {count} differences" if count else ""
        interval = "mean ± 95 percent interval over n pairs (Student t)"
        return f"{metric}{of} minus that of {self.to} with the same seed, {interval}{adjusted}"

    def explanation(self, metric: str) -> str:
        """What the intervals and p-values mean; empty if there are none."""
        count = family(self.differences(metric))
        if not count:
            return ""
        which = "between the studies" if self.of else f"to {self.to}"
        return (
            f"{metric} {self.label}: an interval is for its own difference; it holds the true one in 95 of 100 "
            "studies, and is not corrected for how many there are. p (paired t test) is corrected for that, by "
            f"Holm's method, over all {count} differences {which}: calling every one with p < 0.05 different is "
            "wrong, even once, in at most 5 of 100 studies."
        )


def family(differences: Mapping[Cell, Difference]) -> int:
    """How many of them have a p-value."""
    return sum(one.n > 1 for one in differences.values())


def contrasts(study: Study, baseline: str | None) -> list[Contrast]:
    """Differences from the baseline, if there is one, and of the first study from the second, if there are two."""
    made = []
    if baseline is not None:
        keys = tuple(axis for axis in study.axes if axis.startswith("norm."))
        reference = {cell.without(*keys): cell for cell in study.cells if cell.series == baseline}
        pairs = {
            cell: reference[place]
            for cell in study.cells
            if cell.series != baseline and (place := cell.without(*keys)) in reference
        }
        made.append(Contrast("", baseline, pairs))
    if len(study.names) == 2:
        first, second = study.names
        other = {(c.norm, *c.without("study")): c for c in study.cells if c.values.get("study") == second}
        mine = {(c.norm, *c.without("study")): c for c in study.cells if c.values.get("study") == first}
        pairs = {cell: other[place] for place, cell in mine.items() if place in other}
        made.append(Contrast(first, second, pairs))
    return made
