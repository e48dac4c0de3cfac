"""Solvers reach their orders on Gaussian data, where the velocity and the exact end point are known (evaluation by closed form)."""

import functools
import math

import pytest
import torch

from sora.diffusion.exponential import ddim, dpm_solver, unipc
from sora.diffusion.levels import shifted, uniform_levels
from sora.diffusion.path import EDM, Straight, VariancePreserving
from sora.diffusion.samplers import adams_bashforth, euler, heun, midpoint, runge_kutta
from sora.diffusion.stochastic import churn, restart

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


def flown(path, *, first=1.0, last=0.0):
    """The flow keeps (x - alpha m) / std constant: where START is at level `last` if it is at level `first`."""
    before, after = (torch.tensor(level, dtype=torch.float64) for level in (first, last))
    std = [(path.alpha(t) ** 2 * SCALE**2 + path.sigma(t) ** 2).sqrt() for t in (before, after)]
    return path.alpha(after) * MEAN + std[1] * (START - path.alpha(before) * MEAN) / std[0]


def no_noise(number):
    raise AssertionError("a deterministic sampler draws no noise")


def solved(sampler, path, levels, *, predict=None, noise=no_noise):
    return sampler(predict or gaussian_velocity(path), START, levels, path=path, noise=noise)


def order(sampler, path, shift=1.0, *, first=1.0, last=0.0, steps=(32, 64, 128)):
    errors = []
    for number in steps:
        levels = shifted(torch.linspace(first, last, number + 1, dtype=torch.float64), shift)
        wanted = flown(path, first=float(levels[0]), last=float(levels[-1]))
        errors.append(float((solved(sampler, path, levels) - wanted).abs().max()))
    return math.log2(errors[0] / errors[2]) / 2, errors[1]


third = functools.partial(adams_bashforth, order=3)
dpm_3, unipc_3 = functools.partial(dpm_solver, order=3), functools.partial(unipc, order=3)
OFTEN = functools.partial(restart, since=0.5, until=0.75, times=2)
SAMPLERS = [euler, heun, midpoint, runge_kutta, adams_bashforth, third, ddim, dpm_solver, dpm_3, unipc, unipc_3]


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("path", [Straight(), VariancePreserving()], ids=str)
def test_orders(path, shift):
    found, first_order = order(euler, path, shift)
    assert 0.85 < found < 1.2
    assert 0.85 < order(ddim, path, shift)[0] < 1.2
    for sampler in (heun, midpoint, adams_bashforth):
        found, error = order(sampler, path, shift)
        assert found > 1.75, (sampler, found)
        assert error < first_order / 3
    for sampler in (dpm_solver, dpm_3, unipc, unipc_3):  # a step from noise and one to data, over which lambda is infinite
        assert order(sampler, path, shift)[1] < order(ddim, path, shift)[1] / 3
    assert order(third, path, shift)[0] > 2.5
    assert order(runge_kutta, path, shift)[0] > 3.75


@pytest.mark.slow
@pytest.mark.parametrize("path", [Straight(), VariancePreserving()], ids=str)
def test_exponential_integrators_reach_their_orders_between_noise_and_data(path):
    # DPM-Solver++ begins with a step of first order, and no order above 2 outlives that; each prediction of UniPC is used twice.
    for sampler, wanted in ((dpm_solver, 2), (dpm_3, 2), (unipc, 3), (unipc_3, 3)):
        found, _ = order(sampler, path, first=0.9, last=0.1, steps=(64, 128, 256))
        assert found > wanted - 0.15, (sampler, found)
    errors = [order(sampler, path, first=0.9, last=0.1)[1] for sampler in (unipc_3, unipc, dpm_solver, ddim)]
    assert errors == sorted(errors)


def test_a_third_order_that_is_begun_exactly_is_one():
    # Levels that are dense at first, so that what the first steps lack weighs little.
    path, errors = Straight(), []
    for number in (32, 64, 128):
        dense = 0.9 - 0.05 * torch.linspace(0, 1, 8 * number + 1, dtype=torch.float64) ** 2
        levels = torch.cat([dense, torch.linspace(0.85, 0.1, number + 1, dtype=torch.float64)[1:]])
        errors.append([float((solved(s, path, levels) - flown(path, first=0.9, last=0.1)).abs().max()) for s in (dpm_solver, dpm_3)])
    assert errors[2][1] < errors[2][0] / 10


def test_the_edm_path_is_solved_too():
    # its slope grows as t^6, so the grid is fine
    found, _ = order(heun, EDM(sigma_max=80.0, rho=7.0), 1.0)
    assert found > 1.7
    for sampler in (dpm_solver, unipc):
        assert order(sampler, EDM(sigma_max=80.0, rho=7.0), 1.0)[1] < 2e-2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_may_have_schedules_of_their_own(sampler):
    plain = uniform_levels(8).double()
    other = uniform_levels(8, shift=3.0).double()
    mixed = torch.stack([plain, other], dim=1).repeat(1, 32)
    result = solved(sampler, Straight(), mixed)
    assert torch.allclose(result[0::2], solved(sampler, Straight(), plain)[0::2], atol=1e-13)
    assert torch.allclose(result[1::2], solved(sampler, Straight(), other)[1::2], atol=1e-13)


