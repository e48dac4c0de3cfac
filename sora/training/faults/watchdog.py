"""Detects a run that is stuck: it reports where and ends, so that its launcher can start it again."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from sora.training.logging.goodput import Phases

STALLED = 134  # exit code of an abort: slurm/job.sh requeues such a job
STDERR = 2  # the descriptor, because sys.stderr may be replaced
BACKSTOP = 5.0  # seconds until the interpreter's timer ends a process that no longer runs Python


class Watchdog:
    """A thread that ends the process if one of its phases takes too long.

    limit: seconds that a step, a wait for data or a save may take; 0 for no limit. start: the same for other phases, and for the first
    step, which compiles. The report (rank, step, phase, stacks of all threads) goes to the terminal and to RUN/stalled-RANK.txt.
    """

    def __init__(self, phases: Phases, *, folder: Path, rank: int, limit: float, start: float) -> None:
        if limit < 0 or start < 0:
            raise ValueError(f"watchdog.limit={limit} and watchdog.start={start} are seconds, or 0 for no limit")
        self._phases, self._folder, self._rank = phases, Path(folder), rank
        self._limits, self._over = (limit, start), threading.Event()
        # seconds between checks: a phase with the shorter limit may begin while it waits for one with the longer
        self._pause = max(0.05, min([value for value in self._limits if value], default=600.0) / 10)
        self._first = phases.step
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if any(self._limits):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()  # before the timer is stopped, which the thread may set once more
        faulthandler.cancel_dump_traceback_later()

    def _limit(self) -> float:
        limit, start = self._limits
        return limit if self._phases.name in ("step", "data", "checkpoint") and self._phases.step > self._first else start

    def _watch(self) -> None:
        while not self._over.is_set():
            limit, since, name = self._limit(), self._phases.since, self._phases.name
            left = since + limit - time.monotonic()
            if limit and left <= 0:
                if (since, name) == (self._phases.since, self._phases.name):
                    self._end(limit)
                continue
            if limit:
                # This thread runs only while others release the interpreter's lock; the timer does not need it.
                faulthandler.dump_traceback_later(left + BACKSTOP, exit=True, file=STDERR)
            self._over.wait(min(left + 0.01, self._pause) if limit else self._pause)

    def _end(self, limit: float) -> None:
        phase, waited = self._phases.name, time.monotonic() - self._phases.since
        told = f"rank {self._rank} has not moved for {waited:.0f} s, of {limit:.0f} allowed: step {self._phases.step}, phase {phase}"
        path = self._folder / f"stalled-{self._rank}.txt"
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"{told}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            told += f"; {path} could not be written: {error}"
        sys.stderr.write(f"\n{told}; every thread's stack is in {path}\n")
        faulthandler.dump_traceback(STDERR, all_threads=True)
        sys.stderr.flush()
        kill_children()
        os._exit(STALLED)


def kill_children() -> None:
    """Kill loader workers: they notice the parent's end within seconds, but a decoder in an endless loop would not."""
    import signal

    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except (OSError, ValueError, IndexError):
            continue
