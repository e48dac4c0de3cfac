"""What a distance is worth against no difference at all: both sets are pooled and split at random into two of their sizes.

Where real and generated clips are independent draws of one distribution, each way of telling them apart was as likely as the one that came.
So the mean over random splits is what two such sets score, whatever the distribution, the sizes and the dimension; and the share of splits
that score as much is an honest p value (Fisher 1935; for random splits Phipson and Smyth 2010). Neither holds where clips are not
independent: copies of one video, several windows of one, pairs of an original and its reconstruction.

Splits are a function of seed and sizes alone. The pool's order is one of values, so they do not depend on batches, workers or ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from sora.metrics.distribution.pool import Pool

LEAST_PERMUTATIONS = 19  # fewer have no p value below 0.05
SAME = 1e-7  # of the floor: how far two splits into sets of the same values may lie apart by rounding
LAW_PARTS, LAW_SPLITS = (1.0, 0.5, 1 / 3), 24  # of both sets, and pairs of each, by which the 1/n law is judged


@dataclass(frozen=True)
class NoDifference:
    """floor: the mean distance of random splits of the pool. p: the chance of a distance as large as the one found if the sets do not
    differ, (1 + splits that reach it) / (1 + splits): uniform under no difference, and never 0."""

    floor: float
    p: float


@dataclass(frozen=True)
class PooledFeatures:
    """features (N, d) of both sets in the order of their values; first (N,): which of them are of the first set."""

    features: Tensor
    first: ndarray

    def labelled(self, permutations: int, *, seed: int) -> Bool[ndarray, "K N"]:
        """The set that each clip belongs to: as it is, and then in `permutations` random splits of the same sizes.

        What is permuted are the labels of clips in order, and not the clips of two sets one behind the other: a fixed seed would then give
        the same ranks of values to the same side each time, and p would be uniform over seeds, but not over data.
        """
        return relabelled(self.first, permutations, seed=seed)


def relabelled(first: Bool[ndarray, "N"], permutations: int, *, seed: int) -> Bool[ndarray, "K N"]:
    """The labels as they are, and then in as many random orders: a function of the seed and of how many there are."""
    draw = torch.Generator().manual_seed(seed)
    return np.stack([first, *(first[torch.randperm(len(first), generator=draw).numpy()] for _ in range(permutations))])


def pooled(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"]) -> PooledFeatures:
    """Both sets as one, in the order of values; of equal rows those of the first set come first."""
    features = torch.cat([one, two]).detach().double()
    order = in_order(features.cpu().numpy())
    return PooledFeatures(features[torch.from_numpy(order).to(features.device)], order < len(one))


def in_order(rows: Float[ndarray, "n d"]) -> ndarray:
    """The places of the rows sorted by their first value, ties by the next, and so on."""
    places = np.argsort(rows[:, 0], kind="stable")
    first = rows[places, 0]
    # Mostly nothing is tied, and a key for each of a thousand columns would take a thousand sorts.
    return places if (first[1:] > first[:-1]).all() else np.lexsort(rows.T[::-1])


def no_difference(distances: Float[ndarray, "K"]) -> NoDifference:
    """Of the distances of `labelled` splits, the first of which is the one that was found."""
    found, permuted = distances[0], distances[1:]
    floor = float(permuted.mean())
    reached = int((permuted >= found - SAME * float(np.abs(permuted).mean())).sum())
    return NoDifference(floor, (1 + reached) / (1 + len(permuted)))


def frechet_splits(pool: Pool, labels: Bool[ndarray, "K N"]) -> Float[ndarray, "K"]:
    """The Fréchet distance between the clips that are labelled and those that are not, for each row of labels."""
    return np.array([pool.split(row) for row in labels])


def law_error(pool: Pool, n: int, m: int, floors: Float[ndarray, "B"], *, seed: int) -> tuple[float, float]:
    """What the 1/n law makes of sets that do not differ, and the standard error of that: it should be 0.

    floors: distances of random splits into n and m. Pairs of half and a third of these sizes are drawn of the same pool; a line through
    the three means over 1/n is followed to infinitely many clips, as `extrapolate` does. In units of the distance.
    """
    draw, values = torch.Generator().manual_seed(seed), [floors]
    for part in LAW_PARTS[1:]:
        sizes = max(2, round(part * n)), max(2, round(part * m))
        orders = [torch.randperm(pool.clips, generator=draw).numpy() for _ in range(LAW_SPLITS)]
        values.append(np.array([pool.between(order[: sizes[0]], order[sizes[0] : sum(sizes)]) for order in orders]))
    x = 1 / np.array(LAW_PARTS)
    weights = 1 / len(x) - x.mean() * (x - x.mean()) / np.square(x - x.mean()).sum()  # of a least squares line's value at 0
    error = sum(weight * each.mean() for weight, each in zip(weights, values, strict=True))
    variance = sum(weight**2 * each.var(ddof=1) / len(each) for weight, each in zip(weights, values, strict=True))
    return float(error), float(variance**0.5)
