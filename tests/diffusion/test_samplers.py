"""Solvers reach their orders on Gaussian data, where the velocity and the exact end point are known (evaluation by closed form)."""

import math

import pytest
import torch

from sora.diffusion.path import EDM, Straight, VariancePreserving
from sora.diffusion.samplers import adams_bashforth, euler, heun, midpoint, uniform_levels
from sora.diffusion.shift import shifted

MEAN, SCALE = torch.tensor([0.7, -1.1, 0.3], dtype=torch.float64), torch.tensor([0.5, 1.3, 2.0], dtype=torch.float64)
START = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def gaussian_velocity(path):
    """E[dx/dt | x_t] for x0 ~ N(mean, scale²), in each coordinate by itself."""

    def predict(x, t):
        t = t.expand(len(x)) if t.ndim == 0 else t
        a, s, da, ds = (f(t)[:, None] for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma))
        variance = a**2 * SCALE**2 + s**2
        rest = (x - a * MEAN) / variance
        return da * (MEAN + a * SCALE**2 * rest) + ds * s * rest

    return predict


def exact(path):
    """The flow keeps (x - alpha m) / std constant; from level 1 to level 0."""
    one = torch.ones((), dtype=torch.float64)
    std = (path.alpha(one) ** 2 * SCALE**2 + path.sigma(one) ** 2).sqrt()
    return MEAN + SCALE * (START - path.alpha(one) * MEAN) / std


def order(sampler, path, shift):
    errors = []
    for steps in (32, 64, 128):
        levels = shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
        errors.append(float((sampler(gaussian_velocity(path), START, levels) - exact(path)).abs().max()))
    return math.log2(errors[0] / errors[2]) / 2, errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("path", [Straight(), VariancePreserving()], ids=str)
def test_orders(path, shift):
    found, first_order = order(euler, path, shift)
    assert 0.85 < found < 1.2
    for sampler in (heun, midpoint, adams_bashforth):
        found, error = order(sampler, path, shift)
        assert found > 1.75, (sampler, found)
        assert error < first_order / 3


def test_the_edm_path_is_solved_too():
    # its slope grows as t^6, so the grid is fine
    found, _ = order(heun, EDM(sigma_max=80.0, rho=7.0), 1.0)
    assert found > 1.7


@pytest.mark.parametrize("sampler", [euler, heun, midpoint, adams_bashforth])
def test_rows_may_have_schedules_of_their_own(sampler):
    predict = gaussian_velocity(Straight())
    plain = uniform_levels(8).double()
    other = uniform_levels(8, shift=3.0).double()
    mixed = torch.stack([plain, other], dim=1).repeat(1, 32)
    result = sampler(predict, START, mixed)
    assert torch.allclose(result[0::2], sampler(predict, START, plain)[0::2], atol=1e-13)
    assert torch.allclose(result[1::2], sampler(predict, START, other)[1::2], atol=1e-13)


@pytest.mark.parametrize("sampler", [euler, heun, midpoint, adams_bashforth])
def test_rows_that_stay_at_level_zero_stay_bit_for_bit(sampler):
    levels = uniform_levels(5).double()[:, None].repeat(1, 64)
    levels[:, ::3] = 0
    result = sampler(gaussian_velocity(Straight()), START, levels)
    assert torch.equal(result[::3], START[::3])


def test_how_often_each_sampler_asks_the_network():
    for sampler, evaluations in ((euler, 7), (adams_bashforth, 7), (heun, 13), (midpoint, 14)):
        asked = []
        sampler(lambda x, t, asked=asked: asked.append(t) or x, START, uniform_levels(7).double())
        assert len(asked) == evaluations
        # no second-order sampler asks at level 0, where some predictions are singular
        assert min(float(t) for t in asked) > 0


def test_uniform_levels():
    assert uniform_levels(4, shift=3.0).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert uniform_levels(2, first=0.5).tolist() == pytest.approx([0.5, 0.25, 0])
    with pytest.raises(ValueError, match="steps=0"):
        uniform_levels(0)
