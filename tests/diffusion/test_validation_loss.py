"""The held-out loss is of the velocity, whatever a network predicts; of the clip alone, whatever its pack; and the same every time."""

from functools import partial

import pytest
import torch

from sora.diffusion import prediction as kinds
from sora.diffusion.path import Straight, VariancePreserving, like
from sora.diffusion.validation_loss import HeldOutLoss, LevelLoss, LossTable
from sora.system.draws import normal
from sora.tokens import Grid
from tests.diffusion.test_objective import A, B, C, P, pack

LEVELS = 4  # as many as channels, and as the first clip has frames


def make(**changes):
    return HeldOutLoss(**{"path": Straight(), "prediction": kinds.velocity_prediction, "levels": LEVELS, "draws": 1, "seed": 0, **changes})


def same_text(text):
    return text


def measured(loss, network, batches):
    clips = [(sample, grid) for batch in batches for sample, grid in zip(batch.sample_ids, batch.tokens.grids, strict=True)]
    tally = LossTable([sample for sample, _ in clips], [grid for _, grid in clips], loss.levels)
    for piece in loss.pieces(network, same_text, batches):
        tally.add(piece, batches[piece.batch].sample_ids)
    return tally.losses()


def estimator(tokens, levels, _text, *, path, kind, clean):
    """A network whose guess of the data is `clean` of its input, told as a prediction of `kind`."""
    t, x = levels.spread(), tokens.patches
    x0 = clean(x)
    eps = (x - like(path.alpha(t), x) * x0) / like(path.sigma(t), x).clamp_min(1e-9)
    c0, c1 = kind(path, t)
    return like(c0, x) * x0 + like(c1, x) * eps


def test_a_network_that_knows_the_data_has_no_loss_and_one_that_says_nothing_has_the_velocity_s_square():
    batch = pack([A, B], budget=24)
    knows = partial(estimator, path=Straight(), kind=kinds.velocity_prediction, clean=lambda _: batch.tokens.patches)
    assert measured(make(), knows, [batch]).values.abs().max() < 1e-8
    silent = measured(make(), lambda tokens, *_: torch.zeros_like(tokens.patches), [batch])
    start = 0
    for number, (sample, grid) in enumerate((A, B)):
        clean = batch.tokens.patches[start : start + grid.tokens]
        eps = normal("heldout", (grid.tokens, P), seed=0, epoch=0, sample=sample)
        assert torch.allclose(silent.values[number], (eps - clean).square().mean().double().expand(LEVELS), rtol=1e-5)
        start += grid.tokens
    assert silent.samples == (A[0], B[0]) and silent.grids == (A[1], B[1])


@pytest.mark.parametrize("path", [Straight(), VariancePreserving()])
def test_all_predictions_are_measured_by_one_yardstick(path):
    batch = pack([A, C], budget=30)
    found = []
    for kind in (kinds.velocity_prediction, kinds.noise_prediction, kinds.clean_prediction, kinds.v_prediction):
        network = partial(estimator, path=path, kind=kind, clean=lambda x: 0.4 * x + 0.1)
        found.append(measured(make(path=path, prediction=kind), network, [batch]).values)
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=2e-4), (other, found[0])


def curious(tokens, levels, _text):
    return torch.tanh(tokens.patches * (1 + levels.spread()[:, None])) + 0.3


def test_a_clip_s_loss_does_not_depend_on_its_pack_or_on_what_pads_it():
    together = measured(make(draws=2), curious, [pack([B, A, C], budget=40)])
    apart = measured(make(draws=2), curious, [pack([C, B], budget=13), pack([A], budget=16)])
    alike = dict(zip(together.samples, together.values, strict=True))
    for sample, row in zip(apart.samples, apart.values, strict=True):
        assert torch.allclose(row, alike[sample], rtol=1e-6)


def test_the_noise_is_the_same_every_time_and_at_every_level_and_another_for_another_draw():
    batch, seen = pack([A], budget=16), []

    def looks(tokens, levels, _text):
        t = levels.spread()[:, None]
        seen.append((tokens.patches - (1 - t) * batch.tokens.patches) / t)
        return tokens.patches

    first = measured(make(draws=2), looks, [batch]).values
    again = measured(make(draws=2), looks, [batch]).values
    assert torch.equal(first, again)
    draws = torch.stack(seen[: 2 * LEVELS]).unflatten(0, (LEVELS, 2))
    assert torch.allclose(draws[0], draws[-1], atol=1e-5)
    assert (draws[:, 0] - draws[:, 1]).abs().mean() > 0.5
    alone = [measured(make(seed=seed), looks, [batch]).values for seed in (0, 1)]
    assert not torch.allclose(*alone, rtol=1e-3)


def test_conditions_count_nowhere():
    plain, given = pack([A], budget=18), pack([A], budget=18, conditions=range(4))
    wrong_there = partial(estimator, path=Straight(), kind=kinds.velocity_prediction)

    def spoilt(tokens, levels, text):
        known = wrong_there(tokens, levels, text, clean=lambda _: plain.tokens.patches)
        return torch.cat([torch.full_like(known[:4], 1e6), known[4:]])

    assert measured(make(), spoilt, [given]).values.max() < 1e-8
    assert measured(make(), spoilt, [plain]).values.min() > 1e3


def test_pieces_add_up_in_any_order_and_what_was_not_read_is_left_out():
    grids, samples = (A[1], B[1], A[1]), (5, 6, 7)
    tally = LossTable(samples, grids, (0.25, 0.75))
    for piece, ids in (
        (LevelLoss(1, 1, torch.tensor([3.0], dtype=torch.float64)), (7,)),
        (LevelLoss(0, 0, torch.tensor([1.0], dtype=torch.float64)), (5,)),
        (LevelLoss(1, 0, torch.tensor([2.0], dtype=torch.float64)), (7,)),
        (LevelLoss(0, 1, torch.tensor([5.0], dtype=torch.float64)), (5,)),
        (LevelLoss(0, 1, torch.tensor([7.0], dtype=torch.float64)), (5,)),
    ):
        tally.add(piece, ids)
    found = tally.losses()
    assert found.samples == (5, 7) and found.values.tolist() == [[1.0, 6.0], [2.0, 3.0]]
    assert found.by_level() == {0.25: 1.5, 0.75: 4.5} and found.clips.tolist() == [3.5, 2.5]
    assert found.by_shape() == [(A[1], 2, [1.5, 4.5])]
    with pytest.raises(ValueError, match="none of them can be read"):
        LossTable(samples, grids, (0.5,)).losses()


def test_shapes_stand_apart_from_the_smallest_on():
    batches = [pack([C, B, A], budget=40)]
    found = measured(make(), curious, batches).by_shape()
    assert [grid for grid, _, _ in found] == [Grid(1, 2, 2), Grid(3, 3, 1), Grid(4, 2, 2)]
    assert all(number == 1 and len(values) == LEVELS for _, number, values in found)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="at least one of both"):
        make(levels=0)
    with pytest.raises(ValueError, match="cannot be sampled at noise level"):
        make(prediction=kinds.clean_prediction, levels=1000)
