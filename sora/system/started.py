"""The rank of this process, from the environment of its launcher: torchrun, srun, mpirun, or sora's own trainer.

A launcher's variables are used only if they are complete and consistent. Half of them, or those of two launchers that disagree, are left
over from an earlier job: a process that used them would wait for ranks that nobody started, or several would each run as if alone.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PARENT = "SORA_RANKS_OF"  # the process whose trainer starts the other ranks itself, and their number


@dataclass(frozen=True)
class Started:
    """A process among `ranks` processes. local: its number among the `near` processes of its machine. by: the launcher, and the variable
    that shows it; empty if there is none. allotted: without srun in a Slurm job, the number of tasks of the job."""

    rank: int = 0
    ranks: int = 1
    local: int = 0
    near: int = 1
    by: str = ""
    allotted: int | None = None

    @property
    def nodes(self) -> int:
        return self.ranks // self.near

    @property
    def node(self) -> int:
        return self.rank // self.near


@dataclass(frozen=True)
class Launcher:
    """The variables of a launcher with the rank, the number of ranks, the rank on the machine, and the number of ranks on it."""

    name: str
    rank: str
    ranks: str
    local: str
    near: str

    @property
    def unset(self) -> str:
        return f"unset {self.rank} {self.ranks} {self.local} {self.near}"


TORCHRUN = Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MPI = (
    Launcher("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    Launcher("mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    Launcher("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
)


def started(said: Mapping[str, str] | None = None) -> Started:
    """The rank of this process, from the variables `said` (None: the environment).

    A launcher inside a task of another one is used, not the outer one: torchrun before mpirun before srun.

    Raises:
        ValueError: variables contradict one another, or some are missing; the message names them.
    """
    said = os.environ if said is None else said
    parent, _, count = said.get(PARENT, "").partition(" ")
    if parent in (str(os.getpid()), str(os.getppid())):
        local = 0 if starts_others(said) else _number(said, "LOCAL_RANK")
        return Started(local, int(count), local, int(count), "by the first of them")
    step = _step(said)
    if "RANK" in said or "LOCAL_RANK" in said:
        found = _whole(said, TORCHRUN)
        if "TORCHELASTIC_RUN_ID" not in said and step is not None and (found.rank, found.ranks) != (step.rank, step.ranks):
            raise ValueError(
                f"RANK={found.rank} of WORLD_SIZE={found.ranks}, but {step.by} has this process as {step.rank} of {step.ranks}: "
                f"one of the two is left from another job; {TORCHRUN.unset}"
            )
        return found
    for launcher in MPI:
        if launcher.ranks in said and not (step is not None and launcher.local not in said):  # srun sets some of these for MPI
            return _whole(said, launcher)
    if (world := said.get("WORLD_SIZE")) and world != str(step.ranks if step is not None else 1):
        raise ValueError(
            f"WORLD_SIZE={world}, but {f'{step.by} started {step.ranks}' if step else 'no launcher said which RANK this is'}; "
            "start the ranks with torchrun or srun, or, for one process, unset WORLD_SIZE"
        )
    if step is not None:
        return step
    if said.get("SLURM_PROCID", "0") != "0":
        raise ValueError(f"SLURM_PROCID={said['SLURM_PROCID']}, but no SLURM_STEP_ID: it is left from another job, so unset SLURM_PROCID")
    return Started(allotted=_number(said, "SLURM_NTASKS") if "SLURM_JOB_ID" in said and "SLURM_NTASKS" in said else None)


def starts_others(said: Mapping[str, str] | None = None) -> bool:
    """Whether this process starts the other ranks itself."""
    said = os.environ if said is None else said
    return said.get(PARENT, "").partition(" ")[0] == str(os.getpid())


def rendezvous(said: Mapping[str, str] | None = None) -> tuple[str, int]:
    """The address and port where ranks meet: MASTER_ADDR and MASTER_PORT, or a Slurm step's first node and a port derived from it."""
    said = os.environ if said is None else said
    nodes = said.get("SLURM_STEP_NODELIST") or said.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", re.match(r"(?:[^,[]|\[[^]]*\])+", nodes)[0])  # pyright: ignore[reportOptionalSubscript]
    job, step = (int(found) if (found := said.get(name, "0")).isdecimal() else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return said.get("MASTER_ADDR") or first, int(said.get("MASTER_PORT") or 20_000 + (job + 97 * step) % 12_000)


def leave(error: str) -> None:
    """Write an error to the file that torchrun reads, so that its summary shows the error: the summary is longer than a screen and hides
    what a rank printed."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        said = {"message": error, "extraInfo": {"py_callstack": error, "timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": said}), encoding="utf-8")


def _step(said: Mapping[str, str]) -> Started | None:
    """The task of a Slurm step, or None: batch scripts and salloc shells have a SLURM_PROCID too, but no step."""
    if "SLURM_PROCID" not in said or not {"SLURM_STEP_ID", "SLURM_STEPID"} & set(said):
        return None
    counts = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in said else "SLURM_NTASKS"
    ranks = _number(said, counts)
    rank, local = _number(said, "SLURM_PROCID"), _number(said, "SLURM_LOCALID") if "SLURM_LOCALID" in said else 0
    by = f"srun: {counts}={ranks}"
    layout = said.get("SLURM_STEP_TASKS_PER_NODE") or said.get("SLURM_TASKS_PER_NODE") or str(ranks)
    near = re.fullmatch(r"(\d+)(\(x\d+\))?", layout)
    if near is None:
        raise ValueError(f"{by} starts {layout} tasks on its nodes, and a mesh wants as many on each; start srun with --ntasks-per-node=…")
    return _even(Started(rank, ranks, local, min(ranks, int(near[1])), by))


def _whole(said: Mapping[str, str], names: Launcher) -> Started:
    """This process by a launcher's variables, which must be complete."""
    missing = [name for name in (names.rank, names.ranks, names.local, names.near) if name not in said]
    alone = said.get(names.ranks) == "1" and said.get(names.rank, "0") == "0"
    if missing and not alone:
        there = [f"{name}={said[name]}" for name in (names.rank, names.ranks, names.local) if name in said]
        raise ValueError(
            f"{' '.join(there)} is set, but not {', '.join(missing)}: half of what {names.name} says, and the rest of an earlier job if no "
            f"launcher started this process; start ranks with torchrun or srun, or, for one process, {names.unset}"
        )
    least = {names.rank: 0, names.ranks: 1, names.local: 0, names.near: 1}
    rank, ranks, local, near = (_number(said, name) if name in said else value for name, value in least.items())
    found = _even(Started(rank, ranks, local, near, f"{names.name}: {names.ranks}={ranks}"))
    if ranks > 1 and (lost := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not said.get(name)]):
        raise ValueError(
            f"{found.by}, but there is no {' and no '.join(lost)}, so the ranks have nowhere to meet: give all of them the first machine "
            f"and a free port of it; if no launcher started this process, {names.unset}"
        )
    return found


def _even(found: Started) -> Started:
    if not (found.rank < found.ranks and found.local < found.near) or found.ranks % found.near:
        raise ValueError(
            f"rank {found.rank}, number {found.local} of {found.near} on its machine, does not fit {found.by}: ranks are counted from 0, "
            "as many on every machine; if no launcher started this process, unset its variables"
        )
    return found


def _number(said: Mapping[str, str], name: str) -> int:
    if not said.get(name, "").isdecimal():
        raise ValueError(f"{name}={said.get(name, '')!r} is no whole number from 0; launchers set it, so unset it unless one does")
    return int(said[name])
