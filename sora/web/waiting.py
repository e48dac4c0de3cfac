"""What the time before a request is sent again is made of: what the server asks for, and a draw."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from hashlib import blake2b


def jitter(request: str, attempt: int, *, seed: int) -> float:
    """A draw from [0, 1), uniform, for an attempt at a request."""
    digest = blake2b(f"{seed}\0{request}\0{attempt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """The seconds that a server asks to wait by Retry-After, which is a number or a date; None if it does not say, or says nonsense.

    A date is compared with the server's own clock, where it states it (Date), since the two machines' may differ. The result may be of any
    size and below 0: `sora.web.Retries.wait` bounds it. now: this machine's time, seconds since 1970.
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
