"""Paths and conversions hold for every path, at shapes that hide wrong broadcasting."""

import pytest
import torch

from sora.diffusion import prediction as kinds
from sora.diffusion.path import EDM, Straight, VariancePreserving, like, mix, velocity

PATHS = [Straight(), VariancePreserving(), EDM(sigma_max=80.0, rho=7.0)]
KINDS = [kinds.velocity, kinds.noise, kinds.clean, kinds.v]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_level_zero_is_data_exactly(path):
    x0, eps = torch.randn(2, 3, 5)
    assert torch.equal(mix(path, x0, eps, torch.zeros(3)), x0)


def test_level_one_is_noise_exactly():
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    for path in PATHS[:2]:
        assert torch.equal(mix(path, x0, eps, torch.ones(3, dtype=torch.float64)), eps)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_velocity_is_the_derivative_of_the_mixture(path):
    x0, eps = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.2, 0.45, 0.6, 0.9], dtype=torch.float64)
    h = 1e-6
    slope = (mix(path, x0, eps, t + h) - mix(path, x0, eps, t - h)) / (2 * h)
    assert torch.allclose(slope, velocity(path, x0, eps, t), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("path", PATHS[1:], ids=str)
def test_variance_is_preserved(path):
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    assert torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), atol=1e-12)


def test_t_may_have_as_many_items_as_x_has_channels():
    # batch == channels == frames: a level that met the wrong axis would still broadcast.
    x0, eps = torch.randn(2, 4, 4, 4)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9])
    mixed = mix(Straight(), x0, eps, t)
    for item in range(4):
        assert torch.equal(mixed[item], (1 - t[item]) * x0[item] + t[item] * eps[item])


def test_levels_that_do_not_lead_the_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) do not lead \(4, 3\)"):
        like(torch.zeros(3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="do not lead"):
        like(torch.zeros(1), torch.zeros(4, 3))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_any_prediction_becomes_any_other(path, source, target):
    x0, eps = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    t = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64)
    x_t = mix(path, x0, eps, t)

    def exact(kind):
        c0, c1 = (like(c, x0) for c in kind(path, t))
        return c0 * x0 + c1 * eps

    given = exact(source)
    converted = kinds.convert(given, x_t, t, source, target, path=path)
    # at 80 times the noise, data is known to fewer digits
    assert torch.allclose(converted, exact(target), atol=1e-9, rtol=1e-7)
    if source is target:
        assert converted is given


def test_the_v_prediction_on_the_edm_path_is_edms_preconditioning():
    # D = c_skip x + c_out F with sigma_data = 1 and x in EDM's own scale (Karras et al. 2022, eq. 7), F = -v.
    path, t = EDM(sigma_max=80.0, rho=7.0), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    scale = 80.0 * t**7
    x0, eps = torch.randn(2, 3, 3, dtype=torch.float64)
    x_t = mix(path, x0, eps, t)
    x_edm = x0 + scale[:, None] * eps
    assert torch.allclose(x_t, x_edm / (1 + scale[:, None] ** 2).sqrt())
    guess = torch.randn(3, 3, dtype=torch.float64)
    denoised = x_edm / (scale[:, None] ** 2 + 1) - scale[:, None] / (scale[:, None] ** 2 + 1).sqrt() * guess
    ours = kinds.convert(guess, x_t, t, kinds.v, kinds.clean, path=path)
    assert torch.allclose(ours, denoised, atol=1e-9)


def test_singular_levels_are_refused_with_what_to_do():
    levels = torch.linspace(1, 0, 5)
    with pytest.raises(ValueError, match="predicts noise cannot be sampled at noise level 1"):
        kinds.check_levels(levels, kinds.noise, path=Straight())
    with pytest.raises(ValueError, match="predicts clean"):
        kinds.check_levels(levels, kinds.clean, path=Straight())
    kinds.check_levels(levels[:-1], kinds.clean, path=Straight())
    kinds.check_levels(levels, kinds.velocity, path=Straight())
    kinds.check_levels(levels, kinds.v, path=VariancePreserving())
