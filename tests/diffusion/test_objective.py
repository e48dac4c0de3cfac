"""The objective's draws follow from sample ids alone, its loss sees no padding and no condition, its weights agree between predictions."""

import math
from functools import partial

import pytest
import torch

from sora.diffusion import prediction as kinds
from sora.diffusion import weighting as weights
from sora.diffusion.density import LogitNormal, Uniform
from sora.diffusion.levels import constant_shift, shift_by_tokens
from sora.diffusion.objective import Objective, by_level, pack_levels
from sora.diffusion.path import Straight, VariancePreserving, like, mix
from sora.tokens import Batch, Grid, PackedTokens, Segments, TextTokens

P = 4
PLAIN = partial(constant_shift, value=1.0)


def make(**changes):
    settings = {
        "path": Straight(),
        "density": LogitNormal(mean=0.0, std=1.0),
        "prediction": kinds.velocity_prediction,
        "weighting": weights.constant_weight,
    }
    return Objective(**({**settings, "shift": PLAIN, "frame_level_share": 0.0} | changes))


def pack(clips, *, budget, epoch=0, conditions=()):
    """clips: (sample id, grid) in order; a clip's content follows from its id. conditions: token numbers."""
    patches = torch.full((budget, P), 7.0)
    start = 0
    for sample, grid in clips:
        patches[start : start + grid.tokens] = torch.randn(grid.tokens, P, generator=torch.Generator().manual_seed(sample))
        start += grid.tokens
    segments = Segments.of((*(grid.tokens for _, grid in clips), budget - start))
    mask = torch.zeros(budget, dtype=torch.bool)
    mask[list(conditions)] = True
    tokens = PackedTokens(patches=patches, positions=torch.zeros(budget, 3), segments=segments, grids=tuple(grid for _, grid in clips))
    text = TextTokens(states=torch.zeros(1, 2), segments=Segments.of((1,) + (0,) * len(clips)))
    return Batch(tokens=tokens, text=text, conditions=mask, sample_ids=tuple(sample for sample, _ in clips), epochs=(epoch,) * len(clips))


A, B, C = (11, Grid(4, 2, 2)), (22, Grid(1, 2, 2)), (33, Grid(3, 3, 1))


def test_noise_and_levels_do_not_depend_on_the_pack():
    objective = make(frame_level_share=0.5)
    alone = objective.noise(pack([A], budget=16), seed=3)
    packed = objective.noise(pack([B, C, A], budget=40), seed=3)
    here = slice(4 + 9, 4 + 9 + 16)
    assert torch.equal(packed.eps[here], alone.eps)
    assert torch.equal(packed.levels.spread()[here], alone.levels.spread())
    assert torch.equal(packed.tokens.patches[here], alone.tokens.patches)


def test_another_epoch_seed_or_clip_draws_anew():
    objective = make()
    first = objective.noise(pack([A], budget=16), seed=3)
    for batch, seed in ((pack([A], budget=16, epoch=1), 3), (pack([A], budget=16), 4), (pack([(12, A[1])], budget=16), 3)):
        other = objective.noise(batch, seed=seed)
        assert abs(float(torch.corrcoef(torch.stack([first.eps.flatten(), other.eps.flatten()]))[0, 1])) < 0.5
        assert not torch.equal(first.levels.levels, other.levels.levels)


@pytest.mark.slow
def test_levels_follow_the_density_over_many_clips():
    objective = make()
    drawn = torch.stack([objective.clip_levels(Grid(2, 1, 1), seed=0, epoch=0, sample=sample) for sample in range(4000)])
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert drawn.mean() == pytest.approx(0.5, abs=0.012)
    assert drawn.var() == pytest.approx(0.0434, abs=0.003)


def test_the_share_of_clips_with_a_level_for_each_frame():
    objective = make(frame_level_share=0.3)
    drawn = [objective.clip_levels(Grid(3, 1, 1), seed=0, epoch=0, sample=sample) for sample in range(2000)]
    assert sum(len(set(levels.tolist())) == 3 for levels in drawn) / 2000 == pytest.approx(0.3, abs=0.035)


def test_larger_clips_are_shifted_towards_noise():
    rule = partial(shift_by_tokens, reference=4, power=0.5, least=1.0, most=10.0)
    small, large = (make(density=Uniform(), shift=rule).clip_levels(Grid(t, 2, 2), seed=0, epoch=0, sample=1)[0] for t in (1, 4))
    assert float(torch.logit(large) - torch.logit(small)) == pytest.approx(math.log(2.0), abs=1e-4)


def test_conditions_stay_clean_and_neither_they_nor_padding_reach_the_loss():
    objective = make()
    batch = pack([A, B], budget=30, conditions=[0, 1, 2, 3, 17])
    noised = objective.noise(batch, seed=0)
    assert torch.equal(noised.tokens.patches[batch.conditions], batch.tokens.patches[batch.conditions])
    assert (noised.levels.spread()[batch.conditions] == 0).all()
    assert (noised.levels.spread()[20:] == 0).all()
    out = torch.randn(30, P, requires_grad=True)
    poisoned = torch.cat([out[:20], torch.full((10, P), torch.inf)])
    losses = objective.losses(lambda *_: poisoned, batch, noised, batch.text)
    losses.sum().backward()
    silent = ~noised.mask
    assert (losses[silent] == 0).all() and (out.grad[silent] == 0).all()
    assert (losses[noised.mask] > 0).all() and noised.count == 20 - 5


def test_the_loss_is_zero_exactly_for_the_true_velocity_and_a_mean_over_channels():
    objective = make()
    batch = pack([A, C], budget=25)
    noised = objective.noise(batch, seed=0)
    truth = noised.eps - batch.tokens.patches
    assert torch.equal(objective.losses(lambda *_: truth, batch, noised, batch.text), torch.zeros(25))
    assert torch.allclose(objective.losses(lambda *_: truth + 2.0, batch, noised, batch.text), torch.full((25,), 4.0), rtol=1e-5)


