"""What the two commands have in common: arguments, and what measurements were made on."""

import argparse
import os
import sys
from collections.abc import Callable
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
        raise argparse.ArgumentTypeError(f"{text} is no shape; give BxCxHxW, e.g. 32x16x32x32") from None
    if min(b, c, h, w) < 1:
        raise argparse.ArgumentTypeError(f"{text} has an axis below 1; give BxCxHxW, e.g. 32x16x32x32")
    return b, c, h, w


def at_least(minimum: float, kind: type) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = minimum - 1
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f"{text} must be a number of at least {minimum:g}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line, exit code 2."""
        self.exit(USER_ERROR, f"error: {message}\n")


def parser(module: str, description: str | None) -> Parser:
    """What both commands have."""
    made = Parser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is")
    made.add_argument("--rounds", type=at_least(1, int), default=15, help="measurements of each case (15)")
    made.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    made.add_argument("--write", type=Path, metavar="FOLDER", help="write the page and its JSON there")
    return made


def about(device: Any, rounds: int) -> dict[str, Any]:
    """What measurements are about to be made on, and how; `load_average` is what others ask of the machine."""
    import torch

    from normlab.distributed import available_cores, device_name

    return {
        "command": " ".join(["python", "-m", *_module_and_arguments()]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": device_name(device),
        "cores": available_cores(),
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "torch": torch.__version__,
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
    }


def _module_and_arguments() -> list[str]:
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else "normlab.bench"
    return [name, *sys.argv[1:]]


def call(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run a command; a user's mistake is one line and exit code 2."""
    from launch.local import preload

    preload()  # the ranks' processes begin to import torch, beside this one
    from normlab.config import ConfigError

    try:
        if args.write is not None and not args.write.is_dir():
            raise ConfigError(f"--write {args.write} is no folder; make it first, or give another.")
        run(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def pick_device(device: str, world_size: int) -> "torch.device":
    """Where `world_size` ranks, the most that are measured, compute; says so where auto leaves GPUs aside.

    Raises: ConfigError.
    """
    from normlab.config import Device
    from normlab.distributed import choose_device, fallback_note

    asked = Device(device)
    here = choose_device(asked, world_size)
    if note := fallback_note(asked, here, world_size):
        say(note)
    return here


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
