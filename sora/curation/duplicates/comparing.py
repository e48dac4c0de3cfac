"""Whether two clips show the same, picture by picture: the confirmation of what close hashes suggest.

The small pictures of two clips are aligned in time, in place (one may show a part of the other) and in brightness, which may have clipped
what is bright. What differs after that is weighed by what small shifts in place would explain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64
from numpy import ndarray

from sora.curation.duplicates.signature import COLOURS, PERIOD, SIDE, Signature, informative, means, mirrored

CUTS = (0.04, 0.08)  # shares of a picture's sides that the other clip may have cut off, tried first
FINER = (-0.02, -0.01, 0.0, 0.01, 0.02), (-0.02, 0.0, 0.02)  # changes of where a part begins, and of its length, tried next
SMALLEST = 0.9  # share of a picture's sides that a part has at least
LOOKED_AT = 4  # pictures by which the part is found
LEVELS = 3.0  # grey levels by which equal pictures differ through coding
SLIP = 0.5  # pixels of the small picture by which equal places may be apart
WORST = 10, 6  # places of luma and of colour, those that differ most, over which the error is averaged
CLIPPED = 8  # levels from black and white within which a place may be clipped
BRIGHTER = 1.4  # greatest ratio of contrasts
# The greatest error of pictures that show the same is `PLAIN` for one thing on a plain ground, which others look much like, and grows with
# detail above `LITTLE` (see `_detail`) by `SLOPE` up to `SAME`; it is at most `ALONE` for a picture that stands for a whole clip.
PLAIN, LITTLE, SLOPE, SAME, ALONE = 0.78, 1.2, 0.7, 1.1, 0.9
SURE = 0.97  # least correlation of a part with little detail
ALIKE = 0.7  # least correlation at which a part is looked for more closely
STRETCH = 1.2  # greatest ratio of the clips' proportions: cropping and imprecise bars change them, another picture often has others
MOST = 0.8  # share of the pictures common to both clips that must be the same
HOPELESS = 12.0  # an error of whole pictures that no part makes good
NEAR = 12  # greatest number of bits in which the hashes of two pictures differ that suggest an alignment in time
TRIED = 3  # alignments in time with the most, and with the closest, pictures


class Alignment(NamedTuple):
    """How the second clip lies beside the first. shift: seconds from the first one's start to the second one's. error: see `SAME`."""

    shift: float
    error: float


def aligned(one: Signature, other: Signature, *, mirror: bool, overlap: float) -> Alignment | None:
    """The alignment in which the clips show the same for `overlap` of the shorter one, or None. mirror: whether one is mirrored.

    A clip of a single picture (under half a second, or an image) is the same as another such clip only: one picture says nothing about
    motion.
    """
    if (len(one.pictures) == 1) != (len(other.pictures) == 1) or max(one.aspect, other.aspect) > STRETCH * min(one.aspect, other.aspect):
        return None
    if one.pictures.tobytes() > other.pictures.tobytes():  # so that neither depends on which comes first
        found = aligned(other, one, mirror=mirror, overlap=overlap)
        return found and Alignment(-found.shift, found.error)
    first = Signature(mirrored(one.hashes), mirrored_pictures(one.pictures), one.aspect) if mirror else one
    best = None
    for offset in _offsets(first, other, overlap):
        begin, start = max(0, offset), max(0, -offset)
        length = min(len(first.pictures) - begin, len(other.pictures) - start)
        pair = first.pictures[begin : begin + length], other.pictures[start : start + length]
        error = difference(*pair)
        if error <= (SAME if length > 1 else ALONE) and (best is None or error < best.error):
            best = Alignment(offset * PERIOD, error)
    return best


class _View(NamedTuple):
    """A part of a picture: where it begins and how long it is, down and across, as shares of the picture's sides."""

    top: float = 0.0
    height: float = 1.0
    left: float = 0.0
    width: float = 1.0


_WHOLE = _View()


