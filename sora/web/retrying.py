"""How long to wait before a request is sent again: what the server asks for, within bounds, or longer each time, with jitter."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from hashlib import blake2b

from sora.gate.sizes import Number


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a request is tried, and the seconds between. attempts: in all. first_seconds: about the first wait, each is twice as long.
    most_seconds: the longest wait, also of those that a server asks for."""

    attempts: int
    first_seconds: float
    most_seconds: float

    def __post_init__(self) -> None:
        Number(1, whole=True, most=100).of(self.attempts, "attempts")
        Number(0, most=3600).of(self.first_seconds, "first_seconds")
        Number(0, most=3600).of(self.most_seconds, "most_seconds")

    def wait(self, request: str, attempt: int, *, seed: int, asked: float | None = None) -> float:
        """Seconds before the next try. attempt: how many were made. asked: by the server, see `retry_after`.

        A function of its arguments alone: the draw is counter-based, so that neither threads nor a restart change it, and requests that
        failed together do not return together.
        """
        share = jitter(request, attempt, seed=seed)
        doubled = min(self.first_seconds * 2.0 ** min(attempt - 1, 60), self.most_seconds) * (0.5 + 0.5 * share)
        return doubled if asked is None else min(min(max(asked, 0.0), self.most_seconds) + share * self.first_seconds, self.most_seconds)


def jitter(request: str, attempt: int, *, seed: int) -> float:
    """A draw from [0, 1), uniform, for an attempt at a request."""
    digest = blake2b(f"{seed}\0{request}\0{attempt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """The seconds that a server asks to wait by Retry-After, which is a number or a date; None if it does not say, or says nonsense.

    A date is compared with the server's own clock, where it states it (Date), since the two machines' may differ. The result may be of any
    size and below 0: `Retries.wait` bounds it. now: this machine's time, seconds since 1970.
    """
    said = headers.get("retry-after", "").strip()[:64]
    try:
        seconds = float(said)
        return seconds if math.isfinite(seconds) else None
    except ValueError:
        pass
    if (then := _date(said)) is None:
        return None
    here = _date(headers.get("date", "")[:64])
    return then - (here if here is not None else time.time() if now is None else now)


def _date(said: str) -> float | None:
    try:
        return parsedate_to_datetime(said).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
