"""The built-in world: clips with real dynamics, exact captions and ground truth, each a pure function of (settings, seed, index, split)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sora.patches.geometry import Geometry
from sora.system import draws
from sora.world import render as painting
from sora.world.judge.adherence import EVENTS, Facts
from sora.world.judge.silhouettes import OUTLINES
from sora.world.language import DIRECTIONS, PALETTE, SHAPES, SIZES, SPEEDS, SPINS, TURNS, dense_caption, place, short_caption, word
from sora.world.render import BACKGROUNDS, Background
from sora.world.scenes import ALONE, LEAST_FRAMES, MOTIONS, SMALLEST, Actor, ActorTraits, Bar, Play, SceneFrame

Split = Literal["train", "heldout"]
Combination = tuple[str, str, str | None]  # colour, shape, direction

WAYS: dict[str, tuple[str | None, ...]] = {
    "linear": DIRECTIONS,
    "bounce": ("left", "right"),
    "rotate": TURNS,
    "occlude": DIRECTIONS,
    "pan": DIRECTIONS,
    "still": (None,),
}
LEAST_SIDE = 24  # pixels
PAIR_RADIUS = 0.16  # objects that share a frame are no larger than this
ATTEMPTS = 8  # attempts at one plan of a scene, with smaller radii each time
PLANS = 12


@dataclass(frozen=True)
class WorldClip:
    """A clip of the world. frames: uint8 T H W 3. captions: "short" (vague), "dense" (exact). facts: of the latter. truth: JSON-able."""

    frames: UInt8[ndarray, "T H W 3"]
    fps: float
    captions: dict[str, str]
    facts: Facts
    truth: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Prompt:
    """A prompt for a model, and the facts that its clip must show. size: (height, width) in pixels."""

    text_short: str
    text_dense: str
    facts: Facts
    size: tuple[int, int]
    frames: int
    fps: float


class Scene(NamedTuple):
    """A clip without its pixels."""

    stage: SceneFrame
    fps: float
    play: Play
    background: Background
    bar_shade: str
    facts: Facts
    captions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class World:
    """The built-in world, restricted by these settings.

    seed: of everything. sizes: (height, width) in pixels. seconds, rates: durations and frames a second; frame counts are rounded to 1 + k
    * stride_time. shapes, colours, motions, backgrounds: subsets of SHAPES, PALETTE, MOTIONS, BACKGROUNDS. objects: how many a clip may
    hold (1, 2). radius: least and greatest object radius in short sides. image_share: share of clips of one frame. held_out: share of the
    (colour, shape, direction) combinations that only the split "heldout" shows; every pair of the three is still seen in training.
    """

    seed: int = 0
    sizes: Sequence[Sequence[int]] = ((64, 64), (36, 64), (64, 36), (48, 64))
    seconds: Sequence[float] = (1.0, 2.0, 3.0)
    rates: Sequence[float] = (8.0, 12.0)
    shapes: Sequence[str] = SHAPES
    colours: Sequence[str] = tuple(PALETTE)
    motions: Sequence[str] = tuple(MOTIONS)
    objects: Sequence[int] = (1, 2)
    backgrounds: Sequence[str] = BACKGROUNDS
    radius: Sequence[float] = (0.13, 0.25)
    stride_time: int = 4
    image_share: float = 0.1
    held_out: float = 0.15

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float):  # lists of YAML become tuples
                object.__setattr__(
                    self, field.name, tuple(tuple(item) if not isinstance(item, str | int | float) else item for item in value)
                )
        for name in ("seconds", "rates", "radius"):
            object.__setattr__(self, name, tuple(float(item) for item in getattr(self, name)))
        object.__setattr__(self, "image_share", float(self.image_share))
        object.__setattr__(self, "held_out", float(self.held_out))
        known: dict[str, tuple[Any, ...]] = {
            "shapes": SHAPES,
            "colours": tuple(PALETTE),
            "motions": tuple(MOTIONS),
            "backgrounds": BACKGROUNDS,
            "objects": (1, 2),
        }
        for name, choices in known.items():
            wrong = [item for item in getattr(self, name) if item not in choices]
            if wrong or not getattr(self, name):
                raise ValueError(f"{name}={list(getattr(self, name))}: the world has {', '.join(map(str, choices))}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        small = [size for size in self.sizes if len(size) != 2 or min(size) < LEAST_SIDE]
        if small or not self.sizes:
            raise ValueError(
                f"sizes={list(self.sizes)}: give (height, width) pairs of at least {LEAST_SIDE} pixels a side; shapes can't be told below"
            )
        if not self.seconds or not self.rates or min(self.seconds) <= 0 or min(self.rates) <= 0:
            raise ValueError(f"seconds={list(self.seconds)} and rates={list(self.rates)} must be lists of positive numbers")
        if not 0 <= self.image_share <= 1 or not 0 <= self.held_out < 1:
            raise ValueError(f"image_share={self.image_share} must lie in [0, 1] and held_out={self.held_out} in [0, 1)")
        if len(self.radius) != 2 or not 0.1 <= self.radius[0] <= self.radius[1] <= 0.28:
            raise ValueError(f"radius={self.radius} must be (least, greatest) within 0.1 and 0.28 short sides")
        if self.stride_time < 1:
            raise ValueError(f"stride_time={self.stride_time} must be at least 1")
        if "pan" in self.motions and "rippled" not in self.backgrounds:
            raise ValueError("motion 'pan' can't be seen without a pattern; add 'rippled' to backgrounds or remove 'pan' from motions")
        if self.image_share < 1 and set(self.shapes) == {"circle"} and set(self.motions) == {"rotate"}:
            raise ValueError("a circle can't be seen to turn; add shapes or motions")

    @cached_property
    def combinations(self) -> dict[str, tuple[Combination, ...]]:
        """The (colour, shape, direction) combinations of each split; no combination is in both."""
        ways = dict.fromkeys(way for motion in self.motions for way in WAYS[motion])
        if self.image_share > 0:
            ways[None] = None
        every = [combo for combo in product(self.colours, self.shapes, ways) if not (combo[1] == "circle" and combo[2] in TURNS)]
        order = draws.generator("world-heldout", seed=self.seed, epoch=0, sample=0).permutation(len(every))
        left: dict[tuple[Any, ...], int] = {}
        for combo in every:
            for pair in _pairs(combo):
                left[pair] = left.get(pair, 0) + 1
        wanted, held = round(self.held_out * len(every)), set()
        for i in order:
            if len(held) < wanted and all(left[pair] > 1 for pair in _pairs(every[i])):
                held.add(every[i])
                for pair in _pairs(every[i]):
                    left[pair] -= 1
        return {"train": tuple(c for c in every if c not in held), "heldout": tuple(c for c in every if c in held)}

    def frames_of(self, seconds: float, fps: float) -> int:
        """The frame count of a clip: 1 + k * stride_time, k >= 1, nearest to its duration."""
        return Geometry((self.stride_time, 1, 1)).decoded(1 + max(1, round((seconds * fps - 1) / self.stride_time)))

    def clip(self, index: int, *, split: Split = "train") -> WorldClip:
        """Clip number `index` of a split, any index from 0 on."""
        scene = self.scene(index, split=split)
        play = scene.play
        frames = painting.render(scene.stage, scene.background, play.actors, camera=play.camera, bar=play.bar, shade=scene.bar_shade)
        key = f"world-{self.seed}-{split}-{index:08d}"
        return WorldClip(frames=frames, fps=scene.fps, captions=scene.captions, facts=scene.facts, truth=_truth(scene), key=key)

    def prompts(self, n: int, *, split: Split = "heldout", seed: int = 0) -> list[Prompt]:
        """n prompts for clips in motion (or for images, if the world has nothing else), from the same distribution as the split's clips."""
        found: list[Prompt] = []
        for index in range(n):
            rng = draws.generator(f"world-prompts-{split}", seed=self.seed, epoch=seed, sample=index)
            scene = self._draw(rng, split, image=self.image_share >= 1)
            stage = scene.stage
            texts = scene.captions["short"], scene.captions["dense"]
            found.append(Prompt(*texts, scene.facts, (stage.height, stage.width), len(stage.times), scene.fps))
        return found

    def scene(self, index: int, *, split: Split = "train") -> Scene:
        """Clip number `index` without its pixels, which makes it cheap."""
        rng = draws.generator(f"world-{split}", seed=self.seed, epoch=0, sample=index)
        return self._draw(rng, split, image=bool(rng.uniform() < self.image_share))

    def _draw(self, rng: np.random.Generator, split: Split, *, image: bool) -> Scene:
        if not self.combinations[split]:
            raise ValueError(
                f"no combination is in the split {split!r}; raise held_out={self.held_out}, or give more colours, shapes or motions"
            )
        height, width = self.sizes[int(rng.integers(len(self.sizes)))]
        fps = float(self.rates[int(rng.integers(len(self.rates)))])
        frames = 1 if image else self.frames_of(float(self.seconds[int(rng.integers(len(self.seconds)))]), fps)
        stage = SceneFrame(height, width, np.arange(frames) / fps)
        for _ in range(PLANS):
            plan = self._plan(rng, split, stage, image=image)
            if plan is None:
                continue
            motion, parts = plan
            radii = rng.uniform(self.radius[0], self.radius[1], len(parts)) * stage.short
            if len(parts) > 1:
                radii = np.minimum(radii, PAIR_RADIUS * stage.short)
            for attempt in range(ATTEMPTS):
                smaller = [max(float(radius) * 0.93**attempt, 0.115 * stage.short, SMALLEST) for radius in radii]
                play = MOTIONS[motion or "still"](rng, stage, parts, smaller)
                if play is not None:
                    return self._finish(rng, stage, fps, motion, play)
        raise ValueError(
            f"no scene fits: motions={list(self.motions)} in {width}x{height} pixels and {frames} frames, objects={list(self.objects)}; "
            f"split {split!r} has {len(self.combinations[split])} combinations. Add motions, longer seconds or larger sizes"
        )

    def _plan(
        self, rng: np.random.Generator, split: Split, stage: SceneFrame, *, image: bool
    ) -> tuple[str | None, tuple[ActorTraits, ...]] | None:
        """Choose a motion and its actors; None if the choice has no combination in this split."""
        able = [motion for motion in self.motions if len(stage.times) >= LEAST_FRAMES[motion]]
        number = int(self.objects[int(rng.integers(len(self.objects)))])
        motion = None
        if not image:
            if not able:
                return None
            motion = able[int(rng.integers(len(able)))]
        if motion in ALONE and 1 in self.objects:
            number = 1
        ways = WAYS[motion or "still"]
        choices = [c for c in self.combinations[split] if c[2] in ways and not (motion == "rotate" and c[1] == "circle")]
        parts: list[ActorTraits] = []
        while choices and len(parts) < number:
            chosen = ActorTraits(*choices[int(rng.integers(len(choices)))])
            parts.append(chosen)
            choices = [c for c in choices if c[0] != chosen.colour and (motion != "pan" or c[2] == chosen.direction)]
        if len(parts) < number and not (parts and 1 in self.objects):
            return None
        return motion, tuple(parts[:number] if len(parts) >= number else parts[:1])

    def _finish(self, rng: np.random.Generator, stage: SceneFrame, fps: float, motion: str | None, play: Play) -> Scene:
        """Complete the scene of a play: background, bar, facts and captions."""
        background = painting.draw_background(rng, ("rippled",) if motion == "pan" else tuple(self.backgrounds))
        shade, wording = painting.bar_shade(rng, background), int(rng.integers(1 << 16))
        actors = play.actors
        facts = Facts(
            count=len(actors),
            colours=tuple(actor.colour for actor in actors),
            shapes=tuple(actor.shape for actor in actors),
            motion=motion,
            directions=tuple(actor.direction for actor in actors),
            event=EVENTS.get(motion or ""),
            sizes=tuple(word(actor.radius / stage.short, SIZES) for actor in actors),
            speeds=tuple(_speed(actor, motion, play) for actor in actors),
            background=background.words,
        )
        spots = [(_where(actor, stage, 0), _where(actor, stage, -1)) for actor in actors]
        dense = dense_caption(facts, places=spots, bounces=len(play.contacts), bar=shade)
        captions = {"short": short_caption(facts, wording), "dense": dense}
        return Scene(stage, fps, play, background, shade, facts, captions)


