"""A listing holds each of its clips once, spread over all there are, in packs that keep the budget; and it never changes."""

import numpy as np
import pytest

from sora.data.plan.clips import LatentClips
from sora.data.plan.listing import Listing, PackPlan
from sora.data.plan.steps import Item
from sora.tokens import Grid
from tests.data.plan.making import plan as training_plan

PATCH = Grid(1, 2, 2)


def clips(*datasets):
    return LatentClips([np.array(shapes) for shapes in datasets], patch=PATCH, fingerprint="f" * 64)


def many(count, seed=0):
    draw = np.random.default_rng(seed)
    return np.stack([draw.integers(1, 6, count), 2 * draw.integers(1, 5, count), 2 * draw.integers(1, 5, count)], axis=1)


def listed(listing):
    return [item.row for step in range(len(listing)) for item in listing.at(step).items]


@pytest.mark.parametrize("count", [None, 1, 7, 40])
def test_each_clip_comes_once_and_packs_keep_the_budget(count):
    shapes = many(40)
    listing = Listing(clips(shapes[:15], shapes[15:]), count=count, budget=90, max_clips=3, seed=0)
    rows = listed(listing)
    assert sorted(rows) == sorted(listing.rows.tolist()) and len(rows) == (count or 40)
    tokens = dict(zip(listing.rows.tolist(), (grid.tokens for grid in listing.grids), strict=True))
    assert all(tokens[row] == np.prod(shapes[row] // np.array(PATCH)) for row in rows)
    for step in range(len(listing)):
        (pack,) = listing.at(step).packs
        assert 1 <= len(pack.items) <= 3 and sum(tokens[item.row] for item in pack.items) <= 90
        assert listing.at(step) == listing.at(step)
    assert len(set(listing.samples)) == len(rows)


def test_the_clips_are_spread_over_all_of_them():
    rows = Listing(clips(many(1000)), count=10, budget=1000, max_clips=64, seed=0).rows
    assert rows[0] == 0 and rows[-1] == 999 and np.diff(rows).max() <= 112


def test_what_cannot_be_packed_is_left_out_and_counted():
    shapes = [[1, 2, 2], [0, 0, 0], [9, 8, 8], [2, 2, 2]]
    listing = Listing(clips(shapes), count=None, budget=100, max_clips=8, seed=0)
    assert listing.rows.tolist() == [0, 3] and listing.grids == (Grid(1, 1, 1), Grid(2, 1, 1))
    assert listing.skipped == {"could not be encoded": 1, "longer than plan.budget": 1}
    assert listing.replacement(Item(row=0, epoch=0), 0) is None
    with pytest.raises(ValueError, match="none of 1 held-out clips can be used: {'longer than plan.budget': 1}"):
        Listing(clips(shapes[2:3]), count=None, budget=100, max_clips=8, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        Listing(clips(shapes), count=0, budget=100, max_clips=8, seed=0)


def test_it_is_read_by_the_doors_of_plans():
    assert isinstance(Listing(clips(many(4)), count=2, budget=1000, max_clips=8, seed=0), PackPlan)
    assert isinstance(training_plan(clips(many(40))), PackPlan)
