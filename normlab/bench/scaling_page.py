"""The cost model's page: tables, figure, and what they say, all from one set of numbers."""

from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from normlab.bench.pages import made_with, write
from normlab.bench.tables import markdown_table, print_table

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, lines."""


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def spread(summary: dict[str, Any]) -> str:
    return f"{ms(summary['median'])} ({ms(summary['low'])} to {ms(summary['high'])})"


def collectives_table(result: dict[str, Any]) -> Table:
    lines = [
        [
            m["collective"],
            str(m["ranks"]),
            f"{m['message_bytes']:,}",
            spread(m["measured_s"]),
            ms(m["measured_s"]["median"] * (1 + m["relative_error"])),
            f"{m['relative_error']:+.0%}",
        ]
        for m in result["collectives"]
    ]
    columns = ["collective", "ranks", "bytes a rank", "measured, ms", "model, ms", "error"]
    return "Collectives, measured and by the model", columns, lines


def steps_table(result: dict[str, Any]) -> Table:
    lines = []
    for network in result["networks"]:
        for step in network["steps"]:
            model, seen = step["model_sync_batch_norm_s"], step["sync_batch_norm_s"]
            lines.append(
                [
                    f"{network['model']}, batch {network['batch_size']}",
                    str(step["ranks"]),
                    spread(step["alone_s"]),
                    spread(seen),
                    ms(model),
                    error(model, seen["median"]),
                    spread(step["gradients_s"]),
                    ms(step["model_gradients_s"]),
                    error(step["model_gradients_s"], step["gradients_s"]["median"]),
                ]
            )
    columns = ["network", "ranks", "step alone, ms", "SyncBN adds, ms", "model", "error"]
    return "Training steps, measured and by the model", [*columns, "gradients add, ms", "model", "error"], lines


def error(model: float, measured: float) -> str:
    """Relative, where what was measured is more than nothing."""
    return f"{model / measured - 1:+.0%}" if measured > 0 else "none measured"


def predictions_table(network: dict[str, Any], algorithm: str) -> Table:
    keys = ("sync_batch_norm", "sync_batch_norm_in_groups", "gradients")
    columns = ["ranks"]
    for label in ("SyncBN", "in groups of a node", "gradients"):
        columns += [f"{label}, ms", "share"] if network["compute_s"] else [f"{label}, ms"]
    lines = []
    for row in (row for row in network["predictions"] if row["algorithm"] == algorithm):
        line = [f"{row['ranks']:,}"]
        for key in keys:
            line.append(ms(row[f"{key}_s"]))
            if network["compute_s"]:
                line.append(f"{row[f'{key}_share']:.1%}")
        lines.append([*line, ms(row["step_s"])] if network["compute_s"] else line)
    columns += ["step, ms"] if network["compute_s"] else []
    return f"{network['model']}, {algorithm}", columns, lines


def tables(result: dict[str, Any]) -> list[Table]:
    predicted = [predictions_table(n, algorithm) for n in result["networks"] for algorithm in ("ring", "tree")]
    return [collectives_table(result), steps_table(result), *predicted]


def show(result: dict[str, Any]) -> None:
    """The tables on stdout."""
    console = Console(highlight=False)
    for title, columns, lines in tables(result):
        print_table(title, columns, lines, console)
        print()
    print("\n".join([*link_lines(result), *error_lines(result), *node_lines(result)]))


def link_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name}: alpha {link['alpha_s'] * 1e6:.0f} µs a round, beta {link['beta_s_per_byte'] * 1e9:.3g} ns a "
        f"byte" + (f" ({1e-9 / link['beta_s_per_byte']:.2g} GB/s)" if link["beta_s_per_byte"] else "")
        for name, link in result["links"].items()
    ]


def error_lines(result: dict[str, Any]) -> list[str]:
    """How far the model is from what was measured, and from what it was not fitted to."""
    lines = []
    for name in result["links"]:
        for ranks in sorted({m["ranks"] for m in result["collectives"]}):
            points = [m for m in result["collectives"] if (m["collective"], m["ranks"]) == (name, ranks)]
            errors = [abs(m["relative_error"]) for m in points]
            line = (
                f"{name} on {ranks} ranks: error at the fitted points {median(errors):.0%} in the median, "
                f"{max(errors):.0%} at most (n = {len(errors)} sizes)"
            )
            if ranks > 2:
                unseen = [abs(m["relative_error_fitted_to_2_ranks"]) for m in points]
                line += f"; fitted to 2 ranks alone, {median(unseen):.0%} and {max(unseen):.0%}"
            lines.append(line)
    return lines


def node_lines(result: dict[str, Any]) -> list[str]:
    """What the predictions say about sync groups of one node."""
    lines, node = [], result["node_ranks"]
    for network in result["networks"]:
        for algorithm in ("ring", "tree"):
            last = [row for row in network["predictions"] if row["algorithm"] == algorithm][-1]
            whole, group = last["sync_batch_norm_s"], last["sync_batch_norm_in_groups_s"]
            lines.append(
                f"{network['model']} on {last['ranks']:,} ranks, {algorithm}: over all ranks SyncBN's "
                f"collectives take {ms(whole)} ms a step, in groups of {node} {ms(group)} ms "
                f"({whole / group:.3g} times less), for a normalization batch size of "
                f"{node * network['batch_size']} instead of {last['ranks'] * network['batch_size']:,}"
            )
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds a step against ranks, one panel a network: lines of the model, points that were measured."""
    from matplotlib.figure import Figure

    networks = result["networks"]
    figure = Figure(figsize=(5.2 * len(networks), 4.4), layout="constrained")
    for index, network in enumerate(networks):  # the first has everything that the legend names
        axes = figure.add_subplot(1, len(networks), index + 1)
        for key, label, colour in (
            ("sync_batch_norm_s", "SyncBN, all ranks", "tab:blue"),
            ("sync_batch_norm_in_groups_s", f"SyncBN, groups of {result['node_ranks']}", "tab:green"),
            ("gradients_s", "gradients", "tab:orange"),
        ):
            for algorithm, style in (("ring", "-"), ("tree", "--")):
                rows = [row for row in network["predictions"] if row["algorithm"] == algorithm]
                x, y = [row["ranks"] for row in rows], [row[key] * 1e3 for row in rows]
                axes.plot(x, y, style, color=colour, label=f"{label}, {algorithm}")
        for key, label, colour, marker in (
            ("sync_batch_norm_s", "SyncBN, measured", "tab:blue", "o"),
            ("gradients_s", "gradients, measured", "tab:orange", "s"),
        ):
            seen = [step for step in network["steps"] if step[key]["median"] > 0]
            middle = [step[key]["median"] * 1e3 for step in seen]
            below = [max(0.0, step[key]["median"] - max(step[key]["low"], 1e-6)) * 1e3 for step in seen]
            above = [(step[key]["high"] - step[key]["median"]) * 1e3 for step in seen]
            ranks = [step["ranks"] for step in seen]
            axes.errorbar(ranks, middle, [below, above], fmt=marker, color=colour, capsize=3, label=label)
        if network["compute_s"] is not None:
            compute_ms = network["compute_s"]["median"] * 1e3
            axes.axhline(compute_ms, color="grey", linestyle=":", label="compute, one rank")
        axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="ms a step" if index == 0 else "")
        axes.set_title(f"{network['model']}, batch {network['batch_size']} a rank")
        axes.set_xticks([2, 8, 32, 128, 512, 1024], labels=["2", "8", "32", "128", "512", "1024"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    figure.savefig(path, dpi=130)


def write_scaling(folder: Path, result: dict[str, Any]) -> None:
    """scaling.md, scaling.json and scaling.png."""
    # The name of a hidden file, since matplotlib writes where it is told; then in one step to its place.
    unfinished = folder / ".scaling.unfinished.png"
    try:
        draw(result, unfinished)
        unfinished.replace(folder / "scaling.png")
    finally:
        unfinished.unlink(missing_ok=True)
    write(folder, "scaling", page(result), result)


def page(result: dict[str, Any]) -> str:
    collectives, steps, *predicted = tables(result)
    crowded = "".join(
        f" {n} ranks share {result['cores']} cores, so theirs hold the wait for each other's turn as well."
        for n in result["oversubscribed"]
    )
    counted = "; ".join(
        f"{network['model']} {step['collectives']} collectives of {step['message_bytes']:,} bytes"
        for network in result["networks"]
        for step in network["steps"][:1]  # the same at any number of ranks
    )
    return f"""# What communication costs on many ranks

{made_with(result)} All figures are in [scaling.json](scaling.json).

A model on paper: two numbers for a link, fitted to collectives between processes of one machine, and formulas
for how often they are paid. It says how costs grow with ranks. It does not say what the network of a cluster
takes: run the same command there. {crowded.strip()}

![ms a step against ranks](scaling.png)

A measured point that came out below 0, as a difference of two long times can, is not in the figure.

## The formulas

A message of n bytes takes alpha + n beta. p ranks, m or n bytes handed in by each:

| collective | ring | tree |
|---|---|---|
| all-gather, m bytes a rank | (p - 1) alpha + (p - 1) m beta | ceil(log2 p) alpha + (p - 1) m beta |
| all-reduce, n bytes | 2 (p - 1) alpha + 2 (p - 1) / p n beta | 2 ceil(log2 p) alpha + 2 (p - 1) / p n beta |

Tree is recursive doubling and halving. Sources: Thakur, Rabenseifner & Gropp 2005, IJHPCA 19(1), 49-66;
Patarasuk & Yuan 2009, JPDC 69(2), 117-124 (the ring's all-reduce). gloo's two collectives are rings
(gloo/allgather.cc, gloo/allreduce.cc), so alpha and beta are fitted with the ring's terms, by least squares of
log(model / measured); the tree's columns reuse them.

A step of SyncBN: for each norm layer of C channels one all-gather of 2 C + 1 floats forward and one all-reduce
of 2 C floats backward, while everything waits. Gradients: one all-reduce of all parameters' floats after the
backward; DDP sends buckets beside it, so this is an upper bound. Counted in a measured SyncBN step, DDP's
buckets included: {counted}.
Compute is a step of bn on one rank with one thread. The optimizer is left out.

## The link

{_items(link_lines(result))}
{markdown_table(collectives[1], collectives[2])}
## The model's error

{_items(error_lines(result))}
Whole training steps: "alone" is bn without a word between as many ranks at work; "SyncBN adds" is syncbn less
bn, and "gradients add" is bn under DDP less alone, each the median of differences within a round. SyncBN's
measured part holds its own kernels and the wait for the slowest rank, which the model does not have; a gradient
part below the model's is what DDP hides beside the backward. Networks without a row, and without shares below,
were not trained here: their sizes alone enter the model.

{markdown_table(steps[1], steps[2])}
## Predictions

"In groups of a node": `norm.sync_group_size={result["node_ranks"]}`.

{"".join(f"### {title}{chr(10)}{chr(10)}{markdown_table(c, lines)}{chr(10)}" for title, c, lines in predicted)}
## Sync groups of one node

{_items(node_lines(result))}
SyncBN's messages are short, so rounds decide, and their number grows with the ring's length or the tree's depth.
A group of one node stops that growth at its size and keeps these messages off the network between nodes, which
this machine has none of to measure. Wu & Johnson 2021 (arXiv:2105.07576) found the best validation error at
normalization batch sizes of 32 to 128: where a node's group reaches that, a larger one has less to gain.
"""


def _items(lines: list[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
