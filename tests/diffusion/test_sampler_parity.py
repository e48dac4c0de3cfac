"""Our samplers beside the schedulers of diffusers, at the same levels with the same velocities: equal, but where theirs are not right."""

import functools

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from sora.diffusion.exponential import dpm_solver, unipc
from sora.diffusion.path import Straight
from tests.diffusion.test_samplers import START, draws, flown, gaussian_velocity

KIND = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
DPM = functools.partial(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", **KIND)
SDE = functools.partial(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", **KIND)
UNIPC = functools.partial(UniPCMultistepScheduler, solver_type="bh2", **KIND)


def theirs(scheduler, levels, *, noise=None):
    """Asked at the levels themselves, not at their numbers among 1,000, which would leave an error of a thousandth."""
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas, scheduler._step_index, scheduler._begin_index = levels.float(), None, 0
    x, predict = START.clone(), gaussian_velocity(Straight())
    for number, t in enumerate(scheduler.timesteps):
        drawn = {} if noise is None else {"variance_noise": noise(number)}
        x = scheduler.step(predict(x, levels[number]), t, x, return_dict=False, **drawn)[0]
    return x


def ours(sampler, levels):
    return sampler(gaussian_velocity(Straight()), START, levels, path=Straight(), noise=draws)


@pytest.mark.parametrize("steps", [7, 12, 24])
def test_the_same_steps(steps):
    # 7 does not divide 1,000
    whole, below = (torch.linspace(first, 0, steps + 1, dtype=torch.float64) for first in (1.0, 0.98))
    for levels in (whole, below):
        assert torch.allclose(ours(dpm_solver, levels), theirs(DPM(solver_order=2), levels), atol=1e-5)
        stochastic = functools.partial(dpm_solver, eta=1.0)
        assert torch.allclose(ours(stochastic, levels), theirs(SDE(solver_order=2), levels, noise=draws), atol=1e-5)
    for order in (2, 3):
        assert torch.allclose(ours(functools.partial(unipc, order=order), below), theirs(UNIPC(solver_order=order), below), atol=1e-5)


def test_where_theirs_are_not_right():
    levels = torch.linspace(1, 0, 41, dtype=torch.float64)
    wanted = flown(Straight())

    def errors(sampler, scheduler):
        return [float((found - wanted).abs().max()) for found in (ours(sampler, levels), theirs(scheduler, levels))]

    mine, other = errors(unipc, UNIPC(solver_order=2))  # from pure noise, where the logarithm of the signal is infinite
    assert mine < other
    mine, other = errors(functools.partial(unipc, order=3), UNIPC(solver_order=3))
    assert mine < 5e-3
    assert other != other  # not a number
    # Half of the last term of order 3 is missing, so that it is no better than order 2.
    fine = torch.cat(
        [0.9 - 0.05 * torch.linspace(0, 1, 201, dtype=torch.float64) ** 2, torch.linspace(0.85, 0.1, 31, dtype=torch.float64)[1:]]
    )
    wanted = flown(Straight(), first=0.9, last=0.1)
    mine = float((ours(functools.partial(dpm_solver, order=3), fine) - wanted).abs().max())
    other = float((theirs(DPM(solver_order=3), fine) - wanted).abs().max())
    assert mine < other / 3
