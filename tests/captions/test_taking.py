"""Which frames are taken: the ends, what differs most, one in every few seconds, the same ones each time, and only the clip's own."""

from itertools import pairwise

import numpy as np
import pytest

from sora.captions.frames import FrameTaking
from sora.captions.taking import TakeFrames, differing, evenly, small
from tests.captions.material import TAKING, dataset


def taking(**changed):
    return FrameTaking(**TAKING | changed)


def levels(*values):
    return np.repeat(np.array(values, np.float32)[:, None], 8, axis=1)


def test_the_first_and_the_last_are_taken_and_then_what_differs_most():
    pictures = levels(0, 1, 0, 200, 0, 0, 90, 0, 1)
    times = np.arange(9) / 4.0
    assert differing(pictures, times, taking=taking(count=2)) == [0, 8]
    assert differing(pictures, times, taking=taking(count=3)) == [0, 3, 8]
    assert differing(pictures, times, taking=taking(count=4)) == [0, 3, 6, 8]
    assert differing(pictures, times, taking=taking(count=9, most=9)) == [0, 3, 6, 8]  # the others show what is taken already


def test_no_gap_is_longer_than_asked_for_and_no_more_than_the_most_are_taken():
    rng = np.random.default_rng(0)
    for _ in range(40):
        times = np.sort(rng.uniform(0, 30, rng.integers(2, 200)))
        pictures = rng.uniform(0, 255, (len(times), 4)).astype(np.float32)
        every = float(rng.uniform(0.5, 8))
        said = taking(count=4, most=int(rng.integers(4, 40)), every_seconds=every)
        chosen = differing(pictures, times, taking=said)
        assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] == len(times) - 1 and len(chosen) <= said.most
        if len(chosen) < said.most:
            for one, two in pairwise(chosen):
                assert times[two] - times[one] <= every + 1e-6 or two == one + 1
        assert chosen == differing(pictures, times, taking=said)


def test_a_still_clip_needs_no_more_than_its_ends():
    assert differing(levels(*[7] * 20), np.arange(20) / 8.0, taking=taking(count=8)) == [0, 19]
    assert differing(levels(7), np.zeros(1), taking=taking()) == [0]


def test_even_frames_are_at_even_times():
    times = np.arange(33) / 8.0
    assert evenly(times, count=5) == [0, 8, 16, 24, 32] and evenly(times[:3], count=8) == [0, 1, 2] and evenly(times, count=1) == [0]


def test_stretches_cover_a_clip_and_are_of_one_length():
    for seconds in (0.0, 1.0, 30.0, 30.1, 61.0, 600.0):
        parts = taking(window_seconds=30.0).windows(seconds)
        assert parts[0][0] == 0 and parts[-1][1] == seconds and all(one[1] == two[0] for one, two in pairwise(parts))
        assert max(end - start for start, end in parts) <= 30.0 + 1e-4 and len(parts) == max(1, -(-seconds // 30.0))
    assert taking().windows(1e5) == [(0.0, 1e5)]


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (1280, 720), (32, 32), (20, 4000), (17, 31), (2, 2)])
def test_frames_keep_their_aspect_are_even_and_never_enlarged(height, width):
    tall, broad = taking(side=512).size(height, width)
    assert tall % 2 == broad % 2 == 0 and max(tall, broad) <= 512 and tall <= height + 1 and broad <= width + 1
    if min(tall, broad) > 16:
        assert tall / broad == pytest.approx(height / width, rel=0.1)


def test_taken_frames_are_the_clips_own_at_their_times(tmp_path):
    from sora.video.files import read

    index = dataset(tmp_path / "set", 3, frames=12, fps=4.0)
    take = TakeFrames(index, taking(count=5, side=32), even=False)
    for row in range(3):
        whole = read(index.read_member(row)).frames
        (found,) = take((row, None))
        assert (found.start, found.end) == (0.0, 3.0)
        for time, frame in zip(found.times, found.frames, strict=True):
            assert np.array_equal(frame, whole[round(time * 4)])
        (given,) = take((row, index.read_member(row)))  # of a dataset that lies elsewhere
        assert given.times == found.times and np.array_equal(given.frames, found.frames)


def test_a_clip_that_ends_early_is_refused(tmp_path):
    index = dataset(tmp_path / "set", 1, frames=12, fps=4.0)
    longer = dataset(tmp_path / "longer", 1, frames=60, fps=4.0)
    with pytest.raises(ValueError, match=r"it ends at 2\.75 s|no frame"):
        TakeFrames(longer, taking(window_seconds=3.0), even=False)((0, index.read_member(0)))


def test_pictures_are_compared_small():
    assert small([np.full((64, 64, 3), 9, np.uint8)]).shape == (1, 18 * 32 * 3)


@pytest.mark.parametrize(
    ("key", "value"), [("count", 0), ("most", 3), ("every_seconds", 0), ("side", 8), ("rate", 0), ("window_seconds", 0)]
)
def test_settings_out_of_range_are_named(key, value):
    with pytest.raises(ValueError, match="frames\\."):
        taking(**{key: value})
