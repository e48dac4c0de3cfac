"""The motion in a clip before rendering: where each object is in each frame.

Lengths are pixels with x to the right and y downwards, from the frame's upper left corner; times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from sora.world.judge.silhouettes import OUTLINES

MARGIN = 0.75  # pixels between an object and the frame's edge
CANDIDATES = 48  # candidate ways when two objects must keep apart
WAY = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
LEAST_FRAMES = {"linear": 2, "bounce": 8, "rotate": 5, "occlude": 9, "pan": 2, "still": 2}
SMALLEST = 3.0  # the least radius in pixels at which shapes can be told apart


class SceneFrame(NamedTuple):
    """The frame in which a scene plays, and its times."""

    height: int
    width: int
    times: ndarray  # (T,) seconds

    @property
    def short(self) -> int:
        return min(self.height, self.width)

    @property
    def lasts(self) -> float:
        return float(self.times[-1])

    @property
    def progress(self) -> ndarray:
        return self.times / max(self.lasts, 1e-9)


@dataclass(frozen=True)
class Actor:
    """One object. centres: (T, 2) x and y in pixels. angles: (T,) radians, clockwise. speed: short sides (or degrees) a second."""

    shape: str
    colour: str
    direction: str | None
    radius: float
    centres: ndarray
    angles: ndarray
    speed: float = 0.0


class Bar(NamedTuple):
    """A grey band over the whole frame: upright (x from low to high) or level (y from low to high)."""

    upright: bool
    low: float
    high: float
    front: bool  # whether it hides objects or lies behind them


@dataclass(frozen=True)
class Play:
    """The actors of a motion and their positions. camera: (T, 2) its displacement. contacts: seconds at which the floor is touched."""

    actors: tuple[Actor, ...]
    camera: ndarray
    bar: Bar | None = None
    contacts: tuple[float, ...] = ()
    speed: float = 0.0  # of the camera


class ActorTraits(NamedTuple):
    """The properties of an actor before it has a position."""

    colour: str
    shape: str
    direction: str | None


def room(stage: SceneFrame, shape: str, radius: float, *, turning: bool = False) -> tuple[float, float, float, float]:
    """The least and greatest x, then y, at which the whole shape is inside the frame."""
    wide, above, below, reach, _ = OUTLINES[shape]
    if turning:
        wide = above = below = reach
    side = MARGIN + wide * radius
    return side, stage.width - side, MARGIN + above * radius, stage.height - MARGIN - below * radius


def _apart(tracks: list[ndarray], reaches: list[float]) -> ndarray:
    """Which candidates (K, T, 2 each) keep all objects two pixels apart at all times."""
    good = np.ones(len(tracks[0]), dtype=bool)
    for i in range(len(tracks)):
        for j in range(i):
            gaps = np.linalg.norm(tracks[i] - tracks[j], axis=-1).min(-1)
            good &= gaps >= reaches[i] + reaches[j] + 2.0
    return good


def _cast(tracks: list[ndarray], reaches: list[float]) -> list[ndarray] | None:
    """The first candidate that keeps the objects apart, or None."""
    good = _apart(tracks, reaches)
    return [track[int(good.argmax())] for track in tracks] if good.any() else None


def _spots(rng: np.random.Generator, stage: SceneFrame, part: ActorTraits, radius: float, *, turning: bool = False) -> ndarray:
    """Candidate positions (K, 1, 2) for an object that rests."""
    left, right, top, bottom = room(stage, part.shape, radius, turning=turning)
    return np.stack([rng.uniform(left, right, CANDIDATES), rng.uniform(top, bottom, CANDIDATES)], -1)[:, None]


def _lines(rng: np.random.Generator, stage: SceneFrame, part: ActorTraits, radius: float) -> ndarray | None:
    """Candidate straight ways (K, T, 2) of constant velocity, wholly inside the frame; None if there is no room to move."""
    left, right, top, bottom = room(stage, part.shape, radius)
    way = np.array(WAY[str(part.direction)])
    low, high = (left, right) if way[0] else (top, bottom)
    shortest = 0.25 * stage.short
    if high - low < shortest:
        return None
    length = rng.uniform(shortest, max(shortest, min(high - low, 1.0 * stage.short)), CANDIDATES)
    begin = rng.uniform(0.0, 1.0, CANDIDATES) * (high - low - length)
    along = low + begin[:, None] + length[:, None] * stage.progress
    if way.sum() < 0:
        along = low + high - along
    aside = rng.uniform(top, bottom, CANDIDATES) if way[0] else rng.uniform(left, right, CANDIDATES)
    aside = np.broadcast_to(aside[:, None], along.shape)
    return np.stack([along, aside] if way[0] else [aside, along], -1)


def _still_angles(stage: SceneFrame) -> ndarray:
    return np.zeros(len(stage.times))


def linear(rng: np.random.Generator, stage: SceneFrame, parts: tuple[ActorTraits, ...], radii: list[float]) -> Play | None:
    """All objects move at constant velocity, each along its own way."""
    lines = [_lines(rng, stage, part, radius) for part, radius in zip(parts, radii, strict=True)]
    tracks = [line for line in lines if line is not None]
    chosen = _cast(tracks, _reaches(parts, radii)) if len(tracks) == len(parts) else None
    if chosen is None:
        return None
    pace = stage.short * max(stage.lasts, 1e-9)
    actors = tuple(
        Actor(
            part.shape, part.colour, part.direction, radius, track, _still_angles(stage), float(np.abs(track[-1] - track[0]).sum() / pace)
        )
        for part, radius, track in zip(parts, radii, chosen, strict=True)
    )
    return Play(actors, np.zeros((len(stage.times), 2)))


def _reaches(parts: tuple[ActorTraits, ...], radii: list[float]) -> list[float]:
    return [OUTLINES[part.shape].reach * radius for part, radius in zip(parts, radii, strict=True)]


def still(rng: np.random.Generator, stage: SceneFrame, parts: tuple[ActorTraits, ...], radii: list[float]) -> Play | None:
    """All objects rest."""
    chosen = _cast([_spots(rng, stage, part, radius) for part, radius in zip(parts, radii, strict=True)], _reaches(parts, radii))
    if chosen is None:
        return None
    actors = tuple(
        Actor(part.shape, part.colour, part.direction, radius, np.repeat(spot, len(stage.times), 0), _still_angles(stage))
        for part, radius, spot in zip(parts, radii, chosen, strict=True)
    )
    return Play(actors, np.zeros((len(stage.times), 2)))


def rotate(rng: np.random.Generator, stage: SceneFrame, parts: tuple[ActorTraits, ...], radii: list[float]) -> Play | None:
    """All objects turn about their centres, by less than a quarter of their symmetry from one frame to the next."""
    spots = [_spots(rng, stage, part, radius, turning=True) for part, radius in zip(parts, radii, strict=True)]
    chosen = _cast(spots, _reaches(parts, radii))
    if chosen is None:
        return None
    actors = []
    for part, radius, spot in zip(parts, radii, chosen, strict=True):
        most = min(0.24 * OUTLINES[part.shape].symmetry * (len(stage.times) - 1), 270.0)
        turned = rng.uniform(min(45.0, 0.9 * most), most) * (1 if part.direction == "clockwise" else -1)
        angles = np.radians(rng.uniform(0.0, 360.0) + turned * stage.progress)
        centres = np.repeat(spot, len(stage.times), 0)
        actors.append(Actor(part.shape, part.colour, part.direction, radius, centres, angles, abs(turned) / max(stage.lasts, 1e-9)))
    return Play(tuple(actors), np.zeros((len(stage.times), 2)))


def pan(rng: np.random.Generator, stage: SceneFrame, parts: tuple[ActorTraits, ...], radii: list[float]) -> Play | None:
    """The camera moves at constant velocity over objects that rest in the scene and stay in view."""
    way = np.array(WAY[str(parts[0].direction)])
    axis = 0 if way[0] else 1
    rooms = [room(stage, part.shape, radius)[2 * axis : 2 * axis + 2] for part, radius in zip(parts, radii, strict=True)]
    free = min(high - low for low, high in rooms)
    shortest = 0.25 * stage.short
    if free < shortest:
        return None
    length = rng.uniform(shortest, min(free, 0.8 * stage.short))
    camera = np.outer(stage.progress * length, way)
    tracks = []
    for part, radius, (low, high) in zip(parts, radii, rooms, strict=True):
        spot = _spots(rng, stage, part, radius)
        start = rng.uniform(low, high - length, CANDIDATES) + (length if way.sum() > 0 else 0.0)
        spot[:, 0, axis] = start
        tracks.append(spot - camera)
    chosen = _cast(tracks, _reaches(parts, radii))
    if chosen is None:
        return None
    actors = tuple(
        Actor(part.shape, part.colour, part.direction, radius, track, _still_angles(stage))
        for part, radius, track in zip(parts, radii, chosen, strict=True)
    )
    return Play(actors, camera, speed=length / (stage.short * max(stage.lasts, 1e-9)))


def bounce(rng: np.random.Generator, stage: SceneFrame, parts: tuple[ActorTraits, ...], radii: list[float]) -> Play | None:
    """An object thrown sideways falls under constant gravity and loses part of its speed at each touch of the floor."""
    floor = stage.height - max(2.0, round(0.09 * stage.height))
    part, radius = parts[0], radii[0]
    outline, way = OUTLINES[part.shape], WAY[str(part.direction)][0]
    left, right, top, _ = room(stage, part.shape, radius)
    rest = floor - outline.below * radius  # the centre's y at a touch
    high = rest - top
    if high < 0.3 * stage.short or right - left < 0.25 * stage.short or len(parts) > 1:
        return None
    step = stage.times[1] - stage.times[0]
    first = max(min(rng.uniform(0.3, 0.5) * stage.lasts, rng.uniform(0.45, 0.8)), 2.5 * step)
    height = rng.uniform(0.7, 1.0) * high
    gravity = 2.0 * height / first**2
    keeps = rng.uniform(0.72, 0.88)
    y, contacts, touch, speed = rest - height + 0.5 * gravity * stage.times**2, [], first, keeps * gravity * first
    while touch < stage.lasts - step and speed * speed / (2.0 * gravity) > 0.08 * stage.short:
        since = stage.times - touch
        y = np.where(since > 0, rest - speed * since + 0.5 * gravity * since**2, y)
        contacts.append(float(touch))
        touch, speed = touch + 2.0 * speed / gravity, speed * keeps
    y = np.minimum(y, rest)  # its remaining speed is too small to see
    length = rng.uniform(max(0.25 * stage.short, 0.5 * (right - left)), right - left)
    begin = left + rng.uniform(0.0, 1.0) * (right - left - length)
    x = begin + length * (stage.progress if way > 0 else 1.0 - stage.progress)
    pace = length / (stage.short * stage.lasts)
    actor = Actor(part.shape, part.colour, part.direction, radius, np.stack([x, y], -1), _still_angles(stage), float(pace))
    return Play((actor,), np.zeros((len(stage.times), 2)), bar=Bar(False, floor, float(stage.height), False), contacts=tuple(contacts))


def occlude(rng: np.random.Generator, stage: SceneFrame, parts: tuple[ActorTraits, ...], radii: list[float]) -> Play | None:
    """An object moves at constant velocity behind a bar, is wholly hidden in at least one frame, and comes out again."""
    part, outline = parts[0], OUTLINES[parts[0].shape]
    way = np.array(WAY[str(part.direction)])
    upright = bool(way[0])
    extent = stage.width if upright else stage.height
    reaches = (outline.wide, outline.wide) if upright else (outline.above, outline.below)
    tall, frames = sum(reaches), len(stage.times)
    # start and end whole, one object wide each; the bar is an object and at least 1.3 frames' way wide, with a pixel to spare on both sides
    fits = (extent - 4.0 - 1.3 * extent / (frames - 1)) / (3.0 * tall)
    radius = min(radii[0], fits)
    if radius < SMALLEST or len(parts) > 1:
        return None
    low, high = MARGIN + reaches[0] * radius, extent - MARGIN - reaches[1] * radius
    travel = high - low
    hides = tall * radius + 1.3 * travel / (frames - 1)
    slack = extent - 2.0 * (MARGIN + tall * radius + 0.5) - hides
    hides += rng.uniform(0.0, 0.4) * max(slack, 0.0)
    slack = extent - 2.0 * (MARGIN + tall * radius + 0.5) - hides
    start = MARGIN + tall * radius + 0.5 + rng.uniform(0.2, 0.8) * max(slack, 0.0)
    along = low + travel * (stage.progress if way.sum() > 0 else 1.0 - stage.progress)
    left, right, top, bottom = room(stage, part.shape, radius)
    aside = np.full(frames, rng.uniform(top, bottom) if upright else rng.uniform(left, right))
    centres = np.stack([along, aside] if upright else [aside, along], -1)
    pace = travel / (stage.short * stage.lasts)
    actor = Actor(part.shape, part.colour, part.direction, radius, centres, _still_angles(stage), float(pace))
    return Play((actor,), np.zeros((frames, 2)), bar=Bar(upright, start, start + hides, True))


MOTIONS = {"linear": linear, "bounce": bounce, "rotate": rotate, "occlude": occlude, "pan": pan, "still": still}
ALONE = ("bounce", "occlude")  # motions for a single object
