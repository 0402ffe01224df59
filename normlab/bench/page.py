"""Showing measurements, from the plain values in cost.json: in a terminal, and as docs/cost.md."""

import json
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from normlab.atomic import atomic_write
from normlab.config.model import CifarResNetConfig, Stem, TorchvisionConfig
from normlab.console import plain_console, print_table
from normlab.markdown import escape, markdown_table
from normlab.models import build_model, on_meta
from normlab.norms.convert import norm_layers
from normlab.step_cost import gathered, reduced

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
NETWORKS = (
    ("ResNet-20, 10 classes", CifarResNetConfig(name="resnet20", depth=20), 10),
    ("ResNet-50, 1000 classes", TorchvisionConfig(name="resnet50", stem=Stem.own), 1000),
)
FLOAT_BYTES = 4


def show(result: dict[str, Any]) -> None:
    """The tables and how to read them, on stdout."""
    console = plain_console()
    for title, rows in norm_tables(result):
        console.print(title, style="bold", soft_wrap=True)
        print_table(console, COLUMNS, rows, numbers=True)
        console.print()
    print(*notes(result), sep="\n")


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write cost.json, and cost.md, the page made from it."""
    with atomic_write(folder / "cost.json") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    with atomic_write(folder / "cost.md") as file:
        file.write(page(result))


def norm_tables(result: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows of COLUMNS) for each input, by ranks, and for each number of ranks in the registry's order."""
    tables = []
    for (shape, dtype, memory_format), same in groupby(
        result["cases"], key=lambda case: (case["shape"], case["dtype"], case["memory_format"])
    ):
        title = f"{'x'.join(map(str, shape))} on each rank, {dtype}, {memory_format}"
        tables.append((title, [_cells(case) for case in sorted(same, key=lambda case: case["world_size"])]))
    return tables


