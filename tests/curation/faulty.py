"""A detector of cuts that crashes or hangs on some videos, in a module of its own, so that processes of other machines can import it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from sora.curation.spans import Transition


class Faulty:
    """Dies on videos of 19 frames, hangs on those of 20, and finds no cuts in others; each takes `seconds`."""

    def __init__(self, seconds: float = 0.0, *, faults: bool = True) -> None:
        self.seconds, self.faults = seconds, faults

    def identity(self) -> str:
        return "faulty 1"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, frames: Any, *, fps: float) -> list[Transition]:
        count = sum(1 for _ in frames)
        time.sleep(self.seconds)
        if self.faults and count == 19:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.faults and count == 20:
            time.sleep(1000)
        return []
