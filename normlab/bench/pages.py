"""The pages that measurements are shown on, in Markdown, each with its JSON beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.atomic import atomic_write
from normlab.bench.norms import Row
from normlab.bench.tables import COLUMNS, markdown_table, norm_tables


def write(folder: Path, name: str, page: str, result: dict[str, Any]) -> None:
    """<name>.md and <name>.json."""
    with atomic_write(folder / f"{name}.json") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    with atomic_write(folder / f"{name}.md") as file:
        file.write(page)


def made_with(result: dict[str, Any]) -> str:
    """The command, what it ran on, and whether other programs ran beside it."""
    text = (
        f"Made by `{result['command']}` on {result['date']}: {result['hardware']}, torch {result['torch']}, "
        f"ranks over {result['backend']}, {result['rounds']} rounds."
    )
    if result["load_average"] > result["cores"] / 2:
        text += (
            f"\n\n**Other programs ran at the same time** (load average {result['load_average']:.1f} on "
            f"{result['cores']} cores at the start): do not read the times, but make them again.\n"
        )
    return text


def cost_notes(result: dict[str, Any]) -> str:
    """How to read the tables."""
    threads = {case["world_size"]: case["threads"] for case in result["cases"]}
    lines = [
        "Each ratio is the median over rounds of (norm / bn of the same round and number of ranks); in brackets "
        f"an interval of {result['cases'][0]['step_to_bn']['coverage']:.1%} coverage "
        f"(order statistics, n = {result['rounds']}).",
        "Times are of the slowest rank. Threads of a rank: "
        + ", ".join(f"{n} with {size} rank(s)" for size, n in sorted(threads.items()))
        + ".",
        "kept: storages that autograd saves for backward, each once, the layer's input included, its parameters "
        "and buffers not.",
        "bytes sent: what one rank hands to each collective of a forward and backward, counted from its calls.",
    ]
    crowded = sorted({case["world_size"] for case in result["cases"] if case["oversubscribed"]})
    if crowded:
        sizes = " and ".join(map(str, crowded))
        lines.append(
            f"*: {sizes} ranks share {result['cores']} cores here, so they also wait for each other's turn; on "
            "hardware of their own they would not."
        )
    lines += [f"left out: {where}: {why}" for where, why in result["refused"].items()]
    return "\n".join(lines)


def write_cost(folder: Path, result: dict[str, Any], rows: Sequence[Row]) -> None:
    """cost.md and cost.json."""
    notes = "".join(f"- {line}\n" for line in cost_notes(result).replace("\n*:", "\n\\*:").splitlines())
    page = f"# What each norm costs\n\n{made_with(result)}\nAll figures are in [cost.json](cost.json).\n\n{notes}"
    for title, lines in norm_tables(rows):
        page += f"\n## {title}\n\n{markdown_table(COLUMNS, lines)}"
    write(folder, "cost", page, result)
