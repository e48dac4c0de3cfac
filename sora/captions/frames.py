"""The settings by which frames of clips are taken for a captioner."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sora.gate.sizes import Number


@dataclass(frozen=True, kw_only=True)
class FrameTaking:
    """Which frames are taken, and at what size.

    count: frames of a stretch, more only where `every_seconds` asks for them. most: more than these are never taken. every_seconds: the
    longest time without a frame. side: pixels of the longer side, at most. window_seconds: longer clips are parted into equal stretches of
    at most so many seconds, each captioned by itself (None: never). rate: frames a second that are looked at.
    """

    count: int
    most: int
    every_seconds: float
    side: int
    window_seconds: float | None
    rate: float

    def __post_init__(self) -> None:
        Number(1, whole=True, most=256).of(self.most, "frames.most")
        Number(1, whole=True, most=self.most).of(self.count, "frames.count")
        Number(0, above=True).of(self.every_seconds, "frames.every_seconds")
        Number(16, whole=True, most=4096).of(self.side, "frames.side")
        Number(0, above=True, most=120).of(self.rate, "frames.rate")
        if self.window_seconds is not None:
            Number(1).of(self.window_seconds, "frames.window_seconds")

    def identity(self) -> dict[str, Any]:
        """The settings, for a hash. The decoder is not among them: what it gives is hashed itself."""
        return asdict(self)

    def windows(self, seconds: float) -> list[tuple[float, float]]:
        """The stretches of a clip: their starts and ends."""
        count = 1 if self.window_seconds is None else max(1, math.ceil(seconds / self.window_seconds - 1e-6))
        return [(seconds * place / count, seconds * (place + 1) / count) for place in range(count)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) that frames are taken at: of the clip's aspect, even, and no larger than the clip's own or `side`."""
        scale = min(1.0, self.side / max(height, width))
        return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)
