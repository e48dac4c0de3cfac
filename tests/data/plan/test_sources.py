"""Datasets, images and videos come by their weights; a curriculum changes them when so many clips were seen."""

from collections import Counter

import numpy as np
import pytest

from sora.data.plan.filling import Bucketed
from sora.data.plan.mixture import CurriculumStage, staged
from tests.data.plan.making import clips, plan

# three datasets: 40 videos; 30 images and 10 videos; 20 images
SHAPES = [(4, 2, 2)] * 40 + [(1, 4, 4)] * 30 + [(3, 2, 2)] * 10 + [(1, 2, 2)] * 20
OWNER = np.repeat([0, 1, 2], [40, 40, 20])


def of():
    made = clips(SHAPES)
    made.shapes = tuple(np.split(made.shapes[0], [40, 80]))
    made.starts = (0, 40, 80, 100)
    return made


def drawn(made, count):
    """The first clips in the order they were drawn."""
    items = [item for step in range(count) for item in made.at(step).items]
    return items[:count]


def test_weights_give_each_dataset_its_share_and_epochs_of_its_own():
    made = plan(of(), weights=(0.5, 0.25, 0.25), budget=16, max_clips=1, packs=1, window=64)
    items = drawn(made, 1024)
    owners = Counter(OWNER[item.row] for item in items)
    assert owners == {0: 512, 1: 256, 2: 256}
    for dataset, size in enumerate((40, 40, 20)):
        seen = Counter((item.epoch, item.row) for item in items if OWNER[item.row] == dataset)
        assert max(seen.values()) == 1
        assert len({row for epoch, row in seen if epoch == 0}) == size


def test_images_have_their_share_whatever_there_are():
    made = plan(of(), images=0.25, budget=16, max_clips=1, packs=1, window=64)
    items = drawn(made, 1024)
    assert sum(SHAPES[item.row][0] == 1 for item in items) == 256
    mixed = plan(of(), images=0.5, weights=(0.5, 0.25, 0.25), budget=16, max_clips=1, packs=1, window=64)
    items = drawn(mixed, 1024)
    assert sum(SHAPES[item.row][0] == 1 for item in items) == 512
    assert plan(of(), images=1.0).skipped == {"data.weights or plan.images leave them no share": 50}
    with pytest.raises(ValueError, match=r"plan\.images=0\.5.*there are no single frames"):
        plan(clips([(4, 2, 2)] * 4), images=0.5)


def test_shares_hold_in_any_long_stretch():
    made = plan(of(), weights=(3, 1, 0), budget=16, max_clips=1, packs=1, window=8)
    items = drawn(made, 600)
    for start in range(0, 560, 40):
        assert abs(sum(OWNER[item.row] == 0 for item in items[start : start + 40]) - 30) <= 8  # a window of 8 steps is shuffled
    assert not any(OWNER[item.row] == 2 for item in items)


def test_weights_that_do_not_fit_are_refused():
    for weights in ((1, 1), (0, 0, 0), (1, -1, 1)):
        with pytest.raises(ValueError, match="give one weight for each"):
            plan(of(), weights=weights)


CURRICULUM = ({"until": 100, "images": 1.0}, {"until": 250, "frames": 2, "weights": (1, 0, 0)})


def test_a_curriculum_changes_what_is_drawn_after_so_many_clips():
    made = plan(of(), curriculum=CURRICULUM, budget=16, max_clips=2, packs=1, window=4)
    items = [item for step in range(250) for item in made.at(step).items]
    first, second, rest = items[:100], items[100:250], items[250:]
    assert all(SHAPES[item.row][0] == 1 for item in first)
    assert all(OWNER[item.row] == 0 and item.crop is not None and item.crop.frames == 2 for item in second)
    assert {OWNER[item.row] for item in rest} == {0, 1, 2} and all(item.crop is None for item in rest)
    assert Counter((item.epoch, item.row) for item in items).most_common(1)[0][1] == 1, "no draw is made twice, over all stages"
    for step in (249, 20, 60, 100):
        assert plan(of(), curriculum=CURRICULUM, budget=16, max_clips=2, packs=1, window=4).at(step) == made.at(step)


def test_a_curriculum_is_checked_before_training():
    base = CurriculumStage(frames=7)
    assert staged(base, ()) == (base,)
    assert [(stage.until, stage.frames) for stage in staged(base, ({"until": 5, "frames": 1}, {"until": 9}))] == [(5, 1), (9, 7), (None, 7)]
    assert len(staged(base, ({"until": 5}, {"frames": 1}))) == 2
    for wrong, why in (
        (({"untill": 5},), "has no key untill; its keys: until, frames"),
        (({"until": 5}, {"until": 5}), "need a later `until`"),
        (({"frames": 5}, {"until": 5}), "need a later `until`"),
        (({"until": 0},), "until=0 has to be 1 or more"),
        (({"images": 2.0},), "is a share"),
    ):
        with pytest.raises(ValueError, match=why):
            staged(base, wrong)


def test_a_stand_in_is_of_the_same_kind_and_dataset():
    made = plan(of(), weights=(1, 1, 1), images=0.5, budget=16, max_clips=1, packs=1)
    for item in drawn(made, 60):
        stand_in = made.replacement(item, 0)
        assert stand_in is not None and stand_in.row != item.row
        assert (OWNER[stand_in.row], SHAPES[stand_in.row]) == (OWNER[item.row], SHAPES[item.row])


def test_incomplete_buckets_wait_over_windows_of_a_mixture_and_nothing_comes_twice():
    settings = {"filling": Bucketed(), "weights": (3, 1, 2), "budget": 48, "packs": 2, "window": 2}
    made = plan(of(), **settings)
    steps = [made.at(step) for step in range(80)]
    seen = Counter((item.epoch, item.row) for step in steps for item in step.items)
    assert max(seen.values()) == 1
    assert all(seen[0, row] for row in range(100))
    for step in (79, 33, 5):
        assert plan(of(), **settings).at(step) == steps[step]
