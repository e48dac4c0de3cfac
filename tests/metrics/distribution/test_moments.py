"""Moments gathered part by part are the moments of the whole, and give the distance that the factors give."""

import pytest
import torch

from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.distribution.moments import Moments, frechet_of_moments

DRAW = torch.Generator().manual_seed(0)


def gathered(features, sizes):
    found = Moments.none(features.shape[1])
    for part in features.split(sizes):
        found = found.merge(Moments.of(part))
    return found


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_any_split_gives_the_whole(offset):
    features = torch.randn(90, 7, dtype=torch.float64, generator=DRAW) + offset
    whole = Moments.of(features)
    for sizes in ([90], [1] * 90, [1, 80, 9], [45, 45]):
        found = gathered(features, sizes)
        assert found.n == 90 and torch.allclose(found.mean, whole.mean, rtol=1e-14, atol=0)
        assert torch.allclose(found.covariance(), torch.cov(features.T), rtol=1e-6, atol=1e-8)


def test_order_and_grouping_of_merges_do_not_matter():
    a, b, c = (Moments.of(torch.randn(n, 4, generator=DRAW)) for n in (3, 1, 8))
    left, right = a.merge(b).merge(c), c.merge(a.merge(b))
    assert left.n == right.n == 12 and torch.allclose(left.scatter, right.scatter) and torch.allclose(left.mean, right.mean)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (8, 6), (8, 8)])  # more and fewer than dimensions
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("ddof", [0, 1])
def test_it_agrees_with_the_factors(n, m, offset, ddof):
    one, two = torch.randn(n, 20, dtype=torch.float64, generator=DRAW), 1.3 * torch.randn(m, 20, dtype=torch.float64, generator=DRAW)
    found = frechet_of_moments(gathered(one + offset, [1, n - 1]), gathered(two + offset, [m // 2, m - m // 2]), ddof=ddof)
    assert found == pytest.approx(frechet_distance(one, two, ddof=ddof), rel=1e-5 if n < 20 else 1e-6)


def test_identical_moments_are_at_distance_zero():
    for n in (2, 8, 64):
        moments = Moments.of(torch.randn(n, 20, generator=DRAW))
        assert frechet_of_moments(moments, moments) <= 1e-9 * float(moments.covariance().trace())


def test_what_has_no_moments_is_refused():
    with pytest.raises(ValueError, match="n of at least 1"):
        Moments.of(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="different extractors"):
        Moments.of(torch.zeros(2, 3)).merge(Moments.of(torch.zeros(2, 4)))
    with pytest.raises(ValueError, match="1 clip has no covariance"):
        frechet_of_moments(Moments.of(torch.zeros(1, 3)), Moments.of(torch.zeros(2, 3)))
