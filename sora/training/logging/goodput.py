"""The use of a run's time, by phases, and the phase that a stuck run was in.

Each moment of a process belongs to one phase, so the seconds of all phases add up to its wall time. RUN/goodput.jsonl has a line for each
process that trained in the run, which is updated while it runs:

    {"began": …, "ended": …, "first": 120, "last": 480, "start": 12.1, "data": 3.0, "step": 540.2, "checkpoint": 1.3, "evaluation": 0.0,
     "end": 0.4, "wasted": 20.5, "down": 4.2, "undone": [[240, 300]], "complete": false}

wasted: seconds of earlier processes' steps that this one repeats, and of its own steps that it lost by going back to earlier weights;
`undone` has the first and last step of each. down: seconds without any process while the run had steps left, so not after a process with
`complete`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sora.gate.forms import Fields, Row, flag, real, whole
from sora.runs.jsonl import read
from sora.system import files as storage

PHASES: tuple[str, ...] = ("start", "data", "step", "checkpoint", "evaluation", "end")
FILE = "goodput.jsonl"
LINE = Fields(
    {**dict.fromkeys(("began", "ended", *PHASES, "wasted", "down"), real(0)), "first": whole(), "last": whole()},
    may={"undone": [Row((whole(), whole()))], "complete": flag},
)


class Phases:
    """The present phase of this process, and the seconds of all its phases. It starts with "start", `before` seconds ago."""

    def __init__(self, *, before: float = 0.0) -> None:
        self.began = time.monotonic() - before
        self.name: str = "start"
        self.since, self.step = self.began, 0
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def enter(self, name: str, step: int | None = None) -> None:
        """Change the phase. step: optimiser steps that are done."""
        now = time.monotonic()
        self._seconds[self.name] += now - self.since
        self.name, self.since = name, now
        if step is not None:
            self.step = step

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """A context with another phase."""
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """The seconds of each phase so far."""
        found = dict(self._seconds)
        found[self.name] += time.monotonic() - self.since
        return found


def age() -> float:
    """Seconds since this process started, imports included."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # not Linux: the interpreter's start is not known
        return 0.0


class Goodput:
    """The record of a run's time over all its processes. first: the step at which this one starts."""

    def __init__(self, folder: Path, phases: Phases, *, first: int) -> None:
        self._path, self._phases = Path(folder) / FILE, phases
        self._earlier = read(self._path, LINE)
        self._line: dict[str, Any] = {"began": round(time.time() - (time.monotonic() - phases.began), 3), "ended": 0.0, "first": first}
        self._line |= {"last": first, **phases.seconds(), "wasted": self._wasted(first), "down": self._down(), "undone": []}
        self._line["complete"] = False

    @property
    def first(self) -> int:
        """The step at which this process started."""
        return self._line["first"]

    def begin_at(self, first: int) -> None:
        """Correct the step at which this process starts."""
        self._line |= {"first": first, "last": first, "wasted": self._wasted(first)}

    def undo(self, first: int, last: int) -> None:
        """The run went from step `last` back to the weights of step `first`; training between them is lost."""
        line = self._line | {"last": last, "step": self._phases.seconds()["step"]}
        lost = _wasted([*self._earlier, line], first)
        self._line |= {"wasted": round(self._line["wasted"] + lost, 3), "undone": [*self._line["undone"], [first, last]]}

    def write(self, *, complete: bool = False) -> None:
        """Update this process's line. complete: the run has done all its steps. A full disk loses only the record."""
        seconds = {name: round(value, 3) for name, value in self._phases.seconds().items()}
        self._line |= {"ended": round(time.time(), 3), "last": self._phases.step, **seconds, "complete": complete}
        lines = [json.dumps(line) for line in (*self._earlier, self._line)]
        try:
            os.stat(self._path.parent)  # a run's folder that was moved or removed must not be created again
            storage.write_text(self._path, "".join(f"{line}\n" for line in lines))
        except (OSError, ValueError) as error:  # ValueError: a folder or a pipe stands in its place
            print(f"could not write {self._path}: {error}; training goes on without the account of its time")

    def share(self) -> float:
        """The run's goodput so far."""
        return totals([*self._earlier, {**self._line, **self._phases.seconds()}])["goodput"]

    def told(self) -> str:
        """A line for the end of a run."""
        total = totals([*self._earlier, self._line])
        parts = ", ".join(f"{name} {_short(value)}" for name, value in total["seconds"].items() if value >= 0.05 and name != "step")
        return f"goodput {total['goodput']:.1%}: {_short(total['useful'])} of {_short(total['wall'])} went into steps that count ({parts})"

    def _wasted(self, first: int) -> float:
        return round(_wasted(self._earlier, first), 3)

    def _down(self) -> float:
        if not self._earlier or self._earlier[-1].get("complete", False):
            return 0.0
        return round(max(0.0, self._line["began"] - self._earlier[-1]["ended"]), 3)


def _wasted(lines: Sequence[Mapping[str, Any]], first: int) -> float:
    """The seconds that earlier processes spent on steps after `first`, without those that already count as wasted."""
    lost = 0.0
    counted: list[list[int]] = []
    for line in reversed(lines):
        counted += line.get("undone", [])
        share = (line["last"] - line["first"]) or 1
        lost += line["step"] * _uncovered(max(first, line["first"]), line["last"], counted) / share
        counted.append([line["first"], sys.maxsize])  # these steps count as wasted already
    return lost


def _uncovered(begin: int, end: int, spans: Sequence[list[int]]) -> int:
    """The number of steps after `begin` up to `end` that lie in no span."""
    left = 0
    for low, high in sorted(map(tuple, spans)):
        left += max(0, min(low, end) - begin)
        begin = max(begin, high)
    return left + max(0, end - begin)


def totals(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The times of all processes: "wall" seconds from the first start to the last end, "seconds" by phase and "down", the "useful" ones in
    steps that were neither repeated nor undone, and "goodput", their share of the wall time."""
    seconds = {name: sum(line[name] for line in lines) for name in (*PHASES, "down")}
    wasted = sum(line["wasted"] for line in lines)
    wall, useful = sum(seconds.values()), seconds["step"] - wasted
    return {"wall": wall, "seconds": {**seconds, "wasted": wasted}, "useful": useful, "goodput": useful / wall if wall > 0 else 0.0}


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
