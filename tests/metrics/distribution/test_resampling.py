"""The interval covers at its level, the extrapolation finds the distance of the distributions, and neither touches the global draw."""

import pytest
import torch

from sora.metrics.distribution.frechet import frechet_distance, frechet_of_counts
from sora.metrics.distribution.resampling import extrapolate, frechet_interval

SCALE = torch.arange(1, 7, dtype=torch.float64) ** -0.5


def sample(n, draw, shift=0.0):
    return torch.randn(n, 6, dtype=torch.float64, generator=draw) * SCALE + shift


def test_counts_stand_for_repeated_rows():
    draw = torch.Generator().manual_seed(0)
    for n in (4, 30):  # fewer and more than dimensions
        one, two = sample(n, draw), sample(n + 3, draw, 0.4)
        a, b = torch.randint(0, 3, (n,), generator=draw), torch.randint(1, 4, (n + 3,), generator=draw)
        a[:2] = 1
        for ddof in (0, 1):
            found = frechet_of_counts(one, a, two, b, ddof=ddof)
            assert found == pytest.approx(frechet_distance(one.repeat_interleave(a, 0), two.repeat_interleave(b, 0), ddof=ddof), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "times", "least", "most"), [(0.95, 80, 0.88, 1.0), (0.5, 50, 0.34, 0.7)])
def test_the_interval_covers_at_its_level(level, times, least, most):
    draw = torch.Generator().manual_seed(1)
    wanted = sum(frechet_distance(sample(60, draw), sample(50, draw, 0.5)) for _ in range(200)) / 200
    held = 0
    for seed in range(times):
        low, high = frechet_interval(sample(60, draw), sample(50, draw, 0.5), repeats=60, seed=seed, level=level)
        held += low <= wanted <= high
    assert least <= held / times <= most


def test_the_interval_holds_the_distance_and_never_goes_below_zero():
    draw = torch.Generator().manual_seed(2)
    one = sample(30, draw)
    low, high = frechet_interval(one, one, repeats=50, seed=0)
    assert low == 0.0 < high
    two = sample(40, draw, 0.5)
    low, high = frechet_interval(one, two, repeats=50, seed=0)
    assert low < frechet_distance(one, two) < high
    narrow = frechet_interval(one, two, repeats=50, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.slow
def test_the_extrapolation_takes_the_bias_away():
    draw = torch.Generator().manual_seed(3)
    found = [extrapolate(sample(120, draw), sample(120, draw, 0.3), seed=seed) for seed in range(30)]
    plain = sum(item.distances[0] for item in found) / 30
    infinite = sum(item.infinite for item in found) / 30
    true = 6 * 0.3**2
    assert plain > true + 0.05 and infinite == pytest.approx(true, abs=0.03)


def test_a_straight_line_is_fitted_exactly(monkeypatch):
    import sora.metrics.distribution.resampling as resampling

    monkeypatch.setattr(resampling, "frechet_distance", lambda one, two, ddof: 3.0 + 5.0 * 30 / len(one))
    found = extrapolate(torch.randn(30, 2), torch.randn(30, 2), seed=0)
    assert found.infinite == pytest.approx(3.0) and found.slope == pytest.approx(5.0) and found.r_squared == pytest.approx(1.0)


def test_draws_are_their_own_and_repeatable():
    draw = torch.Generator().manual_seed(4)
    one, two = sample(30, draw), sample(30, draw)
    before = torch.get_rng_state()
    first = frechet_interval(one, two, repeats=20, seed=7), extrapolate(one, two, seed=7)
    torch.manual_seed(99)
    second = frechet_interval(one, two, repeats=20, seed=7), extrapolate(one, two, seed=7)
    assert first == second
    torch.set_rng_state(before)
    frechet_interval(one, two, repeats=20, seed=7)
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="at least 20 repeats"):
        frechet_interval(torch.randn(9, 2), torch.randn(9, 2), repeats=5, seed=0)
    with pytest.raises(ValueError, match="at least 12 each"):
        extrapolate(torch.randn(9, 2), torch.randn(19, 2), seed=0)
