"""Laws of the judge: it knows real clips, it isn't fooled by others' captions, and mild damage does not change its mind."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from sora.world.judge.adherence import ASPECTS, Facts, PromptAdherence, agreement, judge, observe
from sora.world.language import PALETTE
from sora.world.world import World

SIZES = ((32, 32), (24, 40), (40, 24), (32, 24), (36, 64))
COUNT = 320


@pytest.fixture(scope="module")
def judged():
    """Real clips of every kind, with what is seen in them."""
    world = World(seed=21, sizes=SIZES, seconds=(0.7, 1.0, 2.0), rates=(6.0, 8.0, 12.0))
    clips = [world.clip(index) for index in range(COUNT)]
    return [(clip.facts, clip.frames.shape, observe(clip.frames, clip.fps, PALETTE)) for clip in clips]


def shares(pairs):
    hits, asked = Counter(), Counter()
    for observation, facts in pairs:
        verdict = agreement(observation, facts)
        told = {name: verdict[name] for name in ASPECTS if verdict[name] is not None}
        told["all"] = all(told.get(name, True) for name in ("colour", "shape", "direction"))
        hits.update(name for name in told if told[name])
        asked.update(list(told))
    return {name: hits[name] / asked[name] for name in asked}


@pytest.mark.slow
def test_real_clips_agree_with_their_captions(judged):
    found = shares((seen, facts) for facts, _, seen in judged)
    assert set(found) == {*ASPECTS, "all"}
    assert all(share >= 0.99 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["motion", "size", "count"])
def test_no_kind_of_clip_is_judged_worse(judged, kind):
    of = {"motion": lambda facts, shape: facts.motion, "size": lambda facts, shape: shape[1:3], "count": lambda facts, shape: facts.count}[
        kind
    ]
    kinds = {of(facts, shape) for facts, shape, _ in judged}
    assert len(kinds) == {"motion": 7, "size": len(SIZES), "count": 2}[kind]
    for one in kinds:
        group = [(seen, facts) for facts, shape, seen in judged if of(facts, shape) == one]
        assert len(group) >= 15 and shares(group)["all"] >= 1 - 1 / len(group) - 1e-9, one


@pytest.mark.slow
def test_shuffled_captions_agree_by_chance_only(judged):
    """Against every other clip's caption: no more often than the captions agree among themselves, plus a little."""
    pairs = [(seen, facts, own) for own, _, seen in judged for facts, _, _ in judged[::3] if facts is not own]
    found = shares((seen, facts) for seen, facts, _ in pairs)
    single = [(facts, own) for _, facts, own in pairs if facts.count == own.count == 1]
    alike = {
        "colour": np.mean([facts.colours == own.colours for facts, own in single]),
        "shape": np.mean([facts.shapes == own.shapes for facts, own in single]),
    }
    assert alike["colour"] < 0.16 and alike["shape"] < 0.25
    assert found["colour"] < alike["colour"] + 0.03 and found["shape"] < alike["shape"] + 0.03
    assert found["direction"] < 0.3 and found["all"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["blur and noise", "noise", "tint", "fade"])
def test_mild_damage_leaves_the_verdict(damage):
    world = World(seed=22, sizes=((32, 32),), seconds=(1.0, 2.0), rates=(8.0,))
    pairs = []
    for index in range(60):
        clip = world.clip(index)
        noise = np.random.default_rng(index).normal(0.0, 6.0, clip.frames.shape)
        pixels = clip.frames.astype(np.float64)
        if damage == "blur and noise":
            pixels = ndimage.gaussian_filter(pixels, (0, 0.7, 0.7, 0)) + noise
        elif damage == "noise":
            pixels = pixels + noise
        elif damage == "tint":
            pixels = pixels * [0.96, 1.0, 0.93] + [4.0, 0.0, 8.0]
        else:
            pixels = 128 + 0.8 * (pixels - 128)
        pairs.append((observe(np.clip(pixels + 0.5, 0, 255).astype(np.uint8), clip.fps, PALETTE), clip.facts))
    assert all(share >= 0.95 for share in shares(pairs).values()), shares(pairs)


@pytest.fixture(scope="module")
def runner():
    world = World(seed=23, sizes=((32, 32),), seconds=(2.0,), rates=(8.0,), motions=("linear",), objects=(1,), image_share=0.0)
    return next(clip for clip in map(world.clip, range(100)) if clip.facts.direction == "left" and clip.facts.shapes != ("circle",))


def test_a_clip_played_backwards_goes_the_other_way(runner):
    verdict = agreement(observe(runner.frames[::-1], 8.0, PALETTE), runner.facts)
    assert verdict["direction"] is False and verdict["colour"] is True and verdict["shape"] is True


def test_a_frozen_clip_goes_nowhere_and_a_turned_one_elsewhere(runner):
    frozen = np.repeat(runner.frames[:1], 17, 0)
    assert agreement(observe(frozen, 8.0, PALETTE), runner.facts)["direction"] is False
    turned = np.rot90(runner.frames, -1, (1, 2))  # left becomes up
    seen = observe(turned, 8.0, PALETTE)
    assert agreement(seen, runner.facts)["direction"] is False
    assert agreement(seen, Facts(directions=("up",)))["direction"] is True


