"""A real SLURM cluster of two nodes on this host: munged, slurmctld, two slurmd, and accounting where asked for.

Everything lies in one short private directory (socket paths have a length limit) and listens on free ports.
"""

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

NODES = ("127.0.0.11", "127.0.0.12")
"""IP literals as node names, so that MASTER_ADDR resolves."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "slurmdbd", "mariadbd", "mariadb-install-db")
PATIENCE_S = 300
"""How long a condition may take to come true before a test fails; none waits for time to pass."""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def until(condition: Callable[[], object], what: str = "the condition", about: Callable[[], str] = str) -> None:
    """Wait for `condition`; `about` tells more where that is in vain."""
    deadline = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < deadline, f"waited {PATIENCE_S} s for {what}\n{about()}"
        sleep(0.05)


class Cluster:
    """Started when made; `env` is the environment in which SLURM's commands find it."""

    def __init__(self, *, accounting: bool) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
        self.home.chmod(0o755)
        self._user = subprocess.check_output(["id", "-un"], text=True).strip()
        self._ports = free_ports(4)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN", "SACCT"))}
        self.env = {
            **clean,
            "SLURM_CONF": str(self.home / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(self.home / "my.sock"),
            # Nodes of one host would otherwise each advertise the address of its host name.
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self._reaper = subprocess.Popen(
            [sys.executable, __file__, str(self.home)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._daemons: dict[str, subprocess.Popen] = {}
        try:
            self._start_munge()
            if accounting:
                self._start_accounting()
            self._start_slurm(accounting)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints."""
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=check, timeout=PATIENCE_S
        ).stdout.strip()

    def wait_until_idle(self) -> None:
        until(lambda: not self.run("squeue", "--noheader"), "an empty queue")

    def cancel_all(self) -> None:
        """End every job, however deep in its steps."""
        self.run("scancel", "--full", "--user", self._user, check=False)
        self.wait_until_idle()

    def restart_soon(self, job: str, *changes: str) -> None:
        """Start a requeued job without its two minutes of waiting.

        A credential has the resolution of a second, and a node refuses one from the second in which it was told
        to end the job, or before: the job would then fail for good. Hence two seconds, not now.
        """
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2", *changes)

    def stop(self) -> None:
        """End the daemons and whatever they left."""
        self.run("scontrol", "shutdown", check=False)
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()  # it ends the rest and removes the directory
        self._reaper.wait(timeout=PATIENCE_S)
        for daemon in self._daemons.values():
            daemon.wait(timeout=PATIENCE_S)

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """slurmctld is away in the block, and comes back with what it knew."""
        self._daemons["slurmctld"].terminate()
        self._daemons["slurmctld"].wait(timeout=PATIENCE_S)
        yield
        self._start_controller()
        until(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld")

    @contextmanager
    def without_node(self, node: str) -> Iterator[None]:
        """All processes of `node` stand still in the block, as if it had crashed; SLURM puts it out of service."""
        lost = [self._daemons[f"slurmd_{node}"].pid, *processes_of(str(self.home), node)]
        for pid in lost:
            os.kill(pid, signal.SIGSTOP)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        yield
        for pid in lost:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._daemons[f"slurmd_{node}"].wait(timeout=PATIENCE_S)
        self._start_node(node)
        state = ("sinfo", "-h", "-N", "-n", node, "-p", "debug", "-o", "%T")
        until(lambda: self.run(*state) in ("idle", "mixed"), "the node", lambda: self.run(*state))

    def _daemon(self, name: str, *command: str) -> None:
        log = self.home / f"{name}.out"
        with log.open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                # The kernel ends it with the session, should the session be killed.
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.home,
            )

    def _start_munge(self) -> None:
        folder = self.home / "munge"
        folder.mkdir(mode=0o755)
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        paths = [
            f"--{name}={folder / file}"
            for name, file in [
                ("socket", "s"),
                ("key-file", "key"),
                ("pid-file", "pid"),
                ("seed-file", "seed"),
                ("log-file", "log"),
            ]
        ]
        self._daemon("munged", "munged", "--foreground", *paths)
        until((folder / "s").exists, "munge's socket")

    def _start_accounting(self) -> None:
        home, me = self.home, self._user
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                "--basedir=/usr",
                f"--datadir={home}/my",
                f"--user={me}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            env=self.env,
            check=True,
            capture_output=True,
        )
        self._daemon(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            "--basedir=/usr",
            f"--datadir={home}/my",
            f"--user={me}",
            f"--socket={home}/my.sock",
            "--skip-networking",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=8M",
            f"--pid-file={home}/my.pid",
            "--skip-log-bin",
        )
        until((home / "my.sock").exists, "the database's socket")
        conf = home / "slurmdbd.conf"
        conf.write_text(f"""\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={self._ports[3]}
SlurmUser={me}
AuthType=auth/munge
AuthInfo=socket={home}/munge/s
LogFile={home}/slurmdbd.log
PidFile={home}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
""")
        conf.chmod(0o600)
        self._daemon("slurmdbd", "slurmdbd", "-D")
        until(lambda: listens(self._ports[3]), "slurmdbd")

    def _start_slurm(self, accounting: bool) -> None:
        (self.home / "slurm.conf").write_text(self._slurm_conf(accounting))
        self._start_controller()
        for node in NODES:
            self._start_node(node)
        until(lambda: self.run("sinfo", "-h", "-o", "%T %D", check=False) == f"idle {len(NODES)}", "idle nodes")

    def _start_controller(self) -> None:
        self._daemon("slurmctld", "slurmctld", "-D", "-f", self.env["SLURM_CONF"])

    def _start_node(self, node: str) -> None:
        self._daemon(f"slurmd_{node}", "slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"])

    def _slurm_conf(self, accounting: bool) -> str:
        home, me, ports = self.home, self._user, self._ports
        storage = "AccountingStorageType=accounting_storage/none"
        if accounting:
            storage = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[3]}
AccountingStoreFlags=job_comment
AccountingStoragePass={home}/munge/s"""
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr={node} Port={port} CPUs=8 RealMemory=8000"
            for node, port in zip(NODES, ports[1:3], strict=True)
        )
        # A random FirstJobId: job ids start anew with each cluster, and must not meet another's.
        return f"""\
ClusterName=t{random.randrange(10**6)}
FirstJobId={random.randrange(1000, 10**6)}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={home}/munge/s
StateSaveLocation={home}/ctld
SlurmdSpoolDir={home}/d_%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd_%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
{storage}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
MailProg=/bin/true
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to whoever asks for any, which may be taken before a daemon listens."""
    free: list[int] = []
    for port in random.sample(range(10_000, 20_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            free.append(port)
    return free[:count]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def processes_of(home: str, node: str = "") -> list[int]:
    """Every process, other than this one, whose environment names the cluster in `home`, and `node` of it."""
    marks = [f"SLURM_CONF={home}/".encode(), f"SLURMD_NODENAME={node}".encode() if node else b""]
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):  # it has just ended, or is another user's
                environment = (folder / "environ").read_bytes()
                if all(mark in environment for mark in marks):
                    found.append(int(folder.name))
    return found


def reap(home: str) -> None:
    """When the session that started a cluster ends, however, end all that is left of it: steps outlive slurmd."""
    sys.stdin.read()
    for stop_signal, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = monotonic() + patience_s
        for pid in processes_of(home):
            with suppress(ProcessLookupError):
                os.kill(pid, stop_signal)
        while processes_of(home) and monotonic() < deadline:
            sleep(0.05)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    reap(sys.argv[1])
