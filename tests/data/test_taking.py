"""Clips are taken as the policy says, of each video once, by draws that hang on nothing but the video and the seed."""

from dataclasses import dataclass

import numpy as np
import pytest

from sora.evaluation.videos.clips import ClipPolicy, Clips, only, refuse_mixed, take
from sora.evaluation.videos.sets import Shape

LONG = (9, 30, 17, 12, 40, 10, 11)


@dataclass
class Numbered:
    """Videos whose frames are their numbers."""

    lengths: tuple[int, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int, float], ...] = ()
    place, decoder = "numbered", "none"

    def about(self):
        return {"fingerprint": "x"}

    def __len__(self):
        return len(self.lengths)

    def name(self, number):
        return self.names[number]

    def identity(self, number):
        return f"bytes of {self.names[number]}"

    def frames(self, number):
        return self.lengths[number]

    def shape(self, number):
        return Shape(*(self.sizes[number] if self.sizes else (8, 8, 24.0)))

    def prompt(self, number):
        return None

    def codec(self, number):
        return None

    def read(self, number, first, frames):
        assert first >= 0 and first + frames <= self.lengths[number]
        return np.arange(first, first + frames, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)


VIDEOS = Numbered(LONG, tuple("gbdface"))


def policy(**changes):
    return ClipPolicy(**{"frames": 3, "stride": 4, "windows": 1, "start": "first", "short": "refuse", "choose": "first", **changes})


def shown(clips):
    """The frames of each clip, by the video's name."""
    return {clips.name(number): clips.read(number)[:, 0, 0, 0].tolist() for number in range(len(clips))}


def taken(videos=VIDEOS, n=None, seed=0, **changes):
    return take(videos, policy(**changes), n=n, seed=seed, named="real")


def test_frames_are_those_of_start_and_stride():
    assert shown(taken())["g"] == [0, 4, 8] and shown(taken(start="middle"))["b"] == [10, 14, 18]
    whole = taken(frames=None)
    assert [len(each) for each in shown(whole).values()] == [3, 8, 5, 3, 10, 3, 3]  # as many as a stride of 4 finds
    assert taken(frames=None, stride=1).shape(1).fps == 24 and taken().shape(1).fps == 6


def test_random_clips_lie_within_their_videos_and_reach_both_ends():
    starts = {name: set() for name in VIDEOS.names}
    for seed in range(200):
        for name, frames in shown(taken(start="random", seed=seed)).items():
            assert [later - frames[0] for later in frames] == [0, 4, 8]
            starts[name].add(frames[0])
    assert starts["g"] == {0} and starts["d"] == set(range(9))  # 17 frames leave room for 9 beginnings


def test_draws_hang_on_the_video_and_the_seed_alone():
    order = [3, 0, 6, 5, 1, 4, 2]
    moved = Numbered(tuple(LONG[number] for number in order), tuple(VIDEOS.names[number] for number in order))
    for seed in range(5):
        words = {"start": "random", "choose": "random", "n": 4, "seed": seed}
        assert shown(taken(**words)) == shown(taken(moved, **words))
    few = Numbered(LONG[:5], VIDEOS.names[:5])
    assert shown(taken(few, start="random")).items() <= shown(taken(start="random")).items()
    chosen = {tuple(shown(taken(choose="random", n=3, seed=seed))) for seed in range(20)}
    assert len(chosen) > 5 and set(shown(taken(n=3))) == {"g", "b", "d"}


@pytest.mark.parametrize("n", [1, 2, 5, 16, 33, 50, 99])
def test_a_spread_choice_leaves_no_gap_falls_into_no_step_and_grows_by_adding(n):
    videos = Numbered((3,) * 100, tuple(f"{number:03d}" for number in range(100)))

    def chosen(count, **words):
        return [int(name) for name in shown(taken(videos, frames=1, choose="spread", n=count, **words))]

    found = chosen(n)
    assert len(found) == n and found == chosen(n, seed=5) and set(found) <= set(chosen(n + 1))
    gaps = np.diff([-1, *found, 100])
    assert gaps.max() <= 2.7 * 100 / n + 1  # turns of the golden ratio: no gap above its square times the mean one
    for period in (2, 4):  # as of images among videos, or of classes in turn
        counts = np.bincount(np.array(found) % period, minlength=period)
        assert n < 16 or (counts.min() >= 0.5 * n / period and counts.max() <= 1.6 * n / period)


def test_short_videos_are_refused_or_left_out_and_none_is_taken_twice():
    with pytest.raises(ValueError, match=r"real: g of numbered has 9 frames, a clip of 4 at stride 4 needs 13; set real.frames lower"):
        taken(frames=4)
    left = taken(frames=4, short="leave_out")
    assert set(shown(left)) == {"b", "d", "a"}
    with pytest.raises(ValueError, match=r"4 clips are wanted and numbered has 3 videos \(4 more are too short"):
        taken(frames=4, short="leave_out", n=4)
    with pytest.raises(ValueError, match="8 clips are wanted and numbered has 7 videos; none is taken twice"):
        taken(n=8, choose="random")
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"real: {n} clips are wanted; give at least 1"):
            taken(n=n)


def test_the_key_of_a_clip_tells_its_pixels():
    keys = [clips.key(1) for clips in (taken(), taken(stride=3), taken(frames=2), taken(start="middle"), taken())]
    assert len(set(keys)) == 4 and keys[0] == keys[-1] and keys[0] != taken().key(2)


def test_one_kind_is_one_length_size_and_rate():
    def of(*sizes, frames=3):
        return taken(Numbered((12,) * len(sizes), tuple("abc")[: len(sizes)], sizes), frames=frames)

    one, large, fast = of((8, 8, 24.0)), of((8, 10, 24.0)), of((8, 8, 30.0))
    refuse_mixed({"real": one, "generated": of((8, 8, 24.0), (8, 8, 24.0))}, sized=False, rates=True)
    refuse_mixed({"real": one, "generated": large}, sized=True, rates=True)
    refuse_mixed({"real": one, "generated": fast}, sized=False, rates=False)
    for sides in ({"real": one, "generated": large}, {"real": one, "generated": fast}, {"real": of((8, 8, 24.0), (8, 8, 30.0))}):
        with pytest.raises(ValueError, match="several lengths, sizes or rates: a of numbered"):
            refuse_mixed(sides, sized=False, rates=True)
    with pytest.raises(ValueError, match="2 frames of 8x8"):
        refuse_mixed({"real": one, "generated": of((8, 8, 24.0), frames=2)}, sized=True, rates=False)


def test_only_keeps_the_kinds_that_are_wanted():
    sizes = ((8, 8, 24.0), (8, 10, 24.0), (8, 8, 24.0))
    clips = taken(Numbered((12, 12, 12), tuple("abc"), sizes))
    assert [clips.name(0), *shown(only(clips, [(3, 8, 8)]))] == ["a", "a", "c"]
    assert len(only(clips, [(3,)])) == 3 and len(only(clips, [(2,), (3, 9, 9)])) == 0
    assert isinstance(only(clips, [(3,)]), Clips) and clips.about()["shapes"] == {"3x8x10 at 6 fps": 1, "3x8x8 at 6 fps": 2}


@pytest.mark.parametrize(("key", "value"), [("start", "last"), ("short", "loop"), ("choose", "best"), ("stride", 0), ("frames", 0)])
def test_a_policy_that_is_none_is_told(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        policy(**{key: value})
