"""One colour and one marker for each norm, in every figure, on the page, and from study to study."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    """Of matplotlib."""
    symbol: str
    """The same marker, of Plotly."""


# Okabe & Ito's colours, told apart by most colour-blind readers; yellow is left out, since it is lost on paper.
_BLUE, _VERMILION, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_ORANGE, _SKY, _BLACK, _GREY = "#E69F00", "#56B4E9", "#000000", "#888888"
_COLOURS = (_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY, _BLACK, _GREY)
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
_NORMS = {
    "bn": (_BLUE, "o"),
    "syncbn": (_VERMILION, "s"),
    "gn": (_GREEN, "^"),
    "ln": (_PURPLE, "D"),
    "in": (_ORANGE, "v"),
    "none": (_BLACK, "X"),
    "frozen_bn": (_SKY, "p"),
    "ghost_bn": (_SKY, "o"),
    "batch_renorm": (_BLUE, "P"),
    "ln2d": (_PURPLE, "h"),
    "rms": (_PURPLE, "*"),
    "frn": (_GREY, ">"),
    "evonorm_s0": (_GREY, "<"),
    "switchable": (_GREEN, "s"),
    "batch_instance": (_ORANGE, "o"),
}
NORMS = tuple(_NORMS)


def norm_order(norm: str) -> tuple[int, str]:
    """Norms as they are listed everywhere: the known ones in their order, then the others by name."""
    return (NORMS.index(norm) if norm in _NORMS else len(NORMS), norm)


def style_of(norm: str) -> Style:
    """The norm's colour and marker; an unknown one's follow from its name."""
    if norm in _NORMS:
        colour, marker = _NORMS[norm]
    else:
        digest = hashlib.sha256(norm.encode()).digest()
        markers = list(_SYMBOLS)
        colour, marker = _COLOURS[digest[0] % len(_COLOURS)], markers[digest[1] % len(markers)]
    return Style(colour, marker, _SYMBOLS[marker])
