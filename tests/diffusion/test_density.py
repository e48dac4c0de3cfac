"""Densities have the moments their formulas say; shifts move logits by a constant."""

from functools import partial
from math import log

import pytest
import torch

from sora.diffusion.density import LogitNormal, LogNormal, Mode, Uniform
from sora.diffusion.levels import constant_shift, shift_by_tokens, shifted
from sora.diffusion.path import EDM

# Midpoints of a fine grid: integrals of the quantile function are the moments.
U = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


def test_logit_normal_moments_and_quantiles():
    levels = LogitNormal(mean=0.0, std=1.0).quantile(U)
    assert levels.mean() == pytest.approx(0.5, abs=1e-9)
    assert levels.var(unbiased=False) == pytest.approx(0.04338, abs=1e-5)
    deciles = LogitNormal(mean=0.0, std=1.0).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    assert deciles.tolist() == pytest.approx([0.21729, 0.5, 0.78271], abs=1e-5)
    noisy = LogitNormal(mean=0.5, std=1.0)
    assert noisy.quantile(U).mean() == pytest.approx(0.6020, abs=1e-4)
    assert float(noisy.quantile(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(0.62246, abs=1e-5)


@pytest.mark.parametrize(
    "density", [Uniform(), LogitNormal(mean=-1.0, std=2.0), Mode(scale=1.29), Mode(scale=-1.0), Mode(scale=1.75)], ids=str
)
def test_quantile_functions_increase_within_the_unit_interval(density):
    levels = density.quantile(U)
    assert (levels.diff() >= 0).all()
    assert levels.min() >= 0 and levels.max() <= 1


def test_mode_of_scale_zero_is_uniform_and_of_positive_scale_favours_the_middle():
    assert torch.allclose(Mode(scale=0.0).quantile(U), U)
    assert (Mode(scale=1.29).quantile(U) - 0.5).abs().mean() < (U - 0.5).abs().mean()
    # f(u) = 1 - u - s (cos²(pi u / 2) - 1 + u) at u = 0.25, s = 1, with f(1 - q) the quantile
    assert float(Mode(scale=1.0).quantile(torch.tensor(0.75, dtype=torch.float64))) == pytest.approx(
        0.75 - (0.8535533905932737 - 0.75), abs=1e-12
    )


def test_mode_refuses_scales_that_run_backwards():
    with pytest.raises(ValueError, match=r"density\.scale=1\.8"):
        Mode(scale=1.8)


def test_log_normal_is_normal_in_the_logarithm_of_noise_over_signal():
    path = EDM(sigma_max=80.0, rho=7.0)
    levels = LogNormal(mean=-1.2, std=1.2, sigma_max=80.0, rho=7.0).quantile(U)
    ratio = (path.sigma(levels) / path.alpha(levels)).log()
    assert ratio.mean() == pytest.approx(-1.2, abs=1e-3)
    assert ratio.std() == pytest.approx(1.2, abs=1e-3)


def test_shift_moves_the_logit_composes_and_fixes_the_ends():
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert torch.allclose(torch.logit(shifted(t, 3.0)), torch.logit(t) + log(3.0))
    assert torch.allclose(shifted(shifted(t, 2.0), 3.5), shifted(t, 7.0))
    assert shifted(torch.tensor([0.0, 1.0]), 5.0).tolist() == [0.0, 1.0]
    assert torch.equal(shifted(t, constant_shift(7, value=1.0)), t)


def test_shift_by_tokens_is_the_square_root_of_the_ratio():
    rule = partial(shift_by_tokens, reference=256, power=0.5, least=1.0, most=12.0)
    assert rule(1024) == pytest.approx(2.0)
    assert rule(64) == 1.0
    assert rule(10**9) == 12.0
