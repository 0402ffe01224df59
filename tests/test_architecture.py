"""Imports run one way, and a login node stays quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.config.section import SCHEMAS
from normlab.config.section import imported as named

ROOT = Path(__file__).parents[1]

# Each room may import from those before it, and from itself.
LAYERS = [
    [
        "normlab.config",
        "normlab.atomic",
        "normlab.console",
        "normlab.markdown",
        "normlab.pictures",
        "normlab.older_torch",
    ],
    ["normlab.run_files", "normlab.squeue", "normlab.metrics", "normlab.devices", "normlab.targets"],
    ["normlab.run", "normlab.run_state", "normlab.distributed", "normlab.numerics"],
    ["normlab.norms", "normlab.data", "normlab.checkpoint", "normlab.logger"],
    ["normlab.models", "normlab.progress", "normlab.report"],
    ["normlab.tasks", "normlab.optimizer"],
    ["normlab.evaluator"],
    ["normlab.trainer", "normlab.preflight", "normlab.evaluate", "normlab.step_cost"],
    ["launch"],
    ["normlab.bench", "normlab.docs"],
    ["normlab.check"],
    ["train"],
]
WITHOUT_TORCH = [
    "normlab.config",
    "normlab.run",
    "normlab.run_state",
    "launch.environment",
    "launch.process",
    "launch.local",
    "launch.race",
    "normlab.report.__main__",
    "normlab.report.figures",
    "normlab.report.page",
    "normlab.report.comparison",
    "launch.train",
]


def room(module: str) -> str | None:
    """The room that a module belongs to: the longest name that is a prefix of it."""
    rooms = [r for layer in LAYERS for r in layer if module == r or module.startswith(r + ".")]
    return max(rooms, key=len, default=None)


def modules() -> dict[str, Path]:
    paths = [ROOT / "train.py", *ROOT.glob("normlab/**/*.py"), *ROOT.glob("launch/**/*.py")]
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    return {name: path for name, path in names.items() if name != "normlab"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_belongs_to_a_room():
    assert [name for name in modules() if room(name) is None] == []


def test_imports_run_one_way():
    level = {r: i for i, layer in enumerate(LAYERS) for r in layer}
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        for target in imported(path)
        if (other := room(target)) and other != room(name) and level[other] >= level[room(name)]
    ]
    assert wrong == []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_a_login_node_imports_has_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in SCHEMAS for name in SCHEMAS[group]])
def test_each_choice_names_what_makes_it(group, name):
    assert callable(named(SCHEMAS[group][name].builder))
