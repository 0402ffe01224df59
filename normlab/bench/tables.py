"""How measurements are shown: tables on a terminal, and pages in Markdown."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from normlab.bench.norms import Row, memory_format
from normlab.bench.summary import Summary

COLUMNS = (
    "norm",
    "ranks",
    "forward, µs",
    "backward, µs",
    "forward / bn",
    "backward / bn",
    "step / bn",
    "kept, KiB",
    "kept / bn",
    "collectives",
    "bytes sent",
)


def ratio(summary: Summary) -> str:
    return f"{summary.median:.2f} ({summary.low:.2f} to {summary.high:.2f})"


def norm_tables(rows: Sequence[Row]) -> list[tuple[str, list[list[str]]]]:
    """(title, lines of COLUMNS) for each input; ranks in their order, and norms in the registry's."""
    tables = []
    for (shape, precision, layout), same in groupby(rows, key=_input):
        title = f"{'x'.join(map(str, shape))} on each rank, {precision}, {layout}"
        tables.append((title, [_cells(row) for row in sorted(same, key=lambda row: row.case.world_size)]))
    return tables


def _input(row: Row) -> tuple[tuple[int, ...], str, str]:
    return row.case.shape, row.case.precision.value, memory_format(row.case)


def _cells(row: Row) -> list[str]:
    calls = row.facts.collectives
    return [
        row.case.norm,
        f"{row.case.world_size}{'*' if row.oversubscribed else ''}",
        f"{row.forward_s.median * 1e6:.0f}",
        f"{row.backward_s.median * 1e6:.0f}",
        f"{row.forward_to_bn.median:.2f}",
        f"{row.backward_to_bn.median:.2f}",
        ratio(row.step_to_bn),
        f"{row.facts.saved_bytes / 1024:.1f}",
        f"{row.saved_to_bn:.2f}",
        " + ".join(call.name for call in calls) or "none",
        " + ".join(str(call.message_bytes) for call in calls) or "0",
    ]


def print_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], console: Console) -> None:
    table = Table(box=None, header_style="bold", title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="left" if index == 0 else "right")
    for line in lines:
        table.add_row(*line)
    if not console.is_terminal:
        console.width = 400  # lines are for grep there, not for the eye
    console.print(table, soft_wrap=True)


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] + ["---:"] * (len(columns) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