def test_the_network_sees_the_noised_tokens_and_one_level_for_each_clip_and_frame():
    objective = make(frame_level_share=1.0, max_levels=13)
    batch = pack([A, B, C], budget=32)
    noised = objective.noise(batch, seed=0)
    assert noised.levels.levels.shape == (13,)
    expected = mix(Straight(), batch.tokens.patches, noised.eps, noised.levels.spread())
    seen = []
    objective.losses(lambda tokens, levels, text: seen.append((tokens, levels, text)) or tokens.patches, batch, noised, batch.text)
    assert torch.equal(seen[0][0].patches, expected) and seen[0][1] is noised.levels and seen[0][2] is batch.text
    with pytest.raises(ValueError, match=r"objective\.max_levels=8"):
        make(max_levels=8).noise(batch, seed=0)


def test_every_frame_has_its_level_and_conditions_and_padding_the_zero_of_their_own_segment():
    """Clips of 2 and 1 frames, an empty segment and padding; conditions inside a frame. Three unused rows stand at the end."""
    conditions = torch.zeros(9, dtype=torch.bool)
    conditions[[1, 6]] = True
    drawn = [torch.tensor([0.3, 0.4]), torch.tensor([0.9])]
    packed = pack_levels(drawn, [Grid(2, 1, 2), Grid(1, 3, 1)], conditions, segments=4, max_levels=10)
    assert packed.index.tolist() == [0, 3, 1, 1, 2, 2, 4, 6, 6]
    torch.testing.assert_close(packed.levels, torch.tensor([0.3, 0.4, 0.9] + [0.0] * 7))
    assert packed.owners.tolist() == [0, 0, 1, 0, 1, 2, 3, 3, 3, 3]


def wrong_predictions(path, t):
    """A network takes x_t for other data, so for other noise: both errors, and the mean-squared error of each kind of prediction."""
    x0, eps, wrong = torch.randn(3, 4, 4, dtype=torch.float64)
    x_t = mix(path, x0, eps, t)
    of_data, of_noise = wrong - x0, (x_t - like(path.alpha(t), x0) * wrong) / like(path.sigma(t), x0) - eps
    errors = {}
    for kind in (kinds.velocity_prediction, kinds.noise_prediction, kinds.clean_prediction, kinds.v_prediction):
        c0, c1 = (like(c, x0) for c in kind(path, t))
        errors[kind] = (c0 * of_data + c1 * of_noise).square().mean(1)
    return of_data, of_noise, errors


@pytest.mark.parametrize("path", [Straight(), VariancePreserving()])
def test_min_snr_pulls_equally_on_the_data_whatever_is_predicted(path):
    # weight · |prediction error|² must be the same function of the error of x0 for all kinds.
    t = torch.tensor([0.1, 0.4, 0.75, 0.95], dtype=torch.float64)
    of_data, _, errors = wrong_predictions(path, t)
    expected = ((path.alpha(t) / path.sigma(t)) ** 2).clamp(max=5.0) * of_data.square().mean(1)
    for kind, error in errors.items():
        assert torch.allclose(weights.min_snr_weight(t, path, kind, gamma=5.0) * error, expected, rtol=1e-9)


@pytest.mark.parametrize("path", [Straight(), VariancePreserving()])
def test_as_velocity_gives_every_kind_the_loss_of_the_velocity_it_stands_for(path):
    t = torch.tensor([0.1, 0.4, 0.75, 0.95], dtype=torch.float64)
    of_data, of_noise, errors = wrong_predictions(path, t)
    expected = (like(path.d_alpha(t), of_data) * of_data + like(path.d_sigma(t), of_data) * of_noise).square().mean(1)
    for kind, error in errors.items():
        assert torch.allclose(weights.velocity_weight(t, path, kind, most=1e9) * error, expected, rtol=1e-9)


def test_as_velocity_is_held_below_its_most_where_it_would_be_infinite():
    ends = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)
    assert weights.velocity_weight(ends, Straight(), kinds.clean_prediction, most=25.0).tolist() == [25.0, 25.0, 4.0, 1.0]
    assert weights.velocity_weight(ends, Straight(), kinds.velocity_prediction, most=25.0).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_min_snr_stays_finite_at_both_ends():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert weights.min_snr_weight(ends, Straight(), kinds.noise_prediction, gamma=5.0).tolist() == [0.0, 1.0]
    assert weights.min_snr_weight(ends, Straight(), kinds.clean_prediction, gamma=5.0).tolist() == [5.0, 0.0]
    assert weights.min_snr_weight(ends, Straight(), kinds.velocity_prediction, gamma=5.0).tolist() == [0.0, 0.0]


def test_cosine_map_weights_integrate_to_one():
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert weights.cosine_map_weight(t, Straight(), kinds.velocity_prediction).mean() == pytest.approx(1.0, abs=1e-6)


def test_losses_by_level_add_up_to_the_whole():
    objective = make(density=Uniform(), frame_level_share=1.0)
    batch = pack([A, B, C], budget=40)
    noised = objective.noise(batch, seed=0)
    losses = objective.losses(lambda tokens, *_: tokens.patches, batch, noised, batch.text)
    sums, counts = by_level(losses, noised, bins=5)
    assert sums.sum() == pytest.approx(float(losses.sum()), rel=1e-5)
    assert counts.sum() == noised.count
    third = (noised.levels.spread() >= 0.4) & (noised.levels.spread() < 0.6) & noised.mask
    assert sums[2] == pytest.approx(float(losses[third].sum()), rel=1e-5)
