from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from sora.data.plan.crops import CropPlan
from sora.data.plan.order import turns


def rows(shapes, name="r"):
    frames, heights, widths = np.array(shapes).T
    keys = [f"{name}{number}" for number in range(len(shapes))]
    found = SimpleNamespace(frames=frames, heights=heights, widths=widths, keys=keys, fingerprint=name)
    return type("Listed", (), {"__len__": lambda self: len(shapes), **vars(found)})()


SMALL = rows([(17, 32, 32)] * 5 + [(1, 64, 64)] * 3 + [(9, 32, 48)] * 4, "small")
LARGE = rows([(33, 96, 128)] * 7, "large")


def crops(**more):
    settings = {"shapes": [[17, 32, 32], [1, 32, 32], [9, 32, 48]], "batch": 4, "packs": 2, "weights": [3, 1], "seed": 0}
    return CropPlan([SMALL, LARGE], **(settings | more))


def test_crops_lie_inside_their_clips_and_have_the_steps_shape():
    plan = crops()
    frames, heights, widths = (
        np.concatenate([getattr(index, name) for index in (SMALL, LARGE)]) for name in ("frames", "heights", "widths")
    )
    for step in range(90):
        for pack in plan.at(step).packs:
            for row, _, window, crop, _ in pack.items:
                assert [crop.frames, crop.height, crop.width] == [[17, 32, 32], [1, 32, 32], [9, 32, 48]][window]
                assert window == step % 3
                assert min(crop.start, crop.top, crop.left) >= 0
                assert crop.start + crop.frames <= frames[row]
                assert crop.top + crop.height <= heights[row]
                assert crop.left + crop.width <= widths[row]


def test_crops_take_every_place_that_fits():
    plan = crops(shapes=[[31, 94, 126]], weights=[0, 1], batch=8)
    found = {item.crop[:1] + item.crop[2:4] for step in range(120) for pack in plan.at(step).packs for item in pack.items}
    assert found == {(start, top, left) for start in range(3) for top in range(3) for left in range(3)}


def test_every_large_enough_clip_comes_once_per_epoch_of_its_shape():
    plan, seen = crops(), Counter()
    for step in range(300):
        seen.update((item.window, item.epoch, item.row) for pack in plan.at(step).packs for item in pack.items)
    fitting = {0: [*range(5)], 1: [*range(12)], 2: [*range(5, 5), *range(8, 12)]}
    for window, small in fitting.items():
        for epoch in range(3):
            assert [seen[window, epoch, row] for row in small] == [1] * len(small)
        assert [seen[window, 0, row] for row in range(12, 19)] == [1] * 7
    assert not any(seen[0, 0, row] for row in range(5, 12))


def test_datasets_have_their_shares_at_every_step():
    plan = crops(batch=8, packs=1)
    for step in range(50):
        owners = Counter(plan.dataset(item.row) for item in plan.at(step).packs[0].items)
        assert owners == {0: 6, 1: 2}
    assert np.bincount(turns(np.array([0.5, 0.499, 0.001]), 1024)).tolist() == [512, 511, 1]


def test_small_clips_are_counted_and_a_shape_that_fits_none_is_refused():
    assert crops().lines(["small", "large"]) == [
        "crops of 17x32x32: 5 of 12 clips of small, 7 of 7 clips of large",
        "crops of 1x32x32: 12 of 12 clips of small, 7 of 7 clips of large",
        "crops of 9x32x48: 4 of 12 clips of small, 7 of 7 clips of large",
    ]
    plan = crops(shapes=[[17, 32, 32], [9, 32, 48]])  # 5 and 4 clips of small, of which some fit both
    used = {item.row for step in range(200) for pack in plan.at(step).packs for item in pack.items}
    (left,) = plan.skipped.items()
    assert left == ("dataset 0: smaller than every crop of plan.shapes", 19 - len(used))
    assert plan.lines(["small", "large"])[-1] == f"left out: {left[1]} clips ({left[0]})"
    with pytest.raises(ValueError, match=r"no clip is as large as the crop 64x32x32.*plan\.shapes"):
        crops(shapes=[[64, 32, 32]])


def test_a_crop_step_does_not_depend_on_the_steps_before():
    walked = crops()
    steps = [walked.at(step) for step in range(100)]
    assert [crops().at(step) for step in (99, 7, 50)] == [steps[99], steps[7], steps[50]]
    assert crops(seed=1).at(0) != steps[0]


def test_a_crop_stand_in_is_of_the_same_dataset_and_shape():
    plan = crops()
    item = plan.at(0).packs[0].items[0]
    stand_ins = [plan.replacement(item, attempt) for attempt in range(4)]
    assert {plan.dataset(stand_in.row) for stand_in in stand_ins} == {plan.dataset(item.row)}
    assert len({stand_in.row for stand_in in stand_ins} | {item.row}) == 5
    assert plan.replacement(item, 1000) is None
