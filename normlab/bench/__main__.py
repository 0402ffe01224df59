"""What each norm costs here: time, memory kept for backward, and what its ranks send, relative to BatchNorm.

python -m normlab.bench                                      every norm, on one rank; SyncBN on 2 and 4 too
python -m normlab.bench --norms syncbn gn --shapes 8x256x14x14 --dtypes fp32 bf16 --world-sizes 1 2
python -m normlab.bench --write docs                         docs/cost.md and docs/cost.json
python -m normlab.bench.scaling --write docs                 a cost model up to 1,024 ranks: docs/scaling.md

One layer at a time, made from BatchNorm2d as in training, in train mode. Cases take turns in rounds, so that a
machine whose speed drifts slows all of them; a ratio is the median of each round's own. Several ranks are real
processes (gloo, or nccl on CUDA). Close other programs first.
"""

import argparse
import json

from normlab.bench.cli import Parser, about, at_least, call, parser, pick_device, say, shape

MEMORY_FORMATS = ("contiguous", "channels_last")


def options() -> Parser:
    made = parser("normlab.bench", __doc__)
    made.add_argument("--norms", nargs="+", metavar="NORM", help="all; on several ranks those that talk")
    made.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="BxCxHxW",
        default=[(32, 16, 32, 32), (8, 256, 14, 14)],
        help="inputs on each rank (32x16x32x32 8x256x14x14)",
    )
    made.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16", "fp64"), default=["fp32"], help="(fp32)")
    made.add_argument(
        "--memory-formats", nargs="+", choices=MEMORY_FORMATS, default=["contiguous"], help="(contiguous)"
    )
    made.add_argument(
        "--world-sizes", nargs="+", type=at_least(1, int), default=[1, 2, 4], metavar="N", help="ranks (1 2 4)"
    )
    made.add_argument(
        "--sample-s", type=at_least(0, float), default=0.02, help="seconds of each case in a round (0.02)"
    )
    return made


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from normlab.bench import norms, pages, tables
    from normlab.config import Device, Precision

    world_sizes = sorted(set(args.world_sizes))
    here = pick_device(args.device, world_sizes[-1])
    precisions = [Precision(name) for name in args.dtypes]
    cases, refused = norms.plan(args.norms, args.shapes, precisions, args.memory_formats, world_sizes)
    surroundings = about(here, args.rounds)
    on_cpu, device = here.type == "cpu", Device(here.type)
    rows = norms.measure(cases, on_cpu, device, rounds=args.rounds, sample_s=args.sample_s, say=say)
    result = {
        **surroundings,
        "sample_s": args.sample_s,
        "refused": refused,
        "cases": [row.as_json() for row in rows],
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        console = Console(highlight=False)
        for title, lines in tables.norm_tables(rows):
            tables.print_table(title, tables.COLUMNS, lines, console)
            print()
        print(pages.cost_notes(result))
    if args.write:
        pages.write_cost(args.write, result, rows)


if __name__ == "__main__":
    call(run, options().parse_args())
