"""Which code this is: the commit, and whether the tree was dirty. Imports no torch."""

import hashlib
import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

NOTE = "code.json"
"""The file in a copy of the source tree that says what it is a copy of."""


@dataclass(frozen=True)
class Code:
    """The state of normlab's source tree; all empty if it is not a git checkout or there is no git."""

    commit: str = ""

    diff: str = ""
    """A hash of what differs from the commit in tracked files; empty for a clean tree."""

    def __str__(self) -> str:
        if not self.commit:
            return "unknown code"
        return f"commit {self.commit[:10]}" + (f" with changes {self.diff}" if self.diff else "")


def current_code(root: Path = ROOT) -> Code:
    with suppress(OSError):
        note = json.loads((root / NOTE).read_bytes())
        return Code(note["commit"], note["diff"])
    try:
        # Fails if the repository is another project's, in whose folder normlab is installed.
        _git(root, "ls-files", "--error-unmatch", ".")
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return Code()
    return Code(commit, hashlib.sha256(diff).hexdigest()[:8] if diff else "")


def _git(root: Path, *command: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *command], capture_output=True, check=True).stdout
