"""The pieces of detectors of shot changes: flashes, slow changes, wipes, peaks, and what is joined."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from omegaconf import OmegaConf

from sora.config.build import build
from sora.curation.cuts.evidence import AHEAD, AROUND, chunks
from sora.curation.cuts.frames import FLASH, Small, shrunk, steadied, within
from sora.curation.cuts.joining import CLOSE, joined, runs
from sora.curation.cuts.peaks import Peaks
from sora.curation.spans import Transition
from tests.curation.films import joined_shots, shot

SIZE = (27, 48)


@cache
def part(name):
    return build(OmegaConf.load("conf/cuts/both.yaml")[name])


def small(frames):
    return np.stack(list(frames)).astype(np.float32)


def crossing(frames, *, width=10, length=60):
    """The frames with a bright bar that crosses them from left to right, within `length` frames from the twentieth on."""
    for place, frame in enumerate(frames):
        left = int((place - 20) * (SIZE[1] + width) / length) - width
        frame[:, max(0, left) : max(0, left + width)] = 235
    return frames


@pytest.mark.parametrize("length", [1, 2, FLASH])
def test_a_flash_is_mended_and_what_stays_is_not(length):
    frames = shot(0, 30, SIZE)
    flashed = frames.copy()
    flashed[12 : 12 + length] = 255 - flashed[12 : 12 + length] // 4
    found = list(steadied(flashed))
    assert [each.mended for each in found] == [12 <= place < 12 + length for place in range(30)]
    wanted = [frames[11 if 12 <= place < 12 + length else place] for place in range(30)]
    assert all(np.array_equal(each.pixels, frame) for each, frame in zip(found, wanted, strict=True))
    longer = frames.copy()
    longer[12 : 13 + FLASH] = 255 - longer[12 : 13 + FLASH] // 4
    dark = frames.copy()
    dark[12:14] = 0  # may be the middle of a short fade
    for stays in (longer, dark, np.concatenate([frames, shot(1, 30, SIZE)])):
        assert not any(each.mended for each in steadied(stays)) and len(list(steadied(stays))) == len(stays)


def test_blank_frames_are_those_of_one_colour():
    frames = [np.full((*SIZE, 3), (3, 80, 200), np.uint8), shot(0, 1, SIZE)[0], np.zeros((*SIZE, 3), np.uint8)]
    assert [each.blank for each in steadied(frames)] == [True, False, True]


def test_sizes_keep_the_aspect_and_never_grow():
    assert within(1080, 1920, 144) == (144, 256) and within(100, 90, 144) == (100, 90) and within(1, 10**5, 144) == (1, 10**5)
    assert shrunk(shot(0, 1, (91, 33))[0]).shape == (*SIZE, 3)
    blocks = np.kron(np.arange(27 * 48, dtype=np.uint8).reshape(27, 48, 1), np.ones((4, 4, 1), np.uint8)).repeat(3, axis=2)
    assert np.array_equal(shrunk(blocks)[..., 0].ravel(), np.arange(27 * 48, dtype=np.uint8))


@pytest.mark.parametrize("kind", ["dissolve", "fade"])
@pytest.mark.parametrize("length", [10, 24, 48])
def test_a_slow_change_of_the_whole_picture_is_marked(kind, length):
    made = joined_shots([kind], length=length, size=SIZE)
    marked = part("slow").marked(small(made.frames()), [])
    assert marked[made.known[0].first + 2 : made.known[0].end - 2].mean() > 0.9
    assert not marked[: made.known[0].first - 24].any() and not marked[made.known[0].end + 24 :].any()


def test_what_only_moves_and_known_cuts_are_not_marked():
    slow = part("slow")
    assert not slow.marked(small(crossing(shot(0, 100, SIZE))), []).any()
    noise = np.random.default_rng(0).integers(0, 256, (60, *SIZE, 3)).astype(np.float32)
    assert not slow.marked(noise, []).any()
    cut = small(joined_shots(["hard"], size=SIZE).frames())
    assert not slow.marked(cut, [40]).any()


@pytest.mark.parametrize("direction", range(4))
@pytest.mark.parametrize(("length", "soft"), [(9, 0), (16, 12), (28, 8)])
def test_a_wipe_is_found_where_its_edge_is_in_the_middle(direction, length, soft):
    made = joined_shots(["wipe"], length=length, size=(108, 192), wipe=(direction, soft))
    (found,) = part("wipes").wipes(small(map(shrunk, made.frames())))
    known = made.known[0]
    assert abs(found.middle - (known.first + known.end - 1) / 2) <= 2 and abs(found.span - length) <= max(4, length / 2)


@pytest.mark.parametrize("kind", ["hard", "dissolve", "fade"])
def test_other_transitions_and_things_that_cross_are_no_wipes(kind):
    frames = list(joined_shots([kind], size=SIZE).frames())
    assert not [wipe for wipe in part("wipes").wipes(small(frames)) if kind != "hard" or abs(wipe.middle - 40) > 3 + wipe.span // 2]
    for width in (6, 24):
        assert not part("wipes").wipes(small(crossing(shot(5, 90, SIZE), width=width, length=30)))


@pytest.mark.parametrize("frames", [6, 9, 14])
def test_a_fast_pan_is_no_wipe(frames):
    """The picture, twice as wide as what is seen of it, crosses."""
    wide = shot(7, 1, (27, 96))[0]
    lefts = np.interp(np.arange(80), [30, 30 + frames], [0, 48]).astype(int)
    assert not part("wipes").wipes(small(wide[:, left : left + 48] for left in lefts))


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_short_videos_have_no_wipes_and_no_slow_changes(count):
    frames = shot(0, count, SIZE).astype(np.float32)
    assert part("wipes").wipes(frames) == [] and not part("slow").marked(frames, []).any()


def probabilities(*frames, count=40):
    found = np.zeros((count, 2), np.float32)
    for first, end, middle, of in frames:
        found[first:end, 1] = of
        found[(first + end - 1) // 2, 0] = middle
    return found


@pytest.mark.parametrize(
    ("frames", "transitions"),
    [
        ([(9, 10, 0.9, 0.8)], [Transition(10, 10)]),  # the last frame of the shot before
        ([(9, 11, 0.9, 0.8)], [Transition(10, 10)]),
        ([(39, 40, 0.9, 0.8)], []),  # after the last frame no shot begins
        ([(5, 20, 0.3, 0.4)], [Transition(5, 20)]),  # long enough to need less
        ([(5, 11, 0.3, 0.4)], []),
        ([(5, 11, 0.6, 0.4)], [Transition(5, 11)]),
        ([(5, 20, 0.1, 0.9)], []),  # never in its middle
        ([(0, 1, 0.9, 0.9), (20, 30, 0.9, 0.9)], [Transition(1, 1), Transition(20, 30)]),
    ],
)
def test_peaks_become_transitions(frames, transitions):
    assert Peaks(sudden=0.5, slow=0.15, slow_frames=8, part=0.2).transitions(probabilities(*frames)) == transitions


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_the_marked_frames(seed):
    marked = np.random.default_rng(seed).random(seed) < 0.6
    found = list(runs(marked))
    assert [frame for run in found for frame in range(*run)] == np.flatnonzero(marked).tolist()
    assert all(one[1] < two[0] for one, two in pairwise(found))


@pytest.mark.parametrize("seed", range(40))
def test_joined_transitions_are_in_order_apart_and_hold_all_of_them(seed):
    draw = np.random.default_rng(seed)
    blank = (draw.random(100) < 0.15).tolist()
    places = np.sort(draw.integers(1, 100, (8, 2)), axis=1)
    given = [Transition(int(one), int(one if draw.random() < 0.5 else two)) for one, two in places]
    found = joined(given, blank)
    assert all(one.end < two.first for one, two in pairwise(found))
    assert all(any(one.first <= each.first and each.end <= one.end for one in found) for each in given)
    assert joined(found, blank) == found  # nothing is left to join
    for one in found:
        assert not any(blank[max(0, one.first - CLOSE) : one.first]) and not any(blank[one.end : one.end + CLOSE])


def test_halves_of_a_fade_become_one_and_cuts_close_to_another_stay_two():
    blank = [10 <= place < 14 for place in range(40)]
    assert joined([Transition(4, 9), Transition(15, 20)], blank) == [Transition(4, 20)]
    cuts = [Transition(30, 30), Transition(30 + CLOSE - 2, 30 + CLOSE - 2)]
    assert joined(cuts, blank) == cuts and joined([*cuts, Transition(24, 28)], blank) == [Transition(24, 32)]


@pytest.mark.parametrize("count", [0, 1, AHEAD - 1, AHEAD, AHEAD + AROUND, 2 * AHEAD + 1, 3 * AHEAD + AROUND + 5])
def test_chunks_judge_each_frame_once_and_see_around_it(count):
    frames = (Small(np.full((1, 1, 3), place % 256, np.uint8), False, False) for place in range(count))
    judged = []
    for chunk in chunks(frames):
        judged += range(chunk.first, chunk.end)
        assert chunk.pixels[:, 0, 0, 0].tolist() == [place % 256 for place in range(chunk.start, chunk.start + len(chunk.pixels))]
        assert chunk.start <= max(0, chunk.first - AROUND) and chunk.start + len(chunk.pixels) >= min(count, chunk.end + AROUND)
        assert len(chunk.pixels) <= AHEAD + 3 * AROUND
    assert judged == list(range(count))
