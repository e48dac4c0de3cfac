"""Signals that ask a run to stop: they set a flag, the step in hand is finished and saved, and the exit code says why."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

from sora.processes import ASKING

PARENT_DEATH_SIGNAL = 1  # linux/prctl.h


class StopFlag:
    """A context in which the asking signals set a flag. A second one is harmless, except for a third Ctrl-C, which ends the run unsaved."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupts = 0
        self._before: dict[int, object] = {}
        self._owner = 0

    def __enter__(self) -> StopFlag:
        self._owner = os.getpid()
        follow_launcher()
        for number in ASKING:
            self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def install(self) -> None:
        """Take the signals (again): Lightning sets handlers of its own when a fit begins, which save nothing."""
        for number in ASKING:
            signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """As a shell counts: 130 after Ctrl-C, 143 after SIGTERM; 0 if nothing asked."""
        return 0 if self.received is None else 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked loader worker: the trainer decides, and closes its workers
            return
        first, self.received = self.received is None, self.received or number
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts >= 3:
                raise KeyboardInterrupt
        if first:
            # os.write, not print: a handler may interrupt a print that holds the stream's lock.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: finishing this step and saving; then the run stops (Ctrl-C three times to stop unsaved)\n".encode())


def follow_launcher() -> None:
    """Ask to be told, by SIGTERM, when torchrun is gone: its ranks would train on with nobody to start them again or to end them."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
