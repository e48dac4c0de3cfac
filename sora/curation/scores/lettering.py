"""The share of a picture that lines of text take, found without a trained network."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sora.curation.scores.opencv import cv2

STROKE = 5  # pixels: strokes are thinner
CONTRAST = 55  # levels by which a stroke differs from what is around it
SPACE = 9  # pixels: letters and words of a line lie closer
LEAST_HEIGHT, MOST_HEIGHT = 3, 0.2  # of a line: pixels, share of the picture's height
LONG = 2.5  # a line is so many times as long as high
FULL = 0.6  # least share of a line's box that its joined strokes fill
DENSITY = 0.15, 0.75  # share of a line's box that its strokes take
LETTERS, OFTEN = 3, 0.5  # strokes that a row of a line crosses: at least, and for each of its heights


def text_share(grey: UInt8[ndarray, "H W"]) -> float:
    """The share of the picture within boxes of lines of text.

    Strokes are thin parts that are brighter or darker than what surrounds them. Strokes that lie beside each other are joined; joined parts
    that are long, low and filled are lines. Signs and subtitles of four pixels' height or more are found, at the size of `grey`; single
    letters and slanted text are not.
    """
    square = np.ones((STROKE, STROKE), np.uint8)
    share = 0
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = cv2.threshold(cv2.morphologyEx(grey, operation, square), CONTRAST, 1, cv2.THRESH_BINARY)[1]
        if not cv2.countNonZero(strokes):
            continue
        joined = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((1, SPACE), np.uint8))
        joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((LEAST_HEIGHT, SPACE), np.uint8))
        if not cv2.countNonZero(joined):
            continue
        _, _, boxes, _ = cv2.connectedComponentsWithStats(joined)
        share += sum(_line(box, strokes) for box in boxes[1:])
    return min(1.0, share / grey.size)


def _line(box: ndarray, strokes: UInt8[ndarray, "H W"]) -> int:
    """The number of pixels in the box of a joined part, or 0 if it is no line of text."""
    left, top, width, height, area = (int(value) for value in box)
    if not LEAST_HEIGHT <= height <= MOST_HEIGHT * strokes.shape[0] or width < LONG * height or area < FULL * width * height:
        return 0
    within = strokes[top : top + height, left : left + width]
    density = cv2.countNonZero(within) / (width * height)
    begun = np.count_nonzero(within[:, 1:] > within[:, :-1]) / height
    return width * height if DENSITY[0] <= density <= DENSITY[1] and begun >= max(LETTERS, OFTEN * width / height) else 0
