"""Guidance is a prediction made of two, and makes as few forwards as its settings need."""

import pytest
import torch

from sora.diffusion.guidance import guide, spread

X = torch.randn(6, 6)
T = torch.full((6,), 0.5)


def conditional(x, t):
    return torch.sin(x) + t[:, None]


def unconditional(x, t):
    return torch.cos(3 * x)


def forbidden(x, t):
    raise AssertionError("computed")


def test_at_scale_one_it_is_the_conditional_prediction_and_the_other_is_not_computed():
    assert torch.equal(guide(conditional, forbidden, scale=1.0)(X, T), conditional(X, T))


def test_it_is_linear_in_the_scale_and_at_zero_the_unconditional_prediction():
    c, u = conditional(X, T), unconditional(X, T)
    for scale in (0.0, 0.5, 2.0, 7.5):
        assert torch.allclose(guide(conditional, unconditional, scale=scale)(X, T), u + scale * (c - u), atol=1e-6)


def test_outside_the_interval_there_is_one_forward():
    guided = guide(conditional, forbidden, scale=4.0, interval=[0.5, 0.9])
    for level in (0.5, 0.95, 0.0):  # the lower end is outside
        t = torch.full((6,), level)
        assert torch.equal(guided(X, t), conditional(X, t))


def test_rows_inside_and_outside_the_interval_are_told_apart():
    t = torch.tensor([0.1, 0.6, 0.1, 0.6, 0.1, 0.6])
    mixed = guide(conditional, unconditional, scale=4.0, interval=[0.3, 0.9])(X, t)
    full = guide(conditional, unconditional, scale=4.0)(X, t)
    assert torch.equal(mixed[1::2], full[1::2])
    assert torch.equal(mixed[0::2], conditional(X, t)[0::2])


def test_full_rescale_gives_each_clip_the_spread_of_its_conditional_prediction():
    clips = torch.tensor([0, 0, 0, 1, 1, 2])
    out = guide(conditional, unconditional, scale=5.0, rescale=1.0, clips=clips)(X, T)
    assert torch.allclose(spread(out, clips), spread(conditional(X, T), clips), rtol=1e-5)
    alone = guide(conditional, unconditional, scale=5.0, rescale=1.0, clips=torch.zeros(3, dtype=torch.int64))(X[:3], T[:3])
    assert torch.allclose(out[:3], alone, atol=1e-6)  # a clip's rescaling does not see its neighbours


def test_spread_is_the_standard_deviation_of_each_clip():
    clips = torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.allclose(spread(X, clips), torch.stack([X[clips == g].std(unbiased=False) for g in (0, 1)]))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"guidance\.interval"):
        guide(conditional, unconditional, scale=2.0, interval=[0.9, 0.1])
    with pytest.raises(ValueError, match=r"guidance\.rescale"):
        guide(conditional, unconditional, scale=2.0, rescale=1.5)