class _Seen(NamedTuple):
    """What pictures show in a view; colour about 0."""

    luma: Float[ndarray, "k 16 16"]
    colour: Float[ndarray, "k 2 8 8"]

    @classmethod
    def of(cls, pictures: UInt8[ndarray, "k 384"], view: _View) -> _Seen:
        values = pictures.astype(np.float32)
        luma = values[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE)
        colour = values[:, SIDE * SIDE :].reshape(-1, 2, COLOURS, COLOURS) - 128
        if view == _WHOLE:
            return cls(luma, colour)
        (down, across), (below, beside) = ((means(n, n, *view[:2]), means(n, n, *view[2:])) for n in (SIDE, COLOURS))
        return cls(down @ luma @ across.T, below @ colour @ beside.T)

    def channels(self, gain: float = 1.0, offset: float = 0.0) -> Float[ndarray, "3 k 16 16"]:
        """Red, green and blue, so much brighter and not clipped."""
        blue, red = np.repeat(np.repeat(self.colour, SIDE // COLOURS, axis=-1), SIDE // COLOURS, axis=-2).swapaxes(0, 1)
        return gain * (self.luma + np.stack([1.403 * red, -0.344 * blue - 0.714 * red, 1.773 * blue])) + offset


def difference(one: UInt8[ndarray, "k 384"], other: UInt8[ndarray, "k 384"]) -> float:
    """The error that all but a fifth of the pictures stay within, in the best alignment of place and brightness; infinite if it is more
    than their detail allows, or all of them are plain in either clip. Errors of about 1 are within what coding, scaling and small shifts
    explain."""
    telling = informative(one) & informative(other)
    if not telling.any():
        return float("inf")
    looked_at = np.flatnonzero(telling)[np.linspace(0, telling.sum() - 1, min(LOOKED_AT, telling.sum())).round().astype(int)]
    # Equal ones in an order that does not depend on which comes first.
    one, other = sorted((one, other), key=lambda pictures: pictures.tobytes())
    whole = _Seen.of(one, _WHOLE), _Seen.of(other, _WHOLE)
    error = _either(*whole)
    if error > HOPELESS:
        return float("inf")
    if error <= PLAIN or error <= _limit(*whole, looked_at)[0]:
        return error
    found = [_Found.first(large[looked_at], small[looked_at]) for large, small in ((one, other), (other, one))]
    second = found[1].correlation > found[0].correlation
    if found[second].correlation < ALIKE:
        return float("inf")
    nearest = found[second].finer()
    part = _Seen.of((one, other)[second], nearest.view), whole[not second]
    error, (limit, little) = _either(*part), _limit(*part, looked_at)
    return error if error <= limit and (not little or nearest.correlation >= SURE) else float("inf")


def _limit(one: _Seen, other: _Seen, looked_at: Int[ndarray, " k"]) -> tuple[float, bool]:
    """The greatest error of pictures that show the same, and whether they have little detail."""
    detail = min(_detail(seen.luma[looked_at]) for seen in (one, other))
    return min(SAME, PLAIN + SLOPE * max(0.0, detail - LITTLE)), detail < LITTLE


def _detail(luma: Float[ndarray, "k 16 16"]) -> float:
    """Of about how many products of a column and a row each picture is the sum, besides its mean: 1 for a bar, little more for one thing
    on a plain ground, 1.5 to 3 for most films, 8 for noise. The participation ratio of the squared singular values."""
    centred = luma - luma.mean((-2, -1), keepdims=True)
    products = centred @ centred.swapaxes(-2, -1)
    traces = np.trace(products, axis1=-2, axis2=-1)
    return float(np.mean(traces**2 / np.maximum((products**2).sum((-2, -1)), 1e-9)))


_Strip = tuple[float, float]


class _Found(NamedTuple):
    """The part of pictures whose luma correlates best with other pictures, and what it was looked for in."""

    correlation: float
    down: _Strip
    across: _Strip
    luma: Float[ndarray, "k 16 16"]
    wanted: Float[ndarray, "k 16 16"]

    @property
    def view(self) -> _View:
        return _View(*self.down, *self.across)

    @classmethod
    def first(cls, whole: UInt8[ndarray, "k 384"], part: UInt8[ndarray, "k 384"]) -> _Found:
        """The best of some parts of the first pictures."""
        luma, wanted = _Seen.of(whole, _WHOLE).luma, _Seen.of(part, _WHOLE).luma
        wanted = wanted - wanted.mean((-2, -1), keepdims=True)
        strips = [(0.0, 1.0), *((cut * place, 1 - cut) for cut in CUTS for place in (0.0, 0.5, 1.0))]
        return cls(*_correlated(luma, wanted, strips, strips), luma, wanted)

    def finer(self) -> _Found:
        """The best of the parts near this one."""
        found = self
        for _ in range(2):
            found = _Found(*_correlated(self.luma, self.wanted, _finer(found.down), _finer(found.across)), self.luma, self.wanted)
        return found


def _finer(strip: _Strip) -> list[_Strip]:
    """The strip and those that differ a little from it, within the picture."""
    shares = [(strip[0] + begin, strip[1] + length) for begin in FINER[0] for length in FINER[1]]
    fitting = [(begin, length) for begin, length in shares if begin > -1e-6 and SMALLEST - 1e-6 < length < 1 - begin + 1e-6]
    return [(round(begin, 3), round(length, 3)) for begin, length in fitting]


def _correlated(
    luma: Float[ndarray, "k 16 16"], wanted: Float[ndarray, "k 16 16"], down: list[_Strip], across: list[_Strip]
) -> tuple[float, _Strip, _Strip]:
    """The greatest correlation of a part of `luma` with `wanted`, whose pictures have mean 0, and where that part lies."""
    rows, columns = (np.stack([means(SIDE, SIDE, *strip) for strip in strips]) for strips in (down, across))
    # Products of 250,000 multiplications at most, which OpenBLAS does not share among threads: they would wait for each other.
    halfway = (rows.reshape(-1, SIDE) @ luma.transpose(1, 0, 2).reshape(SIDE, -1)).reshape(len(down), -1, SIDE)
    seen = (halfway @ columns.reshape(-1, SIDE).T).reshape(len(down), SIDE, len(luma), len(across), SIDE)
    seen = seen.transpose(0, 3, 2, 1, 4)
    seen = seen - seen.mean((-2, -1), keepdims=True)
    power = np.einsum("dakij,dakij->da", seen, seen)
    shares = np.einsum("dakij,kij->da", seen, wanted) / np.sqrt(np.maximum(power, 1e-6) * max(float((wanted**2).sum()), 1e-6))
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    return float(shares[row, column]), down[row], across[column]


def _either(one: _Seen, other: _Seen) -> float:
    """The error that all but a fifth of the pictures stay within, whichever of the two clips is the brighter one."""
    place = max(0, int(np.ceil(MOST * len(one.luma))) - 1)
    one, other = sorted((one, other), key=lambda seen: float(seen.luma.std()))  # mostly, the brighter one has more contrast
    error = float(np.sort(_errors(one, other))[place])
    return error if error <= PLAIN else min(error, float(np.sort(_errors(other, one))[place]))


def _errors(one: _Seen, other: _Seen) -> Float[ndarray, " k"]:
    """The error of each picture, the first ones made as bright as the others: the mean over the places that differ most, in luma or in
    colour."""
    gain, offset = _brightness(one, other)
    root = np.sqrt(gain)
    fitted, tint = gain * one.luma + offset, gain * one.colour
    spread = _slope(fitted)
    channels = one.channels(gain, offset)
    # Values of a place vary by about the slope, so that some may be clipped where their mean is not.
    red, green, blue = (np.clip(channels + spread, 0, 255) + np.clip(channels - spread, 0, 255)) / 2
    clipped = 0.299 * red + 0.587 * green + 0.114 * blue
    fitted = np.clip(fitted, 0, 255)
    part = SIDE // COLOURS
    faded = np.stack([0.564 * (blue - clipped), 0.713 * (red - clipped)], axis=1)
    faded = faded.reshape(-1, 2, COLOURS, part, COLOURS, part).mean((3, 5))
    room = LEVELS * root + SLIP * np.maximum(_slope(fitted), _slope(other.luma))
    luma = (_beyond(other.luma, fitted, clipped) / room)[..., 1:-1, 1:-1]
    room = LEVELS + SLIP * np.maximum(_slope(one.colour), _slope(other.colour))
    colour = _beyond(other.colour, tint, faded) / root / room
    return np.maximum(_worst(luma, WORST[0]), _worst(colour, WORST[1]))


def _worst(wrong: Float[ndarray, "k ..."], places: int) -> Float[ndarray, " k"]:
    return np.sort(wrong.reshape(len(wrong), -1), axis=-1)[:, -places:].mean(-1)


def _beyond(values: Float[ndarray, "*n"], one: Float[ndarray, "*n"], other: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """How far values lie outside the ranges between two others."""
    return np.maximum(np.maximum(np.minimum(one, other) - values, values - np.maximum(one, other)), 0)


def _brightness(one: _Seen, other: _Seen) -> tuple[float, float]:
    """Gain (1 or more) and offset, one for all pictures, that bring the luma of the first nearest to that of the others, where neither is
    clipped and without the fifth of the places that fits least."""
    channels = np.stack([one.channels(), other.channels()])
    inside = ((channels.min((0, 1)) > CLIPPED) & (channels.max((0, 1)) < 255 - CLIPPED)).ravel()
    if inside.mean() < 1 / 8:
        inside[:] = True
    x, y = one.luma.ravel()[inside], other.luma.ravel()[inside]
    rank = int(0.8 * (len(x) - 1))
    gain, offset, kept = 1.0, 0.0, np.ones(len(x), bool)
    for _ in range(3):
        mean_x, mean_y = x[kept].mean(), y[kept].mean()
        covariance, variance = ((x - mean_x) * (y - mean_y))[kept].mean(), ((x - mean_x) ** 2)[kept].mean()
        gain = float(np.clip(covariance / max(variance, 1e-3), 1.0, BRIGHTER))
        offset = float(mean_y - gain * mean_x)
        residual = np.abs(gain * x + offset - y)
        kept = residual <= np.partition(residual, rank)[rank] + 0.5
    return gain, offset


def _offsets(one: Signature, other: Signature, overlap: float) -> list[int]:
    """Offsets of the second clip from the first, in pictures, that hashes suggest, among those with enough pictures in common."""
    count, counts = len(one.hashes), len(other.hashes)
    least = max(1, int(np.ceil(overlap * min(count, counts))))
    least = max(least, min(2, count, counts))
    sums, hits = np.zeros(count + counts - 1), np.zeros(count + counts - 1)
    for place in range(count):
        bits = _bits(one.hashes[place], other.hashes)
        # The offset place - (picture of the other) stands at index offset + counts - 1.
        row = slice(place, place + counts)
        sums[row] += bits[::-1]
        hits[row] += bits[::-1] <= NEAR
    offsets = np.arange(-(counts - 1), count)
    common = np.minimum(count - np.maximum(offsets, 0), counts - np.maximum(-offsets, 0))
    able = np.flatnonzero((common >= least) & (hits > 0))
    most = able[np.lexsort((able, -hits[able]))][:TRIED]
    closest = able[np.lexsort((able, sums[able] / common[able]))][:TRIED]
    return [int(offsets[index]) for index in dict.fromkeys([*closest.tolist(), *most.tolist()])]


def _bits(one: UInt64[ndarray, " v"], other: UInt64[ndarray, "n v"]) -> Int[ndarray, " n"]:
    """In how many bits the whole of one picture differs from some part of each other, or some part of it from the whole other."""
    whole = np.bitwise_count(one[0] ^ other).min(1)
    return np.minimum(whole, np.bitwise_count(one[None, :] ^ other[:, :1]).min(1)).astype(np.int64)


def mirrored_pictures(pictures: UInt8[ndarray, "n 384"]) -> UInt8[ndarray, "n 384"]:
    """The small pictures of the mirrored clip."""
    count = len(pictures)
    luma = pictures[:, : SIDE * SIDE].reshape(count, SIDE, SIDE)[..., ::-1]
    colour = pictures[:, SIDE * SIDE :].reshape(count, 2 * COLOURS, COLOURS)[..., ::-1]
    return np.concatenate([luma.reshape(count, -1), colour.reshape(count, -1)], axis=1)


def _slope(values: Float[ndarray, "*n h w"]) -> Float[ndarray, "*n h w"]:
    """The greatest difference of each place from those above, below and beside it."""
    down = np.abs(np.diff(values, axis=-2))
    across = np.abs(np.diff(values, axis=-1))
    slope = np.zeros_like(values)
    for part, difference_ in ((np.s_[..., :-1, :], down), (np.s_[..., 1:, :], down), (np.s_[..., :-1], across), (np.s_[..., 1:], across)):
        np.maximum(slope[part], difference_, out=slope[part])
    return slope
