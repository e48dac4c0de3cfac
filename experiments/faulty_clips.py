"""Clips of the built-in world, true ones and ones with a fault along time, as the judge of prompt adherence is measured on them.

Each fault is one of weak video models: the clip's frames are drawn again with the object changed, or put into another order. `FAULTS` names
them; a fault gives None for a clip that cannot have it (frames of a clip at rest may be shuffled, and nothing has happened).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sora.world.judge.adherence import Facts, agreement, observe, together
from sora.world.judge.silhouettes import OUTLINES, coverage
from sora.world.language import PALETTE, SHAPES
from sora.world.render import render
from sora.world.scenes import Actor
from sora.world.world import Scene, World

Frames = UInt8[ndarray, "T H W 3"]
Faulty = tuple[Frames, Facts] | None
Judged = tuple[int, str | None, dict[str, bool | None]]  # index, motion, verdict
ON_THE_WAY = ("linear", "bounce", "occlude", "pan")
LEAST = 6  # frames of a clip in whose thirds anything can be seen
SMALLER = (0.35, 0.6)  # the radius of a second object, in the first's; no smaller than SEEN pixels
SEEN = 2.2
GREYS = (10.0, 245.0)


def drawn(scene: Scene, actors: tuple[Actor, ...]) -> Frames:
    """The scene's frames with these actors in place of its own."""
    return render(scene.stage, scene.background, actors, camera=scene.play.camera, bar=scene.play.bar, shade=scene.bar_shade)


def _spliced(scene: Scene, actors: tuple[Actor, ...], where: ndarray) -> Faulty:
    """The scene as it is, but with other actors in some frames."""
    frames = drawn(scene, scene.play.actors)
    frames[where] = drawn(scene, actors)[where]
    return frames, scene.facts


def _count(scene: Scene) -> int:
    return len(scene.stage.times)


def _in_view(scene: Scene, where: ndarray) -> bool:
    """Whether the first object is in view in most of the frames: no bar in front of it."""
    bar, actor = scene.play.bar, scene.play.actors[0]
    if bar is None or not bar.front:
        return True
    along = actor.centres[where, 0 if bar.upright else 1]
    return bool(((along < bar.low) | (along > bar.high)).mean() > 0.5)


