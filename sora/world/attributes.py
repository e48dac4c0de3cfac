"""Attributes of the world's clips, for the heads of a captioner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sora.captioner.swapping import swapped
from sora.world.judge.adherence import Facts
from sora.world.language import DIRECTIONS, PALETTE, SHAPES, SIZES, SPEEDS, TURNS, parse
from sora.world.render import BACKGROUNDS, SHADES
from sora.world.scenes import MOTIONS

NONE = "none"  # of an attribute that a clip does not have, such as the direction of a picture
VALUES: dict[str, tuple[str, ...]] = {
    "count": ("1", "2"),
    "colour": tuple(PALETTE),
    "shape": SHAPES,
    "motion": (NONE, *MOTIONS),
    "direction": (NONE, *DIRECTIONS, *TURNS),
    "size": tuple(name for name, _ in SIZES),
    "speed": (NONE, *(name for name, _ in SPEEDS)),
    "background": BACKGROUNDS,
    "shade": tuple(SHADES),
}
SWAPPED = (tuple(PALETTE), SHAPES, DIRECTIONS, ("upwards", "downwards"), TURNS, VALUES["size"], VALUES["speed"][1:], BACKGROUNDS)


class WorldAttributes:
    """Attributes of clips of the built-in world: from the facts that `sora prepare` stores with them, else from their captions.

    names: of the attributes; None for all, which are count, colour, shape, motion, direction, size, speed, background and shade.
    """

    def __init__(self, *, names: Sequence[str] | None) -> None:
        if wrong := [name for name in names or () if name not in VALUES]:
            raise ValueError(f"attributes.names names {wrong[0]}; the world's are {', '.join(VALUES)}")
        self._values = {name: VALUES[name] for name in (VALUES if names is None else names)}

    @property
    def values(self) -> Mapping[str, Sequence[str]]:
        return self._values

    def of(self, captions: Sequence[tuple[str, str]], facts: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
        stored = facts.get("facts")
        known = [Facts.from_json(stored)] if isinstance(stored, Mapping) else [parse(text) for _, text in captions]
        shown: dict[str, tuple[str, ...]] = {}
        for each in known:
            shown |= _shown_by(each)
        return {name: tuple(dict.fromkeys(shown[name])) for name in self._values if name in shown}

    def told(self, caption: str) -> Mapping[str, Sequence[str]]:
        shown = _shown_by(parse(caption))
        return {name: shown[name] for name in self._values if name in shown}

    def changed(self, caption: str, draw: np.random.Generator) -> str | None:
        return swapped(caption, SWAPPED, draw)


def _shown_by(facts: Facts) -> dict[str, tuple[str, ...]]:
    """The values of each attribute that some facts tell, object by object; an attribute of which they say nothing is not there."""
    if facts.count is None:
        return {}
    shades = () if facts.background is None else tuple(facts.background.partition(" ")[2].split(" to "))
    told: dict[str, tuple[str | None, ...]] = {
        "count": (str(facts.count),),
        "colour": facts.colours,
        "shape": facts.shapes,
        "motion": (facts.motion,),
        "direction": facts.directions,
        "size": facts.sizes,
        "speed": facts.speeds,
        "background": () if facts.background is None else (facts.background.partition(" ")[0],),
        "shade": shades,
    }
    named = {name: tuple(NONE if value is None else value for value in values) for name, values in told.items() if values}
    return {name: values for name, values in named.items() if all(value in VALUES[name] for value in values)}
