"""Renders scenes to pixels: backgrounds, anti-aliased shapes and bars. numpy only, all frames of a clip at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from sora.world.judge.silhouettes import OUTLINES, coverage
from sora.world.language import PALETTE
from sora.world.scenes import Actor, Bar, SceneFrame

SHADES: dict[str, tuple[int, int, int]] = {
    "black": (18, 18, 18),
    "navy": (30, 36, 58),
    "dark grey": (66, 66, 66),
    "grey": (122, 122, 122),
    "light grey": (178, 178, 178),
    "cream": (236, 228, 208),
    "white": (238, 238, 238),
}
BACKGROUNDS: tuple[str, ...] = ("plain", "graded", "rippled", "striped")
WAVES = 5
RELIEF = 17.0  # grey levels of a ripple or a stripe
CONTRAST = 58.0  # the least difference in grey levels between a bar and its surroundings


class Background(NamedTuple):
    """The background of a clip. kind: one of BACKGROUNDS. shades: their names, two for a gradient. numbers: its other random numbers."""

    kind: str
    shades: tuple[str, ...]
    numbers: ndarray

    @property
    def words(self) -> str:
        return f"{self.kind} {' to '.join(self.shades)}"


def luma(shade: str) -> float:
    return float(np.mean(SHADES[shade]))


def draw_background(rng: np.random.Generator, kinds: tuple[str, ...]) -> Background:
    kind = kinds[int(rng.integers(len(kinds)))]
    names = list(SHADES)
    first, second = rng.permutation(len(names))[:2]
    shades = (names[first], names[second]) if kind == "graded" else (names[first],)
    return Background(kind, shades, rng.uniform(0.0, 1.0, (WAVES, 3)))


def bar_shade(rng: np.random.Generator, background: Background) -> str:
    """A grey that contrasts with the background everywhere."""
    greys = ("black", "dark grey", "grey", "light grey", "white")
    far = [min(abs(luma(grey) - luma(shade)) for shade in background.shades) for grey in greys]
    good = [grey for grey, distance in zip(greys, far, strict=True) if distance >= CONTRAST] or [greys[int(np.argmax(far))]]
    return good[int(rng.integers(len(good)))]


def relief(background: Background, stage: SceneFrame, camera: Float[ndarray, "T 2"]) -> Float[ndarray, "T H W"]:
    """Grey levels added to the shade: soft waves in all directions, or soft stripes, fixed in the scene when the camera moves."""
    numbers = background.numbers if background.kind == "rippled" else background.numbers[:1]
    turns = 2 * np.pi * (np.arange(len(numbers)) + numbers[:, 0]) / len(numbers)
    lengths = stage.short * ((0.35 + 0.4 * numbers[:, 1]) if background.kind == "rippled" else (0.16 + 0.14 * numbers[:, 1]))
    waves = 2 * np.pi / lengths
    kx, ky = waves * np.cos(turns), waves * np.sin(turns)
    along_x = np.exp(1j * np.outer(kx, np.arange(stage.width) + 0.5))
    along_y = np.exp(1j * (np.outer(ky, np.arange(stage.height) + 0.5) + 2 * np.pi * numbers[:, 2:3]))
    planes = along_y[:, :, None] * along_x[:, None, :]  # K H W
    shift = np.exp(1j * (np.outer(camera[:, 0], kx) + np.outer(camera[:, 1], ky)))  # T K
    parts = np.concatenate([np.real(planes), -np.imag(planes)]).reshape(2 * len(numbers), -1).astype(np.float32)
    field = np.concatenate([np.real(shift), np.imag(shift)], 1).astype(np.float32) @ parts
    field = field.reshape(len(camera), stage.height, stage.width)
    if background.kind == "rippled":
        return field * (RELIEF * (2.0 / len(numbers)) ** 0.5)
    return np.tanh(2.5 * field) * RELIEF


def _backdrop(background: Background, stage: SceneFrame, camera: Float[ndarray, "T 2"]) -> Float[ndarray, "T H W 3"]:
    frames, moves = len(stage.times), bool(np.any(camera))
    colour = np.array(SHADES[background.shades[0]], dtype=np.float32)
    if background.kind == "graded":
        other = np.array(SHADES[background.shades[1]], dtype=np.float32)
        turn = 2 * np.pi * background.numbers[0, 0]
        y, x = np.mgrid[: stage.height, : stage.width]
        slope = np.cos(turn) * (x / max(stage.width - 1, 1) - 0.5) + np.sin(turn) * (y / max(stage.height - 1, 1) - 0.5)
        share = (slope / (abs(np.cos(turn)) + abs(np.sin(turn))) + 0.5).astype(np.float32)[None, :, :, None]
        picture = colour + (other - colour) * share
    else:
        picture = np.broadcast_to(colour, (1, stage.height, stage.width, 3))
    if background.kind in ("rippled", "striped"):
        picture = picture + relief(background, stage, camera if moves else camera[:1])[..., None]
    return np.array(np.broadcast_to(picture, (frames, stage.height, stage.width, 3)), dtype=np.float32)


def _draw_bar(frames: Float[ndarray, "T H W 3"], bar: Bar, colour: ndarray) -> None:
    extent = frames.shape[2] if bar.upright else frames.shape[1]
    spots = np.arange(extent, dtype=np.float32)
    cover = np.clip(np.minimum(spots + 1, bar.high) - np.maximum(spots, bar.low), 0.0, 1.0)
    touched = np.flatnonzero(cover)
    span = slice(int(touched[0]), int(touched[-1]) + 1)
    view = frames[:, :, span] if bar.upright else frames[:, span]
    share = cover[span][None, None, :, None] if bar.upright else cover[span][None, :, None, None]
    view += (colour - view) * share


def _draw_actor(frames: Float[ndarray, "T H W 3"], actor: Actor) -> None:
    """Paint a shape into a small window that follows it."""
    count, height, width, _ = frames.shape
    side = int(np.ceil(2 * OUTLINES[actor.shape].reach * actor.radius + 3))
    tall, wide = min(side, height), min(side, width)
    centres = actor.centres.astype(np.float32) - 0.5  # so that pixel centres lie at whole numbers
    left = np.clip(np.round(centres[:, 0] - (wide - 1) / 2), 0, width - wide).astype(np.int64)
    top = np.clip(np.round(centres[:, 1] - (tall - 1) / 2), 0, height - tall).astype(np.int64)
    columns, rows = left[:, None] + np.arange(wide), top[:, None] + np.arange(tall)
    x = (columns - centres[:, :1]).astype(np.float32)[:, None, :]
    y = (rows - centres[:, 1:]).astype(np.float32)[:, :, None]
    share = coverage(actor.shape, x, y, radius=actor.radius, angle=actor.angles[:, None, None])[..., None]
    places = (np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    under = frames[places]
    frames[places] = under + (np.array(PALETTE[actor.colour], dtype=np.float32) - under) * share.astype(np.float32)


def render(
    stage: SceneFrame, background: Background, actors: tuple[Actor, ...], *, camera: Float[ndarray, "T 2"], bar: Bar | None, shade: str
) -> UInt8[ndarray, "T H W 3"]:
    """The frames of a scene. shade: of the bar."""
    frames = _backdrop(background, stage, camera)
    colour = np.array(SHADES[shade], dtype=np.float32)
    if bar is not None and not bar.front:
        _draw_bar(frames, bar, colour)
    for actor in actors:
        _draw_actor(frames, actor)
    if bar is not None and bar.front:
        _draw_bar(frames, bar, colour)
    return (np.clip(frames, 0.0, 255.0) + 0.5).astype(np.uint8)
