"""The Fréchet distance between two sets of features, taken as Gaussians: |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½).

With centred features A, B scaled so that S1 = AᵀA and S2 = BᵀB, the trace of the root is the nuclear norm of A Bᵀ: no matrix square root,
no epsilon, never complex, exact for fewer samples than dimensions. Where there are many more samples and nothing is near singular, it is
had in less time as the sum of roots of the eigenvalues of Lᵀ S2 L, S1 = L Lᵀ, which is symmetric. All in float64, on the processor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST = 1e-11  # eigenvalue, to the largest, that may stand: what its root loses is below 1e-10 of the distance


def frechet_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"], *, ddof: int = 1) -> float:
    """Between the Gaussians fitted to two sets of features, at least two each. ddof: 1 for unbiased covariances, 0 as in some codes."""
    check_features(one, two)
    (a, mean_a), (b, mean_b) = _centred(one, ddof), _centred(two, ddof)
    found = _by_eigenvalues(mean_a, a, mean_b, b)
    return _combine(mean_a, _reduced(a), mean_b, _reduced(b)) if found is None else found


def frechet_of_counts(
    one: Float[Tensor, "n d"], counts_one: Int[Tensor, "n"], two: Float[Tensor, "m _"], counts_two: Int[Tensor, "m"], *, ddof: int = 1
) -> float:
    """Between sets in which each clip stands as often as its count says, at least two in all: the same as with rows repeated, cheaper."""
    (a, mean_a), (b, mean_b) = _centred_counts(one, counts_one, ddof), _centred_counts(two, counts_two, ddof)
    found = _by_eigenvalues(mean_a, a, mean_b, b)
    return _combine(mean_a, _reduced(a), mean_b, _reduced(b)) if found is None else found


def frechet_of_gaussians(
    mean_one: Float[Tensor, "d"], covariance_one: Float[Tensor, "d d"], mean_two: Float[Tensor, "d"], covariance_two: Float[Tensor, "d d"]
) -> float:
    """Between two Gaussians given by their moments, such as streamed or stored ones."""
    return _combine(mean_one.double(), _root(covariance_one), mean_two.double(), _root(covariance_two))


def frechet_floor(features: Float[Tensor, "n d"], one: int, two: int) -> float:
    """What two samples of sizes `one` and `two` from the distribution of `features` score on average, though they do not differ.

    E = (1/one + 1/two) (sum_i l_i + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)),
    to first order in 1/n, for the eigenvalues l of the covariance.
    """
    eigenvalues = torch.linalg.svdvals(_reduced(_centred(features, 1)[0])) ** 2
    eigenvalues = eigenvalues[eigenvalues > eigenvalues.max() * 1e-14]
    row, column = eigenvalues[:, None], eigenvalues[None, :]
    pairs = (row * column / (row + column)).sum() + (eigenvalues / 2).sum()
    return float((1 / one + 1 / two) * (eigenvalues.sum() + pairs / 2))


def frechet_split(features: Float[Tensor, "n d"], *, seed: int, repeats: int = 4) -> float:
    """The distance between random halves of one set, a mean over `repeats` splits: the floor at half its size, measured."""
    if len(features) < 4:
        raise ValueError(f"{len(features)} clips cannot be split into two halves of at least 2")
    draw = torch.Generator().manual_seed(seed)
    half = len(features) // 2
    total = 0.0
    for _ in range(repeats):
        order = torch.randperm(len(features), generator=draw)
        total += frechet_distance(features[order[:half]], features[order[half : 2 * half]])
    return total / repeats


def check_features(one: Tensor, two: Tensor) -> None:
    """Refuse sets that have no covariance, no common dimension, or values that are not numbers."""
    for name, features in (("first", one), ("second", two)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"the {name} set has features of shape {tuple(features.shape)}; a distance needs at least 2 clips, (n, d)")
        bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"features of clips {bad[:10]} of the {name} set are not finite")
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"features of dimensions {one.shape[1]} and {two.shape[1]} come from different extractors")


def _centred(features: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    """(A, mean) with the covariance AᵀA."""
    features = features.to("cpu", torch.float64)
    mean = features.mean(dim=0)
    # Twice: the first mean of large offsets is itself rounded.
    centred = features - mean
    centred -= centred.mean(dim=0)
    centred *= (len(features) - ddof) ** -0.5
    return centred, mean


def _centred_counts(features: Tensor, counts: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    kept = (counts > 0).cpu()
    features, weights = features.to("cpu", torch.float64)[kept], counts.cpu()[kept].double()[:, None]
    n = weights.sum()
    mean = (weights * features).sum(dim=0) / n
    return (features - mean) * (weights / (n - ddof)).sqrt(), mean


def _by_eigenvalues(mean_a: Tensor, a: Tensor, mean_b: Tensor, b: Tensor) -> float | None:
    """The distance in a third of the time; None where too few samples or small eigenvalues would cost digits."""
    if min(len(a), len(b)) < 2 * a.shape[1]:
        return None
    one, two = _gram(a), _gram(b)
    lower, failed = torch.linalg.cholesky_ex(one)
    if failed:
        return None
    values = torch.linalg.eigvalsh(lower.T @ two @ lower)
    if values[0] < SMALLEST * values[-1]:
        return None
    distance = (mean_a - mean_b).square().sum() + one.trace() + two.trace() - 2 * values.sqrt().sum()
    return float(distance.clamp_min(0))


def _gram(a: Tensor) -> Tensor:
    # numpy sees that it is a matrix with itself and computes one half of it; torch does not.
    values = a.numpy()
    return torch.from_numpy(values.T @ values)


def _reduced(factor: Tensor) -> Tensor:
    return torch.linalg.qr(factor, mode="r").R if factor.shape[0] > factor.shape[1] else factor


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