def _pairs(combo: Combination) -> tuple[tuple[Any, ...], ...]:
    colour, shape, way = combo
    return ("colour, shape", colour, shape), ("colour, way", colour, way), ("shape, way", shape, way)


def _where(actor: Actor, stage: SceneFrame, frame: int) -> str:
    x, y = actor.centres[frame]
    return place(float(x / stage.width), float(y / stage.height))


def _speed(actor: Actor, motion: str | None, play: Play) -> str | None:
    if motion in (None, "still"):
        return None
    if motion == "rotate":
        return word(actor.speed, SPINS)
    return word(play.speed if motion == "pan" else actor.speed, SPEEDS)


def _hidden(actor: Actor, bar: Bar | None) -> ndarray:
    """Frames in which the bar covers the whole shape."""
    if bar is None or not bar.front:
        return np.zeros(len(actor.centres), dtype=bool)
    outline = OUTLINES[actor.shape]
    before, after = (outline.wide, outline.wide) if bar.upright else (outline.above, outline.below)
    along = actor.centres[:, 0 if bar.upright else 1]
    return (along - before * actor.radius >= bar.low) & (along + after * actor.radius <= bar.high)


def _truth(scene: Scene) -> dict[str, Any]:
    """Ground truth in pixels, radians and seconds, rounded to a thousandth."""
    stage, play = scene.stage, scene.play
    objects = [
        {
            "colour": actor.colour,
            "shape": actor.shape,
            "direction": actor.direction,
            "radius": round(actor.radius, 3),
            "centres": np.round(actor.centres, 3).tolist(),
            "angles": np.round(actor.angles, 3).tolist(),
            "hidden": _hidden(actor, play.bar).tolist(),
        }
        for actor in play.actors
    ]
    bar = None
    if play.bar is not None:
        band = (round(float(play.bar.low), 3), round(float(play.bar.high), 3))
        bar = {"upright": play.bar.upright, "from": band[0], "to": band[1], "front": play.bar.front, "shade": scene.bar_shade}
    return {
        "size": [stage.height, stage.width],
        "frames": len(stage.times),
        "fps": scene.fps,
        "motion": scene.facts.motion,
        "event": scene.facts.event,
        "background": scene.facts.background,
        "objects": objects,
        "bar": bar,
        "camera": np.round(play.camera, 3).tolist(),
        "contacts": [round(second, 3) for second in play.contacts],
    }
