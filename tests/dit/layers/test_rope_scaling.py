"""Rotary positions for clips longer or larger than those trained on."""

from functools import partial
from math import log, pi

import pytest
import torch

from sora.dit.layers.rope import AxialRope
from sora.dit.layers.rope_scaling import interpolated_rope, ntk_rope, yarn_rope
from tests.dit.layers.test_rope import scores

AXES, THETA, EXTENT = [8, 12, 12], 10_000.0, [24.0, 32.0, 20.0]
STRETCHES = {
    "interpolated": interpolated_rope,
    "ntk": ntk_rope,
    "yarn": partial(yarn_rope, extent=EXTENT, slow=0.5, fast=4.0),
}


def rope(stretch=None, axes=AXES, time_scale=3.0):
    return AxialRope(axes=axes, time_scale=time_scale, theta=THETA, stretch=stretch)


@pytest.mark.parametrize("name", STRETCHES)
def test_at_factor_one_nothing_changes(name):
    changed = rope(partial(STRETCHES[name], factors=[1, 1, 1]))
    assert torch.equal(changed.rates, rope().rates) and changed.gain == 1


@pytest.mark.parametrize("name", STRETCHES)
@pytest.mark.parametrize("axis", range(3))
def test_only_the_axis_that_grows_changes_and_no_pair_turns_faster(name, axis):
    factors = [1.0, 1.0, 1.0]
    factors[axis] = 4.0
    changed, plain = rope(partial(STRETCHES[name], factors=factors)), rope()
    mine = plain.axis == axis
    assert torch.equal(changed.rates[~mine], plain.rates[~mine])
    ratio = plain.rates[mine] / changed.rates[mine]
    assert (ratio >= 1 - 1e-6).all() and (ratio <= 4 + 1e-5).all() and ratio[-1] == pytest.approx(4)


@pytest.mark.parametrize("name", STRETCHES)
def test_scores_depend_on_differences_only_when_stretched(name):
    stretched = rope(partial(STRETCHES[name], factors=[2.0, 1.5, 3.0]))
    q, k, positions = torch.randn(9, 2, 32), torch.randn(9, 2, 32), torch.rand(9, 3) * 5
    moved = positions + torch.tensor([2.5, -3.0, 11.0])
    torch.testing.assert_close(scores(stretched, q, k, positions), scores(stretched, q, k, moved), atol=3e-5, rtol=1e-5)


def test_interpolated_is_the_network_on_positions_that_stand_closer():
    positions = torch.rand(7, 3) * torch.tensor([8.0, 90.0, 60.0])
    stretched = rope(partial(interpolated_rope, factors=[2.0, 3.0, 1.5]))
    torch.testing.assert_close(stretched(positions), rope()(positions / torch.tensor([2.0, 3.0, 1.5])), atol=2e-5, rtol=0)


def test_ntk_is_the_larger_base_of_its_definition():
    factor, width = 3.0, 12
    base = THETA * factor ** (width / (width - 2))
    wanted = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    rates, gain = ntk_rope([THETA ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)] * 3, factors=[factor] * 3)
    for rate in rates:
        torch.testing.assert_close(rate, wanted, atol=0, rtol=1e-12)
    assert gain == 1 and rates[0][0] == 1
    alone, _ = ntk_rope([torch.ones(1, dtype=torch.float64)] * 3, factors=[factor] * 3)
    assert alone[0].item() == 1  # one pair is the fastest: it tells neighbours apart


def test_yarn_ramps_between_the_two_numbers_of_turns():
    slow, fast, factor, extent = 1.0, 32.0, 4.0, 2048.0
    plain = THETA ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    (rates, _, _), gain = yarn_rope([plain] * 3, factors=[factor, 1, 1], extent=[extent] * 3, slow=slow, fast=fast)
    for before, after in zip(plain.tolist(), rates.tolist(), strict=True):
        turns = extent * before / (2 * pi)
        ramp = min(1.0, max(0.0, (turns - slow) / (fast - slow)))
        assert after == pytest.approx((1 - ramp) * before / factor + ramp * before)
    assert rates[0] == plain[0] and rates[-1] == plain[-1] / factor
    assert gain == pytest.approx(0.1 * log(4) + 1)


def test_yarns_gain_sharpens_queries_and_keys_alike():
    """Scores grow by the gain squared, which is their 1 / t."""
    stretched = rope(partial(STRETCHES["yarn"], factors=[2.0, 2.0, 2.0]))
    q, k = torch.randn(1, 2, 32), torch.randn(1, 2, 32)
    here = torch.zeros(1, 3)
    gain = 0.1 * log(8) + 1
    torch.testing.assert_close(scores(stretched, q, k, here), gain**2 * scores(rope(), q, k, here))


@pytest.mark.parametrize(
    ("stretch", "told"),
    [
        (partial(ntk_rope, factors=[2.0, 1.0]), r"stretch\.factors is \[2\.0, 1\.0\]"),
        (partial(interpolated_rope, factors=[0.0, 1.0, 1.0]), r"stretch\.factors.*above 0"),
        (partial(yarn_rope, factors=[1.0] * 3, extent=[1.0, 2.0], slow=1.0, fast=2.0), r"stretch\.extent is"),
        (partial(yarn_rope, factors=[1.0] * 3, extent=EXTENT, slow=2.0, fast=2.0), r"stretch\.slow=2\.0 must be below"),
    ],
)
def test_what_cannot_be_stretched_is_refused(stretch, told):
    with pytest.raises(ValueError, match=told):
        rope(stretch)
