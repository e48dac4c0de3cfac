"""The signature of a clip, by which its copies are found: small pictures at fixed times and perceptual hashes of them.

A hash holds the signs of the 64 lowest frequencies of the discrete cosine transform of a picture's luma, without the mean. Brightness and
contrast leave it as it is, and mirroring a picture turns the signs of the frequencies that are odd across: the hash of the mirrored picture
is the hash with those bits flipped, and no second hash is stored.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt64
from numpy import ndarray

PERIOD = 0.5  # seconds between the pictures of a clip, from its first frame on
SIDE, COLOURS = 16, 8  # pixels a side of a small picture: luma, and the two differences of colour
PICTURE = SIDE * SIDE + 2 * COLOURS * COLOURS  # bytes of one
GRID = 64  # pixels a side of the square from which all is made
CUT = 0.08  # share of the width and of the height by which a part of a picture is smaller, so that cropped copies are found
# Where the parts that are hashed lie, down and across, as shares of `CUT`: None is the whole, then the middle and the corners.
PARTS = (None, (0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
INFORMATIVE = 2.0  # least deviation of luma, in grey levels, of a picture whose hash says anything


class Signature(NamedTuple):
    """hashes: of each picture, one for each of `PARTS`. pictures: luma of 16x16 and Cb, Cr of 8x8 pixels, flattened. n is 1 or more.
    aspect: width over height of the frames without their bars."""

    hashes: UInt64[ndarray, "n 6"]
    pictures: UInt8[ndarray, "n 384"]
    aspect: float

    @property
    def informative(self) -> Bool[ndarray, " n"]:
        """Which pictures have enough contrast for their hashes to mean something: black and plain ones have none."""
        return informative(self.pictures)

    def columns(self) -> tuple[bytes, bytes, float]:
        """The hashes (little-endian) and pictures as bytes, and the aspect, for columns of a table."""
        return self.hashes.astype("<u8").tobytes(), self.pictures.tobytes(), self.aspect

    @classmethod
    def of(cls, hashes: bytes, pictures: bytes, aspect: float) -> Signature:
        """The signature from its columns. Raises ValueError if their lengths do not fit each other."""
        count = len(pictures) // PICTURE
        if len(pictures) != count * PICTURE or len(hashes) != count * 8 * len(PARTS) or not count:
            raise ValueError(
                f"columns of {len(hashes)} and {len(pictures)} bytes are no signature; it has {8 * len(PARTS)} and {PICTURE} bytes for "
                "each of one or more pictures: compute it anew"
            )
        return cls(np.frombuffer(hashes, "<u8").reshape(count, -1), np.frombuffer(pictures, np.uint8).reshape(count, -1), aspect)


def mirrored(hashes: UInt64[ndarray, "*n"]) -> UInt64[ndarray, "*n"]:
    """The hashes of the pictures mirrored left to right."""
    return hashes ^ MIRROR


def informative(pictures: UInt8[ndarray, "n 384"]) -> Bool[ndarray, " n"]:
    """Which pictures have more contrast than a black or plain one has by its noise."""
    return pictures[:, : SIDE * SIDE].std(axis=1, dtype=np.float32) >= INFORMATIVE


def halved(frame: UInt8[ndarray, "H W 3"]) -> UInt8[ndarray, "h w 3"]:
    """A frame that is large enough for it, at half its size, so that less of it is kept; any other unchanged."""
    from sora.curation.scores.opencv import cv2

    height, width = frame.shape[:2]
    if min(height, width) < 2 * GRID or height % 2 or width % 2:
        return frame
    return cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


def hashed(frame: UInt8[ndarray, "H W 3"]) -> tuple[UInt64[ndarray, " 6"], UInt8[ndarray, " 384"]]:
    """The hashes and the small picture of an RGB frame without its bars: luma and colour differences of BT.601, means over equal parts."""
    from sora.curation.scores.opencv import cv2

    square = cv2.resize(frame, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    luma = square @ np.array([0.299, 0.587, 0.114], np.float32)
    differences = np.stack([(square[..., 2] - luma) * 0.564, (square[..., 0] - luma) * 0.713])
    small = cv2.resize(luma, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    part = GRID // COLOURS
    coarse = differences.reshape(2, COLOURS, part, COLOURS, part).mean((2, 4)) + 128
    picture = np.rint(np.concatenate([small.ravel(), coarse.ravel()])).clip(0, 255).astype(np.uint8)
    waves = _waves(GRID, _STRIPS)
    rows = waves.reshape(-1, GRID)
    parts = (rows @ luma @ rows.T).reshape(len(waves), -1, len(waves), waves.shape[1])
    return _signs(np.stack([parts[down, :, across] for down, across in _PLACES])), picture


def _signs(coefficients: Float[ndarray, "*n 11 11"]) -> UInt64[ndarray, "*n"]:
    rows, columns = _frequencies()
    octets = np.ascontiguousarray(np.packbits(coefficients[..., rows, columns] > 0, axis=-1, bitorder="little"))
    return octets.view("<u8")[..., 0].astype(np.uint64)


@cache
def _waves(side: int, strips: tuple[tuple[float, float], ...]) -> Float[ndarray, "strips 11 side"]:
    """For each strip (begin and length, as shares of `side` values) the matrix that takes the values to the lowest frequencies of the
    cosine transform of 16 means over equal lengths of the strip."""
    from scipy.fft import dct

    waves = np.asarray(dct(np.eye(SIDE), axis=0, norm="ortho"))[: np.max(_frequencies()) + 1]
    return np.stack([waves @ means(side, SIDE, begin, length) for begin, length in strips]).astype(np.float32)


@cache
def means(side: int, count: int, begin: float, length: float) -> Float[ndarray, "count side"]:
    """The matrix that takes `side` values along a line to `count` means over equal lengths of a strip of it. begin, length: shares of the
    line."""
    starts = side * (begin + np.arange(count) * length / count)[:, None]
    width, places = side * length / count, np.arange(side)
    return (np.clip(np.minimum(starts + width, places + 1) - np.maximum(starts, places), 0, None) / width).astype(np.float32)


@cache
def _frequencies() -> tuple[ndarray, ndarray]:
    """Rows and columns of the 64 lowest frequencies but the mean, those that sum to least first."""
    every = sorted((u + v, u, v) for u in range(SIDE) for v in range(SIDE))[1:65]
    _, rows, columns = zip(*every, strict=True)
    return np.array(rows), np.array(columns)


_STRIPS = ((0.0, 1.0), *((CUT * place, 1 - CUT) for place in (0.0, 0.5, 1.0)))
_PLACES = [(0, 0) if part is None else (1 + round(2 * part[0]), 1 + round(2 * part[1])) for part in PARTS]
MIRROR = np.packbits(_frequencies()[1] % 2, bitorder="little").view("<u8")[0].astype(np.uint64)
