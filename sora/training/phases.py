"""Where a run's time goes, and what it was doing when nothing moved any more.

Every moment of a process belongs to one phase, so that the seconds of all phases are its wall time. RUN/goodput.jsonl has one line for each
process that trained in the run, rewritten as it goes:

    {"began": …, "ended": …, "first": 120, "last": 480, "start": 12.1, "data": 3.0, "step": 540.2, "checkpoint": 1.3, "evaluation": 0.0,
     "end": 0.4, "wasted": 20.5, "down": 4.2}

wasted: of the earlier processes' steps, the seconds of those that this one makes again; down: seconds without any process.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sora import storage
from sora.training.metrics import read

PHASES: tuple[str, ...] = ("start", "data", "step", "checkpoint", "evaluation", "end")
FILE = "goodput.jsonl"


class Phases:
    """The phase that this process is in, since when, and how long all have taken. It begins with "start", `before` seconds ago."""

    def __init__(self, *, before: float = 0.0) -> None:
        self.began = time.monotonic() - before
        self.name: str = "start"
        self.since, self.step = self.began, 0
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    def enter(self, name: str, step: int | None = None) -> None:
        """The phase changes now. step: optimiser steps that are behind."""
        now = time.monotonic()
        self._seconds[self.name] += now - self.since
        self.name, self.since = name, now
        if step is not None:
            self.step = step

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Another phase for the time of a block."""
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """Of each phase up to now."""
        found = dict(self._seconds)
        found[self.name] += time.monotonic() - self.since
        return found


def age() -> float:
    """Seconds since this process began, its imports and all."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # no Linux: the interpreter's own start is not known
        return 0.0


class Goodput:
    """The account of a run over all its processes. first: the step that this one begins at."""

    def __init__(self, folder: Path, phases: Phases, *, first: int) -> None:
        self._path, self._phases = Path(folder) / FILE, phases
        self._earlier = read(self._path)
        self._line: dict[str, Any] = {"began": round(time.time() - (time.monotonic() - phases.began), 3), "ended": 0.0, "first": first}
        self._line |= {"last": first, **phases.seconds(), "wasted": self._wasted(first), "down": self._down()}

    def begin_at(self, first: int) -> None:
        """This process begins at another step than was thought."""
        self._line |= {"first": first, "last": first, "wasted": self._wasted(first)}

    def write(self) -> None:
        """Bring this process's line up to date. A full disk only costs the account."""
        seconds = {name: round(value, 3) for name, value in self._phases.seconds().items()}
        self._line |= {"ended": round(time.time(), 3), "last": self._phases.step, **seconds}
        lines = [json.dumps(line) for line in (*self._earlier, self._line)]
        try:
            storage.write_text(self._path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            print(f"could not write {self._path}: {error}; training goes on without the account of its time")

    def share(self) -> float:
        """The goodput of the run up to now."""
        return totals([*self._earlier, {**self._line, **self._phases.seconds()}])["goodput"]

    def told(self) -> str:
        """One line for the end of a run."""
        total = totals([*self._earlier, self._line])
        parts = ", ".join(f"{name} {_short(value)}" for name, value in total["seconds"].items() if value >= 0.05 and name != "step")
        return f"goodput {total['goodput']:.1%}: {_short(total['useful'])} of {_short(total['wall'])} went into steps that count ({parts})"

    def _wasted(self, first: int) -> float:
        """The seconds that earlier processes spent on steps after `first`, and that no process in between has wasted already."""
        lost, counted = 0.0, math.inf
        for line in reversed(self._earlier):
            again = max(0, min(line["last"], counted) - max(first, line["first"]))
            lost += line["step"] * again / max(1, line["last"] - line["first"])
            counted = min(counted, line["first"])
        return round(lost, 3)

    def _down(self) -> float:
        return round(max(0.0, self._line["began"] - self._earlier[-1]["ended"]), 3) if self._earlier else 0.0


def totals(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all processes: "wall" seconds from the first one's beginning to the last one's end, the "seconds" of each phase and of "down",
    the "useful" ones, spent in steps that were not made again, and "goodput", their share of the wall."""
    seconds = {name: sum(line[name] for line in lines) for name in (*PHASES, "down")}
    wasted = sum(line["wasted"] for line in lines)
    wall, useful = sum(seconds.values()), seconds["step"] - wasted
    return {"wall": wall, "seconds": {**seconds, "wasted": wasted}, "useful": useful, "goodput": useful / wall if wall > 0 else 0.0}


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
