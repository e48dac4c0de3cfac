"""The limits of one answer."""

from __future__ import annotations

from dataclasses import dataclass

from sora.gate.sizes import Number


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
