"""What the repository keeps of a study: results.csv, figure.png, and its raw runs.

python -m experiments.publish runs/rates --x optim.lr
tar -xJf experiments/rates/runs.tar.xz -C runs     # the runs again: report them, or sweep on
"""

import argparse
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from normlab.atomic import atomic_write
from normlab.report.__main__ import main as report
from normlab.run_files import read_result

HERE = Path(__file__).parent
OF_THE_MACHINE = {"root": "data", "cache_dir": None, "output_dir": "runs"}
"""Settings that name folders of the machine that trained, and what a reader gets; no result depends on them."""

SPEED = "images_per_second"


def publish(study: Path, folder: Path, x: str | None = None, metric: str | None = None) -> int:
    """Write `folder` anew from the runs of `study` that have ended; the figure is of `metric` along `x`, if given.

    Returns how many runs there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = [path for path in sorted(study.iterdir()) if _ended(path)]
    with atomic_write(folder / "runs.tar.xz", "wb") as file, tarfile.open(fileobj=file, mode="w:xz") as archive:
        for run in runs:
            for name, content in _kept(run):
                # No owner and no time, so that the same runs make the same file.
                info = tarfile.TarInfo(f"{study.name}/{run.name}/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    with tempfile.TemporaryDirectory() as made:
        runs_again = str(unpack(folder, Path(made) / "runs") / study.name)
        chosen = [f"--{name}={value}" for name, value in (("x", x), ("metric", metric)) if value]
        report([runs_again, f"--out={made}/report", *chosen])
        _copy(Path(made) / "report/runs.csv", folder / "results.csv")
        figures = (Path(made) / "report/figures").glob(f"*_vs_{x or '*'}.png")
        _copy(min(figures, key=lambda path: (SPEED in path.name, path.name)), folder / "figure.png")
    return len(runs)


def unpack(folder: Path, into: Path) -> Path:
    """Unpack a published study's runs below `into`. Returns `into`."""
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "runs.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # which Python has from 3.11.4 on
        archive.extractall(into)
    return into


def _ended(run: Path) -> bool:
    result, _ = read_result(run)
    return result is not None and result["status"] in ("finished", "diverged")


def _kept(run: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file, without what names the machine's folders and processes."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for section in (config, config["data"]):
        section |= {key: value for key, value in OF_THE_MACHINE.items() if key in section}
    yield "config.yaml", yaml.safe_dump(config, sort_keys=False).encode()
    yield "metrics.jsonl", (run / "metrics.jsonl").read_bytes()
    result = json.loads((run / "result.json").read_text())
    result.pop("launch", None)
    yield "result.json", json.dumps(result, indent=2).encode()


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target, "wb") as file:
        file.write(source.read_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="the study's folder: runs/rates")
    parser.add_argument("--x", help="the key along which the figure is drawn; default: the report's first")
    parser.add_argument("--metric", help="what the figure shows; default: the report's first")
    args = parser.parse_args(arguments)
    if not args.study.is_dir():
        parser.error(f"there is no folder {args.study}")
    folder = HERE / args.study.name
    print(f"{publish(args.study, folder, args.x, args.metric)} runs in {folder}")


if __name__ == "__main__":
    main()
