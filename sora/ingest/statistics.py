"""Statistics of a dataset as histograms and counts: from the columns of all clips, and from the rows of a sample of clips."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sora.data.index.index import Index
from sora.data.index.keyed_sets import SELECTIONS, open_selection
from sora.system.terminal import counted
from sora.video.files import read_apart

_BARS = 12
_PLOTS = 12  # histograms of caption kinds, and of scores: a stranger's JSON may name thousands
_BEYOND = 1e100
_THUMBNAIL = 208  # pixels of the longer side
_ASPECTS = {"9:16": 9 / 16, "2:3": 2 / 3, "3:4": 3 / 4, "1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "21:9": 21 / 9}


@dataclass(frozen=True)
class Histogram:
    """Counts by label, in order. about: the quantity, with its unit."""

    about: str
    counts: Mapping[str, int]

    def lines(self, width: int) -> list[str]:
        """The histogram as bars for a terminal of `width` columns."""
        wide = max((len(label) for label in self.counts), default=0)
        most = max(self.counts.values(), default=1) or 1
        room = max(8, width - wide - 14)
        bars = [(label, _bar(count / most * room), count) for label, count in self.counts.items()]
        return [self.about, *(f"  {label:>{wide}} {bar:<{room}} {count}" for label, bar, count in bars)]


@dataclass(frozen=True)
class Description:
    """The statistics of a dataset. counted: by property (licence, captioner, ...), how many clips of the sample have each value. left:
    lines about quantities that are too many for histograms."""

    totals: Mapping[str, float]
    splits: Mapping[str, int]
    histograms: tuple[Histogram, ...]
    counted: Mapping[str, Mapping[str, int]]
    sampled: int
    left: tuple[str, ...] = ()


def lasting(seconds: float) -> tuple[float, str]:
    """A duration as (number, unit), in a unit that suits its size."""
    if seconds < 120:
        return seconds, "seconds"
    return (seconds / 60, "minutes") if seconds < 7200 else (seconds / 3600, "hours")


def heavy(size: float) -> tuple[float, str]:
    """A size in bytes as (number, unit), in a unit that suits it."""
    power = min(4, max(1, int(np.log10(max(size, 1)) // 3)))
    return size / 1000.0**power, ("kB", "MB", "GB", "TB")[power - 1]


def describe(index: Index, *, sample: int) -> Description:
    """Describe the clips of an index; captions, licences, consent and scores of at most `sample` clips, evenly spread."""
    if sample < 1:
        raise ValueError(f"sample={sample} clips tell nothing; give 1 or more")
    rows = np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).round().astype(int)).tolist()
    frames, heights, widths = (np.asarray(column) for column in (index.frames, index.heights, index.widths))
    seconds = np.where(frames > 1, frames / index.fps, 0.0)  # the duration of an image is 0
    shapes = Counter(dict(zip(*_counts(heights.astype(np.int64) << 32 | widths), strict=True)))
    sizes = {f"{size & 0xFFFFFFFF}x{size >> 32}": count for size, count in shapes.most_common(_BARS)}
    if len(shapes) > _BARS:
        sizes["others"] = len(index) - sum(sizes.values())
    made = [
        Histogram("width x height in pixels", sizes),
        Histogram("aspect ratio, width:height (the nearest)", _aspects(heights, widths)),
        Histogram("duration in seconds", binned(seconds)),
        Histogram("frames", binned(frames)),
        Histogram("frames a second", binned(np.asarray(index.fps))),
        Histogram("kilobytes", binned(np.asarray(index.sizes) / 1024)),
    ]
    lengths, scores, texts = _said(index, rows)
    (kinds, fewer), (named, less) = _most(lengths, "kinds of captions"), _most(scores, "scores")
    made += [Histogram(f"words in captions of kind {kind}", binned(np.asarray(words))) for kind, words in kinds]
    made += [Histogram(f"score {name}", binned(np.asarray(values))) for name, values in named]
    totals = {"clips": len(index), "frames": int(frames.sum(dtype=np.int64)), "seconds": float(seconds.sum())}
    totals |= {"bytes": int(np.asarray(index.sizes).sum()), "shards": len(index.described["shards"])}
    return Description(totals, index.described["splits"], tuple(made), texts, len(rows), (*fewer, *less))


def sets_told(index: Index) -> list[str]:
    """A line for each set of captions, set of scores and selection of a dataset."""
    sets = (*index.sets.described, *index.score_sets.described)
    kinds = [index.sets.kind] * len(index.sets.described) + [index.score_sets.kind] * len(index.score_sets.described)
    told = []
    for kind, described in zip(kinds, sets, strict=True):
        clips = sum(entry.get("clips", 0) for entry in described["files"])
        told.append(f"{kind.what} {described['name']}: of {counted(clips, 'clip')}")
    chosen = [open_selection(index.folder, name, index.described) for name in SELECTIONS.names(index.folder)]
    return told + [selection.told(np.ones(len(selection.codes), np.bool_)) for selection in chosen]


def _most(found: Mapping[str, list[Any]], what: str) -> tuple[list[tuple[str, list[Any]]], list[str]]:
    """The entries with the most values, by name, and a line about the others."""
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    left = [f"{len(ranked) - _PLOTS} more {what} are not shown, such as {ranked[_PLOTS][0][:60]}"] if len(ranked) > _PLOTS else []
    return sorted(ranked[:_PLOTS]), left


def _said(index: Index, rows: Sequence[int]) -> tuple[dict[str, list[int]], dict[str, list[float]], dict[str, Counter[str]]]:
    lengths: dict[str, list[int]] = {}
    scores: dict[str, list[float]] = {}
    texts: dict[str, Counter[str]] = {"captioner": Counter(), "licence": Counter(), "consent": Counter()}
    for number in rows:
        row = index.row(number)
        captions = index.captions(number)
        texts["captioner"].update({f"{said.captioner} ({said.kind})" for said in captions} or {"no caption"})
        texts["licence"][row.licence or "not known"] += 1
        texts["consent"][row.consent or "not known"] += 1
        for said in captions:
            lengths.setdefault(said.kind, []).append(len(said.text.split()))
        for name, value in index.scores(number).items():
            scores.setdefault(name, []).append(value)
    return lengths, scores, texts


def binned(values: np.ndarray) -> dict[str, int]:
    """Counts of values: of each value if they are few, else in about twelve bins between round numbers, of even width or of even ratio.

    A bin of whole numbers is labelled with its first and last number, another bin with its bounds, the upper one exclusive. Values that are
    huge or no number have a bin of their own.
    """
    usual = np.isfinite(values) & (np.abs(values.astype(np.float64)) < _BEYOND)
    if not usual.all():
        return binned(values[usual]) | {f"{_BEYOND:g} and more, or no number": int((~usual).sum())}
    values = np.where(np.abs(values.astype(np.float64)) < 1 / _BEYOND, np.zeros_like(values), values)
    found, counts = _counts(values)
    if not len(found):
        return {}
    if len(found) <= _BARS:
        return {f"{value:.4g}": int(count) for value, count in zip(found, counts, strict=True)}
    low, high, whole = float(found[0]), float(found[-1]), np.issubdtype(values.dtype, np.integer)
    edges = _even(low, high, whole) if low <= 0 or high / low < 30 else _ratios(low, high, whole)
    sums = np.histogram(values, bins=edges)[0]
    bounds = list(pairwise(edges))
    if whole:
        labels = [f"{first:.6g}" if last - first == 1 else f"{first:.6g}–{last - 1:.6g}" for first, last in bounds]
    else:
        labels = [f"{first:.4g}–{last:.4g}" for first, last in bounds]
    return {label: int(count) for label, count in zip(labels, sums, strict=True)}


def _even(low: float, high: float, whole: bool) -> list[float]:
    """Bin bounds at multiples of a round step, from the last at or below `low` to the first above `high`."""
    least = max((high - low) / (_BARS - 1), 1.0 if whole else 0.0)
    power = 10.0 ** np.floor(np.log10(least))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10) if not whole or factor * power % 1 == 0]
    step = next(step for step in steps if step >= least * (1 - 1e-9))
    first, last = int(np.floor(low / step)), int(np.floor(high / step)) + 1
    return [number * step for number in range(first, last + 1)]


def _ratios(low: float, high: float, whole: bool) -> list[float]:
    """Bin bounds at round numbers in every power of ten, as many as give about twelve bins."""
    first, last = int(np.floor(np.log10(low))), int(np.floor(np.log10(high))) + 1
    for factors, apart in (((1, 1.5, 2, 3, 5, 7), 1), ((1, 2, 5), 1), ((1, 3), 1), *(((1,), apart) for apart in range(1, 700))):
        edges = [factor * 10.0**power for power in range(first, last + apart, apart) for factor in factors]
        edges = [edge for edge in edges if not whole or edge % 1 == 0]
        start = max(number for number, edge in enumerate(edges) if edge <= low)
        stop = min(number for number, edge in enumerate(edges) if edge > high)
        if stop - start <= _BARS:
            return edges[start : stop + 1]
    raise AssertionError


def _counts(values: np.ndarray) -> tuple[list[Any], list[int]]:
    found, counts = np.unique(values, return_counts=True)
    return found.tolist(), counts.tolist()


def _aspects(heights: np.ndarray, widths: np.ndarray) -> dict[str, int]:
    distance = np.abs(np.log(widths / heights)[:, None] - np.log(list(_ASPECTS.values()))[None])
    found = np.bincount(distance.argmin(1), minlength=len(_ASPECTS))
    return {name: int(count) for name, count in zip(_ASPECTS, found, strict=True) if count}


def _bar(length: float) -> str:
    whole = int(length)
    eighth = int((length - whole) * 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[eighth] if eighth else "")


@dataclass(frozen=True)
class Thumbnail:
    """The middle frame of a clip as JPEG, its size, and a text about the clip."""

    jpeg: bytes
    height: int
    width: int
    title: str
    caption: str


class Thumbnails:
    """Makes thumbnails of clips by row, in any process; a clip that does not decode raises `ValueError`."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return _thumbnails, (self.index.folder,)

    def __call__(self, row: int) -> Thumbnail:
        from PIL import Image

        index = self.index
        member, fps = index.member(row), float(index.fps[row])
        height, width = int(index.heights[row]), int(index.widths[row])
        scale = min(1.0, _THUMBNAIL / max(height, width))
        size = max(2, round(height * scale)), max(2, round(width * scale))
        named, middle = f"{member.key} of {member.shard}", int(index.frames[row]) // 2
        pixels = read_apart(index.read_member(member), first=middle, frames=1, size=size, name=named).frames[0]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=80)
        frames = int(index.frames[row])
        length = "an image" if frames == 1 else f"{frames / fps:.3g} s at {fps:.4g} frames a second"
        title = f"{member.key}: {width}x{height}, {length}"
        said = index.captions(row)
        return Thumbnail(file.getvalue(), *size, title, said[0].text if said else "")


@lru_cache(maxsize=1)
def _thumbnails(folder: Path) -> Thumbnails:
    return Thumbnails(Index.open(folder))