def another_shape(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The first object is of another shape in the last third."""
    first, *others = scene.play.actors
    shapes = [shape for shape in SHAPES if shape != first.shape]
    changed = replace(first, shape=shapes[int(rng.integers(len(shapes)))])
    return _spliced(scene, (changed, *others), np.arange(_count(scene)) >= round(2 * _count(scene) / 3))


def another_colour(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The first object is of another colour in the last quarter."""
    first, *others = scene.play.actors
    colours = [colour for colour in PALETTE if colour not in scene.facts.colours]
    changed = replace(first, colour=colours[int(rng.integers(len(colours)))])
    return _spliced(scene, (changed, *others), np.arange(_count(scene)) >= round(0.75 * _count(scene)))


def every_second_missing(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The first object is missing in every second frame."""
    return _spliced(scene, scene.play.actors[1:], np.arange(_count(scene)) % 2 == 1)


def middle_missing(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The first object is missing in the middle third, where no bar hides it anyway."""
    count = _count(scene)
    where = (np.arange(count) >= round(count / 3)) & (np.arange(count) < round(2 * count / 3))
    return _spliced(scene, scene.play.actors[1:], where) if _in_view(scene, where) else None


def _reordered(scene: Scene, order: ndarray) -> Faulty:
    if scene.facts.motion not in ON_THE_WAY:
        return None
    return drawn(scene, scene.play.actors)[order], scene.facts


def two_held(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The first frame is held for the first half and the last one for the second."""
    count = _count(scene)
    return _reordered(scene, np.where(np.arange(count) < count / 2, 0, count - 1))


def forth_back_forth(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The clip is played forth, back and forth, three times as fast."""
    count = _count(scene)
    wave = np.interp(np.linspace(0, 3, count), [0, 1, 2, 3], [0, count - 1, 0, count - 1])
    return _reordered(scene, np.round(wave).astype(np.int64))


def shuffled(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The frames are in an order drawn at random."""
    return _reordered(scene, rng.permutation(_count(scene)))


def turning_at_rest(scene: Scene, rng: np.random.Generator) -> Faulty:
    """The prompt says that the objects are at rest, and they turn."""
    if scene.facts.motion != "rotate":
        return None
    still = replace(scene.facts, motion="still", event="rests", directions=(None,) * len(scene.facts.directions))
    return drawn(scene, scene.play.actors), still


def _free_place(scene: Scene, radius: float, rng: np.random.Generator) -> tuple[float, float] | None:
    """A place at which a resting disc touches neither an object, in any frame, nor a bar, nor the edge."""
    stage, bar = scene.stage, scene.play.bar
    for _ in range(200):
        x, y = rng.uniform(radius + 1, stage.width - radius - 1), rng.uniform(radius + 1, stage.height - radius - 1)
        along = x if bar is not None and bar.upright else y
        if bar is not None and bar.low - radius - 2 < along < bar.high + radius + 2:
            continue
        gaps = [
            np.linalg.norm(actor.centres - [x, y], axis=-1).min() - OUTLINES[actor.shape].reach * actor.radius
            for actor in scene.play.actors
        ]
        if min(gaps) > radius + 3:
            return x, y
    return None


def _with_disc(scene: Scene, radius: float, where: ndarray, colour: ndarray, rng: np.random.Generator) -> Faulty:
    place = _free_place(scene, radius, rng)
    if place is None:
        return None
    y, x = np.mgrid[: scene.stage.height, : scene.stage.width] + 0.5
    cover = coverage("circle", x - place[0], y - place[1], radius=radius)[..., None]
    frames = drawn(scene, scene.play.actors)
    mixed = frames[where] + cover * (colour - frames[where])
    frames[where] = (mixed + 0.5).astype(np.uint8)
    return frames, scene.facts


def _any_colour(rng: np.random.Generator) -> ndarray:
    return np.array(PALETTE[list(PALETTE)[int(rng.integers(len(PALETTE)))]], dtype=np.float64)


def smaller_second(scene: Scene, rng: np.random.Generator) -> Faulty:
    """A second object, about half as wide, of any colour rests beside."""
    radius = max(rng.uniform(*SMALLER) * scene.play.actors[0].radius, SEEN)
    return _with_disc(scene, radius, np.ones(_count(scene), dtype=bool), _any_colour(rng), rng)


def grey_second(scene: Scene, rng: np.random.Generator) -> Faulty:
    """A second object without colour, black or white, rests beside."""
    radius = max(0.7 * scene.play.actors[0].radius, SEEN)
    place_shade = float(np.median(drawn(scene, ())[0]))
    shade = max(GREYS, key=lambda grey: abs(grey - place_shade))
    return _with_disc(scene, radius, np.ones(_count(scene), dtype=bool), np.full(3, shade), rng)


def flashing_second(scene: Scene, rng: np.random.Generator) -> Faulty:
    """A second object of any colour, as wide, is there for an eighth of the frames."""
    count = _count(scene)
    begin, length = int(rng.integers(0, count)), max(1, round(count / 8))
    where = (np.arange(count) >= min(begin, count - length)) & (np.arange(count) < min(begin, count - length) + length)
    return _with_disc(scene, 0.8 * scene.play.actors[0].radius, where, _any_colour(rng), rng)


FAULTS: dict[str, Callable[[Scene, np.random.Generator], Faulty]] = {
    "another shape in the last third": another_shape,
    "another colour in the last quarter": another_colour,
    "missing in every second frame": every_second_missing,
    "missing in the middle third": middle_missing,
    "two held frames": two_held,
    "forth, back and forth": forth_back_forth,
    "shuffled frames": shuffled,
    "turning at rest": turning_at_rest,
    "a smaller second object": smaller_second,
    "a grey second object": grey_second,
    "a flashing second object": flashing_second,
}


def verdicts(world: World, indexes: range) -> dict[str, list[Judged]]:
    """(index, motion, verdict) of the world's clips under "true", and of those with each of FAULTS that a clip can have."""
    found: dict[str, list[Judged]] = {"true": [], **{name: [] for name in FAULTS}}
    for index in indexes:
        scene = world.scene(index)
        given = {"true": (drawn(scene, scene.play.actors), scene.facts)}
        if _count(scene) >= LEAST:
            made = {name: fault(scene, np.random.default_rng(index)) for name, fault in FAULTS.items()}
            given |= {name: clip for name, clip in made.items() if clip is not None}
        for name, (frames, facts) in given.items():
            found[name].append((index, scene.facts.motion, agreement(observe(frames, scene.fps, PALETTE), facts)))
    return found


def figures(clips: int = 240) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """`steady_true` and `steady_caught_min`, and a row for each fault; of clips of the quickstart's sizes and of the default ones."""
    found: dict[str, list[Judged]] = {}
    for sizes in (((32, 32), (24, 40), (40, 24), (24, 32)), World().sizes):
        for name, rows in verdicts(World(seed=41, sizes=sizes), range(clips // 2)).items():
            found.setdefault(name, []).extend(rows)
    passed = {name: float(np.mean([bool(together(verdict)["all"]) for _, _, verdict in rows])) for name, rows in found.items()}
    before = {name: float(np.mean([bool(together(verdict)["all_v1"]) for _, _, verdict in rows])) for name, rows in found.items()}
    told = {"passes": passed, "passed_before": before}.items()
    table = [
        {"what": "steady", "clips": name, "n": len(rows), **{word: share[name] for word, share in told}} for name, rows in found.items()
    ]
    caught = min(1 - share for name, share in passed.items() if name != "true")
    return {"steady_true": passed["true"], "steady_caught_min": caught}, table
