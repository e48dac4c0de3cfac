"""A real Slurm on this machine: a controller and two nodes of two CPUs, all daemons on the loopback, started and stopped by pid.

Needs root, and Debian's slurm-wlm and munge. Nothing of a Slurm that the machine may already have is touched: own key, socket,
ports, configuration and state, all in one folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("vn1", "vn2")
PORT = 16_917  # the controller's; the nodes' follow
PENDING_OR_RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "PREEMPTED"}

# proctrack, task, cgroup: what a machine without systemd can do. cred_expire: a requeued job waits for its old credentials to die,
# two minutes unless this says otherwise.
CONFIGURATION = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,requeue_delay=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=15
MinJobAge=600
ReturnToService=2
{nodes}
PartitionName=main Nodes=vn[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=vn[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def lacking() -> str:
    """Why there can be no cluster here, or nothing."""
    missing = [program for program in PROGRAMS if not _program(program)]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "its daemons have to be started by root"


@dataclass(frozen=True)
class Job:
    """What the controller says of a job. state: such as RUNNING. restarts: how often it was put back into the queue."""

    number: str
    state: str
    restarts: int
    code: str


class Cluster:
    """`with Cluster(folder) as cluster`: two idle nodes at the beginning, no process left at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        # no variable of a job that the tests may themselves run in, and none that the session's login set for Slurm
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PMI"))}
        self.environment = {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{kept.get('PATH', '')}:/usr/sbin:/sbin"}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_all()
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _cancel_all(self, *, seconds: float = 60) -> None:
        """End what still runs: the processes of a job outlive the daemons."""
        quiet = {"env": self.environment, "capture_output": True, "text": True, "check": False}
        end = time.monotonic() + seconds
        subprocess.run(["scancel", "--user=root"], **quiet)
        while time.monotonic() < end and subprocess.run(["squeue", "-h"], **quiet).stdout.strip():
            time.sleep(0.5)

    def call(self, *words: str, variables: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """The output of one of Slurm's programs; an error is raised with what it said."""
        environment = {**self.environment, **(variables or {})}
        done = subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, *words: str, variables: Mapping[str, str], cwd: Path) -> str:
        """The number of a new job of `sbatch WORDS`."""
        return self.call("sbatch", "--parsable", *words, variables=variables, cwd=cwd).split(";")[0]

    def job(self, number: str) -> Job:
        fields = _fields(self.call("scontrol", "show", "job", number, "--oneliner").splitlines()[0])
        return Job(number, fields["JobState"], int(fields["Restarts"]), fields["ExitCode"])

    def wait(self, number: str, until: Callable[[Job], bool], *, seconds: float = 300) -> Job:
        """The job as soon as `until` holds; an error with the state and the ends of all logs if it does not in time."""
        end = time.monotonic() + seconds
        while True:
            found = self.job(number)
            if until(found):
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds:.0f} s {found}")
            time.sleep(0.3)

    def ended(self, number: str, *, seconds: float = 300) -> Job:
        return self.wait(number, lambda job: job.state not in PENDING_OR_RUNNING, seconds=seconds)

    def _configure(self) -> None:
        for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={PORT + place} CPUs=2" for place, node in enumerate(NODES, 1)
        ]
        text = CONFIGURATION.format(host=host, port=PORT, folder=self.folder, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        for path in (key, self.folder / "munge"):
            shutil.chown(path, "munge", "munge")
        key.chmod(0o600)
        (self.folder / "munge").chmod(0o755)
        for above in (self.folder, *self.folder.parents):  # munged asks that everybody may look into what leads to its socket
            if above.owner() == "root" and above != Path("/"):
                above.chmod(above.stat().st_mode | 0o055)

    def _start(self) -> None:
        munge = self.folder / "munge"
        files = [f"--{name}={munge / place}" for name, place in (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"))]
        files += [f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}"]
        self._daemon("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", _program("munged"), "--foreground", "--force", *files)
        _await(lambda: (munge / "socket").exists(), "munged made no socket", munge / "log")
        self._daemon(_program("slurmctld"), "-D")
        for node in NODES:
            self._daemon(_program("slurmd"), "-D", "-N", node)
        _await(self._idle, "the nodes did not come up", self.folder / "slurmctld.log")

    def _daemon(self, *words: str) -> None:
        quiet = subprocess.DEVNULL
        self._daemons.append(subprocess.Popen(words, env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet))

    def _idle(self) -> bool:
        asked = subprocess.run(["sinfo", "-h", "-p", "main", "-N", "-o", "%T"], env=self.environment, capture_output=True, text=True)
        return asked.stdout.split() == ["idle"] * len(NODES)


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _await(holds: Callable[[], bool], otherwise: str, log: Path, *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            said: Sequence[str] = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
            raise RuntimeError(f"{otherwise} within {seconds:.0f} s: {' | '.join(said)}")
        time.sleep(0.1)


if __name__ == "__main__":  # make test-slurm asks whether the tests can run
    print(lacking())
    raise SystemExit(bool(lacking()))
