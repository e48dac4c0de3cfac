"""The limits of one answer, and how often and after what time a request is sent again."""

from __future__ import annotations

from dataclasses import dataclass

from sora.gate.sizes import Number
from sora.web.waiting import jitter


@dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """Limits of one answer. connect_seconds: until a connection stands. silent_seconds: without a byte. total_seconds: from the first byte
    that is sent to the last that comes. most_bytes: of the body, unpacked."""

    connect_seconds: float
    silent_seconds: float
    total_seconds: float
    most_bytes: int

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "silent_seconds", "total_seconds"):
            Number(0, above=True, most=86_400).of(getattr(self, name), name)
        Number(1, whole=True, most=1 << 30).of(self.most_bytes, "most_bytes")


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
        """Seconds before the next try. attempt: how many were made. asked: by the server, see `sora.web.waiting.retry_after`.

        A function of its arguments alone: the draw is counter-based, so that neither threads nor a restart change it, and requests that
        failed together do not return together.
        """
        share = jitter(request, attempt, seed=seed)
        doubled = min(self.first_seconds * 2.0 ** min(attempt - 1, 60), self.most_seconds) * (0.5 + 0.5 * share)
        return doubled if asked is None else min(min(max(asked, 0.0), self.most_seconds) + share * self.first_seconds, self.most_seconds)
