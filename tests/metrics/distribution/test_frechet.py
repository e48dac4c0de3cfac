"""The Fréchet distance by factors against closed forms, in every regime of n and d."""

import numpy as np
import pytest
import torch

from sora.metrics.distribution.frechet import frechet_distance, frechet_floor, frechet_of_counts, frechet_of_gaussians, frechet_split


def with_moments(mean, covariance, n, seed=0):
    """n samples whose sample mean and unbiased covariance are exactly these."""
    mean, covariance = torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(covariance, dtype=torch.float64)
    raw = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(raw - raw.mean(0)).Q * (n - 1) ** 0.5
    return mean + q @ torch.linalg.cholesky(covariance).T


DIAGONAL = ([0.0, 0, 0], torch.diag(torch.tensor([1.0, 4, 9])), [1.0, 2, 3], torch.diag(torch.tensor([4.0, 1, 16])))
MIXED = ([0.0, 0], [[2.0, 1], [1, 2]], [0.0, 0], [[3.0, -1], [-1, 1]])


@pytest.mark.parametrize("n", [8, 50])
def test_closed_forms(n):
    assert frechet_distance(with_moments(*DIAGONAL[:2], n), with_moments(*DIAGONAL[2:], n + 3, seed=1)) == pytest.approx(17, abs=1e-10)
    assert frechet_distance(with_moments(*MIXED[:2], n), with_moments(*MIXED[2:], n + 3, seed=1)) == pytest.approx(1.3972795045, abs=1e-10)


def test_closed_forms_from_moments():
    as_tensors = [torch.as_tensor(value, dtype=torch.float64) for value in DIAGONAL]
    assert frechet_of_gaussians(*as_tensors) == pytest.approx(17, abs=1e-10)
    assert frechet_of_gaussians(*(torch.as_tensor(value, dtype=torch.float64) for value in MIXED)) == pytest.approx(1.3972795045, abs=1e-10)


@pytest.mark.parametrize("n", [2, 8, 64, 300])
def test_identical_sets_are_at_distance_zero(n):
    features = torch.randn(n, 40, generator=torch.Generator().manual_seed(n))
    trace = float(features.double().var(0).sum())
    assert frechet_distance(features, features) <= 1e-9 * trace
    assert frechet_distance(features, features[torch.randperm(n)]) <= 1e-9 * trace


def test_translation_scaling_rotation_and_symmetry():
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(30, 6, generator=draw, dtype=torch.float64) * torch.arange(1, 7)
    shift = torch.arange(6, dtype=torch.float64)
    trace = float(torch.cov(one.T).trace())
    assert frechet_distance(one, one + shift) == pytest.approx(float(shift.square().sum()), rel=1e-12)
    # S2 = c² S1 around the same mean
    scaled = one.mean(0) + 3 * (one - one.mean(0))
    assert frechet_distance(one, scaled) == pytest.approx((1 - 3) ** 2 * trace, rel=1e-12)
    two = torch.randn(25, 6, generator=draw, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64)).Q
    assert frechet_distance(one @ q, two @ q) == pytest.approx(frechet_distance(one, two), rel=1e-12)
    assert frechet_distance(two, one) == pytest.approx(frechet_distance(one, two), rel=1e-12)
    assert frechet_distance(2 * one, 2 * two) == pytest.approx(4 * frechet_distance(one, two), rel=1e-12)


def test_it_agrees_with_the_matrix_square_root():
    import scipy.linalg

    draw = np.random.default_rng(3)
    one, two = draw.normal(size=(60, 12)) @ draw.normal(size=(12, 12)), draw.normal(size=(80, 12)) + 0.5
    s1, s2 = np.cov(one.T), np.cov(two.T)
    expected = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(two)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(90, 70), (12, 9)])
def test_parity_with_published_arithmetic_where_that_is_right(n, m):
    """torchmetrics and torch-fidelity: unbiased covariances; cd-fvd and StyleGAN-V: biased ones, as raw second moments."""
    import scipy.linalg
    from torchmetrics.image.fid import _compute_fid

    draw = np.random.default_rng(4)
    one, two = draw.normal(size=(n, 16)) * np.arange(1, 17) ** -0.5, draw.normal(size=(m, 16)) + 0.3
    ours = [torch.from_numpy(value) for value in (one, two)]
    theirs = _compute_fid(ours[0].mean(0), torch.cov(ours[0].T), ours[1].mean(0), torch.cov(ours[1].T))
    assert frechet_distance(*ours) == pytest.approx(float(theirs), rel=1e-6)
    biased = [value.T @ value / len(value) - np.outer(value.mean(0), value.mean(0)) for value in (one, two)]
    root = np.trace(scipy.linalg.sqrtm(biased[0] @ biased[1])).real
    expected = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(biased[0] + biased[1]) - 2 * root
    assert frechet_distance(*ours, ddof=0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.5])
