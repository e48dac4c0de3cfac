from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from sora.data.plan import CropPlan, PackedPlan, first_fit, turns

RNG = np.random.default_rng(0)
MIXES = {
    "few shapes": RNG.choice([16, 64, 80, 96, 120], size=211),
    "long tails": np.minimum(1024, np.exp(RNG.normal(4, 1.2, size=307))).astype(int) + 1,
    "all alike": np.full(37, 100),
    "each fills a pack": np.full(5, 1024),
    "one clip": np.array([3]),
}


def packed(tokens, **more):
    settings = {"budget": 1024 + 1, "max_clips": 32, "packs": 2, "window": 16, "drop_long": False, "seed": 0, "fingerprint": "f"}
    return PackedPlan(tokens, **(settings | more))


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("packs", [1, 2, 8])
def test_every_clip_comes_once_in_every_epoch(name, packs):
    tokens = MIXES[name]
    plan, seen, step = packed(tokens, packs=packs), Counter(), 0
    while plan.epoch_of(step) < 4:
        for pack in plan.at(step).packs:
            assert pack.epoch == pack.items[0].epoch
            assert {item.epoch for item in pack.items} == {pack.epoch}
            assert sum(tokens[item.row] for item in pack.items) <= plan.budget
            assert len(pack.items) <= plan.max_clips
            seen.update((item.epoch, item.row) for item in pack.items)
        step += 1
    for epoch in range(3):
        assert [seen[epoch, row] for row in range(len(tokens))] == [1] * len(tokens)


def test_a_step_does_not_depend_on_the_steps_before():
    tokens = MIXES["long tails"]
    walked = packed(tokens)
    steps = [walked.at(step) for step in range(120)]
    for step in (119, 3, 60, 0):
        assert packed(tokens).at(step) == steps[step]


def test_order_follows_from_seed_epoch_and_dataset():
    tokens = MIXES["all alike"]

    def order(epoch, **more):
        plan = packed(tokens, packs=1, **more)
        items = [item for step in range(60) for item in plan.at(step).packs[0].items]
        return [item.row for item in items if item.epoch == epoch]

    assert order(0) == order(0)
    different = [order(0), order(1), order(0, seed=1), order(0, fingerprint="g")]
    assert all(sorted(rows) == list(range(37)) for rows in different)
    assert len({tuple(rows) for rows in different}) == 4


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_share_a_step_without_rest_or_overlap(ranks):
    plan = packed(MIXES["few shapes"], packs=8)
    for step in range(5):
        shares = [plan.at(step).share(ranks=ranks, rank=rank) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        assert Counter(pack for share in shares for pack in share) == Counter(plan.at(step).packs)


def test_ranks_that_do_not_divide_the_packs_are_refused():
    with pytest.raises(ValueError, match=r"8 packs does not divide over 3 ranks; set plan\.packs"):
        packed(MIXES["few shapes"], packs=8).at(0).share(ranks=3, rank=0)


def test_packs_are_full_and_their_clips_stand_by_length():
    plan = packed(MIXES["few shapes"], window=64)
    assert plan.fill() > 0.95
    for step in range(10):
        for pack in plan.at(step).packs:
            lengths = [int(plan.tokens[item.row]) for item in pack.items]
            assert lengths == sorted(lengths)


def test_clips_over_the_budget_are_named_or_counted():
    tokens = [10, 2000, 20, 3000]
    with pytest.raises(ValueError, match=r"2 of 4 clips.*b \(2000\), d \(3000\).*plan\.budget to 3000"):
        packed(tokens, keys=["a", "b", "c", "d"])
    plan = packed(tokens, drop_long=True)
    assert plan.skipped == {"longer than the token budget of 1025": 2}
    assert {item.row for step in range(5) for pack in plan.at(step).packs for item in pack.items} == {0, 2}
    for hopeless in ([], [2000]):
        with pytest.raises(ValueError, match="an epoch would be empty"):
            packed(hopeless, drop_long=True)


def test_a_stand_in_has_as_many_tokens_and_is_never_the_clip_itself():
    plan = packed([7, 9, 7, 9, 7])
    item = next(item for pack in plan.at(0).packs for item in pack.items if item.row == 2)
    stand_ins = [plan.replacement(item, attempt) for attempt in range(3)]
    assert [stand_in and stand_in.row for stand_in in stand_ins] == [4, 0, None]
    assert {stand_in.epoch for stand_in in stand_ins if stand_in} == {item.epoch}


def test_first_fit_keeps_every_place_within_the_budgets():
    sizes = RNG.integers(1, 100, size=500).tolist()
    packs = first_fit(sizes, budget=128, max_clips=3, window=4)
    assert sorted(place for pack in packs for place in pack) == list(range(500))
    assert all(sum(sizes[place] for place in pack) <= 128 and len(pack) <= 3 for pack in packs)


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
            for row, _, window, crop in pack.items:
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
