"""The Fréchet distance between two sets of features, taken as Gaussians: |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½).

With centred features A, B scaled so that S1 = AᵀA and S2 = BᵀB, the trace of the root is the nuclear norm of A Bᵀ: no matrix square root,
no epsilon, never complex, exact for fewer samples than dimensions. With many more samples, and no matrix near singular, it is faster as the
sum of roots of the eigenvalues of Lᵀ S2 L, S1 = L Lᵀ, which is symmetric. All in float64, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import lapack
from torch import Tensor

from sora.system.terminal import counted

NEAR = 10.0  # the squared mean over the squared spread up to which subtraction loses at most a digit of sixteen
SMALLEST = 1e-11  # the least ratio of an eigenvalue to the largest: its root loses less than 1e-10 of the distance


def frechet_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"], *, ddof: int = 1) -> float:
    """The distance between the Gaussians fitted to two sets of at least two features. ddof: 1 for unbiased covariances, else 0."""
    check_features(one, two)
    return _between(_rows(one), _rows(two), ddof)


def frechet_of_counts(
    one: Float[Tensor, "n d"], counts_one: Int[Tensor, "n"], two: Float[Tensor, "m _"], counts_two: Int[Tensor, "m"], *, ddof: int = 1
) -> float:
    """The distance between sets in which each clip occurs as often as its count says, at least two in all: cheaper than repeated rows."""
    return _between(_counted(one, counts_one), _counted(two, counts_two), ddof)


def frechet_of_gaussians(
    mean_one: Float[Tensor, "d"], covariance_one: Float[Tensor, "d d"], mean_two: Float[Tensor, "d"], covariance_two: Float[Tensor, "d d"]
) -> float:
    """The distance between two Gaussians given by their moments, such as streamed or stored ones."""
    return _combine(mean_one.double(), _root(covariance_one), mean_two.double(), _root(covariance_two))


def frechet_floor(features: Float[Tensor, "n d"], one: int, two: int) -> float:
    """The expected distance of two samples of sizes `one` and `two` from one Gaussian, in closed form from its covariance.

        E = (1/one + 1/two) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j))

    to first order in 1/n, for the eigenvalues l of the covariance, here that of `features`. Accurate within 5 % for Gaussian features with
    ten clips a dimension or more. Too low for smaller samples, whose eigenvalues spread, and for a network's features, whose tails are
    heavy: by 40 % at 18 real clips a dimension. So scores use `sora.metrics.distribution.permutation` instead.
    """
    eigenvalues = torch.linalg.svdvals(_rows(features).factor(1)) ** 2
    eigenvalues = eigenvalues[eigenvalues > eigenvalues.max() * 1e-14]
    row, column = eigenvalues[:, None], eigenvalues[None, :]
    pairs = (row * column / (row + column)).sum() + (eigenvalues / 2).sum()
    return float((1 / one + 1 / two) * (eigenvalues.sum() + pairs / 2))


def frechet_split(features: Float[Tensor, "n d"], *, seed: int, repeats: int = 4) -> float:
    """The distance between random halves of one set, a mean over `repeats` splits: a measured noise floor at half its size."""
    if len(features) < 4:
        raise ValueError(f"{counted(len(features), 'clip')} cannot be split into two halves of at least 2")
    draw = torch.Generator().manual_seed(seed)
    half = len(features) // 2
    total = 0.0
    for _ in range(repeats):
        order = torch.randperm(len(features), generator=draw)
        total += frechet_distance(features[order[:half]], features[order[half : 2 * half]])
    return total / repeats


def check_features(one: Tensor, two: Tensor) -> None:
    """Raise ValueError for sets without a covariance or a common dimension, or with values that are not finite."""
    for name, features in (("first", one), ("second", two)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"the {name} set has features of shape {tuple(features.shape)}; a distance needs at least 2 clips, (n, d)")
        if torch.isfinite(features.sum()):  # finite if all values are, unless the sum overflows
            continue
        bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"features of clips {bad[:10]} of the {name} set are not finite")
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"features of dimensions {one.shape[1]} and {two.shape[1]} come from different extractors")


@dataclass(frozen=True)
class _Rows:
    """Weighted rows: values (k, d) hold each row times the root of its weight, roots (k, 1) those roots; n is the sum of weights."""

    values: np.ndarray
    roots: np.ndarray
    n: int

    @cached_property
    def mean(self) -> np.ndarray:
        if len(self.roots) < len(self.values):  # the rows without repetition
            return torch.from_numpy(self.values).mean(dim=0).numpy()  # numpy adds rows one by one, with more rounding
        return (self.roots * self.values).sum(axis=0) / self.n

    @cached_property
    def centred(self) -> np.ndarray:
        found = self.values - self.roots * self.mean
        # Twice, since the mean of large offsets is itself rounded.
        rest = (self.roots * found).sum(axis=0) / self.n
        return found - self.roots * rest

    def factor(self, ddof: int) -> Tensor:
        """A matrix A with AᵀA the covariance, and with no more rows than columns."""
        scaled = torch.from_numpy(self.centred) * (self.n - ddof) ** -0.5
        return torch.linalg.qr(scaled, mode="r").R if scaled.shape[0] > scaled.shape[1] else scaled

    def scatter(self) -> np.ndarray:
        """The sum over rows of the outer product of their deviations from the mean."""
        # numpy sees that it is a matrix with itself and computes one half of it; torch does not.
        moment, shift = self.values.T @ self.values, self.n * np.outer(self.mean, self.mean)
        if np.trace(shift) < NEAR * (np.trace(moment) - np.trace(shift)):  # else the subtraction loses digits
            moment -= shift
            return moment
        return self.centred.T @ self.centred


def _rows(features: Tensor) -> _Rows:
    return _Rows(features.detach().to("cpu", torch.float64).numpy(), np.ones((1, 1)), len(features))


def _counted(features: Tensor, counts: Tensor) -> _Rows:
    """Rows weighted by their counts."""
    kept = (counts > 0).cpu()
    roots = counts.cpu()[kept].double().sqrt()[:, None]
    return _Rows((features.detach().to("cpu", torch.float64)[kept] * roots).numpy(), roots.numpy(), int(counts.sum()))


def _between(one: _Rows, two: _Rows, ddof: int) -> float:
    found = _by_eigenvalues(one, two, ddof)
    means = torch.from_numpy(one.mean), torch.from_numpy(two.mean)
    return _combine(means[0], one.factor(ddof), means[1], two.factor(ddof)) if found is None else found


def _by_eigenvalues(one: _Rows, two: _Rows, ddof: int) -> float | None:
    """The same distance in a third of the time; None if too few samples or small eigenvalues would cost precision."""
    if min(len(one.values), len(two.values)) < 2 * one.values.shape[1]:
        return None
    first, second = one.scatter(), two.scatter()
    by_first, by_second = one.n - ddof, two.n - ddof
    traces = np.trace(first) / by_first + np.trace(second) / by_second
    # LAPACK wants columns first, and a symmetric matrix is its own transpose.
    lower, failed = lapack.dpotrf(first.T, lower=1, overwrite_a=1)
    if failed:
        return None
    product, failed = lapack.dsygst(second.T, lower, itype=2, lower=1, overwrite_a=1)  # Lᵀ S2 L, its lower half
    values = np.linalg.eigvalsh(product, UPLO="L")
    if failed or values[0] < SMALLEST * values[-1]:
        return None
    distance = np.square(one.mean - two.mean).sum() + traces - 2 * np.sqrt(values).sum() / (by_first * by_second) ** 0.5
    return max(0.0, float(distance))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance.double())
    # Below this an eigenvalue is the rounding of zero, and its root would be a million times larger.
    values = torch.where(values > len(values) * 2.2e-16 * values.max(), values, 0.0)
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def _combine(mean_a: Tensor, a: Tensor, mean_b: Tensor, b: Tensor) -> float:
    cross = torch.linalg.svdvals(a @ b.T).sum()
    distance = (mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    # The distance is never negative; rounding of identical sets may be, by parts in 10^16 of the trace.
    return float(distance.clamp_min(0))
