"""Permutation tests of a distance: both sets are pooled and split at random into two sets of their sizes.

If real and generated clips are independent draws of one distribution, every split is as likely as the actual one. So the mean over random
splits is the expected distance of two such sets, whatever the distribution, the sizes and the dimension; and the share of splits with at
least the actual distance is a valid p value (Fisher 1935; for random splits Phipson and Smyth 2010). Neither holds for clips that are not
independent: copies of one video, several windows of one, pairs of an original and its reconstruction.

Splits depend on seed and sizes alone. The pool is sorted by value, so they do not depend on batches, workers or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from sora.metrics.distribution.pool import Pool

LEAST_PERMUTATIONS = 19  # with fewer no p value is below 0.05
SAME = 1e-7  # share of the floor: the most that rounding separates splits into sets of the same values
LAW_PARTS, LAW_SPLITS = (1.0, 0.5, 1 / 3), 24  # shares of both sets, and pairs of each, to test the 1/n law


@dataclass(frozen=True)
class NoDifference:
    """The result of a permutation test. floor: the mean distance of random splits. p: the chance of a distance as large as the actual one
    without a difference, (1 + splits that reach it) / (1 + splits): uniform without a difference, and never 0."""

    floor: float
    p: float


@dataclass(frozen=True)
class PooledFeatures:
    """Both sets in one. features (N, d): in the order of their values. first (N,): True for those of the first set."""

    features: Tensor
    first: ndarray

    def labelled(self, permutations: int, *, seed: int) -> Bool[ndarray, "K N"]:
        """The set of each clip: the actual one in the first row, then `permutations` random splits of the same sizes.

        The labels of sorted clips are permuted, not the clips in order of their sets: with a fixed seed that would always put the same
        ranks of values on the same side, and p would be uniform over seeds, but not over data.
        """
        return relabelled(self.first, permutations, seed=seed)


def relabelled(first: Bool[ndarray, "N"], permutations: int, *, seed: int) -> Bool[ndarray, "K N"]:
    """The labels as they are, then in `permutations` random orders, which depend on the seed and on the number of labels."""
    draw = torch.Generator().manual_seed(seed)
    return np.stack([first, *(first[torch.randperm(len(first), generator=draw).numpy()] for _ in range(permutations))])


def pooled(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"]) -> PooledFeatures:
    """Both sets as one, sorted by values; of equal rows those of the first set come first."""
    features = torch.cat([one, two]).detach().double()
    order = in_order(features.cpu().numpy())
    return PooledFeatures(features[torch.from_numpy(order).to(features.device)], order < len(one))


def in_order(rows: Float[ndarray, "n d"]) -> ndarray:
    """The indices that sort the rows by their first value, ties by the next, and so on."""
    places = np.argsort(rows[:, 0], kind="stable")
    first = rows[places, 0]
    # Ties are rare, and a sort key for each of a thousand columns would take a thousand sorts.
    return places if (first[1:] > first[:-1]).all() else np.lexsort(rows.T[::-1])


def no_difference(distances: Float[ndarray, "K"]) -> NoDifference:
    """The permutation test from the distances of `labelled` splits, the first of which is the actual one."""
    found, permuted = distances[0], distances[1:]
    floor = float(permuted.mean())
    reached = int((permuted >= found - SAME * float(np.abs(permuted).mean())).sum())
    return NoDifference(floor, (1 + reached) / (1 + len(permuted)))


def frechet_splits(pool: Pool, labels: Bool[ndarray, "K N"]) -> Float[ndarray, "K"]:
    """For each row of labels, the Fréchet distance between the clips with and without the label."""
    return np.array([pool.split(row) for row in labels])


def law_error(pool: Pool, n: int, m: int, floors: Float[ndarray, "B"], *, seed: int) -> tuple[float, float]:
    """The distance that the 1/n law extrapolates for sets that do not differ, which should be 0, and its standard error.

    floors: distances of random splits into n and m. Pairs of half and a third of these sizes are drawn from the same pool; a line in 1/n
    through the three means is extrapolated to infinitely many clips, as `extrapolate` does. In units of the distance.
    """
    draw, values = torch.Generator().manual_seed(seed), [floors]
    for part in LAW_PARTS[1:]:
        sizes = max(2, round(part * n)), max(2, round(part * m))
        orders = [torch.randperm(pool.clips, generator=draw).numpy() for _ in range(LAW_SPLITS)]
        values.append(np.array([pool.between(order[: sizes[0]], order[sizes[0] : sum(sizes)]) for order in orders]))
    x = 1 / np.array(LAW_PARTS)
    weights = 1 / len(x) - x.mean() * (x - x.mean()) / np.square(x - x.mean()).sum()  # weights of a least squares line's value at 0
    error = sum(weight * each.mean() for weight, each in zip(weights, values, strict=True))
    variance = sum(weight**2 * each.var(ddof=1) / len(each) for weight, each in zip(weights, values, strict=True))
    return float(error), float(variance**0.5)
