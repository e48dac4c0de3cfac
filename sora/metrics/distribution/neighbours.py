"""Is what was made only remembered? The nearest training clip of each generated one, against how near clips that nobody trained on come.

Distances are of an extractor's features. A model that copies comes nearer to its training clips than other real clips do: the test of
data-copying of Meehan et al. 2020, there in cells of the space, here over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sora.metrics.distribution.frechet import check_features

SLICE = 1024  # rows of distances held at once
NEAR = 0.05  # the share of other real clips that come so near by themselves


@dataclass(frozen=True)
class Neighbours:
    """places, distances (n): the nearest training clip of each generated clip.

    remembered: the share of generated clips that come nearer than all but 5 % of other real clips; about 0.05 where nothing is copied.
    z: of the Mann-Whitney test that generated clips lie nearer; far below 0 they are copies, far above 0 they are of another kind.
    usual: the median distance of the other real clips.
    """

    places: Int[Tensor, "n"]
    distances: Float[Tensor, "n"]
    remembered: float
    z: float
    usual: float


def nearest(features: Float[Tensor, "n d"], among: Float[Tensor, "m _"]) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
    """The place and Euclidean distance of each row's nearest one `among` others; of several alike the first."""
    among = among.double()
    found = [torch.cdist(part.double(), among, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1) for part in features.split(SLICE)]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])


def neighbours(fake: Float[Tensor, "n d"], training: Float[Tensor, "m _"], other: Float[Tensor, "k _"]) -> Neighbours:
    """fake: features of generated clips. training: of what the model was trained on. other: of real clips that it was not trained on.

    Raises ValueError where a set has fewer than two rows, or widths differ.
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
