"""A test for memorisation: distances from generated clips to their nearest training clips, against those of clips that nobody trained on.

Distances are of an extractor's features. A model that copies is nearer to its training clips than other real clips are: the test of data
copying of Meehan et al. 2020, which has cells of the space; here over the whole space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sora.metrics.distribution.frechet import check_features

SLICE = 1024  # rows of distances in memory at once
NEAR = 0.05  # the share of other real clips that are as near by chance


@dataclass(frozen=True)
class Neighbours:
    """places, distances (n): the index and distance of the nearest training clip of each generated clip.

    remembered: the share of generated clips that are nearer than all but 5 % of other real clips; about 0.05 without copying. z: of the
    Mann-Whitney test that generated clips are nearer; far below 0 they are copies, far above 0 they are of another kind. usual: the median
    distance of the other real clips.
    """

    places: Int[Tensor, "n"]
    distances: Float[Tensor, "n"]
    remembered: float
    z: float
    usual: float


def nearest(features: Float[Tensor, "n d"], among: Float[Tensor, "m _"]) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
    """The index and Euclidean distance of each row's nearest row of `among`; of several equal ones the first."""
    among = among.double()
    found = [torch.cdist(part.double(), among, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1) for part in features.split(SLICE)]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])


def neighbours(fake: Float[Tensor, "n d"], training: Float[Tensor, "m _"], other: Float[Tensor, "k _"]) -> Neighbours:
    """The memorisation test. fake: features of generated clips. training: of the training clips. other: of real clips outside training.

    Raises ValueError if a set has fewer than two rows, or widths differ.
    """
    check_features(fake, training)
    check_features(other, training)
    places, distances = nearest(fake, training)
    others = nearest(other, training)[1]
    bound = float(torch.quantile(others, NEAR))
    return Neighbours(
        places=places,
        distances=distances,
        remembered=float((distances < bound).double().mean()),
        z=_mann_whitney(distances, others),
        usual=float(others.median()),
    )


def _mann_whitney(one: Tensor, two: Tensor) -> float:
    """The z score of how often a value of `one` lies above one of `two`, half for ties (Mann and Whitney 1947)."""
    above = (one[:, None] > two[None]).double().mean() + 0.5 * (one[:, None] == two[None]).double().mean()
    n, m = len(one), len(two)
    return float((above - 0.5) / ((n + m + 1) / (12 * n * m)) ** 0.5)
