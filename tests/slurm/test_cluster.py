"""The cluster of these tests, itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import read_proc
from tests.slurm.cluster import processes_of, until
from tests.slurm.sweeps import ROOT

SESSION = """
import time
from tests.slurm.cluster import Cluster
cluster = Cluster(accounting=False)
cluster.run("sbatch", "--nodes=2", "--output=/dev/null", "--wrap", "srun sleep 1000")
print(cluster.home, flush=True)
time.sleep(1000)
"""


def test_a_session_that_is_killed_leaves_no_daemon_and_no_job(cluster):
    """`cluster` says whether there can be one here; the one that is killed is another."""
    with subprocess.Popen([sys.executable, "-c", SESSION], cwd=ROOT, stdout=subprocess.PIPE, text=True) as session:
        home = session.stdout.readline().strip()
        until(lambda: any("sleep" in read_proc(pid, "comm") for pid in processes_of(home)), "the job")
        os.kill(session.pid, signal.SIGKILL)
    until(lambda: not processes_of(home), "the end of its processes")
    until(lambda: not Path(home).exists(), "the end of its directory")