def _cells(case: dict[str, Any]) -> list[str]:
    step, sent = case["step_to_bn"], case["collectives"]
    return [
        case["norm"],
        f"{case['world_size']}{'*' if case['oversubscribed'] else ''}",
        f"{case['forward_s']['median'] * 1e6:.0f}",
        f"{case['backward_s']['median'] * 1e6:.0f}",
        f"{case['forward_to_bn']['median']:.2f}",
        f"{case['backward_to_bn']['median']:.2f}",
        f"{step['median']:.2f} ({step['low']:.2f} to {step['high']:.2f})",
        f"{case['saved_bytes'] / 1024:.1f}",
        f"{case['saved_to_bn']:.2f}",
        " + ".join(call["name"] for call in sent) or "none",
        " + ".join(str(call["message_bytes"]) for call in sent) or "0",
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """How to read the tables."""
    cases = result["cases"]
    threads = {case["world_size"]: case["threads"] for case in cases}
    lines = [
        "Each ratio is the median over rounds of (norm / bn of the same round and number of ranks); in brackets, "
        f"an interval of {cases[0]['step_to_bn']['coverage']:.1%} coverage "
        f"(order statistics, n = {result['rounds']}).",
        "Times are those of the slowest rank. Threads per rank: "
        + ", ".join(f"{n} with {size} rank(s)" for size, n in sorted(threads.items()))
        + ".",
        "kept: the storages that autograd keeps for backward, each counted once; the layer's input is included, "
        "its parameters and buffers are not.",
        "bytes sent: what one rank hands to each collective of a forward and backward, counted from its calls.",
    ]
    if crowded := sorted({case["world_size"] for case in cases if case["oversubscribed"]}):
        lines.append(
            f"*: {' and '.join(map(str, crowded))} ranks share {result['cores']} cores here, so they also wait "
            "for each other's turn; on hardware of their own they would not."
        )
    return lines + [f"left out: {where}: {why}" for where, why in result["refused"].items()]


def page(result: dict[str, Any]) -> str:
    busy = ""
    if result["load_average"] > result["cores"] / 2:
        busy = (
            f"\n**Other programs ran at the same time** (load average {result['load_average']:.1f} on "
            f"{result['cores']} cores at the start): do not read the times, but measure them again.\n"
        )
    tables = ""
    for title, rows in norm_tables(result):
        escaped = [[escape(cell) for cell in row] for row in rows]
        tables += f"\n## {title}\n\n{markdown_table(COLUMNS, escaped, numbers=True)}"
    return f"""# What each norm costs

Made by `{result["command"]}` on {result["date"]}: {result["hardware"]}, torch {result["torch"]}, ranks over \
{result["backend"]}, {result["rounds"]} rounds. All figures are in [cost.json](cost.json).
{busy}
{"".join(f"- {escape(note)}{chr(10)}" for note in notes(result))}{tables}
{many_ranks()}"""


def many_ranks() -> str:
    """The exact messages of a step, and the formula for their time on a reader's own network."""
    columns = (
        "network",
        "norm layers L",
        "SyncBN: collectives",
        "gathered, bytes G",
        "reduced, bytes A",
        "gradients, bytes P",
    )
    return f"""## What SyncBN costs on many ranks

In each step, each norm layer of C channels hands in on each rank:

| | collective | bytes |
| --- | --- | --- |
| forward | one all-gather of two statistics per channel, and their count | 4 (2 C + 1) |
| backward | one all-reduce of two sums per channel | 4 x 2 C |

Statistics are float32, also under bf16; under fp64 each value has 8 bytes. The other norms send nothing. With
any norm, DistributedDataParallel also all-reduces the gradients, 4 bytes per parameter, in buckets beside the
backward. For whole networks, each rank hands in per step:

{markdown_table(columns, network_rows(), numbers=True)}
Where a message of n bytes takes alpha + n beta seconds, R ranks take:

| | ring | tree |
| --- | --- | --- |
| all-gather, m bytes per rank | (R - 1) alpha + (R - 1) m beta | ceil(log2 R) alpha + (R - 1) m beta |
| all-reduce, n bytes | 2 (R - 1) alpha + 2 (R - 1) / R n beta | 2 ceil(log2 R) alpha + 2 (R - 1) / R n beta |

SyncBN's collectives therefore add to each step

```
ring: 3 L (R - 1) alpha        + (R - 1) (G + 2 A / R) beta
tree: 3 L ceil(log2 R) alpha   + (R - 1) (G + 2 A / R) beta
```

None of this overlaps with other work, since the next layer waits for the statistics. With
`norm.sync_group_size=N`, R is N. SyncBN's own kernels, and the wait for the slowest rank, come on top. The
gradients take about one all-reduce of P bytes, of which DistributedDataParallel hides a part.

Measure alpha and beta on your own network with [nccl-tests](https://github.com/NVIDIA/nccl-tests): in the
output of `all_reduce_perf`, alpha is the time of the smallest message divided by 2 (R - 1), or by 2 ceil(log2 R),
and beta is 1 / busbw of the largest. Better still, if you can run nccl-tests on all R ranks, use no formula: add
up, over the norm layers, the times of `all_gather_perf` at R x 4 (2 C + 1) bytes (its sizes are sums over ranks)
and of `all_reduce_perf` at 8 C bytes.

Sources: Thakur, Rabenseifner & Gropp 2005, IJHPCA 19(1), 49-66; for the ring's all-reduce, Patarasuk & Yuan 2009,
JPDC 69(2), 117-124.
"""


def network_rows() -> list[list[str]]:
    rows = []
    for name, config, num_classes in NETWORKS:
        model = on_meta(partial(build_model, config, num_classes, seed=0))
        channels = [layer.num_features for layer in norm_layers(model).values()]
        gradients = sum(p.numel() for p in model.parameters())
        values = (sum(map(gathered, channels)), sum(map(reduced, channels)), gradients)
        counts = (len(channels), 2 * len(channels), *(FLOAT_BYTES * count for count in values))
        rows.append([name, *(f"{count:,}" for count in counts)])
    return rows
