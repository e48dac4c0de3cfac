"""What a person sees of long work that is counted: a bar on a terminal, a line now and then elsewhere, in a job's log for instance."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sora.system.terminal import counted

EVERY = 15.0  # seconds between lines where there is no terminal
Told = Callable[[int, int], None]


@contextmanager
def progress_bar(what: str, unit: str = "") -> Iterator[Told]:
    """Show how much is done, how fast, and the time left; gives a function of (done, total). unit: one of what is counted, as in "clip"."""
    if sys.stderr.isatty():
        with _bar(what, unit) as bar:
            yield bar
        return
    began = last = time.monotonic()
    shown = (0, 0)

    def line(done: int, total: int) -> None:
        nonlocal last, shown
        shown, now = (done, total), time.monotonic()
        if now - last >= EVERY:
            last = now
            print(f"{what}: {_counted(done, total, unit, now - began)}", file=sys.stderr, flush=True)

    yield line
    if shown[1]:
        done = counted(shown[0], unit, f"{unit}s") if unit else str(shown[0])
        print(f"{what}: {done} in {_minutes(time.monotonic() - began)}", file=sys.stderr, flush=True)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Told]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from sora.system.terminal import bars, line

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with bars(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as bar:
        task, began = bar.add_task(line(what), total=None, rate=""), time.monotonic()

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=_rate(done, unit, time.monotonic() - began))

        yield told


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show on stdout how much is done; gives a function of (done, clips made of it). It starts no thread, so that who uses it may fork.

    total: None where the end is not known.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from sora.system.terminal import bars

    text, speed = TextColumn("{task.description}"), TaskProgressColumn(show_speed=True)
    known = (text, BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    columns = (TextColumn("{task.completed}"), text, speed, TimeElapsedColumn()) if total is None else known
    with bars(*columns, stderr=False, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)

        def report(done: int, clips: int | None = None) -> None:
            more = "" if clips is None else f", {counted(clips, 'clip')}"
            bar.update(task, completed=done, description=f"{what}{more}", refresh=True)

        yield report


def _counted(done: int, total: int, unit: str, gone: float) -> str:
    left = f"  {_minutes(gone / done * (total - done))} left" if done else ""
    return f"{done}/{total} {_rate(done, unit, gone)}  {_minutes(gone)} gone{left}"


def _rate(done: int, unit: str, gone: float) -> str:
    many = f"{unit}s" if unit else ""
    return f"{many}, {done / gone:.3g}/s" if done and gone > 0 else many


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
