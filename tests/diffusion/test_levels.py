"""Schedules of sampling fall from their first level to 0, and have the forms that their papers give them."""

import functools

import pytest
import torch

from sora.diffusion.levels import beta_levels, karras_levels, linear_quadratic_levels, listed_levels, shifted, uniform_levels

KARRAS = functools.partial(karras_levels, rho=7.0, least=0.002)
BETA = functools.partial(beta_levels, one=0.6, other=0.6)
QUADRATIC = functools.partial(linear_quadratic_levels, knee=0.025)


@pytest.mark.parametrize("schedule", [uniform_levels, KARRAS, BETA, QUADRATIC])
@pytest.mark.parametrize("steps", [1, 2, 3, 24, 25])
@pytest.mark.parametrize("first", [1.0, 0.7])
def test_every_schedule_falls_from_the_first_level_to_zero_and_is_shifted_last(schedule, steps, first):
    levels = schedule(steps, first=first)
    assert len(levels) == steps + 1
    assert (float(levels[0]), float(levels[-1])) == (pytest.approx(first), 0)
    assert (levels.diff() < 0).all()
    assert torch.allclose(schedule(steps, first=first, shift=3.0), shifted(levels.double(), 3.0).float(), atol=1e-6)


def test_uniform_levels():
    assert uniform_levels(4, shift=3.0).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert uniform_levels(2, first=0.5).tolist() == pytest.approx([0.5, 0.25, 0])


def test_roots_of_karras_levels_are_equally_spaced():
    roots = KARRAS(10)[:-1].double() ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(9), atol=1e-6)
    assert float(KARRAS(10)[-2]) == pytest.approx(0.002)


def test_beta_levels_are_uniform_and_symmetric_where_their_distribution_is():
    assert torch.allclose(beta_levels(7, one=1.0, other=1.0), uniform_levels(7), atol=1e-6)
    found = BETA(8)
    assert torch.allclose(found + found.flip(0), torch.ones(9), atol=1e-6)
    assert float(-found.diff()[0]) < 1 / 8 < float(-found.diff()[4])


@pytest.mark.parametrize("steps", [2, 8, 9, 40])
def test_linear_quadratic_levels_have_one_slope_at_the_knee(steps):
    levels = QUADRATIC(steps).double()
    half = steps // 2
    assert torch.allclose(levels[: half + 1], 1 - 0.025 * torch.arange(half + 1).double() / half, atol=1e-6)
    bends = levels[half:].diff().diff()
    if len(bends):
        assert torch.allclose(bends, bends[0].expand(len(bends)), atol=1e-6)  # quadratic
        slope = float(levels[half + 1] - levels[half] - bends[0] / 2)  # at the knee itself
        assert slope == pytest.approx(-0.025 / half, abs=1e-6)


def test_listed_levels_are_those_of_the_list():
    assert listed_levels(3, values=[1.0, 0.6, 0.2]).tolist() == pytest.approx([1, 0.6, 0.2, 0])
    assert listed_levels(2, values=[0.8, 0.4, 0.0], first=0.8).tolist() == pytest.approx([0.8, 0.4, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_levels(0), "steps=0"),
        (lambda: uniform_levels(4, first=1.5), "1.5"),
        (lambda: karras_levels(4, rho=7.0, least=1.0), "levels.least=1.0"),
        (lambda: beta_levels(4, one=0.0, other=1.0), "levels.one=0.0"),
        (lambda: linear_quadratic_levels(4, knee=0.7), "levels.knee=0.7"),
        (lambda: listed_levels(24, values=[1.0, 0.5]), "set steps=2"),
        (lambda: listed_levels(2, values=[0.5, 0.6]), "must fall"),
        (lambda: listed_levels(2, values=[0.9, 0.6], first=0.5), "leave first out"),
        (lambda: listed_levels(1, values=[1.5]), "1.5"),
    ],
)
def test_levels_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match="") as error:
        call()
    assert message in str(error.value)
