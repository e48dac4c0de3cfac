"""A plan holds every clip once an epoch, follows from the step alone, and gives every rank the same to do."""

import pickle
from collections import Counter

import numpy as np
import pytest

from sora.data.plan import order as orders
from sora.data.plan.filling import Bucketed, Packed, Padded
from sora.data.plan.plan import TokenPlan
from tests.data.plan.making import MIXES, RNG, clips, lengths, plan

FILLINGS = (Packed(), Bucketed(), Padded())
named = pytest.mark.parametrize("filling", FILLINGS, ids=lambda filling: type(filling).__name__)


@named
@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize(("packs", "window"), [(1, 16), (2, 1), (8, 3)])
def test_every_clip_comes_once_in_every_epoch(name, packs, filling, window):
    tokens = MIXES[name]
    made, seen, step = plan(lengths(tokens), packs=packs, filling=filling, window=window), Counter(), 0
    while made.epoch_of(step) < 3:
        planned = made.at(step)
        assert len(planned.packs) == packs
        for pack in planned.packs:
            assert sum(tokens[item.row] for item in pack.items) <= made.budget
            assert 1 <= len(pack.items) <= made.max_clips
            seen.update((item.epoch, item.row) for item in pack.items)
        step += 1
    for epoch in range(2):
        assert [seen[epoch, row] for row in range(len(tokens))] == [1] * len(tokens)
    assert max(seen.values()) == 1


@named
@pytest.mark.parametrize("drawn", [True, False])
def test_a_step_does_not_depend_on_the_steps_before(filling, drawn, monkeypatch):
    monkeypatch.setattr(orders, "DRAWN", 1 << 20 if drawn else 0)
    of = lengths(MIXES["long tails"], datasets=3)
    settings = {"filling": filling, "window": 2, "packs": 2}
    walked = plan(of, **settings)
    steps = [walked.at(step) for step in range(60)]
    for step in (59, 3, 30, 0):
        assert plan(of, **settings).at(step) == steps[step]
    assert [walked.at(step) for step in (2, 40, 0)] == [steps[step] for step in (2, 40, 0)]


def test_a_plan_that_was_sent_to_another_process_is_the_same():
    made = plan(lengths(MIXES["long tails"], datasets=2), weights=(1, 2), window=2)
    made.at(30)
    assert pickle.loads(pickle.dumps(made)).at(40) == made.at(40)


