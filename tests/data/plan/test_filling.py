"""Packs hold every clip once within the budgets, whatever fills them, and best fit is nearly full."""

import numpy as np
import pytest

from sora.data.plan.cost import Cost
from sora.data.plan.filling import Bucketed, Packed, Padded, summed
from tests.data.plan.making import RNG

GRIDS = {
    "mixed": np.stack([RNG.integers(1, 9, 400), RNG.integers(1, 5, 400), RNG.integers(1, 5, 400)], axis=1),
    "alike": np.tile([2, 3, 4], (50, 1)),
    "none": np.zeros((0, 3), dtype=np.int64),
    "one": np.array([[1, 1, 1]]),
}
FILLINGS = (Packed(), Bucketed(), Padded())


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("filling", FILLINGS, ids=lambda filling: type(filling).__name__)
@pytest.mark.parametrize("max_clips", [1, 3, 64])
def test_every_clip_stands_once_within_the_budgets(name, filling, max_clips):
    grids = GRIDS[name]
    for closing in (True, False):
        order, ends, left = filling.fill(grids, budget=128, max_clips=max_clips, closing=closing)
        assert sorted([*order.tolist(), *left.tolist()]) == list(range(len(grids)))
        assert not (closing and len(left))
        assert len(order) == (ends[-1] if len(ends) else 0)
        sizes = np.diff(ends, prepend=0)
        assert (sizes >= 1).all() and (sizes <= max_clips).all()
        assert (summed(grids.prod(axis=1)[order], ends) <= 128).all()


def test_buckets_hold_one_shape_and_only_incomplete_ones_wait():
    grids = GRIDS["mixed"]
    order, ends, left = Bucketed().fill(grids, budget=128, max_clips=64, closing=False)
    for batch in np.split(order, ends[:-1]):
        (shape,) = {tuple(grids[place]) for place in batch}
        assert len(batch) == 128 // np.prod(shape)
    for shape in {tuple(grid) for grid in grids[left]}:
        assert sum(tuple(grid) == shape for grid in grids[left]) < 128 // np.prod(shape)


def test_a_padded_batch_is_paid_for_at_its_longest():
    cost = Cost(linear=1.0, quadratic=0.5)
    tokens, ends = np.array([2, 4, 1]), np.array([2, 3])
    assert Padded().paid(tokens, ends, cost=cost, budget=8).tolist() == [2 * (4 + 8), 1 + 0.5]
    assert Bucketed().paid(tokens, ends, cost=cost, budget=8).tolist() == [2 + 2 + 4 + 8, 1.5]
    assert Packed().paid(tokens, ends, cost=cost, budget=8).tolist() == [8 + 2 + 8, 8 + 0.5]


def test_best_fit_leaves_little_room():
    tokens = np.minimum(1000, np.exp(RNG.normal(4, 1.2, size=5000))).astype(int) + 1
    grids = np.stack([tokens, np.ones_like(tokens), np.ones_like(tokens)], axis=1)
    _, ends, _ = Packed().fill(grids, budget=1024, max_clips=512, closing=True)
    assert len(ends) <= 1 + 1.005 * tokens.sum() / 1024


def test_packs_mix_sizes():
    """As chance would: else a step of one pack would hold clips of one duration."""
    grids = np.stack([RNG.choice([1, 2, 3, 4], 4000), np.full(4000, 5), np.full(4000, 5)], axis=1)
    order, ends, _ = Packed().fill(grids, budget=1024, max_clips=64, closing=True)
    within = np.mean([np.var(grids[pack, 0]) for pack in np.split(order, ends[:-1])])
    assert within > 0.75 * np.var(grids[:, 0])  # sorted, it would be 0.1
