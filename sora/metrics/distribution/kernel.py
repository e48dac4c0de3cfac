"""Kernel distances between two sets of features: squared maximum mean discrepancies with a polynomial kernel (Bińkowski et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from sora.metrics.distribution.frechet import check_features

SLICE = 1024  # rows of the kernel matrix in memory at once, since a whole one may not fit


@dataclass(frozen=True)
class Kernel:
    """The kernel (gamma x·y + coefficient)^degree. unbiased: exclude each sample's kernel with itself from its set's mean. gamma: 1 / d if
    None. scale: a factor on the printed distance."""

    degree: int
    coefficient: float
    unbiased: bool
    gamma: float | None = None
    scale: float = 1.0


KVD = Kernel(degree=3, coefficient=1.0, unbiased=True)
JEDI = Kernel(degree=2, coefficient=0.0, unbiased=False, scale=100.0)


def kernel_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"], *, degree: int = 3, coefficient: float = 1.0) -> float:
    """KVD: the unbiased estimate with the kernel (x·y / d + coefficient)^degree. Its mean is 0 for equal distributions."""
    check_features(one, two)
    return _mmd(one, two, degree=degree, gamma=1 / one.shape[1], coefficient=coefficient, unbiased=True)


def jedi_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m _"]) -> float:
    """The formula of JEDi (Luo et al. 2024): the biased estimate, degree 2, no constant, times 100. It is JEDi only on V-JEPA features."""
    check_features(one, two)
    return JEDI.scale * _mmd(one, two, degree=2, gamma=1 / one.shape[1], coefficient=0.0, unbiased=False)


def kernel_splits(features: Float[Tensor, "N d"], labels: Bool[ndarray, "K N"], kernels: list[Kernel]) -> list[Float[ndarray, "K"]]:
    """For each kernel and each row of labels, the distance between the clips with and without the label, from one pass over the pool."""
    features = features.double()
    ones = torch.from_numpy(labels).to(features)  # K N
    first = ones.sum(dim=1)
    second = len(features) - first
    gammas = [1 / features.shape[1] if kernel.gamma is None else kernel.gamma for kernel in kernels]
    squares = features.square().sum(dim=1)
    # A constant taken off the kernel changes no distance, and leaves sets of one value exactly 0.
    own = [(gamma * squares + kernel.coefficient) ** kernel.degree for kernel, gamma in zip(kernels, gammas, strict=True)]
    shifts = [values[0] for values in own]
    sums = [torch.zeros(3, len(ones), dtype=torch.float64, device=features.device) for _ in kernels]
    for part, labelled in zip(features.split(SLICE), ones.split(SLICE, dim=1), strict=True):
        products = part @ features.T
        for kernel, gamma, shift, total in zip(kernels, gammas, shifts, sums, strict=True):
            values = (gamma * products + kernel.coefficient) ** kernel.degree - shift
            within = values @ ones.T  # each row's sum over the first set
            rest = values.sum(dim=1, keepdim=True) - within
            total[0] += (labelled.T * within).sum(dim=0)
            total[1] += ((1 - labelled.T) * rest).sum(dim=0)
            total[2] += (labelled.T * rest).sum(dim=0)
    found = []
    for kernel, values, shift, (one, two, across) in zip(kernels, own, shifts, sums, strict=True):
        pairs = first.square(), second.square()
        if kernel.unbiased:
            one, two = one - ones @ (values - shift), two - (1 - ones) @ (values - shift)
            pairs = first * (first - 1), second * (second - 1)
        found.append((kernel.scale * (one / pairs[0] + two / pairs[1] - 2 * across / (first * second))).cpu().numpy())
    return found


def _mmd(one: Tensor, two: Tensor, *, degree: int, gamma: float, coefficient: float, unbiased: bool) -> float:
    label = np.arange(len(one) + len(two))[None] < len(one)
    kernel = Kernel(degree, coefficient, unbiased, gamma=gamma)
    return float(kernel_splits(torch.cat([one.double(), two.double()]), label, [kernel])[0][0])
