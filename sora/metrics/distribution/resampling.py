"""The bootstrap interval of a Fréchet distance, and its extrapolation to infinitely many clips.

Each draw has a generator of its own, seeded by the caller; torch's global one is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.distribution.frechet import check_features, frechet_distance, frechet_of_counts
from sora.system.terminal import counted

LEAST_REPEATS = 20  # of the bootstrap: fewer cannot locate the ends of an interval
FRACTIONS = (1.0, 0.8, 2 / 3, 0.5, 0.4, 1 / 3)  # shares of both sets, for the extrapolation


@dataclass(frozen=True)
class Extrapolation:
    """The fit distance(fraction) = infinite + slope / fraction by least squares; r_squared measures how straight the points lie.

    fractions: of the sets, for the subsets that were drawn. distances: their mean distances.
    """

    infinite: float
    slope: float
    r_squared: float
    fractions: tuple[float, ...]
    distances: tuple[float, ...]


def frechet_interval(
    one: Float[Tensor, "n d"],
    two: Float[Tensor, "m _"],
    *,
    repeats: int,
    seed: int,
    level: float = 0.95,
    ddof: int = 1,
) -> tuple[float, float]:
    """The interval in which the distance at these sizes lies with probability `level` if other clips were drawn: a bootstrap.

    Clips of both sets are drawn anew with replacement, `repeats` times. Such draws have larger distances than the sets themselves (the
    estimate's bias counts twice), so the interval is their spread around their own mean, put around the distance: a percentile interval of
    the draws would often not contain the distance. In simulations it covers at its level for sets that differ, and more often than that (it
    is too wide) for sets that do not.
    """
    check_features(one, two)
    if repeats < LEAST_REPEATS or not 0 < level < 1:
        raise ValueError(
            f"a bootstrap of {repeats} repeats at level {level}: give at least {LEAST_REPEATS} repeats and a level between 0 and 1"
        )
    draw = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [frechet_of_counts(one, _counts(one, draw), two, _counts(two, draw), ddof=ddof) for _ in range(repeats)], dtype=torch.float64
    )
    spread = torch.quantile(found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)) - found.mean()
    distance = frechet_distance(one, two, ddof=ddof)
    return max(0.0, distance + float(spread[0])), distance + float(spread[1])


def extrapolate(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"], *, seed: int, repeats: int = 3, ddof: int = 1) -> Extrapolation:
    """The distance for infinitely many clips, by the 1/n law of its bias (Chong and Forsyth 2020, with both sets growing).

    Subsets without replacement of six fractions of both sets, `repeats` of each but the whole. With few clips a dimension the bias follows
    no 1/n law, and the line keeps half of it however straight it looks (r_squared): `permutation.law_error` tests this. Raises ValueError
    below 12 clips a set.
    """
    check_features(one, two)
    if min(len(one), len(two)) < 12:
        raise ValueError(
            f"sets of {counted(len(one), 'clip')} and {counted(len(two), 'clip')} are too small to extrapolate from; give at least 12 each"
        )
    draw = torch.Generator().manual_seed(seed)
    distances = []
    for fraction in FRACTIONS:
        times = 1 if fraction == 1 else repeats
        found = [frechet_distance(_part(one, fraction, draw), _part(two, fraction, draw), ddof=ddof) for _ in range(times)]
        distances.append(sum(found) / times)
    x = 1 / torch.tensor(FRACTIONS, dtype=torch.float64)
    y = torch.tensor(distances, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    infinite = y.mean() - slope * x.mean()
    left = (y - infinite - slope * x).square().sum()
    total = (y - y.mean()).square().sum()
    r_squared = float(1 - left / total) if total > 0 else 1.0
    return Extrapolation(float(infinite), float(slope), r_squared, FRACTIONS, tuple(distances))


def _counts(features: Tensor, draw: torch.Generator) -> Tensor:
    """How often each clip occurs in n draws with replacement; at least two different clips, else there is no spread to measure."""
    n = len(features)
    while True:
        counts = torch.bincount(torch.randint(n, (n,), generator=draw), minlength=n)
        if int((counts > 0).sum()) > 1:
            return counts.to(features.device)


def _part(features: Tensor, fraction: float, draw: torch.Generator) -> Tensor:
    order = torch.randperm(len(features), generator=draw)
    return features[order[: max(2, round(fraction * len(features)))].to(features.device)]
