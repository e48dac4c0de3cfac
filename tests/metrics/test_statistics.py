"""Paired differences: the interval covers at its level, the power is the power, and what is proportional costs nothing."""

import math

import pytest
import torch
from scipy.stats import multinomial

from sora.metrics.statistics import mean_interval, paired_change, paired_difference

DRAWS = 300


def simulated(true: float, *, n: int, spread: float, seed: int):
    """Items that differ by a factor of ten, measured twice; the second `true` larger, with a noise of `spread` of each item."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS):
        one = torch.exp(0.8 * torch.randn(n, generator=draw, dtype=torch.float64))
        yield one, one * (1 + true) * (1 + spread * torch.randn(n, generator=draw, dtype=torch.float64))


@pytest.mark.slow
def test_the_interval_covers_and_the_p_value_is_one():
    found = [paired_change(*pair) for pair in simulated(0.02, n=48, spread=0.05, seed=0)]
    covered = sum(each.low <= 0.02 <= each.high for each in found) / DRAWS
    assert 0.9 <= covered <= 0.985, covered  # the items' own skewness costs a little
    none = [paired_change(*pair).p for pair in simulated(0.0, n=48, spread=0.05, seed=1)]
    assert sum(p < 0.05 for p in none) / DRAWS == pytest.approx(0.05, abs=0.045)


@pytest.mark.slow
def test_the_power_told_is_the_share_of_times_that_the_effect_is_seen():
    found = [paired_change(*pair, effect=0.01) for pair in simulated(0.01, n=64, spread=0.02, seed=2)]
    seen = sum(each.low > 0 for each in found) / DRAWS
    told = sum(each.power for each in found) / DRAWS
    assert 0.5 < seen < 0.98 and told == pytest.approx(seen, abs=0.05)


def test_a_detectable_change_has_a_power_of_four_fifths():
    one, two = next(iter(simulated(0.0, n=32, spread=0.05, seed=3)))
    reach = paired_change(one, two).detectable
    assert paired_change(one, two, effect=reach).power == pytest.approx(0.8, abs=0.01)
    assert paired_change(one, two, effect=reach / 2).power < 0.4 < 0.99 < paired_change(one, two, effect=2 * reach).power


def test_a_change_in_proportion_is_seen_exactly_however_items_differ():
    one = torch.tensor([0.1, 3.0, 20.0, 0.5])
    found = paired_change(one, 1.01 * one.double())
    assert found.change == pytest.approx(0.01, abs=1e-7) and found.high - found.low < 1e-6
    assert found.power == 1.0 and found.p < 1e-6
    same = paired_change(one, one)
    assert (same.change, same.low, same.high, same.p, same.power) == (0, 0, 0, 1, 1)


def test_scales_and_order_do_not_matter():
    one, two = next(iter(simulated(0.1, n=9, spread=0.2, seed=4)))
    found, order = paired_change(one, two), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    scaled = paired_change(1e3 * one[order], 1e3 * two[order])
    assert (scaled.change, scaled.low, scaled.high) == pytest.approx((found.change, found.low, found.high))


def test_what_is_no_pair_is_refused_and_two_items_have_no_interval():
    few = paired_change(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    assert few.change == 1 and few.low != few.low
    for one, two, told in (
        (torch.ones(3), torch.ones(4), "no pairs"),
        (torch.tensor([1.0, float("nan"), 1.0]), torch.ones(3), "finite"),
        (-torch.ones(3), torch.ones(3), "above 0"),
    ):
        with pytest.raises(ValueError, match=told):
            paired_change(one, two)
    with pytest.raises(ValueError, match="effect=0"):
        paired_change(torch.ones(3), torch.ones(3), effect=0)


def test_the_interval_of_a_mean():
    mean, low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - 2.0543, 2.5 + 2.0543), abs=1e-3)  # t at 3 degrees of freedom: 3.1824
    assert mean_interval(torch.tensor([2.0]))[1] != mean_interval(torch.tensor([2.0]))[1]


def differences(n: int):
    """Bonett and Price's interval for every number of items that two verdicts tell apart, up and down."""
    found = {}
    for up in range(n + 1):
        for down in range(n + 1 - up):
            one = torch.tensor([0.0] * up + [1.0] * down + [1.0] * (n - up - down))
            two = torch.tensor([1.0] * up + [0.0] * down + [1.0] * (n - up - down))
            found[up, down] = paired_difference(one, two)
    return found


def test_the_interval_of_a_difference_of_shares_covers_exactly_enough_for_whatever_two_models_do():
    """All that can happen to ten items, weighed by how likely it is: no simulation, no luck."""
    n, found, shares = 10, differences(10), []
    for up in (0.0, 0.02, 0.1, 0.3, 0.6):
        for down in (0.0, 0.02, 0.1, 0.3):
            true = up - down
            likely = {key: float(multinomial.pmf([*key, n - sum(key)], n, [up, down, 1 - up - down])) for key in found}
            assert sum(likely.values()) == pytest.approx(1)
            shares.append(sum(weight for key, weight in likely.items() if found[key].low <= true <= found[key].high))
    assert min(shares) > 0.92 and 0.95 < sum(shares) / len(shares) < 0.985
    assert all(each.low <= each.difference <= each.high for each in found.values())
    agreed = found[0, 0]
    assert agreed.difference == 0 and agreed.low == -agreed.high < -0.1  # ten that agree are no proof that all do


@pytest.mark.slow
def test_the_interval_of_a_difference_covers_and_what_items_share_costs_nothing():
    draw, covered = torch.Generator().manual_seed(6), 0
    for _ in range(DRAWS):
        shared = 30 + 8 * torch.randn(20, generator=draw, dtype=torch.float64)
        found = paired_difference(shared, shared + 0.3 + 0.4 * torch.randn(20, generator=draw, dtype=torch.float64))
        covered += found.low <= 0.3 <= found.high
        assert found.high - found.low < 1.0  # apart, with a deviation of 8 each, it would be ten
    assert 0.92 <= covered / DRAWS <= 0.98
    one = torch.tensor([20.0, 30.0, 25.0, 40.0])
    exact = paired_difference(one, one + 0.5)
    assert (exact.difference, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    back = paired_difference(one + torch.tensor([1.0, 2.0, 0.0, 3.0]), one)
    assert back.difference == -1.5 and back.low < -1.5 < back.high


def test_what_has_no_difference_is_told():
    assert math.isnan(paired_difference(torch.zeros(2), torch.ones(2)).low)
    for one, two in ((torch.zeros(3), torch.zeros(4)), (torch.zeros(0), torch.zeros(0))):
        with pytest.raises(ValueError, match="no pairs"):
            paired_difference(one, two)
    with pytest.raises(ValueError, match="finite"):
        paired_difference(torch.tensor([1.0, float("nan"), 2.0]), torch.zeros(3))
