"""Whether two checkouts train the same: hashes, curves and results of twenty small settings, to the last bit.

python -m benchmarks.same_results ../normlab-before .
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TINY = ["data.num_train=96", "data.num_test=50", "eval_batch_size=16", "eval_train_samples=20", "log_every=1"]
TINY += ["diagnostics_samples=20", "threads=1", "progress=false", "epochs=2", "batch_size=8"]
SETTINGS = [
    ["norm=bn"],
    ["norm=bn", "virtual_ranks=2", "norm.running_stats=pooled"],
    ["norm=bn", "world_size=2", "norm.running_stats=precise"],
    ["norm=syncbn", "world_size=2"],
    ["norm=syncbn", "world_size=2", "virtual_ranks=2", "norm.sync_group_size=2", "batch_size=4"],
    ["norm=gn", "norm.weight_standardization=true"],
    ["norm=gn", "precision=bf16", "norm.channels_per_group=4"],
    ["norm=ln", "channels_last=true"],
    ["norm=in", "precision=fp64"],
    ["norm=ghost_bn", "norm.ghost_batch_size=4"],
    ["norm=batch_renorm", "norm.bn_batches=2", "norm.d_max_batches=4", "norm.r_max_batches=6"],
    ["norm=switchable", "virtual_ranks=2"],
    ["norm=batch_instance"],
    ["norm=ln2d", "optim=adamw"],
    ["norm=rms", "optim.schedule=step"],
    ["norm=frn", "accumulate=2"],
    ["norm=evonorm_s0", "optim.clip_grad_norm=1.0"],
    ["norm=none", "optim.lr=0.01"],
    ["norm=syncbn", "data=shapes_seg", "model=fcn_resnet8", "batch_size=2", "world_size=2"],
    ["norm=bn", "model=torchvision", "model.name=resnet18", "data.val_fraction=0.25"],
]
OF_THE_CLOCK = ("images_per_second",)


def trained(checkout: Path, setting: list[str]) -> dict[str, Any]:
    """What a run of `setting` is called, logs and ends with."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(checkout.resolve() / "train.py"), *TINY, *setting]
        env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        (run,) = Path(folder).glob("runs/*/*")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        points = [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in lines]
        result = json.loads((run / "result.json").read_text())
        return {"run": run.name, "points": points, "status": result["status"], "metrics": result["metrics"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another")
    args = parser.parse_args()
    differ = 0
    for setting in SETTINGS:
        before, after = (trained(checkout, setting) for checkout in (args.before, args.after))
        unlike = [key for key in before if before[key] != after[key]]
        differ += bool(unlike)
        numbers = sum(map(len, before["points"]))
        said = f"differs in {', '.join(unlike)}" if unlike else f"{numbers} numbers are the same"
        print(f"{' '.join(setting)}: {said}", flush=True)
    print(f"{len(SETTINGS) - differ} of {len(SETTINGS)} settings train the same")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
