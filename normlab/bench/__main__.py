"""What each norm costs here: time, memory kept for backward, and what its ranks send, relative to BatchNorm.

python -m normlab.bench                                      every norm on one rank; SyncBN on 2 and 4 too
python -m normlab.bench --norms syncbn gn --shapes 8x256x14x14 --dtypes fp32 bf16 --world-sizes 1 2
python -m normlab.bench --norms gn my_norms:MyNorm           a norm of your own, of the current folder
python -m normlab.bench --write docs                         docs/cost.md and docs/cost.json

Each norm is measured as a single layer, made from BatchNorm2d as in training, in train mode. All norms take turns
in rounds, so that a machine whose speed drifts slows all of them; each ratio is taken within a round, and the
median over rounds is shown. Several ranks are real processes (gloo, or nccl on CUDA). Close other programs first.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.process import USER_ERROR

if TYPE_CHECKING:
    import torch


def shape(text: str) -> tuple[int, int, int, int]:
    """BxCxHxW."""
    try:
        b, c, h, w = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a shape; give BxCxHxW, e.g. 32x16x32x32") from None
    if min(b, c, h, w) < 1:
        raise argparse.ArgumentTypeError(f"{text} has an axis below 1; give BxCxHxW, e.g. 32x16x32x32")
    return b, c, h, w


def at_least(minimum: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} must be a number of at least {minimum:g}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line, exit code 2."""
        self.exit(USER_ERROR, f"error: {message}\n")


def options() -> Parser:
    parser = Parser(
        prog="python -m normlab.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, count = parser.add_argument, at_least(1, int)
    add("--norms", nargs="+", metavar="NORM", help="(all; on several ranks, those that need other ranks)")
    shapes = [(32, 16, 32, 32), (8, 256, 14, 14)]
    shapes_help = "inputs of each rank (32x16x32x32 8x256x14x14)"
    add("--shapes", nargs="+", type=shape, metavar="BxCxHxW", default=shapes, help=shapes_help)
    add("--dtypes", nargs="+", choices=("fp32", "bf16", "fp64"), default=["fp32"], help="(fp32)")
    formats = ("contiguous", "channels_last")
    add("--memory-formats", nargs="+", choices=formats, default=["contiguous"], help="(contiguous)")
    add("--world-sizes", nargs="+", type=count, default=[1, 2, 4], metavar="N", help="ranks (1 2 4)")
    add("--sample-s", type=at_least(0, float), default=0.02, help="seconds per norm and round (0.02)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add("--rounds", type=count, default=15, help="(15)")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--write", type=Path, metavar="FOLDER", help="write cost.md and cost.json there")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """A user's mistake is one line and exit code 2."""
    args = options().parse_args(arguments)
    from launch.local import preload
    from normlab.config import ConfigError

    try:
        preload()  # the ranks' processes import torch at the same time as this one
        if args.write is not None and not args.write.is_dir():
            raise ConfigError(f"--write {args.write} is not a folder; make it first, or give another.")
        run(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def run(args: argparse.Namespace) -> None:
    from normlab.bench import norms, page
    from normlab.config.config import Device
    from normlab.devices import choose_device, fallback_note

    asked, most = Device(args.device), max(args.world_sizes)
    device = choose_device(asked, most)
    if note := fallback_note(asked, device, most):
        say(note)
    cases, refused = norms.plan(
        args.norms, args.shapes, args.dtypes, args.memory_formats, sorted(set(args.world_sizes))
    )
    result = {**about(device, args.rounds), "sample_s": args.sample_s, "refused": refused}
    result["cases"] = norms.measure(cases, device.type, args.rounds, args.sample_s, say)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        page.show(result)
    if args.write:
        page.write(args.write, result)


def about(device: "torch.device", rounds: int) -> dict[str, Any]:
    """The machine and the settings. `load_average` is the load of other programs before the start."""
    import torch

    from normlab.distributed import available_cores, device_name

    return {
        "command": " ".join(["python -m normlab.bench", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": device_name(device),
        "cores": available_cores(),
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "torch": torch.__version__,
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
    }


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
