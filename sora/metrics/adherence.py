"""Prompt adherence: does a clip show what its prompt asks for? Measured from the pixels alone, aspect by aspect.

`Facts` is the checkable content of a prompt, `observe` (in `observation`) measures a clip, `agreement` compares the two,
`judge` does both for many clips, and `PromptAdherence` counts. The share "all" is colour and shape and direction together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from torch import Tensor

from sora.metrics.metric import VideoMetric
from sora.metrics.observation import Observation, Thing, observe

__all__ = ["ASPECTS", "EVENTS", "Facts", "Observation", "PromptAdherence", "agreement", "judge", "observe"]

ASPECTS = ("colour", "shape", "direction", "count", "event")
ALL = ("colour", "shape", "direction")
# What can be seen to happen in each motion, beyond moving on a line.
EVENTS = {"bounce": "bounces", "occlude": "hides", "rotate": "turns", "pan": "pans", "still": "rests"}
MOVED = 0.08  # shares of the short side below which nothing has moved
RESTED = 0.06
TURNED = 20.0  # degrees
STEEPER = 1.5  # how much longer the way along the named axis must be than across it


@dataclass(frozen=True)
class Facts:
    """The checkable content of a prompt; None or () where it says nothing. Objects stand in the prompt's order.

    directions: one of left, right, up, down, clockwise, anticlockwise (or None) for each object; under motion "pan" the camera's.
    event: one of EVENTS' values. sizes, speeds and background are read from dense captions and are not checked.
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
        """What a short caption tells of these facts."""
        return replace(self, sizes=(), speeds=(), background=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Facts:
        """The facts that `to_json` wrote; ValueError for a key that is none of theirs."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"facts have no {', '.join(unknown)}; they have {', '.join(cls.__dataclass_fields__)}")
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
        return cls(**given)


def moves(thing: Thing, wanted: str, motion: str | None) -> bool:
    """Whether a thing goes the way the prompt says; across the line of gravity only, when it bounces."""
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
        "rests": observation.camera is None and all(thing.range < RESTED for thing in things),
    }
    if event not in seen:
        raise ValueError(f"the event {event!r} cannot be checked; it may be one of {', '.join(seen)}")
    return seen[event]


def agreement(observation: Observation, wanted: Facts) -> dict[str, bool | None]:
    """Whether the clip agrees with the prompt in each of ASPECTS; None where the prompt does not say.

    The largest things seen, as many as the prompt names, are paired with the prompt's objects in the order that agrees best.
    """
    number = max(len(wanted.colours), len(wanted.shapes), len(wanted.directions), 1)
    things = observation.things[:number]
    best = {"colour": False, "shape": False, "direction": False}
    if len(things) == number:
        scores = [_pairing(observation, order, wanted) for order in permutations(things)]
        best = max(scores, key=lambda score: (sum(score.values()), score["colour"], score["shape"]))
    return {
        "colour": best["colour"] if wanted.colours else None,
        "shape": best["shape"] if wanted.shapes else None,
        "direction": best["direction"] if any(wanted.directions) else None,
        "count": len(observation.things) == wanted.count if wanted.count is not None else None,
        "event": _happens(observation, things, wanted.event) if wanted.event is not None else None,
    }


def _pairing(observation: Observation, things: Sequence[Thing], wanted: Facts) -> dict[str, bool]:
    ways = [_way(thing, observation, way, wanted.motion) for thing, way in zip(things, wanted.directions, strict=False) if way]
    return {
        "colour": all(thing.colour == colour for thing, colour in zip(things, wanted.colours, strict=False)),
        "shape": all(thing.shape == shape for thing, shape in zip(things, wanted.shapes, strict=False)),
        "direction": all(ways),
    }


def judge(
    videos: Sequence[UInt8[ndarray, "_ _ _ 3"]],
    rates: Sequence[float],
    wanted: Sequence[Facts],
    *,
    palette: Mapping[str, tuple[int, int, int]],
) -> list[dict[str, bool | None]]:
    """The agreement of each clip (uint8 T H W 3, of any sizes, with its frames a second) with what its prompt asks for.

    palette: the colours' names and RGB values 0..255.
    """
    if not len(videos) == len(rates) == len(wanted):
        raise ValueError(f"{len(videos)} clips came with {len(rates)} frame rates and {len(wanted)} prompts; each clip needs one of both")
    return [agreement(observe(frames, fps, palette), facts) for frames, fps, facts in zip(videos, rates, wanted, strict=True)]


class PromptAdherence(VideoMetric):
    """Shares of clips that agree with their prompts, for each aspect and for "all" (colour, shape and direction together)."""

    exact = ("hits", "asked")
    hits: Tensor
    asked: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("hits", default=torch.zeros(len(ASPECTS) + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("asked", default=torch.zeros(len(ASPECTS) + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, agreed: Sequence[Mapping[str, bool | None]]) -> None:
        """Count the verdicts on some clips, each as `judge` gives it."""
        hits, asked = counted(agreed)
        self.hits += hits.to(self.hits.device)
        self.asked += asked.to(self.asked.device)

    def compute(self) -> dict[str, float]:
        """See `shares`; over all ranks."""
        return shares(self.hits, self.asked)


def counted(agreed: Sequence[Mapping[str, bool | None]]) -> tuple[Int[Tensor, "A"], Int[Tensor, "A"]]:
    """How many clips show each of ASPECTS and "all", and of how many that was asked."""
    hits, asked = torch.zeros(len(ASPECTS) + 1, dtype=torch.int64), torch.zeros(len(ASPECTS) + 1, dtype=torch.int64)
    for clip in agreed:
        verdicts = [*(clip[name] for name in ASPECTS), together(clip)]
        asked += torch.tensor([verdict is not None for verdict in verdicts])
        hits += torch.tensor([verdict is True for verdict in verdicts])
    return hits, asked


def together(clip: Mapping[str, bool | None]) -> bool | None:
    """The verdict "all" of a clip: on those of ALL that its prompt asks for; None where it asks for none."""
    told = [clip[name] for name in ALL if clip[name] is not None]
    return all(told) if told else None


def shares(hits: Int[Tensor, "A"], asked: Int[Tensor, "A"]) -> dict[str, float]:
    """The share for each aspect that any prompt asked for, "all", and "n", the number of clips that "all" was asked of."""
    names = (*ASPECTS, "all")
    found = {name: hit / out_of for name, hit, out_of in zip(names, hits.tolist(), asked.tolist(), strict=True) if out_of}
    return {**found, "n": float(asked[-1].item())}
