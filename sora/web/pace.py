"""How many requests are in flight at once: one more at a time while answers come as fast as before, half when the server has too much."""

from __future__ import annotations

import math
import threading
import time

from sora.gate.sizes import Number

_OF_LATE = 0.1  # weight of the latest latency in the mean
_FORGET = 1.002  # growth of the least latency with each answer, so that a server that became slower for good is not waited for


class Pace:
    """Additive increase, multiplicative decrease (Jacobson 1988) of the number of requests in flight. Used by many threads.

    start, most: at first, and at most. hold: the mean latency may be this many times the least one before the number stays as it is.
    """

    def __init__(self, *, start: int, most: int, hold: float) -> None:
        Number(1, whole=True, most=1024).of(most, "most_at_once")
        Number(1, whole=True, most=most).of(start, "at_once")
        Number(1).of(hold, "hold")
        self.most, self.hold = most, hold
        self._many, self._climbing = float(start), True
        self._mean = self._least = math.nan
        self._cut = 0.0
        self._lock = threading.Lock()

    @property
    def allowed(self) -> int:
        """How many requests may be in flight now."""
        return max(1, int(self._many))

    def answered(self, seconds: float) -> None:
        """Note an answer that took so long."""
        with self._lock:
            self._mean = seconds if math.isnan(self._mean) else self._mean + _OF_LATE * (seconds - self._mean)
            self._least = self._mean if math.isnan(self._least) else min(self._least * _FORGET, self._mean)
            if self._mean <= self.hold * self._least:
                self._many = min(self._many + (1.0 if self._climbing else 1.0 / self._many), float(self.most))

    def slowed(self, began: float) -> None:
        """Note that the server has too much to do, by a request that was sent at `began` (monotonic seconds). Those that were in flight
        when the number was last halved do not halve it again."""
        with self._lock:
            if began >= self._cut:
                self._many, self._climbing, self._cut = max(1.0, self._many / 2), False, time.monotonic()
