"""How well two sets of features cover one another, by balls around each sample that reach its k-th neighbour.

Improved precision and recall: Kynkäänniemi et al. 2019, eq. 1 and 2. Density and coverage: Naeem et al. 2020, eq. 4 and 5. Balls include
their surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.distribution.frechet import check_features
from sora.system.terminal import counted

SLICE = 1024  # rows of distances in memory at once


@dataclass(frozen=True)
class Overlap:
    """Four shares. precision: generated samples within a ball of a real one. recall: real ones within a ball of a generated one. density:
    real balls that contain a generated sample, over k, about 1 for equal sets and not bounded by it. coverage: real balls that contain any
    generated sample."""

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(real: Float[Tensor, "n d"], fake: Float[Tensor, "m _"], *, neighbours: int = 5) -> Overlap:
    """Precision, recall, density and coverage. neighbours: k, less than either number of samples. ValueError if a set is too small."""
    check_features(real, fake)
    if not 1 <= neighbours < min(len(real), len(fake)):
        raise ValueError(
            f"sets of {counted(len(real), 'clip')} and {counted(len(fake), 'clip')} have no {counted(neighbours, 'neighbour')} each; "
            "give more clips, or set neighbours to 1 or more, and lower"
        )
    real, fake = real.double(), fake.double()
    real_reach, fake_reach = _reach(real, neighbours), _reach(fake, neighbours)
    inside = []
    covered, recalled = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for part, reach in zip(fake.split(SLICE), fake_reach.split(SLICE), strict=True):
        distances = _distances(part, real)
        within = distances <= real_reach
        inside.append(within.sum(dim=1))
        covered |= within.any(dim=0)
        recalled |= (distances <= reach[:, None]).any(dim=0)
    balls = torch.cat(inside)
    return Overlap(
        precision=float((balls > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(balls.double().mean() / neighbours),
        coverage=float(covered.double().mean()),
    )


def _reach(features: Tensor, neighbours: int) -> Tensor:
    """Each sample's distance to its k-th neighbour."""
    # One more, since each sample is its own nearest.
    parts = [_distances(part, features).kthvalue(neighbours + 1, dim=1).values for part in features.split(SLICE)]
    return torch.cat(parts)


def _distances(one: Tensor, two: Tensor) -> Tensor:
    # Without the matrix product: its rounding makes near neighbours of large features coincide.
    return torch.cdist(one, two, compute_mode="donot_use_mm_for_euclid_dist")
