"""Measures the coloured things in a clip from its pixels alone: what they look like and how they move.

Colours are points in the plane of chroma with every grey at the origin: shades, gradients, ripples and grey bars of the background vanish,
and a pixel that is half object, half background has half the object's chroma. So masks are soft and sub-pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy import ndimage

from sora.world.judge.silhouettes import ShapeFit, centroid, plateau
from sora.world.judge.steadiness import REACH, SHOWN, Steadiness, fitted, in_view, measure, way
from sora.world.judge.strangers import extra, may_be_theirs

WORKING = 64  # pixels; short sides above twice this are averaged down to about this
FAINT = 36.0  # chroma below which a pixel is not coloured
HUE_GAP = np.radians(16.0)  # radians; closer hues are one colour
LEAST_SHARE = 0.22  # of the largest thing's area, below which a component is a speck
LEAST_AREA = 5.0  # pixels
LOW = 0.22  # of a thing's usual area, below which it counts as hidden
FULL = 0.8  # of a thing's usual area, from which on its outline is judged
WHOLE = 0.9  # of a thing's usual area, from which on its outline counts as whole
DIP = 0.07  # short sides by which a bounce's lowest point must lie below the way before and after
LEAST_SIDE = 2  # the least clear frames before and after a gap to tell a shape on both sides
SURE = 0.3  # the least margin for a shape from so few frames
SLACK = 2.0  # pixels beyond a half-hidden thing's reach that may still belong to it
STILL_GRID = 4.0  # mean squared difference in grey levels below which a background is unchanged

_CHROMA = np.array([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], dtype=np.float32)


@dataclass(frozen=True)
class Thing:
    """One thing in a clip. step: (x, y) from its first to its last frames, in short sides. range: farthest it was from its median position.

    shapes: its shape before and after its longest time unseen, as far as either can be told. turn: degrees clockwise on the screen.
    centres: (T, 2) x and y in pixels, NaN where unseen. area: its usual area in pixels. shown: (T,) the visible share of that area; where
    it is well below 1 the centre is that of the visible part. clear: numbers of the frames with a whole outline. keeps: its steadiness.
    """

    colour: str
    shape: str
    shapes: tuple[str, str]
    margin: float
    step: tuple[float, float]
    range: float
    turn: float
    bounces: int
    hides: bool
    area: float
    centres: Float[ndarray, "T 2"]
    shown: Float[ndarray, "T"]
    clear: ndarray
    keeps: Steadiness


@dataclass(frozen=True)
class Observation:
    """The measurement of a clip. things: the largest first. camera: the direction of a pan (left, right, up, down), or None. extra: the
    area of spots outside the things, summed over frames, in areas of the largest thing. frames: their number. short: the short side
    (pixels)."""

    things: tuple[Thing, ...]
    camera: str | None
    extra: float
    frames: int
    short: int


@dataclass
class _Track:
    """A thing through the clip: its soft mask, and for each frame its area (0: unseen) and centre (row, column)."""

    colour: str
    masks: ndarray  # T H W
    areas: ndarray  # T
    centres: ndarray  # T 2


def observe(frames: UInt8[ndarray, "T H W 3"], fps: float, palette: Mapping[str, tuple[int, int, int]]) -> Observation:
    """Measure a clip: which things of the palette's colours it shows, what shapes they have, and how they move.

    fps: frames a second, only checked. palette: colours' names and RGB values; they are told apart by hue, so they may not be grey. Raises
    ValueError for anything else.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 1 or fps <= 0:
        raise ValueError(f"frames of shape {frames.shape} at {fps} fps; give uint8 frames T H W 3, at least one, and a positive rate")
    pixels, scale = _shrink(frames)
    chroma, ground = _without_ground(pixels)
    strength = np.sqrt(np.square(chroma).sum(-1))
    coloured = strength > max(FAINT, 3.0 * 1.4826 * float(np.median(strength[:: max(1, len(strength) // 8)])))
    colours = _colours(chroma, strength, coloured, ground, palette)
    tracks = [track for mask, name in colours for track in _tracks(mask, name)]
    largest = max((_usual(track.areas) for track in tracks), default=0.0)
    tracks = [track for track in tracks if _usual(track.areas) >= LEAST_SHARE * largest and _lasting(track)]
    tracks.sort(key=lambda track: -_usual(track.areas))
    short = min(pixels.shape[1:3])
    own = np.any([track.masks > 0.05 for track in tracks], axis=0) if tracks else np.zeros(strength.shape, dtype=bool)
    views = [_view(track, pixels, own) for track in tracks]
    near = own | may_be_theirs(own, [view.hidden for view in views], [REACH * view.radius + SLACK for view in views])
    return Observation(
        things=tuple(_thing(track, view, chroma, short, scale) for track, view in zip(tracks, views, strict=True)),
        camera=_camera(pixels, tracks, short),
        extra=extra(pixels, strength, coloured, near, largest),
        frames=len(frames),
        short=min(frames.shape[1:3]),
    )


def _shrink(frames: UInt8[ndarray, "T H W 3"]) -> tuple[Float[ndarray, "T h w 3"], int]:
    """Frames as floats, averaged over blocks of `scale` pixels if they are large, and that scale."""
    scale = max(1, min(frames.shape[1:3]) // WORKING)
    pixels = frames.astype(np.float32)
    if scale == 1:
        return pixels, 1
    count, height, width = frames.shape[0], frames.shape[1] // scale, frames.shape[2] // scale
    blocks = pixels[:, : height * scale, : width * scale].reshape(count, height, scale, width, scale, 3)
    return blocks.mean((2, 4)), scale


def _without_ground(pixels: Float[ndarray, "T H W 3"]) -> tuple[Float[ndarray, "T H W 2"], Float[ndarray, "2"]]:
    """Chroma minus the background's, which is a plane over the frame (a tint, or a gradient of tints), and that plane's middle value."""
    chroma = pixels @ _CHROMA
    picture = np.median(chroma, axis=0)  # H W 2
    height, width, _ = picture.shape
    y, x = np.mgrid[:height, :width]
    design = np.stack([np.ones(height * width), x.ravel() / width - 0.5, y.ravel() / height - 0.5], -1).astype(np.float32)
    values = picture.reshape(-1, 2)
    fit = np.zeros((3, 2), dtype=np.float32)
    fit[0] = np.median(values, axis=0)
    for bound in (36.0, 24.0, 16.0):
        near = np.linalg.norm(values - design @ fit, axis=-1) < bound
        if near.sum() > 0.2 * len(near):
            fit = np.linalg.lstsq(design[near], values[near], rcond=None)[0]
    return chroma - (design @ fit).reshape(height, width, 2), fit[0]


def _colours(
    chroma: Float[ndarray, "T H W 2"],
    strength: Float[ndarray, "T H W"],
    coloured: Bool[ndarray, "T H W"],
    ground: Float[ndarray, "2"],
    palette: Mapping[str, tuple[int, int, int]],
) -> list[tuple[Float[ndarray, "T H W"], str]]:
    """The hues that cover enough of the coloured pixels, each with its soft mask 0..1 and the name of the nearest palette colour."""
    if coloured.sum() < LEAST_AREA:
        return []
    hues = np.arctan2(chroma[..., 1], chroma[..., 0])
    peaks = _hue_peaks(hues[coloured], strength[coloured])
    away = np.abs(_wrap(hues[..., None] - peaks)) if len(peaks) > 1 else np.zeros((*hues.shape, 1))
    nearest = away.argmin(-1)
    found = []
    for number, peak in enumerate(peaks):
        along = chroma @ np.array([np.cos(peak), np.sin(peak)], dtype=np.float32)
        along = np.where(nearest == number, along, 0.0)
        level = plateau(along[coloured & (nearest == number)])
        if level > 0:
            found.append((np.clip(along / level, 0.0, 1.0).astype(np.float32), _nearest_colour(peak, level, ground, palette)))
    return found


def _wrap(angle: Any) -> Any:
    """An angle in radians, or an array of them, wrapped into -pi..pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _hue_peaks(hues: ndarray, weights: ndarray) -> Float[ndarray, "K"]:
    """The peaks of the coloured pixels' hue distribution, the strongest first."""
    bins = 180
    counts = np.bincount(((hues + np.pi) / (2 * np.pi) * bins).astype(np.int64) % bins, weights=weights, minlength=bins)
    smooth = ndimage.gaussian_filter1d(counts, 2.5, mode="wrap")
    at = np.flatnonzero((smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1)))
    centres = (at + 0.5) / bins * 2 * np.pi - np.pi
    peaks: list[float] = []
    for i in np.argsort(-smooth[at], kind="stable"):
        if all(abs(_wrap(centres[i] - other)) > HUE_GAP for other in peaks) and smooth[at[i]] > 0.08 * smooth.max():
            peaks.append(float(centres[i]))
    refined = []
    for peak in peaks:  # the weighted mean near the peak is finer than a bin
        away = _wrap(hues - peak)
        near = np.abs(away) < HUE_GAP / 2
        refined.append(peak + float((away[near] * weights[near]).sum() / max(weights[near].sum(), 1e-6)))
    return np.array(refined)


def _nearest_colour(hue: float, level: float, ground: Float[ndarray, "2"], palette: Mapping[str, tuple[int, int, int]]) -> str:
    """The palette's colour whose difference from the ground has the most similar hue; its strength counts a little."""
    best, least = "", np.inf
    for name, rgb in palette.items():
        target = np.array(rgb, dtype=np.float32) @ _CHROMA - ground
        reach = float(np.hypot(*target))
        far = abs(float(_wrap(np.arctan2(target[1], target[0]) - hue))) + 0.15 * abs(level - reach) / max(reach, 1.0)
        if far < least:
            best, least = name, far
    return best


def _tracks(mask: Float[ndarray, "T H W"], colour: str) -> list[_Track]:
    """The connected things of one colour, followed from frame to frame by nearness."""
    count = len(mask)
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = True  # neighbours in the frame, diagonals too, never in time
    labels, number = ndimage.label(mask > 0.5, structure=flat)  # pyright: ignore[reportGeneralTypeIssues]
    if number == 0:
        return []
    index = np.arange(1, number + 1)
    areas = ndimage.sum_labels(mask, labels, index)
    when = ndimage.maximum(np.broadcast_to(np.arange(count)[:, None, None], mask.shape), labels, index).astype(np.int64)
    good = areas >= max(LEAST_AREA, LEAST_SHARE * float(np.quantile(areas, 0.9)))
    places = [tuple(place) for place in ndimage.center_of_mass(mask, labels, index)]
    per_frame = [np.flatnonzero(good & (when == t)).tolist() for t in range(count)]
    shown = [len(seen) for seen in per_frame if seen]
    if not shown:
        return []
    usual = int(np.median(shown))
    chains: list[list[tuple[int, int]]] = [[] for _ in range(max(usual, 1))]  # (frame, component)
    for t, seen in enumerate(per_frame):
        ordered = sorted(seen, key=lambda i: -areas[i])[: len(chains)]
        _extend(chains, t, ordered, places)
    return [_follow(mask, labels, colour, chain) for chain in chains if chain]


def _extend(chains: list[list[tuple[int, int]]], t: int, seen: list[int], places: Sequence[tuple[float, ...]]) -> None:
    """Append each component of a frame to the chain whose last position is nearest."""
    free = list(range(len(chains)))
    for i in seen:
        far = {c: np.hypot(*(np.subtract(places[i], places[chains[c][-1][1]])[1:])) if chains[c] else 1e6 + c for c in free}
        chosen = min(free, key=far.__getitem__)
        chains[chosen].append((t, i))
        free.remove(chosen)


def _follow(mask: Float[ndarray, "T H W"], labels: ndarray, colour: str, chain: list[tuple[int, int]]) -> _Track:
    """Cut one thing out of its colour's mask: its core and the soft edge within two pixels, where this thing is the nearest."""
    count = len(mask)
    masks = np.zeros_like(mask)
    areas, centres = np.zeros(count), np.full((count, 2), np.nan)
    for t, component in chain:
        core = labels[t] == component + 1
        around = ndimage.binary_dilation(core, np.ones((3, 3), dtype=bool), iterations=2)
        others = (labels[t] > 0) & ~core
        if others.any():
            around &= np.logical_not(ndimage.binary_dilation(others, np.ones((3, 3), dtype=bool))) | core
        masks[t] = np.where(around & (mask[t] > 0.08), mask[t], 0.0)
        areas[t] = masks[t].sum()
        centres[t] = centroid(masks[t])
    return _Track(colour, masks, areas, centres)


def _usual(areas: ndarray) -> float:
    seen = areas[areas > 0]
    return float(np.quantile(seen, 0.75)) if len(seen) else 0.0


def _lasting(track: _Track) -> bool:
    """Whether a track is seen in at least a third of the frames: anything briefer is no thing."""
    return bool((track.areas > 0).mean() >= 0.34)


@dataclass(frozen=True)
class _View:
    """How well a track is seen. clear: numbers of the frames in which it is shown whole, by its area. whole: those in which nothing cuts
    its outline. judged: (T,) True where no bar hides it. hidden: (T, 2) its positions (row, column) in frames in which it is not clear,
    else NaN. usual: its usual area in pixels. radius: of the circle of that area, in pixels."""

    clear: ndarray
    whole: ndarray
    judged: Bool[ndarray, "T"]
    hidden: Float[ndarray, "T 2"]
    usual: float
    radius: float


def _view(track: _Track, pixels: Float[ndarray, "T H W 3"], own: Bool[ndarray, "T H W"]) -> _View:
    usual, uncut = _usual(track.areas), np.logical_not(_cut(track.masks))
    full = track.areas >= FULL * usual
    seen = np.flatnonzero(track.areas >= SHOWN * usual)
    radius = float(np.sqrt(usual / np.pi))
    hidden = way(track.centres, seen)
    shown = np.ones(len(full)) if full.all() else in_view(pixels, own, hidden, radius)
    hidden[full] = np.nan
    whole = (track.areas >= WHOLE * usual) | ((track.areas >= LOW * usual) & uncut & (shown >= 1.0))
    return _View(np.flatnonzero(full & uncut), np.flatnonzero(whole), shown >= FULL, hidden, usual, radius)


def _thing(track: _Track, view: _View, chroma: Float[ndarray, "T H W 2"], short: int, scale: int) -> Thing:
    usual, clear = view.usual, view.clear
    seen = np.flatnonzero(track.areas > 0.5 * usual)
    fit = _fit(track, clear if len(clear) else seen)
    places = track.centres[seen]
    ends = max(1, len(seen) // 5)
    step = (np.median(places[-ends:], axis=0) - np.median(places[:ends], axis=0)) / short
    spread = np.abs(places - np.median(places, axis=0)).max() / short
    return Thing(
        colour=track.colour,
        shape=fit.shape,
        shapes=_around_gap(track, clear, usual, fit.shape),
        margin=fit.margin,
        step=(float(step[1]), float(step[0])),
        range=float(spread),
        turn=fit.turn,
        bounces=_bounces(places[:, 0] / short),
        hides=_hides(track, usual, short),
        area=usual * scale**2,
        centres=(track.centres[:, ::-1] + 0.5) * scale,
        shown=track.areas / usual,
        clear=clear,
        keeps=measure(track.masks, track.areas, track.centres, chroma=chroma, whole=view.whole, judged=view.judged, usual=usual, fit=fit),
    )


def _fit(track: _Track, frames: ndarray) -> ShapeFit:
    return fitted(track.masks, track.areas, track.centres, frames)


def _around_gap(track: _Track, clear: ndarray, usual: float, shape: str) -> tuple[str, str]:
    """The shapes before and after the longest gap between clear frames, if the thing was unseen in it; else the shape of the clip twice."""
    if len(clear) < 2 * LEAST_SIDE:
        return shape, shape
    cut = int(np.diff(clear).argmax()) + 1
    if not (track.areas[clear[cut - 1] : clear[cut]] < LOW * usual).any():
        return shape, shape
    fits = [_fit(track, part) if len(part) >= LEAST_SIDE else None for part in (clear[:cut], clear[cut:])]
    first, last = (fit.shape if fit is not None and fit.margin >= SURE else shape for fit in fits)
    return first, last


def _cut(masks: Float[ndarray, "T H W"]) -> ndarray:
    """Frames in which a thing touches the frame's edge, so that its outline may be cut."""
    edge = masks[:, [0, -1]].max((1, 2)), masks[:, :, [0, -1]].max((1, 2))
    return np.maximum(*edge) > 0.6


def _bounces(heights: ndarray) -> int:
    """How often a downward way turns into an upward one by a good part (heights grow downwards)."""
    touches, lowest, highest, falling = 0, -np.inf, np.inf, False
    for y in heights:
        if not falling:
            highest = min(highest, y)
            if y - highest > DIP:
                falling, lowest = True, y
        else:
            lowest = max(lowest, y)
            if lowest - y > DIP:
                touches, falling, highest = touches + 1, False, y
    return touches


def _hides(track: _Track, usual: float, short: int) -> bool:
    """Whether a track is seen, then unseen, then seen again farther along the same way."""
    gone = track.areas < LOW * usual
    full = np.flatnonzero(track.areas > 0.6 * usual)
    for before, after in pairwise(full):
        if gone[before + 1 : after].any():
            first, last = track.centres[full[0]], track.centres[full[-1]]
            across = track.centres[after] - track.centres[before]
            return bool(np.dot(across, last - first) > 0 and np.hypot(*across) > 0.1 * short)
    return False


def _camera(pixels: Float[ndarray, "T H W 3"], tracks: list[_Track], short: int) -> str | None:
    """The direction in which the camera pans: the background moves along with the largest thing, instead of staying."""
    if not tracks or len(pixels) < 2:
        return None
    track = tracks[0]
    seen = np.flatnonzero(track.areas > 0.5 * _usual(track.areas))
    if len(seen) < 2:
        return None
    whole = track.centres[seen[-1]] - track.centres[seen[0]]
    axis = int(np.abs(whole).argmax())
    if abs(whole[axis]) < 0.08 * short:
        return None
    busy: ndarray = ndimage.binary_dilation(sum(item.masks for item in tracks) > 0.05, np.ones((1, 5, 5), dtype=bool))
    grey = ndimage.uniform_filter(pixels.mean(-1), (0, 3, 3))  # pyright: ignore[reportArgumentType]
    apart = max(1, round(len(seen) * min(1.0, 0.2 * short / abs(whole[axis]))))
    apart = min(apart, len(seen) - 1)
    stays, follows = [], []
    for k in range(0, len(seen) - apart, max(1, (len(seen) - apart) // 6)):
        first, later = seen[k], seen[k + apart]
        way = track.centres[later] - track.centres[first]
        moved = ndimage.shift(grey[later], -way, order=1, mode="constant", cval=-1e4)
        free = ~busy[first] & ~busy[later] & (moved > -100) & (ndimage.shift(busy[later].astype(np.float32), -way, order=1) < 0.05)
        if free.sum() < 16:
            continue
        stays.append(float(np.square(grey[later] - grey[first])[free].mean()))
        follows.append(float(np.square(moved - grey[first])[free].mean()))
    if not stays or np.mean(stays) < STILL_GRID or np.mean(follows) > 0.5 * np.mean(stays):
        return None
    against = -whole[axis]
    return ("up" if against < 0 else "down") if axis == 0 else ("left" if against < 0 else "right")
