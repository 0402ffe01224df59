"""The command of an installed normlab.

normlab train experiment=quickstart
normlab train -m norm=bn,gn seed=0,1,2 --config-dir my_conf
torchrun --standalone --nproc-per-node=2 -m launch train norm=syncbn
"""

import argparse
import importlib
import sys

from launch.process import begin_command

COMMANDS = {
    "train": ("launch.train", "train one run, or sweep: --help lists every choice and key"),
    "status": ("launch.status", "what became of the runs below a folder"),
    "report": ("normlab.report.__main__", "tables, figures and a page of the runs below a folder"),
    "evaluate": ("normlab.evaluate", "evaluate a trained run again, under other settings"),
    "prepare": ("launch.prepare", "decode a data set into the cache, before anything is trained"),
    "doctor": ("launch.doctor", "what this SLURM site offers, before the first sweep"),
    "bench": ("normlab.bench.__main__", "what each norm costs on this machine"),
    "check": ("normlab.check.__main__", "whether a norm, yours or ours, keeps what training relies on"),
}


def main() -> None:
    begin_command()
    parser = argparse.ArgumentParser(
        prog="normlab", description="Which norm, at which batch size, on how many ranks?"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, about) in COMMANDS.items():
        commands.add_parser(name, help=about, add_help=False).set_defaults(name=name, module=module)
    command = parser.parse_args(sys.argv[1:2])
    sys.argv[:2] = [f"normlab {command.name}"]
    importlib.import_module(command.module).main()


if __name__ == "__main__":
    main()
