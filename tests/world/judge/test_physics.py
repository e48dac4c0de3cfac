"""Arcs of one gravity are recognised to the digit, other ways are not; what hides returns as itself, on its line, or is told apart."""

from dataclasses import replace

import numpy as np
import pytest

from sora.world.judge.adherence import observe
from sora.world.judge.physics import Physics, gravity_arc, returned
from sora.world.language import PALETTE
from sora.world.render import render
from sora.world.world import World, _hidden

FPS, SHORT = 8.0, 64.0


def thrown(frames=16, gravity=3.0, keeps=0.8, fps=FPS):
    """Centres of a ball that falls half its short side, bounces with `keeps` of its speed, and drifts right; x, y in pixels, y down."""
    time, floor, height = np.arange(frames) / fps, 0.8, 0.5
    first = (2 * height / gravity) ** 0.5
    y, touch, speed = floor - height + gravity * time**2 / 2, first, keeps * gravity * first
    while touch < time[-1]:
        since = time - touch
        y = np.where(since > 0, floor - speed * since + gravity * since**2 / 2, y)
        touch, speed = touch + 2 * speed / gravity, speed * keeps
    return np.stack([10 + 2 * np.arange(frames), y * SHORT], axis=1)


@pytest.mark.parametrize("gravity", [1.5, 3.0])
@pytest.mark.parametrize("frames", [12, 31])
def test_an_arc_s_gravity_is_found(gravity, frames):
    found = gravity_arc(thrown(frames, gravity), FPS, SHORT)
    assert found is not None and found.gravity == pytest.approx(gravity, rel=1e-6) and found.deviation < 1e-9
    twice = gravity_arc(2 * thrown(frames, gravity), FPS, 2 * SHORT)
    assert twice is not None and twice.gravity == pytest.approx(gravity, rel=1e-6)


def test_straight_lines_that_bounce_and_jumps_are_no_arc():
    true = thrown(24)
    zigzag = true.copy()
    corners = np.flatnonzero(np.diff(np.sign(np.diff(true[:, 1]))) != 0) + 1
    corners = np.array([0, *corners, len(true) - 1])
    zigzag[:, 1] = np.interp(np.arange(len(true)), corners, true[corners, 1])
    jump = true.copy()
    jump[4:, 0] += 12
    for wrong in (zigzag, jump):
        found = gravity_arc(wrong, FPS, SHORT)
        assert found is not None and found.deviation > 0.01
    assert gravity_arc(true[:4], FPS, SHORT) is None  # any way fits so few
    unseen = true.copy()
    unseen[5:7] = np.nan
    found = gravity_arc(unseen, FPS, SHORT)
    assert found is not None and found.deviation < 1e-9
    with pytest.raises(ValueError, match="fps=0"):
        gravity_arc(true, 0, SHORT)


def hiding(aside=0.0, grown=1.0, back=False):
    """Centres and shown parts of a thing that goes right, is behind a bar for six frames, and comes back."""
    centres = np.stack([8 + 3.0 * np.arange(16), np.full(16, 30.0)], axis=1)
    shown = np.array([1, 1, 1, 0.9, 0.6, 0, 0, 0, 0, 0, 0, 0.6, 0.9, 1, 1, 1.0])
    centres[11:, 1] += aside * SHORT
    shown[11:] *= grown
    centres[11:, 0] -= 60 if back else 0
    centres[5:11] = np.nan
    return centres, shown


def test_what_returns_on_its_line_and_in_its_size_is_the_same():
    found = returned(*hiding(), SHORT)
    assert found is not None and found.same and found.aside < 1e-9 and found.size == pytest.approx(1)
    moved, grown = returned(*hiding(aside=0.2), SHORT), returned(*hiding(grown=1.5), SHORT)
    assert moved is not None and not moved.same and moved.aside == pytest.approx(0.2)
    assert grown is not None and not grown.same and grown.size == pytest.approx(1.5)
    assert returned(*hiding(back=True), SHORT) is None  # it came out where it went in, and behind that
    centres, shown = hiding()
    shown[11:] = 0
    assert returned(centres, shown, SHORT) is None
    assert returned(np.nan_to_num(centres, nan=30.0), np.ones(16), SHORT) is None  # it never hid


@pytest.mark.slow
def test_the_world_keeps_its_own_physics_and_a_clip_that_breaks_them_is_seen():
    metric, broken = Physics(), Physics()
    for motion, event in (("bounce", "bounces"), ("occlude", "hides")):
        world = World(motions=(motion,), seed=0, sizes=((48, 48),), seconds=(2.0,), rates=(8.0,), stride_time=1, image_share=0.0)
        for index in range(5):
            clip = world.clip(index)
            frames = clip.frames.copy()
            half = len(frames) // 2
            # After the middle everything stands elsewhere: aside of the way it went.
            across = clip.facts.direction in ("left", "right")
            frames[half:] = np.roll(frames[half:], 14, axis=1 if across and motion == "occlude" else 2)
            for each, pixels in ((metric, clip.frames), (broken, frames)):
                each.update([observe(pixels, clip.fps, PALETTE)], [event], [clip.fps], [48])
    found, wrong = metric.compute(), broken.compute()
    assert found["permanence"] == 1 and found["permanence_clips"] == 5 and found["gravity_deviation"] < 0.015
    assert wrong["permanence"] <= 0.5 and wrong["gravity_deviation"] > 2 * found["gravity_deviation"]


OTHER = {"circle": "star", "star": "circle", "square": "circle", "triangle": "square", "cross": "square"}


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["shape", "colour", None])
def test_what_comes_out_as_another_thing_is_no_permanence(changed):
    """Each scene is drawn twice, its thing another in the second; the film is cut from one to the other while it is hidden."""
    metric = Physics()
    world = World(motions=("occlude",), seed=3, sizes=((48, 48),), seconds=(2.0,), rates=(8.0,), objects=(1,), image_share=0.0)
    told = 0
    for index in range(40):
        scene = world.scene(index)
        (actor,), play = scene.play.actors, scene.play
        hidden = np.flatnonzero(_hidden(actor, play.bar))
        if not len(hidden) or told == 8:
            continue
        told += 1
        other = {"shape": {"shape": OTHER[actor.shape]}, "colour": {"colour": "red" if actor.colour != "red" else "blue"}, None: {}}[
            changed
        ]
        drawn = [
            render(scene.stage, scene.background, actors, camera=play.camera, bar=play.bar, shade=scene.bar_shade)
            for actors in ((actor,), (replace(actor, **other),))
        ]
        middle = int(hidden[len(hidden) // 2])
        film = np.concatenate([drawn[0][:middle], drawn[1][middle:]])
        metric.update([observe(film, scene.fps, PALETTE)], ["hides"], [scene.fps], [48])
    found = metric.compute()
    assert told == found["permanence_clips"] == 8
    assert found["permanence"] == 1 if changed is None else found["permanence"] <= 0.25, found


def test_only_what_was_asked_for_is_counted():
    world = World(motions=("linear",), seed=0, sizes=((32, 32),), seconds=(1.0,), rates=(8.0,), stride_time=1, image_share=0.0)
    seen = observe(world.clip(0).frames, 8.0, PALETTE)
    metric = Physics()
    metric.update([seen, seen], [None, "turns"], [8.0, 8.0], [32, 32])
    assert metric.compute() == {"gravity_clips": 0, "permanence_clips": 0}
    metric.update([seen], ["hides"], [8.0], [32])
    assert metric.compute()["permanence"] == 0
