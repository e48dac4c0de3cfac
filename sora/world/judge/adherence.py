"""Prompt adherence: does a clip show what its prompt asks for? Measured from the pixels alone, aspect by aspect.

`Facts` is the checkable content of a prompt, `observe` (in `observation`) measures a clip, `agreement` compares the two, `judge` does both
for many clips, and `PromptAdherence` counts. "all" is the share of clips that show everything their prompt asks for and stay steady;
"all_v1" is the first version of "all": colour, shape and direction over the whole clip, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations, zip_longest
from typing import Any

import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from torch import Tensor

from sora.metrics.metric import VideoMetric
from sora.world.judge.observation import Observation, Thing, observe
from sora.world.judge.steadiness import leap, progress

__all__ = ["ALL", "ASPECTS", "EVENTS", "Facts", "Observation", "PromptAdherence", "agreement", "judge", "observe"]

ASPECTS = ("colour", "shape", "direction", "count", "event", "steady")
ALL = {"all": ASPECTS, "all_v1": ("colour", "shape", "direction")}  # aspects that have to be right together
VERSION = 2  # counts up when a verdict changes, so that older figures are not compared
# The event of each motion that shows more than movement on a line.
EVENTS = {"bounce": "bounces", "occlude": "hides", "rotate": "turns", "pan": "pans", "still": "rests"}
MOVED = 0.08  # short sides below which a thing counts as still
RESTED = 0.06
TURNED = 20.0  # degrees
SEEN = 0.9  # share of the frames in which a thing must be seen, without those in which a bar covers its place
RECOLOURED = 0.3  # the most that a thing's mean colours in two thirds may differ, relative to its colour
GROWN = 1.3  # the most that a thing's sizes in two thirds may differ, as a ratio
RESHAPED = 0.3  # the most by which another shape may fit better in a third, relative
GETS_ON = 0.7  # share of a thing's steps that must go in its direction
LEAPS, JUMP = 4.0, 0.06  # no step exceeds this many median steps plus this many short sides
WOBBLED = 0.5  # the share of the fit's error that a free angle per frame may remove
EXTRA = 0.4  # area of spots outside the things, summed over frames, in areas of the largest thing
EXTRA_FRAMES = 4  # for clips of fewer frames EXTRA is lower in proportion
STEEPER = 1.5  # ratio by which the way along the named axis must exceed that across it


@dataclass(frozen=True)
class Facts:
    """The checkable content of a prompt; None or () where the prompt says nothing. Objects are in the prompt's order.

    directions: one of left, right, up, down, clockwise, anticlockwise (or None) for each object; under motion "pan" the camera's. event:
    one of EVENTS' values. sizes, speeds and background are read from dense captions and are not checked.
    """

    count: int | None = None
    colours: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    motion: str | None = None
    directions: tuple[str | None, ...] = ()
    event: str | None = None
    sizes: tuple[str | None, ...] = ()
    speeds: tuple[str | None, ...] = ()
    background: str | None = None

    @property
    def direction(self) -> str | None:
        """The first object's direction."""
        return self.directions[0] if self.directions else None

    def vague(self) -> Facts:
        """The part of these facts that a short caption tells."""
        return replace(self, sizes=(), speeds=(), background=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Facts:
        """The facts that `to_json` wrote; ValueError for an unknown key."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"facts have no {', '.join(unknown)}; they have {', '.join(cls.__dataclass_fields__)}")
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
        return cls(**given)


def moves(thing: Thing, wanted: str, motion: str | None) -> bool:
    """Whether a thing moves in the direction `wanted`; for a bouncing thing only its horizontal motion counts."""
    if wanted in ("clockwise", "anticlockwise"):
        return (thing.turn if wanted == "clockwise" else -thing.turn) >= TURNED
    along, across = thing.step if wanted in ("left", "right") else thing.step[::-1]
    if wanted in ("left", "up"):
        along = -along
    free = motion == "bounce" or abs(along) >= STEEPER * abs(across)
    return along >= MOVED and free


def _way(thing: Thing, observation: Observation, wanted: str, motion: str | None) -> bool:
    if motion == "pan":
        return observation.camera == wanted
    return moves(thing, wanted, motion)


def _happens(observation: Observation, things: Sequence[Thing], event: str) -> bool:
    if not things:
        return False
    seen = {
        "bounces": all(thing.bounces > 0 for thing in things),
        "hides": any(thing.hides for thing in things),
        "turns": all(abs(thing.turn) >= TURNED for thing in things),
        "pans": observation.camera is not None,
        "rests": observation.camera is None and all(thing.range < RESTED and abs(thing.turn) < TURNED for thing in things),
    }
    if event not in seen:
        raise ValueError(f"the event {event!r} cannot be checked; it may be one of {', '.join(seen)}")
    return seen[event]


def keeps(thing: Thing) -> dict[str, bool]:
    """Whether a thing is seen all the time, and whether it has one colour, size and shape in all thirds of the clip."""
    found = thing.keeps
    return {
        "seen": found.seen >= SEEN,
        "colour": found.colour <= RECOLOURED,
        "size": found.size <= GROWN,
        "shape": found.shape <= RESHAPED,
    }


def goes_on(thing: Thing, short: int, wanted: str | None, motion: str | None) -> bool:
    """Whether no step is longer than a few median steps, and nearly all steps go in the direction `wanted` (against the camera's in a pan).

    Of a bouncing thing only the horizontal steps count, since the vertical ones follow gravity.
    """
    places, when = thing.centres[thing.clear] / short, thing.clear
    if motion == "rotate":
        return thing.keeps.turning <= WOBBLED and _no_leap(places, when)
    if wanted is None:
        return _no_leap(places, when)
    axis = 0 if wanted in ("left", "right") else 1
    along = places[:, axis] * (1.0 if wanted in ("right", "down") else -1.0) * (-1.0 if motion == "pan" else 1.0)
    return progress(along, when) >= GETS_ON and _no_leap(places[:, axis : axis + 1] if motion == "bounce" else places, when)


def _no_leap(places: ndarray, when: ndarray) -> bool:
    longest, usual = leap(places, when)
    return longest <= LEAPS * usual + JUMP


def agreement(observation: Observation, wanted: Facts) -> dict[str, bool | None]:
    """Whether the clip agrees with the prompt in each of ASPECTS; None where the prompt does not say.

    The largest things in the clip, as many as the prompt names, are paired with the prompt's objects in the order that agrees best.
    """
    number = max(len(wanted.colours), len(wanted.shapes), len(wanted.directions), 1)
    things = observation.things[:number]
    best = {"colour": False, "shape": False, "direction": False, "steady": False}
    if len(things) == number:
        scores = [_pairing(observation, order, wanted) for order in permutations(things)]
        best = max(scores, key=lambda score: (sum(score.values()), score["colour"], score["shape"]))
    named = bool(wanted.colours or wanted.shapes or wanted.directions)
    return {
        "colour": best["colour"] if wanted.colours else None,
        "shape": best["shape"] if wanted.shapes else None,
        "direction": best["direction"] if any(wanted.directions) else None,
        "count": len(observation.things) == wanted.count and not crowded(observation) if wanted.count is not None else None,
        "event": _happens(observation, things, wanted.event) if wanted.event is not None else None,
        "steady": best["steady"] if named and observation.frames > 1 else None,
    }


def _pairing(observation: Observation, things: Sequence[Thing], wanted: Facts) -> dict[str, bool]:
    ways = [_way(thing, observation, way, wanted.motion) for thing, way in zip(things, wanted.directions, strict=False) if way]
    paired = list(zip_longest(things, wanted.directions))
    return {
        "colour": all(thing.colour == colour for thing, colour in zip(things, wanted.colours, strict=False)),
        "shape": all(thing.shape == shape for thing, shape in zip(things, wanted.shapes, strict=False)),
        "direction": all(ways),
        "steady": all(all(keeps(thing).values()) and goes_on(thing, observation.short, way, wanted.motion) for thing, way in paired),
    }


def crowded(observation: Observation) -> bool:
    """Whether the clip shows more than its things: small, brief or grey spots besides them."""
    return observation.extra >= EXTRA * min(1.0, observation.frames / EXTRA_FRAMES)


def judge(
    videos: Sequence[UInt8[ndarray, "_ _ _ 3"]],
    rates: Sequence[float],
    wanted: Sequence[Facts],
    *,
    palette: Mapping[str, tuple[int, int, int]],
) -> list[dict[str, bool | None]]:
    """The agreement of each clip (uint8 T H W 3, of any size, at its frames a second) with its prompt's facts.

    palette: the colours' names and RGB values 0..255.
    """
    if not len(videos) == len(rates) == len(wanted):
        came = f"clips: {len(videos)}, frame rates: {len(rates)}, prompts: {len(wanted)}"
        raise ValueError(f"{came}; each clip needs one of both")
    return [agreement(observe(frames, fps, palette), facts) for frames, fps, facts in zip(videos, rates, wanted, strict=True)]


class PromptAdherence(VideoMetric):
    """Shares of clips that agree with their prompts, for each aspect and for each of ALL."""

    exact = ("hits", "asked")
    hits: Tensor
    asked: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("hits", default=torch.zeros(len(ASPECTS) + len(ALL), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("asked", default=torch.zeros(len(ASPECTS) + len(ALL), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, agreed: Sequence[Mapping[str, bool | None]]) -> None:
        """Count the verdicts on some clips, each as `judge` returns it."""
        hits, asked = counted(agreed)
        self.hits += hits.to(self.hits.device)
        self.asked += asked.to(self.asked.device)

    def compute(self) -> dict[str, float]:
        """The `shares` of the clips of all ranks."""
        return shares(self.hits, self.asked)


def counted(agreed: Sequence[Mapping[str, bool | None]]) -> tuple[Int[Tensor, "A"], Int[Tensor, "A"]]:
    """For each of ASPECTS and of ALL: the number of clips that show it, and the number of clips whose prompt asks for it."""
    hits, asked = torch.zeros(len(ASPECTS) + len(ALL), dtype=torch.int64), torch.zeros(len(ASPECTS) + len(ALL), dtype=torch.int64)
    for clip in agreed:
        verdicts = [*(clip[name] for name in ASPECTS), *together(clip).values()]
        asked += torch.tensor([verdict is not None for verdict in verdicts])
        hits += torch.tensor([verdict is True for verdict in verdicts])
    return hits, asked


def together(clip: Mapping[str, bool | None]) -> dict[str, bool | None]:
    """The verdicts ALL on a clip, over those aspects that its prompt asks for; None if it asks for none of them.

    Stored verdicts from before "steady" existed get "all_v1" alone.
    """
    found: dict[str, bool | None] = {}
    for name, aspects in ALL.items():
        if "steady" in clip or "steady" not in aspects:
            told = [verdict for aspect in aspects if (verdict := clip[aspect]) is not None]
            found[name] = all(told) if told else None
    return found


def shares(hits: Int[Tensor, "A"], asked: Int[Tensor, "A"]) -> dict[str, float]:
    """The share for each aspect that any prompt asked for and for each of ALL; "n" is the number of clips whose prompts asked for any."""
    names = (*ASPECTS, *ALL)
    found = {name: hit / out_of for name, hit, out_of in zip(names, hits.tolist(), asked.tolist(), strict=True) if out_of}
    return {**found, "n": float(asked[names.index("all")].item())}
