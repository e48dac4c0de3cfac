"""Paths and conversions hold for every path, at shapes that hide wrong broadcasting."""

import pytest
import torch

from sora.diffusion import prediction as kinds
from sora.diffusion.discrete import Discrete
from sora.diffusion.path import EDM, Straight, VariancePreserving, like, mix, velocity

PATHS = [Straight(), VariancePreserving(), EDM(sigma_max=80.0, rho=7.0)]
DDPM = Discrete(steps=1000, first=1e-4, last=0.02, root=1.0, snr=1.0, zero_end=False)
COGVIDEOX = Discrete(steps=1000, first=8.5e-4, last=0.012, root=2.0, snr=3.0, zero_end=True)
PATHS += [DDPM, COGVIDEOX]
KINDS = [kinds.velocity_prediction, kinds.noise_prediction, kinds.clean_prediction, kinds.v_prediction]


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
    t = torch.tensor([0.2003, 0.4504, 0.6006, 0.9007], dtype=torch.float64)  # between the steps of discrete paths
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
    ours = kinds.convert(guess, x_t, t, kinds.v_prediction, kinds.clean_prediction, path=path)
    assert torch.allclose(ours, denoised, atol=1e-9)


def test_singular_levels_are_refused_with_what_to_do():
    levels = torch.linspace(1, 0, 5)
    with pytest.raises(ValueError, match="predicts noise cannot be sampled at noise level 1"):
        kinds.check_levels(levels, kinds.noise_prediction, path=Straight())
    with pytest.raises(ValueError, match="predicts clean"):
        kinds.check_levels(levels, kinds.clean_prediction, path=Straight())
    kinds.check_levels(levels[:-1], kinds.clean_prediction, path=Straight())
    kinds.check_levels(levels, kinds.velocity_prediction, path=Straight())
    kinds.check_levels(levels, kinds.v_prediction, path=VariancePreserving())


@pytest.mark.parametrize("snr", [1.0, 3.0])
def test_discrete_paths_pass_through_the_products_of_published_schedules(snr):
    """Level n / 1000 is step n - 1 of diffusers' schedulers; the last step of a schedule rescaled to zero is noise exactly."""
    diffusers = pytest.importorskip("diffusers")
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    linear = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
    torch.testing.assert_close(DDPM.alpha(levels) ** 2, linear.alphas_cumprod.double(), atol=1e-6, rtol=0)
    kept = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    theirs = diffusers.CogVideoXDDIMScheduler(**kept, snr_shift_scale=snr, num_train_timesteps=1000)
    ours = Discrete(steps=1000, first=8.5e-4, last=0.012, root=2.0, snr=snr, zero_end=True)
    torch.testing.assert_close(ours.alpha(levels) ** 2, theirs.alphas_cumprod.double(), atol=1e-6, rtol=0)
    assert float(ours.alpha(torch.ones(1))) < 1e-6


def test_discrete_paths_never_turn_back_and_are_straight_between_steps():
    for path in (DDPM, COGVIDEOX):
        fine = torch.linspace(0, 1, 4001, dtype=torch.float64)
        angles = torch.atan2(path.sigma(fine), path.alpha(fine))
        assert (angles.diff() > 0).all()
        assert (angles[:-2:4] + angles[2::4] - 2 * angles[1::4]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "change", [{"steps": 1}, {"first": 0.0}, {"first": 0.1, "last": 0.01}, {"last": 1.0}, {"root": 0.0}, {"snr": -1.0}]
)
def test_schedules_that_are_none_are_refused(change):
    with pytest.raises(ValueError, match=r"path: steps=.*rise between 0 and 1"):
        Discrete(**{"steps": 1000, "first": 1e-4, "last": 0.02, "root": 1.0, "snr": 1.0, "zero_end": False} | change)