def test_the_shorter_way_agrees_or_is_not_taken(power, monkeypatch):
    """Many clips of few dimensions: by eigenvalues where none is tiny, else by factors; the same number either way."""
    from sora.metrics.distribution import frechet

    scale = torch.arange(1, 41, dtype=torch.float64) ** -power
    draw = torch.Generator().manual_seed(5)
    one, two = (
        torch.randn(100, 40, generator=draw, dtype=torch.float64) * scale,
        torch.randn(90, 40, generator=draw, dtype=torch.float64) * scale,
    )
    found = frechet_distance(one, two)
    trace = float(one.var(0).sum())
    assert frechet_distance(one, one) <= 1e-12 * trace
    monkeypatch.setattr(frechet, "SMALLEST", 2.0)
    assert found == pytest.approx(frechet_distance(one, two), rel=1e-11)
    singular = torch.cat([one, one[:, :5]], dim=1)
    assert frechet_distance(singular, singular) <= 1e-9 * trace


def test_a_large_offset_costs_no_digits():
    draw = torch.Generator().manual_seed(1)
    one, two = torch.randn(200, 8, generator=draw, dtype=torch.float64), 1.5 * torch.randn(200, 8, generator=draw, dtype=torch.float64)
    plain = frechet_distance(one, two)
    assert frechet_distance(one + 1e6, two + 1e6) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.0, 10.0, 1e3, 1e5])
def test_moments_about_the_mean_by_subtraction_keep_their_digits(offset):
    """Many clips of few dimensions, however far their mean lies from zero, on both sides of where centring takes over."""
    scale = torch.arange(1, 21, dtype=torch.float64) ** -1
    draw = torch.Generator().manual_seed(2)
    one, two = (torch.randn(60, 20, generator=draw, dtype=torch.float64) * scale for _ in range(2))
    shifted = [features + offset * scale.roll(3) for features in (one, two)]
    counts = [torch.randint(0, 3, (60,), generator=draw) for _ in range(2)]
    assert frechet_distance(*shifted) == pytest.approx(frechet_distance(one, two), rel=1e-13 * max(1e2, offset))
    repeated = [features.repeat_interleave(count, dim=0) for features, count in zip(shifted, counts, strict=True)]
    found = frechet_of_counts(shifted[0], counts[0], shifted[1], counts[1])
    assert found == pytest.approx(frechet_distance(*repeated), rel=1e-13 * max(1e2, offset))


def test_ddof_zero_is_the_biased_covariance():
    one, two = with_moments(*DIAGONAL[:2], 10), with_moments(*DIAGONAL[2:], 10, seed=1)
    assert frechet_distance(one, two, ddof=0) == pytest.approx(14 + (17 - 14) * 0.9, abs=1e-10)


def test_the_floor_is_what_equal_distributions_score():
    # power-law spectrum, n not much above d
    scale = torch.arange(1, 25, dtype=torch.float64) ** -0.5
    draw = torch.Generator().manual_seed(0)

    def sample(n):
        return torch.randn(n, 24, generator=draw, dtype=torch.float64) * scale

    measured = sum(frechet_distance(sample(400), sample(200)) for _ in range(60)) / 60
    assert frechet_floor(sample(20_000), 400, 200) == pytest.approx(measured, rel=0.05)


def test_the_floor_of_an_isotropic_gaussian_has_its_closed_form():
    d, n = 10, 500
    features = with_moments([0.0] * d, torch.eye(d), 4000)
    assert frechet_floor(features, n, n) == pytest.approx((d * d + d) / (2 * n) + 2 * d / n, rel=1e-6)


def test_splitting_measures_the_floor_at_half_the_size():
    features = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    assert frechet_split(features, seed=0, repeats=8) == pytest.approx(frechet_floor(features, 500, 500), rel=0.25)
    assert frechet_split(features, seed=1) == frechet_split(features, seed=1)


def test_what_has_no_distance_is_refused():
    good = torch.randn(5, 3)
    with pytest.raises(ValueError, match="at least 2 clips"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="different extractors"):
        frechet_distance(good, torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"clips \[2\] of the second set are not finite"):
        frechet_distance(good, torch.where(torch.arange(5)[:, None] == 2, torch.nan, good))
