"""Kernel distances between two sets of features: squared maximum mean discrepancies with a polynomial kernel (Bińkowski et al. 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.frechet import check_features


def kernel_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"], *, degree: int = 3, coefficient: float = 1.0) -> float:
    """KVD: the unbiased estimate with the kernel (x·y / d + coefficient)^degree. Its mean is 0 for equal distributions."""
    check_features(one, two)
    return _mmd(one.double(), two.double(), degree=degree, gamma=1 / one.shape[1], coefficient=coefficient, unbiased=True)


def jedi_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"]) -> float:
    """The formula of JEDi (Luo et al. 2024): the biased estimate, degree 2, no constant, times 100; JEDi itself only on V-JEPA features."""
    check_features(one, two)
    return 100 * _mmd(one.double(), two.double(), degree=2, gamma=1 / one.shape[1], coefficient=0.0, unbiased=False)


def _mmd(one: Tensor, two: Tensor, *, degree: int, gamma: float, coefficient: float, unbiased: bool) -> float:
    def mean(a: Tensor, b: Tensor, same: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        # In slices: the whole kernel matrix of a large set would not fit.
        for part in a.split(1024):
            total = total + ((gamma * part @ b.T + coefficient) ** degree).sum().cpu()
        if same and unbiased:
            total = total - ((gamma * a.square().sum(1) + coefficient) ** degree).sum().cpu()
            return total / (len(a) * (len(a) - 1))
        return total / (len(a) * len(b))

    return float(mean(one, one, True) + mean(two, two, True) - 2 * mean(one, two, False))
