"""Processes that a run starts. The signals that ask a run to stop reach every process of a Slurm step, and are the run's to answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # scancel and preemption; Ctrl-C; time limits; submitit


@contextmanager
def born_deaf() -> Iterator[None]:
    """A process started inside is born with the asking signals blocked, so that none ends it before it has called `ignore_asking`.

    A blocked signal stays blocked through exec, where a handler is lost and the signal would kill. Meanwhile this thread is deaf too: what
    comes is answered when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_asking() -> None:
    """From here on this process goes on whatever asks a run to stop; it ends with the run."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


def own() -> bool:
    """Whether this process was started for a command of ours (`sora VERB`, `python -m sora.VERB`), not for what calls one, as tests do."""
    spec = sys.modules["__main__"].__spec__
    return (spec.name if spec is not None else Path(sys.argv[0]).name).partition(".")[0] == "sora"


def alive(process: int) -> bool:
    """Whether a process of this number is at work on this machine, whoever's it is."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
