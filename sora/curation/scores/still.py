"""Parts of the picture that stand still through a clip: black bars, other frames around the picture, logos.

All three come from three running images of the clip's luma: the brightest and the darkest value of every pixel, and the least gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sora.curation.scores.opencv import cv2

BLACK = 17  # luma up to which a bar counts as black: 16 if the range of a file is tagged wrongly
FLAT = 10  # greatest range of luma within a black bar, over its pixels and over time
STILL = 6  # greatest range of luma over time of a pixel that stands still
EDGE = 8  # levels by which the picture beside a bar is brighter than the bar, at least at some time
BLUR = 6  # rows, at most, in which coding and resizing blur the end of a bar
WIDE, SOME = 0.5, 0.25  # shares of a bar's length along which it must end so: of one bar alone, of two that are equally wide
MOVES = 20  # least range of luma over time of a pixel that moves
OUTLINE = 96  # least gradient (sum of both Sobel responses) of a logo's outline at all times
CALM = 20  # greatest range of luma over time of such an outline
HELD, SETTLED = 12, 0.25  # where more than that share of pixels stays within that range, the camera or the scene rests


class Margins(NamedTuple):
    """Rows and columns of pixels at the edges of a picture that do not belong to it."""

    top: int
    bottom: int
    left: int
    right: int

    def inside(self, image: ndarray) -> ndarray:
        """A view of the image (H, W, ...) without its margins."""
        return image[self.top : image.shape[0] - self.bottom, self.left : image.shape[1] - self.right]

    def share(self, height: int, width: int) -> float:
        """The share of a picture of that size that the margins take."""
        return 1.0 - (height - self.top - self.bottom) * (width - self.left - self.right) / (height * width)


class StillParts:
    """Running images of a clip's luma, from which bars, border and logo follow."""

    def __init__(self) -> None:
        self._brightest = self._darkest = self._steady = np.empty((0, 0), np.uint8)
        self._count = 0

    def add(self, grey: UInt8[ndarray, "H W"]) -> None:
        across, down = (cv2.convertScaleAbs(cv2.Sobel(grey, cv2.CV_16S, x, 1 - x)) for x in (1, 0))
        gradient = cv2.add(across, down)
        if self._count == 0:
            self._brightest, self._darkest, self._steady = grey.copy(), grey.copy(), gradient
        else:
            cv2.max(self._brightest, grey, self._brightest)
            cv2.min(self._darkest, grey, self._darkest)
            cv2.min(self._steady, gradient, self._steady)
        self._count += 1

    def bars(self) -> Margins:
        """The black bars, as far as the frames so far tell; at least one frame was added."""
        return black_bars(self._brightest, self._darkest)

    def scores(self) -> dict[str, float]:
        height, width = self._brightest.shape
        bars, border = self.bars(), self._border()
        return {
            "letterbox": (bars.top + bars.bottom) / height,
            "pillarbox": (bars.left + bars.right) / width,
            "border": border.share(height, width),
            "logo": self._logo(border),
        }

    def _border(self) -> Margins:
        """The widest still frame around the picture: on each side the bar there, or still rows, if the opposite side has some as well."""
        span = cv2.absdiff(self._brightest, self._darkest)
        bars = self.bars()
        sides = [max(bar, _framed(turned)) for (turned,), bar in zip(_from_each_side(span), bars, strict=True)]
        return Margins(*(side if sides[index ^ 1] else bars[index] for index, side in enumerate(sides)))

    def _logo(self, border: Margins) -> float:
        """The share of the picture within closed outlines that stood still, if most of the rest moved."""
        span = cv2.absdiff(self._brightest, self._darkest)
        inner = Margins(*(side + 2 if side else 0 for side in border))
        if self._count < 2 or not inner.inside(span).size or (inner.inside(span) <= HELD).mean() > SETTLED:
            return 0.0
        steady = np.zeros_like(span)
        inner.inside(steady)[...] = inner.inside((self._steady > OUTLINE) & (span <= CALM))
        joined = cv2.morphologyEx(steady, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        return float(cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).mean())


def black_bars(brightest: UInt8[ndarray, "H W"], darkest: UInt8[ndarray, "H W"]) -> Margins:
    """The black bars of a clip, from each pixel's brightest and darkest luma over time.

    A bar is black, flat and still, and ends in a straight line: next to it the picture is at some time brighter along half the line, or
    along a quarter if the bar opposite is as wide. So a dark sky is no bar, and a black clip has none.
    """
    sides = [_black(bright, dark) for bright, dark in _from_each_side(brightest, darkest)]
    widths = [wide for wide, _ in sides]
    for one, other in ((0, 1), (2, 3)):
        pair = sides[one][1], sides[other][1]
        if min(pair) > 1 and abs(pair[0] - pair[1]) <= 2:
            widths[one], widths[other] = pair
    return Margins(*widths)


def _black(brightest: UInt8[ndarray, "H W"], darkest: UInt8[ndarray, "H W"]) -> tuple[int, int]:
    """The number of rows from the top that are a bar if it must end along `WIDE` or `SOME` of its length; 0 where it does not."""
    high, low = np.maximum.accumulate(brightest.max(1)), np.minimum.accumulate(darkest.min(1))
    dark = (high <= BLACK) & (high.astype(int) - low <= FLAT)
    rows = len(dark) if dark.all() else int(np.argmin(dark))
    if rows == 0 or rows == len(dark):
        return 0, 0
    lit = (brightest[rows : rows + BLUR] > int(high[rows - 1]) + EDGE).mean(1)
    wide, some = (rows + int(np.argmax(lit >= share)) if (lit >= share).any() else 0 for share in (WIDE, SOME))
    return wide, some


def _framed(span: UInt8[ndarray, "H W"]) -> int:
    """The number of rows from the top that stand still and end in a straight line, beside which half the picture or more moves."""
    calm = (span <= STILL).mean(1) > 0.99
    rows = len(calm) if calm.all() else int(np.argmin(calm))
    if rows < 2 or rows > len(calm) - 3:
        return 0
    return rows if (span[rows : rows + 3].max(0) > MOVES).mean() > WIDE else 0


def _from_each_side(*images: ndarray) -> list[tuple[ndarray, ...]]:
    """The images turned so that the top, the bottom, the left or the right side is up."""
    turns = (lambda x: x, lambda x: x[::-1], lambda x: x.T, lambda x: x.T[::-1])
    return [tuple(turn(image) for image in images) for turn in turns]