def test_order_follows_from_seed_epoch_and_dataset():
    tokens = MIXES["all alike"]

    def listed(epoch, fingerprint="f", **more):
        made = plan(lengths(tokens, fingerprint=fingerprint), packs=1, **more)
        items = [item for step in range(60) for item in made.at(step).items]
        return [item.row for item in items if item.epoch == epoch]

    assert listed(0) == listed(0)
    different = [listed(0), listed(1), listed(0, seed=1), listed(0, fingerprint="g")]
    assert all(sorted(rows) == list(range(37)) for rows in different)
    assert len({tuple(rows) for rows in different}) == 4


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@named
def test_ranks_share_a_step_without_rest_or_overlap(ranks, filling):
    made = plan(lengths(MIXES["few shapes"]), packs=8, filling=filling)
    for step in range(12):
        planned = made.at(step)
        shares = [planned.share(ranks=ranks, rank=rank) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        assert Counter(pack for share in shares for pack in share) == Counter(planned.packs)


def test_ranks_that_do_not_divide_the_packs_are_refused():
    with pytest.raises(ValueError, match=r"8 packs does not divide over 3 ranks; set plan\.packs"):
        plan(lengths(MIXES["few shapes"]), packs=8).at(0).share(ranks=3, rank=0)


@pytest.mark.parametrize(("packs", "accumulate"), [(8, 1), (8, 2), (8, 8)])
def test_packs_of_equal_cost_make_a_step_and_accumulated_ones_differ(packs, accumulate):
    tokens = np.minimum(1024, np.exp(RNG.normal(5, 1.0, size=4000))).astype(int) + 1
    made = plan(lengths(tokens), packs=packs, accumulate=accumulate, window=32, max_clips=512)
    ranks = packs // accumulate
    useful = paid = 0.0
    spread = []
    for step in range(60):
        costs = np.concatenate([part.paid for part in made.columns(step)])
        shares = [costs[rank::ranks].sum() for rank in range(ranks)]
        useful, paid = useful + sum(shares), paid + ranks * max(shares)
        spread.append(costs.max() / costs.min())
    assert useful / paid > 0.98
    assert (np.median(spread) > 1.2) == (accumulate > 1)


def test_steps_of_a_window_come_in_no_order_of_cost():
    tokens = np.minimum(1024, np.exp(RNG.normal(5, 1.0, size=4000))).astype(int) + 1
    made = plan(lengths(tokens), packs=4, window=64, max_clips=512)
    costs = [sum(part.paid.sum() for part in made.columns(step)) for step in range(60)]
    assert abs(np.corrcoef(costs, np.arange(60))[0, 1]) < 0.4


def test_packs_are_full_and_their_clips_stand_by_length():
    tokens = MIXES["few shapes"]
    made = plan(lengths(tokens), window=64)
    held = [sum(tokens[item.row] for item in pack.items) for step in range(7) for pack in made.at(step).packs]
    assert np.median(held) > 0.99 * made.budget
    for pack in made.at(3).packs:
        sizes = [(tokens[item.row], item.row) for item in pack.items]
        assert sizes == sorted(sizes)


def test_clips_over_the_budget_are_named_or_counted():
    of = lengths([10, 2000, 20, 3000], key="abcd".__getitem__)
    with pytest.raises(ValueError, match=r"2 of 4 clips.*b \(2000\), d \(3000\).*plan\.budget to 3000"):
        plan(of)
    made = plan(of, drop_long=True)
    assert made.skipped == {"longer than the token budget of 1025": 2}
    assert {item.row for step in range(5) for item in made.at(step).items} == {0, 2}
    cut = plan(of, frames=700)
    assert not cut.skipped
    assert {item.row: item.crop and item.crop.frames for item in cut.at(0).items} == {0: None, 1: 700, 2: None, 3: 700}
    with pytest.raises(ValueError, match=r"an epoch would be empty: of 1 clip none can be used \(1 longer than the token budget"):
        plan(lengths([2000]), drop_long=True)
    with pytest.raises(ValueError, match=r"an epoch would be empty.* with plan\.area=3"):
        plan(clips([(1, 4, 4)]), area=3)
    with pytest.raises(ValueError, match="an epoch would be empty"):
        plan(clips(np.zeros((0, 3), dtype=int)))


def test_larger_clips_than_the_area_are_left_out_and_counted():
    made = plan(clips([(1, 4, 4), (1, 2, 2), (3, 4, 4), (2, 2, 2)]), area=4)
    assert made.skipped == {"larger than plan.area allows": 2}
    assert {item.row for step in range(4) for item in made.at(step).items} == {1, 3}


@named
def test_left_out_rows_leave_the_others_in_every_epoch(filling):
    """Usable rows are counted in blocks: many, few and none of a block, at every end."""
    tokens = np.where(RNG.random(500) < 0.3, 2000, RNG.integers(1, 500, 500))
    tokens[64:160], tokens[300:333] = 2000, 5
    made = plan(lengths(tokens, datasets=2), drop_long=True, filling=filling, packs=3, window=4)
    seen = Counter(item.row for step in range(90) for item in made.at(step).items if item.epoch == 0)
    assert seen == Counter(np.flatnonzero(tokens < 2000).tolist())


def test_a_stand_in_has_as_many_tokens_or_fewer_and_is_never_the_clip_itself():
    made = plan(lengths([7, 9, 7, 9, 7, 3]))
    items = {item.row: item for item in made.at(0).packs[0].items + made.at(0).packs[1].items}
    stand_ins = [made.replacement(items[2], attempt) for attempt in range(4)]
    assert [stand_in and stand_in.row for stand_in in stand_ins] == [4, 0, 5, None]
    assert {stand_in.epoch for stand_in in stand_ins if stand_in} == {items[2].epoch}
    assert made.replacement(items[5], 0) is None


def test_a_stand_in_in_a_batch_of_one_shape_is_of_that_shape():
    shapes = [(3, 4, 2), (4, 3, 2), (3, 4, 2), (2, 3, 4), (1, 1, 1)]
    for filling, expected in ((Bucketed(), [2, None]), (Packed(), [1, 2, 3, 4, None])):
        made = plan(clips(shapes), filling=filling)
        first = next(item for step in range(3) for item in made.at(step).items if item.row == 0)
        stand_ins = [made.replacement(first, attempt) for attempt in range(len(expected))]
        assert [stand_in and stand_in.row for stand_in in stand_ins] == expected


def test_values_that_do_not_fit_are_refused_by_key():
    of = lengths([5, 5])
    for key in ("budget", "max_clips", "packs", "window", "accumulate"):
        with pytest.raises(ValueError, match=rf"plan\.{key} is 0"):
            plan(of, **{key: 0})
    with pytest.raises(ValueError, match=r"plan\.packs=4 does not divide by plan\.accumulate=3"):
        plan(of, packs=4, accumulate=3)


@named
def test_a_plan_that_remembers_finds_a_late_step_without_the_earlier_ones_and_it_is_the_same(tmp_path, filling, monkeypatch):
    def made(seed=0):
        return plan(lengths(MIXES["long tails"]), packs=2, window=1, max_clips=4, filling=filling, seed=seed)

    fresh, late = made(), 190
    whole = [fresh.at(step) for step in range(late + 3)]
    walking = made()
    walking.remember(tmp_path / "plan.cache")
    for step in range(late + 70):  # ahead of where the run is cut, as loading is
        walking.at(step)
    planned, plain = [], TokenPlan._plan
    monkeypatch.setattr(TokenPlan, "_plan", lambda self, window, waiting: planned.append(window) or plain(self, window, waiting))
    for path, most in ((tmp_path / "plan.cache", 64 if filling.waits else 4), (tmp_path / "none", None)):
        planned.clear()
        found = made()
        found.remember(path)
        assert [found.at(step) for step in (late, late + 2, late + 1)] == [whole[late], whole[late + 2], whole[late + 1]]
        assert len(planned) <= most if most else len(planned) > late // 4
        assert [found.at(step) for step in (3, 0, 40)] == [whole[3], whole[0], whole[40]]


@pytest.mark.parametrize("harm", ["cut", "flipped", "another seed", "a folder", "another user's"])
def test_a_file_that_is_no_use_changes_nothing(tmp_path, harm, monkeypatch):
    path, of = tmp_path / "plan.cache", lengths(MIXES["long tails"])
    walking = plan(of, window=1, max_clips=4, seed=1 if harm == "another seed" else 0)
    walking.remember(path)
    expected = [plan(of, window=1, max_clips=4).at(step) for step in (70, 5)]
    walking.at(70)
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        content[-40] ^= 1
        path.write_bytes(content)
    elif harm == "a folder":
        path.unlink()
        path.mkdir()
    elif harm == "another user's":  # who may have written anything, such as an archive that unpacks to a disk of zeros
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    found = plan(of, window=1, max_clips=4)
    with monkeypatch.context() as patched:
        patched.setattr("numpy.load", lambda *words, **more: pytest.fail("it was opened"))
        found.remember(path)
    assert [found.at(step) for step in (70, 5)] == expected
    if harm != "a folder":  # and the file is of use again
        again = plan(of, window=1, max_clips=4)
        again.remember(path)
        assert len(again._before) > 16