def test_swapped_channels_are_another_colour(runner):
    assert agreement(observe(runner.frames[..., [1, 2, 0]], 8.0, PALETTE), runner.facts)["colour"] is False


def test_a_double_of_the_object_is_counted():
    world = World(
        seed=24, sizes=((32, 32),), seconds=(1.0,), rates=(8.0,), motions=("still",), objects=(1,), backgrounds=("plain",), image_share=0.0
    )
    for index in range(5):
        clip = world.clip(index)
        double = np.concatenate([clip.frames, clip.frames], axis=2)
        assert agreement(observe(clip.frames, 8.0, PALETTE), clip.facts)["count"] is True
        assert agreement(observe(double, 8.0, PALETTE), clip.facts)["count"] is False


@pytest.mark.slow
def test_an_object_that_moves_is_no_pan_and_a_scene_that_moves_is():
    settings = {"seed": 25, "sizes": ((40, 40),), "seconds": (2.0,), "rates": (8.0,), "image_share": 0.0, "backgrounds": ("rippled",)}
    for motion, wanted in (("linear", False), ("pan", True)):
        clips = map(World(motions=(motion,), **settings).clip, range(15))
        assert all((observe(clip.frames, clip.fps, PALETTE).camera is not None) is wanted for clip in clips)


@pytest.mark.parametrize("length", [1, 2, 17])
def test_nothing_seen_agrees_with_nothing(length):
    wanted = Facts(count=1, colours=("red",), shapes=("circle",), motion="linear", directions=("left",), event="hides")
    noise = np.random.default_rng(0).integers(0, 256, (length, 32, 32, 3)).astype(np.uint8)
    for frames in (np.zeros((length, 32, 32, 3), np.uint8), np.full((length, 24, 40, 3), 255, np.uint8)):
        still = {"steady": None} if length == 1 else {}
        assert agreement(observe(frames, 8.0, PALETTE), wanted) == {**dict.fromkeys(ASPECTS, False), **still}
    assert agreement(observe(noise, 8.0, PALETTE), wanted)["event"] is False


def test_what_the_prompt_does_not_say_is_not_judged(runner):
    seen = observe(runner.frames, 8.0, PALETTE)
    assert agreement(seen, Facts()) == dict.fromkeys(ASPECTS)
    assert agreement(seen, Facts(shapes=runner.facts.shapes)) == {**dict.fromkeys(ASPECTS), "shape": True, "steady": True}


def test_one_wrong_object_of_two_is_wrong():
    world = World(seed=26, sizes=((32, 32),), seconds=(1.0,), rates=(8.0,), motions=("linear",), objects=(2,), image_share=0.0)
    clip = world.clip(0)
    seen, facts = observe(clip.frames, 8.0, PALETTE), clip.facts
    other = next(colour for colour in PALETTE if colour not in facts.colours)
    assert agreement(seen, facts)["colour"] is True
    assert agreement(seen, Facts(colours=(facts.colours[0], other)))["colour"] is False
    swapped = Facts(colours=facts.colours[::-1], shapes=facts.shapes[::-1], directions=facts.directions[::-1])
    assert agreement(seen, swapped)["colour"] is True, "the prompt's order means nothing"


def test_a_rate_of_nothing_is_refused(runner):
    with pytest.raises(ValueError, match="fps"):
        observe(runner.frames, 0.0, PALETTE)


def test_large_clips_are_judged_as_small_ones():
    world = World(seed=27, sizes=((144, 256), (256, 144)), seconds=(1.0,), rates=(8.0,))
    assert all(share == 1.0 for share in shares((observe(c.frames, c.fps, PALETTE), c.facts) for c in map(world.clip, range(10))).values())


def test_the_metric_counts_shares_and_leaves_out_what_nobody_asked():
    metric, other = PromptAdherence(), PromptAdherence()
    yes = {"colour": True, "shape": True, "direction": None, "count": True, "event": None, "steady": True}
    metric.update([yes])
    other.update([{**yes, "shape": False}, {**yes, "steady": False}, {**yes, "count": False}, dict.fromkeys(ASPECTS)])
    merged = {name: getattr(metric, name) + getattr(other, name) for name in ("hits", "asked")}
    metric.hits, metric.asked = merged["hits"], merged["asked"]
    assert metric.compute() == {"colour": 1.0, "shape": 0.75, "count": 0.75, "steady": 0.75, "all": 0.25, "all_v1": 0.75, "n": 4.0}


def test_the_metric_judges_clips_of_several_sizes(runner):
    world = World(seed=28, sizes=SIZES, seconds=(1.0,), rates=(8.0,))
    clips = [world.clip(index) for index in range(6)]
    metric = PromptAdherence()
    metric.update(judge([clip.frames for clip in clips], [clip.fps for clip in clips], [clip.facts for clip in clips], palette=PALETTE))
    assert metric.compute()["all"] == 1.0 and metric.asked.dtype == torch.int64
    with pytest.raises(ValueError, match="clips: 2, frame rates: 1, prompts: 1"):
        judge([runner.frames] * 2, [8.0], [runner.facts], palette=PALETTE)
