"""One colour and one marker per norm, in every figure, on the page, and in every study."""

import hashlib
from dataclasses import dataclass
from itertools import product

from normlab.config.norm import NORMS


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    """matplotlib's name for it."""
    symbol: str
    """Plotly's name for it."""


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
"""Okabe & Ito's, which most colour-blind readers can distinguish; without yellow, which is too faint on paper."""
_COLOURS_OF_UNKNOWN = COLOURS[5:]
"""Those that bn, syncbn, gn, ln and in do not use, since users compare their own norms with these."""
_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "*": "star",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "pentagon",
    "h": "hexagon",
}


def norm_order(norm: str) -> tuple[int, str]:
    """The order in which norms are listed everywhere: known ones as declared, then the others by name."""
    return (list(NORMS).index(norm) if norm in NORMS else len(NORMS), norm)


def style_of(norm: str) -> Style:
    """The norm's colour and marker; an unknown norm's follow from its name, and differ from all of ours."""
    if norm in NORMS:
        colour, marker = NORMS[norm].colour, NORMS[norm].marker
    else:
        ours = {(known.colour, known.marker) for known in NORMS.values()}
        free = [look for look in product(_COLOURS_OF_UNKNOWN, _SYMBOLS) if look not in ours]
        colour, marker = free[int(hashlib.sha256(norm.encode()).hexdigest(), 16) % len(free)]
    return Style(colour, marker, _SYMBOLS[marker])
