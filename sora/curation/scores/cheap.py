"""All cheap scores and the signature of each clip of a video, in one pass over its frames.

Every frame is compared with the one before it. The rest is measured twice a second, when the signature takes its pictures. At 144 pixels of
the short side all of it takes about a quarter of the time that decoding takes (`scores_vs_decode` of experiments/benchmarks/scores.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from sora.curation.duplicates.signature import PERIOD, Signature, halved, hashed
from sora.curation.scores.changes import Changes
from sora.curation.scores.lettering import text_share
from sora.curation.scores.levels import Levels
from sora.curation.scores.motion import MotionMeter
from sora.curation.scores.opencv import cv2
from sora.curation.scores.still import Margins, StillParts
from sora.curation.spans import Span
from sora.system.terminal import counted
from sora.video.files import Shown

SHORT = 144  # pixels of the short side of the frames
SLIMMEST = 32  # greatest ratio of a picture's sides
READ_EVERY = 2  # of the pictures; text does not change fast
WAITING = 16  # pictures that wait until more frames have told where the bars are


VERSION = 2  # raised with every change of a score or of the signature


class MeasuredSpan(NamedTuple):
    """The cheap scores (see `CHEAP_SCORES`) and the signature of the clip of a span."""

    span: Span
    scores: dict[str, float]
    signature: Signature


def cheap_identity() -> str:
    """A text for everything that the scores and signatures depend on besides the frames."""
    return f"cheap scores {VERSION} opencv {cv2.__version__}"


def analysis_size(height: int, width: int) -> tuple[int, int]:
    """The (height, width) at which `cheap_scores` takes the frames of a video of that size: 144 pixels on the short side, never enlarged.

    Raises:
        ValueError: one side is more than 32 times the other.
    """
    short, long = min(height, width), max(height, width)
    if short < 1 or long > SLIMMEST * short:
        raise ValueError(
            f"a picture of {width}x{height} pixels is no scene: one side is more than {SLIMMEST} times the other; leave it out"
        )
    if short <= SHORT:
        return height, width
    # Even sides: halving them is several times as fast as any other reduction.
    return 2 * round(height * SHORT / short / 2), 2 * round(width * SHORT / short / 2)


def cheap_scores(frames: Iterable[Shown], spans: Iterable[Span], *, fps: float) -> Iterator[MeasuredSpan]:
    """Yield the scores and the signature of each span, in order, as soon as its last frame was seen.

    frames: all frames of a video in display order, at `analysis_size`. spans: in order, without overlap; frames between them are left out.
    fps: the video's average rate. Memory does not grow with the number of frames or spans, but for the signature: 0.9 kB a second.

    Raises:
        ValueError: spans that are empty, overlap or are out of order, or that reach past the last frame.
    """
    number, shown = 0, iter(frames)
    for span in spans:
        if span.first < number or len(span) < 1:
            raise ValueError(
                f"the span of frames {span.first} to {span.end} is empty or begins before frame {number}, where the last one ended"
            )
        clip = _Clip(fps)
        for frame in shown:
            number += 1
            if number > span.first:
                clip.add(frame)
            if number == span.end:
                break
        if number < span.end:
            raise ValueError(
                f"the span of frames {span.first} to {span.end} reaches past the video, of which {counted(number, 'frame')} came"
            )
        yield MeasuredSpan(span, *clip.result())


class _Clip:
    """The meters of one clip. Pictures wait for their hashes until the bars are known, at most `WAITING` of them."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._changes, self._still, self._levels, self._motion = Changes(fps), StillParts(), Levels(), MotionMeter()
        self._text, self._read, self._samples = 0.0, 0, 0
        self._start = 0.0
        self._spare: ndarray | None = None
        self._latest: ndarray | None = None
        self._aspect = 1.0
        self._waiting: list[tuple[ndarray, int]] = []
        self._hashes: list[ndarray] = []
        self._pictures: list[ndarray] = []

    def add(self, frame: Shown) -> None:
        # Two buffers in turn: `Changes` still needs the luma of the frame before this one.
        grey = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY, self._spare)
        self._spare, self._latest = self._latest, grey
        if not self._samples:
            self._start = frame.time
        self._changes.add(grey, frame.time)
        self._motion.follow(grey, frame.time, 1 / self._fps)
        # The frame nearest to the time that is due, with a thousandth of a frame for rounding.
        if frame.time - self._start >= self._samples * PERIOD - 0.501 / self._fps:
            self._sample(frame, grey)

    def _sample(self, frame: Shown, grey: ndarray) -> None:
        self._still.add(grey)
        self._levels.add(grey)
        self._motion.begin(grey, frame.time)
        if self._samples % READ_EVERY == 0:
            self._text += text_share(grey)
            self._read += 1
        self._samples += 1
        self._waiting.append((halved(frame.pixels), len(grey)))
        if len(self._waiting) == WAITING:
            self._hash()

    def _hash(self) -> None:
        bars = self._still.bars()
        for pixels, height in self._waiting:
            # The pictures may have been halved; a row that is half a bar goes with it, unless nothing stays.
            within = Margins(*(-(-side * pixels.shape[0] // height) for side in bars)).inside(pixels)
            within = within if within.size else pixels
            self._aspect = within.shape[1] / within.shape[0]
            hashes, picture = hashed(within)
            self._hashes.append(hashes)
            self._pictures.append(picture)
        self._waiting.clear()

    def result(self) -> tuple[dict[str, float], Signature]:
        self._hash()
        scores = {
            **self._still.scores(),
            **self._levels.scores(self._still.bars()),
            **self._changes.scores(),
            **self._motion.scores(),
            "text": self._text / self._read,
        }
        return scores, Signature(np.stack(self._hashes), np.stack(self._pictures), self._aspect)
