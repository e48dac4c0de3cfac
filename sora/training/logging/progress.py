"""Shows a person the progress of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from sora.system.terminal import shown


class Progress:
    """Shows loss, throughput and time left. unit: what throughput counts, "clips" or "tokens"."""

    def __init__(self, *, steps: int, done: int, unit: str, every: float = 15.0) -> None:
        self._steps, self._unit, self._every = steps, unit, every
        self._first, self._began, self._told = done, time.monotonic(), time.monotonic()
        self._bar, self._shown = None, ExitStack()
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            from sora.system.terminal import bars

            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = self._shown.enter_context(bars(*columns, *times, refresh_per_second=4))
            self._task = self._bar.add_task("", total=steps, completed=done)

    def update(self, step: int, *, loss: float, rate: float, mfu: float | None = None, also: str = "") -> None:
        """Show a step. rate: units per second. mfu: model FLOPs utilisation; None if unknown. also: text appended as it is."""
        told = f"loss {loss:.4f}  {rate:,.0f} {self._unit}/s" + ("" if mfu is None else f"  MFU {mfu:.1%}") + (f"  {also}" if also else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=told)
            return
        now = time.monotonic()
        if now - self._told < self._every and step < self._steps:
            return
        self._told = now
        left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
        times = f"{_minutes(now - self._began)} gone  {_minutes(left)} left"
        print(f"step {step}/{self._steps}  {told}  {times}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(shown(text), markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._shown.close()


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
