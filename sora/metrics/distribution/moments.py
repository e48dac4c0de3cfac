"""Mean and scatter of a set of features, accumulated part by part, for a Fréchet distance over very many clips."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.distribution.frechet import frechet_of_gaussians
from sora.system.terminal import counted


@dataclass(frozen=True)
class Moments:
    """Moments of n clips: their mean (d,), and the sum over clips of the outer product of their deviations from it (d, d); all float64.

    Deviations, not raw second moments: E[xx] - E[x]E[x] loses all digits where the mean is large beside the spread.
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def none(cls, dimension: int) -> Moments:
        return cls(0, torch.zeros(dimension, dtype=torch.float64), torch.zeros(dimension, dimension, dtype=torch.float64))

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Moments:
        """The moments of one part of n >= 1 clips."""
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features of shape {tuple(features.shape)} have no moments; give (n, d) with n of at least 1")
        features = features.double()
        mean = features.mean(dim=0)
        mean = mean + (features - mean).mean(dim=0)  # again, since the first mean of large offsets is itself rounded
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """The moments of both parts together (Chan, Golub, LeVeque 1983, eq. 2.1)."""
        if not self.n or not other.n:
            return other if not self.n else self
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of dimensions {len(self.mean)} and {len(other.mean)} come from different extractors")
        n = self.n + other.n
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.n * other.n / n)
        return Moments(n, self.mean + apart * (other.n / n), scatter)

    def covariance(self, ddof: int = 1) -> Float[Tensor, "d d"]:
        """The covariance. ddof: 1 unbiased, 0 biased."""
        if self.n < 2:
            raise ValueError(f"{counted(self.n, 'clip has', 'clips have')} no covariance; give at least 2")
        return self.scatter / (self.n - ddof)


def frechet_of_moments(one: Moments, two: Moments, *, ddof: int = 1) -> float:
    """The Fréchet distance between the Gaussians with these moments; equals `frechet_distance` on the same clips."""
    if one.mean.shape != two.mean.shape:
        raise ValueError(f"moments of dimensions {len(one.mean)} and {len(two.mean)} come from different extractors")
    return frechet_of_gaussians(one.mean, one.covariance(ddof), two.mean, two.covariance(ddof))
