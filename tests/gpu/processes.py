"""A section in a process of its own: a CUDA error, an out-of-memory kill or a hang ends it and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from sora.system.processes import Parent
from tests.gpu.record import Cut, Place, Report, Section


class Failed(Exception):
    """What a section's process ended with: the last lines of its traceback, or its signal."""


def forked(section: Section, place: Place, *, seconds: float) -> Iterator[Report]:
    """Reports as they come. The process is forked, so that modules are imported once; whoever forks must not have touched CUDA.

    Raises:
        Cut: the seconds are over; the process and its children are killed.
        Failed: the section raised, or its process died.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(section, place, theirs, Parent.here()))
    end = time.monotonic() + seconds
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            try:
                kind, value = ours.recv()
            except EOFError:
                process.join(5)
                raise Failed(f"its process ended with {process.exitcode}") from None
            if kind == "done":
                return
            if kind == "failed":
                raise Failed(value)
            yield value
        raise Cut
    finally:
        if process.pid is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # its children, too
            except (ProcessLookupError, PermissionError):
                process.kill()
        process.join(10)
        ours.close()


def _work(section: Section, place: Place, pipe: Connection, parent: Parent) -> None:
    parent.hold_to()  # a device must not stay taken after a check that was killed
    os.setpgid(0, 0)

    def send(kind: str, value: Any) -> None:
        pipe.send((kind, value))

    try:
        for report in section.check(place):
            send("report", report)
    except BaseException:
        lines = traceback.format_exc().splitlines()
        print("\n".join(lines), flush=True)
        send("failed", "\n".join(lines[-12:]))
    else:
        send("done", None)
    pipe.close()
    os._exit(0)  # no finalisers: they could wait for a device that hangs
