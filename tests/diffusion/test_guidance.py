"""Guidance is a prediction made of two, and asks for no more than its settings need."""

from functools import partial

import pytest
import torch

from sora.diffusion.guidance import guide, projected_guide, spread, summed, zero_star_guide
from sora.diffusion.path import Straight, VariancePreserving

X = torch.randn(6, 6)
T = torch.full((6,), 0.5)


def conditional(x, t):
    return torch.sin(x) + t[:, None]


def unconditional(x, t):
    return torch.cos(3 * x)


def ask(x, t, names):
    found = {"text": conditional, "away": unconditional}
    return [found[name](x, t) for name in names]


def alone(x, t, names):
    """What may be asked where guidance does nothing."""
    assert names == ("text",)
    return [conditional(x, t)]


GUIDES = {
    "cfg": guide,
    "apg": partial(projected_guide, parallel=0.0, most=None, momentum=0.0),
    "zero": partial(zero_star_guide, still=1.0),
}
CLIPS = torch.tensor([0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize("kind", GUIDES)
def test_at_scale_one_it_is_the_prediction_for_the_text_and_the_other_is_not_asked_for(kind):
    assert torch.equal(GUIDES[kind](alone, scale=1.0, path=Straight())(X, T), conditional(X, T))


def test_it_is_linear_in_the_scale_and_at_zero_the_other_prediction():
    c, u = conditional(X, T), unconditional(X, T)
    for scale in (0.0, 0.5, 2.0, 7.5):
        assert torch.allclose(guide(ask, scale=scale)(X, T), u + scale * (c - u), atol=1e-6)


@pytest.mark.parametrize("kind", GUIDES)
def test_outside_the_interval_only_the_text_is_asked_for(kind):
    guided = GUIDES[kind](alone, scale=4.0, interval=[0.5, 0.9], path=Straight())
    for level in (0.5, 0.95, 0.0):  # the lower end is outside
        t = torch.full((6,), level)
        assert torch.equal(guided(X, t), conditional(X, t))


@pytest.mark.parametrize("kind", GUIDES)
def test_rows_inside_and_outside_the_interval_are_told_apart(kind):
    t = torch.tensor([0.1, 0.6, 0.1, 0.6, 0.1, 0.6])
    mixed = GUIDES[kind](ask, scale=4.0, interval=[0.3, 0.9], path=Straight())(X, t)
    full = GUIDES[kind](ask, scale=4.0, path=Straight())(X, t)
    assert torch.equal(mixed[1::2], full[1::2])
    assert torch.equal(mixed[0::2], conditional(X, t)[0::2])


@pytest.mark.parametrize("kind", GUIDES)
def test_a_clip_does_not_see_its_neighbours(kind):
    settings = {"scale": 5.0, "path": Straight()} | ({"rescale": 1.0} if kind == "cfg" else {})
    together = GUIDES[kind](ask, clips=CLIPS, **settings)(X, T)
    first = GUIDES[kind](ask, clips=torch.zeros(3, dtype=torch.int64), **settings)(X[:3], T[:3])
    assert torch.allclose(together[:3], first, atol=1e-5)


def test_full_rescale_gives_each_clip_the_spread_of_its_prediction_for_the_text():
    out = guide(ask, scale=5.0, rescale=1.0, clips=CLIPS)(X, T)
    assert torch.allclose(spread(out, CLIPS), spread(conditional(X, T), CLIPS), rtol=1e-5)


def test_projected_guidance_with_all_of_the_parallel_part_is_plain_guidance():
    for path in (Straight(), VariancePreserving()):
        every = projected_guide(ask, scale=5.0, parallel=1.0, most=None, momentum=0.0, path=path)(X, T)
        assert torch.allclose(every, guide(ask, scale=5.0)(X, T), atol=1e-4)


def test_projected_guidance_without_it_adds_what_is_orthogonal_to_the_clean_prediction():
    guided = projected_guide(ask, scale=5.0, parallel=0.0, most=None, momentum=0.0, clips=CLIPS, path=Straight())(X, T)
    clean = [X - T[:, None] * velocity for velocity in (guided, conditional(X, T))]
    assert torch.allclose(summed(clean[0] - clean[1], clean[1], CLIPS)[:3], torch.zeros(3), atol=1e-4)


def test_the_difference_is_no_larger_than_asked_and_momentum_remembers_it():
    at, limited = {"parallel": 1.0, "clips": CLIPS, "path": Straight()}, 0.1
    guided = projected_guide(ask, scale=2.0, most=limited, momentum=0.0, **at)(X, T)
    moved = T[:, None] * (conditional(X, T) - guided)
    for clip in range(3):
        assert float((moved[clip == CLIPS] ** 2).mean().sqrt()) == pytest.approx(limited, rel=1e-4)
    leaning = projected_guide(ask, scale=2.0, most=None, momentum=-0.5, **at)
    first, second = leaning(X, T), leaning(X, T)
    c = conditional(X, T)
    assert torch.allclose(second - c, 0.5 * (first - c), atol=1e-5)


def test_zero_star_of_equal_predictions_is_that_prediction_and_of_multiples_too():
    twice = lambda x, t, names: [conditional(x, t), -3 * conditional(x, t)][: len(names)]  # noqa: E731
    assert torch.allclose(zero_star_guide(twice, scale=5.0, still=1.0, clips=CLIPS)(X, T), conditional(X, T), atol=1e-5)


def test_above_the_level_of_rest_nothing_moves_and_nothing_is_asked():
    def forbidden(x, t, names):
        raise AssertionError("asked")

    assert torch.equal(zero_star_guide(forbidden, scale=4.0, still=0.4)(X, T), torch.zeros_like(X))
    t = torch.tensor([0.9, 0.2, 0.9, 0.2, 0.0, 0.0])
    mixed = zero_star_guide(ask, scale=4.0, still=0.4)(X, t)
    assert torch.equal(mixed[[0, 2]], torch.zeros(2, X.shape[1]))
    assert torch.equal(mixed[1::2], zero_star_guide(ask, scale=4.0, still=1.0)(X, t)[1::2])


def test_spread_is_the_standard_deviation_of_each_clip():
    clips = torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.allclose(spread(X, clips), torch.stack([X[clips == g].std(unbiased=False) for g in (0, 1)]))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: guide(ask, scale=2.0, interval=[0.9, 0.1]), "guidance.interval"),
        (lambda: guide(ask, scale=2.0, rescale=1.5), "guidance.rescale"),
        (lambda: projected_guide(ask, scale=2.0, parallel=0.0, most=0.0, momentum=0.0, path=Straight()), "guidance.most"),
        (lambda: projected_guide(ask, scale=2.0, parallel=0.0, most=None, momentum=1.0, path=Straight()), "guidance.momentum"),
        (lambda: projected_guide(ask, scale=2.0, parallel=0.0, most=None, momentum=0.0), "needs the path"),
        (lambda: zero_star_guide(ask, scale=2.0, still=0.0), "guidance.still"),
    ],
)
def test_impossible_settings_are_refused(made, message):
    with pytest.raises(ValueError, match=r".") as error:
        made()
    assert message in str(error.value)