def draws(number):
    return torch.randn(START.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


SDE = functools.partial(dpm_solver, eta=1.0)
STOCHASTIC = [
    SDE,
    functools.partial(dpm_solver, order=3, eta=1.0),
    functools.partial(ddim, eta=1.0),
    functools.partial(churn, rate=20.0, low=0.05, high=0.95),
    OFTEN,
]


@pytest.mark.parametrize("sampler", [*SAMPLERS, *STOCHASTIC])
@pytest.mark.parametrize("path", [Straight(), VariancePreserving(), EDM(sigma_max=80.0, rho=7.0)], ids=str)
def test_rows_that_stay_at_level_zero_stay_bit_for_bit(sampler, path):
    levels = uniform_levels(8).double()[:, None].repeat(1, 64)
    levels[:, ::3] = 0
    predict = gaussian_velocity(path)

    def held(x, t):  # as the generator does it: what is given does not move
        return torch.where((t > 0)[:, None], predict(x, t), torch.zeros_like(x))

    result = sampler(held, START, levels, path=path, noise=draws)
    assert torch.equal(result[::3], START[::3])
    assert result.isfinite().all()


def test_how_often_each_sampler_asks_the_network():
    counts = {euler: 7, adams_bashforth: 7, heun: 13, midpoint: 14, runge_kutta: 27, third: 9, ddim: 7, dpm_solver: 7, dpm_3: 7, unipc: 7}
    counts |= {unipc_3: 7, SDE: 7, STOCHASTIC[3]: 13, OFTEN: 13 + 2 * 2 * 1}
    for sampler, evaluations in counts.items():
        asked = []
        levels = uniform_levels(7).double()
        sampler(lambda x, t, asked=asked: asked.append(t) or x, START, levels, path=Straight(), noise=draws)
        assert len(asked) == evaluations, sampler
        # none asks at level 0, where some predictions are singular
        assert min(float(t) for t in asked) > 0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC)
@pytest.mark.parametrize("path", [Straight(), VariancePreserving()], ids=str)
def test_noise_on_the_way_leaves_the_distribution_as_it_is(sampler, path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 3, dtype=torch.float64, generator=generator)
    levels = shifted(torch.linspace(1, 0, 129, dtype=torch.float64), 1.0)

    def noise(number):
        return torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1 + number))

    found = sampler(gaussian_velocity(path), x, levels, path=path, noise=noise)
    assert torch.allclose(found.mean(0), MEAN, atol=0.05)
    assert torch.allclose(found.std(0), SCALE, rtol=0.05)  # of first order, with 128 steps
    forgotten = [float(torch.corrcoef(torch.stack([x[:, k], found[:, k]]))[0, 1]) for k in range(3)]
    assert max(forgotten) < 0.999  # the flow alone would keep all of the first noise


def test_frames_correlate_as_those_of_the_data():
    """Twelve frames of an autoregressive process, neighbours correlated by 0.9, sampled with the exact velocity in 24 steps."""
    eye = torch.eye(12, dtype=torch.float64)
    data = 0.9 ** (torch.arange(12.0, dtype=torch.float64)[:, None] - torch.arange(12.0)).abs()

    def predict(x, t):
        return x @ torch.linalg.solve((1 - t) ** 2 * data + t**2 * eye, t * eye - (1 - t) * data)

    def off(sampler):
        mapped = sampler(predict, eye, uniform_levels(24).double(), path=Straight(), noise=no_noise)
        made = mapped.T @ mapped
        neighbours = made.diagonal(1) / (made.diagonal()[1:] * made.diagonal()[:-1]).sqrt()
        return float((made.diagonal() - 1).abs().max()), float((neighbours / 0.9 - 1).abs().max())

    for sampler in (adams_bashforth, third, heun, unipc, unipc_3):
        variance, correlation = off(sampler)
        assert variance < 0.01
        assert correlation < 0.002
    assert off(euler)[0] > 0.1  # why it is not the default


def test_settings_that_make_no_sense_are_refused():
    levels = uniform_levels(8).double()
    for sampler, message in (
        (functools.partial(adams_bashforth, order=4), "sampler.order=4 of adams_bashforth must be 2 or 3"),
        (functools.partial(unipc, order=1), "sampler.order=1 of unipc"),
        (functools.partial(dpm_solver, eta=-0.5), "sampler.eta=-0.5"),
        (functools.partial(ddim, eta=1.5), "sampler.eta=1.5"),
        (functools.partial(churn, rate=-1.0, low=0.1, high=0.9), "sampler.rate=-1.0"),
        (functools.partial(restart, since=0.5, until=0.52, times=2), "at least one of the 8 steps apart"),
        (functools.partial(restart, since=0.0, until=0.5, times=1), "goes back to pure noise"),
    ):
        with pytest.raises(ValueError, match="sampler") as error:
            solved(sampler, Straight(), levels, noise=draws)
        assert message in str(error.value)
