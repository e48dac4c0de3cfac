"""Kernel distances against published fixtures, brute force, and unbiasedness."""

import pytest
import torch

from sora.metrics.distribution.kernel import _mmd, jedi_distance, kernel_distance

A = torch.arange(1, 10, dtype=torch.float64).reshape(3, 3)
B = torch.tensor([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]], dtype=torch.float64)


def test_the_published_fixtures_of_the_biased_estimate():
    assert _mmd(A, B, degree=2, gamma=1 / 3, coefficient=0.0, unbiased=False) == pytest.approx(270.72222222222)
    assert _mmd(A, B, degree=2, gamma=1.0, coefficient=0.0, unbiased=False) == pytest.approx(2436.5)
    assert _mmd(A, B, degree=3, gamma=1 / 3, coefficient=1.0, unbiased=False) == pytest.approx(23088.083333, rel=1e-9)
    assert jedi_distance(A, B) == pytest.approx(27072.222222222)


def test_the_unbiased_estimate_leaves_out_the_diagonal():
    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within_a = sum(kernel(A[i], A[j]) for i in range(3) for j in range(3) if i != j) / 6
    within_b = sum(kernel(B[i], B[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(kernel(x, y) for x in A for y in B) / 12
    assert kernel_distance(A, B) == pytest.approx(within_a + within_b - 2 * across)


def test_parity_with_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    draw = torch.Generator().manual_seed(2)
    one, two = torch.randn(30, 5, generator=draw, dtype=torch.float64), torch.randn(30, 5, generator=draw, dtype=torch.float64) + 0.4
    assert kernel_distance(one, two) == pytest.approx(float(poly_mmd(one, two)), rel=1e-9)


@pytest.mark.slow
def test_it_has_mean_zero_for_equal_distributions_and_sees_a_difference():
    draw = torch.Generator().manual_seed(0)
    same = torch.tensor([kernel_distance(torch.randn(40, 6, generator=draw), torch.randn(30, 6, generator=draw)) for _ in range(200)])
    assert abs(float(same.mean())) < 3 * float(same.std()) / 200**0.5
    assert (same < 0).any()
    assert kernel_distance(torch.randn(200, 6, generator=draw), torch.randn(200, 6, generator=draw) + 0.7) > 5 * float(same.std())


def test_slices_change_nothing():
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(1500, 4, generator=draw, dtype=torch.float64), torch.randn(1100, 4, generator=draw, dtype=torch.float64)
    k = (one @ one.T / 4 + 1) ** 3
    m = (two @ two.T / 4 + 1) ** 3
    c = (one @ two.T / 4 + 1) ** 3
    expected = (k.sum() - k.trace()) / (1500 * 1499) + (m.sum() - m.trace()) / (1100 * 1099) - 2 * c.mean()
    assert kernel_distance(one, two) == pytest.approx(float(expected), rel=1e-9)
