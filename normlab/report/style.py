"""One colour and one marker for each norm, in every figure, on the page, and from study to study."""

import hashlib
from dataclasses import dataclass

from normlab.config.norm import NORMS


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    """Of matplotlib."""
    symbol: str
    """The same marker, of Plotly."""


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
"""Okabe & Ito's, told apart by most colour-blind readers; yellow is left out, since it is lost on paper."""
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
    """Norms as they are listed everywhere: the known ones in their order, then the others by name."""
    return (list(NORMS).index(norm) if norm in NORMS else len(NORMS), norm)


def style_of(norm: str) -> Style:
    """The norm's colour and marker; an unknown one's follow from its name."""
    if norm in NORMS:
        colour, marker = NORMS[norm].colour, NORMS[norm].marker
    else:
        digest = hashlib.sha256(norm.encode()).digest()
        markers = list(_SYMBOLS)
        colour, marker = COLOURS[digest[0] % len(COLOURS)], markers[digest[1] % len(markers)]
    return Style(colour, marker, _SYMBOLS[marker])
