"""Intervals and p values of a Fréchet distance for several clips per video: videos are resampled, each with all of its clips.

Windows of one video resemble one another, so ten of them say less than ten videos do. Resampling clips assumes independence, which gives
too narrow intervals and too small p values; resampling clusters does not (Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from sora.metrics.distribution.frechet import check_features, frechet_distance, frechet_of_counts
from sora.metrics.distribution.resampling import LEAST_REPEATS
from sora.system.terminal import counted


def numbered(names: Sequence[str]) -> Int[ndarray, "n"]:
    """A number for each clip, the same for clips of one video. names: of each clip's video."""
    return np.unique(np.asarray(names), return_inverse=True)[1]


def clustered_interval(
    one: Float[Tensor, "n d"],
    videos_one: Int[ndarray, "n"],
    two: Float[Tensor, "m _"],
    videos_two: Int[ndarray, "m"],
    *,
    repeats: int,
    seed: int,
    level: float = 0.95,
    ddof: int = 1,
) -> tuple[float, float]:
    """The interval in which the distance lies with probability `level` if other videos were drawn: the bootstrap of `frechet_interval` over
    videos instead of clips. videos_…: the number of each clip's video, as `numbered` gives it. Raises ValueError for a set of one video."""
    check_features(one, two)
    for videos in (videos_one, videos_two):
        if len(np.unique(videos)) < 2:
            raise ValueError(
                f"{counted(len(videos), 'clip of one video has', 'clips of one video have')} no interval: nothing says how another video "
                "would score"
            )
    if repeats < LEAST_REPEATS:
        raise ValueError(f"a bootstrap of {repeats} repeats: give at least {LEAST_REPEATS}")
    draw = np.random.Generator(np.random.PCG64(seed))
    found = [
        frechet_of_counts(one, _drawn(videos_one, draw).to(one.device), two, _drawn(videos_two, draw).to(two.device), ddof=ddof)
        for _ in range(repeats)
    ]
    values = torch.tensor(found, dtype=torch.float64)
    spread = torch.quantile(values, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)) - values.mean()
    distance = frechet_distance(one, two, ddof=ddof)
    return max(0.0, distance + float(spread[0])), distance + float(spread[1])


def clustered_floor(
    one: Float[Tensor, "n d"],
    videos_one: Int[ndarray, "n"],
    two: Float[Tensor, "m _"],
    videos_two: Int[ndarray, "m"],
    *,
    repeats: int,
    seed: int,
    ddof: int = 1,
) -> tuple[float, float]:
    """(floor, p) from random splits of all videos, with all their clips, into as many as each set has. floor: the mean distance of splits,
    which is the expected distance of two such sets of one distribution. p: (1 + splits that reach the distance) / (1 + splits)."""
    check_features(one, two)
    pool, sizes = torch.cat([one, two]), (len(np.unique(videos_one)), len(np.unique(videos_two)))
    videos = np.concatenate([numbered(list(map(str, videos_one))), sizes[0] + numbered(list(map(str, videos_two)))])
    draw, distance, found = np.random.Generator(np.random.PCG64(seed)), frechet_distance(one, two, ddof=ddof), []
    for _ in range(repeats):
        first = torch.from_numpy(np.isin(videos, draw.permutation(sum(sizes))[: sizes[0]])).to(pool.device)
        if min(int(first.sum()), int((~first).sum())) > 1:
            found.append(frechet_distance(pool[first], pool[~first], ddof=ddof))
    values = np.array(found)
    return float(values.mean()), (1 + int((values >= distance * (1 - 1e-9)).sum())) / (1 + len(values))


def _drawn(videos: Int[ndarray, "n"], draw: np.random.Generator) -> Int[Tensor, "n"]:
    """How often each clip occurs in a draw of as many videos with replacement; at least two different videos are drawn."""
    which, place = np.unique(videos, return_inverse=True)
    while True:
        times = np.bincount(draw.integers(len(which), size=len(which)), minlength=len(which))
        if (times > 0).sum() > 1:
            return torch.from_numpy(times[place])


def mean_interval(
    values: Float[Tensor, "n"], videos: Int[ndarray, "n"], *, repeats: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """The interval of a mean over clips if other videos were drawn: percentiles of the means of `repeats` draws of videos."""
    draw, found = np.random.Generator(np.random.PCG64(seed)), []
    for _ in range(repeats):
        times = _drawn(videos, draw).to(values)
        found.append(float((times * values).sum() / times.sum()))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
