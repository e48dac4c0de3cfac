"""Commands as Slurm jobs: `sbatch` of the scripts in slurm/, with one job for a command and one array for a sweep."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SCRIPTS = ("train.sbatch", "array.sbatch", "job.sh")
# Options of sbatch that a configuration may set: none of these runs a program, sets a variable of the job, or writes a file.
OPTIONS = (
    *("begin", "comment", "constraint", "deadline", "dependency", "exclude", "exclusive", "gres", "hold", "mail-type", "mail-user"),
    *("mem", "mem-per-cpu", "mem-per-gpu", "nice", "nodelist", "priority", "qos", "reservation", "switches", "tmp"),
)


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """The settings of each Slurm job; None leaves a setting to the script or the cluster.

    tasks: processes per node, one for each GPU. cpus: per task. gpus: per node. time: limit as sbatch reads it (a number is minutes).
    warning: seconds before the limit at which training is asked to save; Slurm checks twice a minute and may ask up to a minute early.
    at_once: jobs of a sweep that run at the same time. dry: print what would be submitted, and submit nothing. options: more words for
    sbatch, out of `OPTIONS`, such as [--mem=0, --exclusive]. Jobs run the Python that submits them, or the words in the variable
    SORA_PYTHON, such as "apptainer exec --nv sora.sif python".

    Raises:
        ValueError: an option that is not in `OPTIONS`, an invalid time, or a warning that leaves less than half of the time to train.
    """

    nodes: int
    tasks: int
    cpus: int
    gpus: int | None
    time: str | int
    warning: int
    partition: str | None
    account: str | None
    at_once: int | None
    dry: bool
    options: Sequence[str]

    def __post_init__(self) -> None:
        for word in self.options:
            if not word.startswith("--") or word.removeprefix("--").partition("=")[0] not in OPTIONS:
                raise ValueError(f"launcher.options holds {word!r}; a configuration may give sbatch --{', --'.join(OPTIONS)}")
        limit = seconds(self.time)
        if self.warning < 0 or (limit and 2 * self.warning > limit):
            raise ValueError(
                f"launcher.warning={self.warning} asks a job of launcher.time={self.time} ({limit} s) to save and leave before half of "
                f"its time is over; a warning of 0 to {limit // 2} s fits, or a longer time"
            )

    def job(self, verb: str, words: Sequence[str]) -> Submission:
        """The submission of `sora VERB WORDS…`."""
        if verb == "train":
            return self._of(scripts() / "train.sbatch", words)
        return self.array(verb, [words], Path("outputs") / "jobs")

    def array(self, verb: str, runs: Sequence[Sequence[str]], folder: Path) -> Submission:
        """The submission of several commands as one array; `submit` writes their list, one a line, into `folder`."""
        if broken := next((word for words in runs for word in words if "\n" in word), None):
            raise ValueError(
                f"{broken!r} is of several lines, and an array reads a command from each line; prompts can stand in prompts=FILE"
            )
        number = sum(1 for _ in folder.glob("*.list"))
        while (path := folder / f"{number:03d}.list").exists():
            number += 1
        together = f"%{self.at_once}" if self.at_once else ""
        made = self._of(scripts() / "array.sbatch", [str(path.resolve())], f"--array=0-{len(runs) - 1}{together}")
        return replace(made, listing=path, commands=tuple(shlex.join([verb, *words]) for words in runs))

    def _of(self, script: Path, words: Sequence[str], *more: str) -> Submission:
        python = os.environ.get("SORA_PYTHON", sys.executable)
        return Submission(script, ("sbatch", "--parsable", "--export=ALL", *self._asked(), *more, str(script), *words), python)

    def refuse_ranks(self, trainer: Mapping[str, Any], *, packs: int) -> None:
        """Raise ValueError, before the job is queued, unless the trainer lays out the ranks that a job starts, and these divide the packs
        of a step."""
        devices, nodes = trainer.get("devices", 1), trainer.get("nodes", 1)
        if (self.tasks if devices is None else devices, self.nodes if nodes is None else nodes) != (self.tasks, self.nodes):
            said = " ".join(f"trainer.{name}={count}" for name, count in (("devices", devices), ("nodes", nodes)) if count is not None)
            laid = f"{said} lay out others" if "devices" in trainer else "this trainer is one process"
            raise ValueError(
                f"launcher.tasks={self.tasks} launcher.nodes={self.nodes} start {self.tasks * self.nodes} ranks, but {laid}; leave "
                "trainer.devices and trainer.nodes null, with trainer=auto or ddp, fsdp, …, or ask for as many tasks"
            )
        readers = self.tasks * self.nodes // (trainer.get("context", 1) * trainer.get("tensor", 1)) or 1
        if packs % readers:
            raise ValueError(
                f"a step of plan.packs={packs} does not divide over the {readers} ranks that read data of their own; set plan.packs to a "
                f"multiple of {readers}"
            )

    def _asked(self) -> list[str]:
        said = {
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks,
            "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus,
            "time": self.time,
            "signal": f"USR1@{self.warning}",
            "partition": self.partition,
            "account": self.account,
        }
        return [*(f"--{name}={value}" for name, value in said.items() if value is not None), *self.options]


@dataclass(frozen=True)
class Submission:
    """One call of sbatch. python: the words that run Python in the job. commands: of an array; the lines of the file `listing`."""

    script: Path
    line: tuple[str, ...]
    python: str
    listing: Path | None = None
    commands: tuple[str, ...] = ()

    def submit(self) -> str:
        """Submit the job and return its number."""
        if shutil.which("sbatch") is None:
            raise ValueError(
                "there is no sbatch here, so nothing can be submitted; use launcher=here, or a login node of the cluster "
                "(launcher.dry=true shows what would be submitted)"
            )
        if self.listing is not None:
            self.listing.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self.listing.open("x", encoding="utf-8") as file:
                    file.write("".join(f"{command}\n" for command in self.commands))
            except FileExistsError:  # another process submits the same list now, and its jobs read it
                raise ValueError(f"{self.listing} has just been written by another command; submit again") from None
        environment = {**os.environ, "SORA_PYTHON": self.python}
        done = subprocess.run(self.line, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"Slurm refused the job: {done.stderr.strip()}; see launcher.… and {shlex.join(self.line)}")
        return done.stdout.strip().split(";")[0]

    def shown(self) -> str:
        """What `submit` would do: the batch script and what it calls, the commands of an array, and the sbatch line."""
        files = (self.script, self.script.parent / "job.sh")
        parts = [f"# {path}\n{path.read_text(encoding='utf-8')}" for path in files]
        if self.listing is not None:
            parts.append(f"# {self.listing}, which does not exist yet\n" + "".join(f"{command}\n" for command in self.commands))
        return "\n".join([*parts, f"# nothing is submitted; this would be\nSORA_PYTHON={shlex.quote(self.python)} {shlex.join(self.line)}"])


def seconds(time: str | int) -> int:
    """The seconds of a time limit as sbatch reads it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; 0 for no limit.

    Raises:
        ValueError: the time has none of these forms.
    """
    text = str(time)
    if text.upper() in ("0", "UNLIMITED", "INFINITE"):
        return 0
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"launcher.time={time} is no time; minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM and D-HH:MM:SS are, in quotes")
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86_400 + sum(int(part) * unit for part, unit in zip(parts, units, strict=False))


def scripts() -> Path:
    """The folder of the batch scripts: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "slurm", package.parent / "slurm"):
        if all((folder / name).is_file() for name in SCRIPTS):
            return folder
    raise ValueError(f"the batch scripts {', '.join(SCRIPTS)} lie neither in {package} nor beside it; install sora again")
