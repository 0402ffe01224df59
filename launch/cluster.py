"""What a SLURM cluster reports about itself. Imports no torch."""

import re
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """A cluster's name, and the most elements that an array may have."""

    name: str = ""
    max_array_size: int = 1000


def this_cluster() -> Cluster:
    """This machine's cluster; the defaults if scontrol does not answer."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Cluster()
    name = re.search(r"^ClusterName\s*=\s*(\S+)", shown, re.MULTILINE)
    largest = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return Cluster(name[1] if name else "", max(1, int(largest[1])) if largest else Cluster.max_array_size)
