"""The terminal: our text, and the errors, paths and logs in it, shown unchanged."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

NEVER_WRAPPED = 1 << 20


def plain_console(**options: Any) -> Console:
    """A rich console that shows text unchanged. By default, Rich takes [rank0] for markup, and :x: for an emoji.

    If it is not a terminal, and no `width` is given, it does not wrap lines, so that grep finds them whole.
    """
    console = Console(highlight=False, markup=False, emoji=False, **options)
    if not console.is_terminal and "width" not in options:
        console.width = NEVER_WRAPPED
    return console


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False
) -> None:
    """A table of texts. With `numbers`, all columns but the first are right-aligned, and no cell is wrapped."""
    table = Table(box=None, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and index else "left", no_wrap=numbers)
    for row in rows:
        table.add_row(*row)
    console.print(table, soft_wrap=numbers)


def duration(seconds: float | None) -> str:
    """12 s, 3 min, 4.5 h, 2.1 d."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


class _Loading:
    """Shows what is being loaded and its progress: on one line in a terminal, at each tenth elsewhere."""

    def __init__(self) -> None:
        self._text, self._tenths = "", 0

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None:
        if not total:
            print(text, file=sys.stderr)
            return
        before = self._tenths if text == self._text else 0
        self._text, self._tenths = text, done * 10 // total
        terminal = sys.stderr.isatty()
        if terminal or done == total or self._tenths > before:
            print(f"{text}: {done}/{total}", file=sys.stderr, end="\r" if terminal and done < total else "\n")


show_loading = _Loading()
