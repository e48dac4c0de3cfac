"""The parts of a plan's step: packs, their clips, and the box cut from each clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from sora.system.terminal import counted


class Crop(NamedTuple):
    """A box of a clip: `frames` from frame `start`, `height` x `width` from row `top` and column `left`.

    The units are frames and pixels for a stored clip, latent frames, rows and columns for an encoded one.
    """

    start: int
    frames: int
    top: int
    left: int
    height: int
    width: int


class Item(NamedTuple):
    """One clip of a pack: its row in the index, the epoch that its draws belong to, and the box cut from it (None: all of it).

    `window` tells apart the samples cut from one clip in one epoch; with the clip's key it makes the sample id. `size`: (H, W) that the box
    is scaled to (None: not scaled), always with the box's own aspect ratio but for rounding to whole patches.
    """

    row: int
    epoch: int
    window: int = 0
    crop: Crop | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Pack:
    """The clips that one device processes together, in packed order."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class StepPlan:
    """The packs of one optimiser step. Its clips may belong to several epochs, if one ends inside the step."""

    step: int
    packs: tuple[Pack, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for pack in self.packs for item in pack.items)

    def share(self, *, ranks: int, rank: int) -> tuple[Pack, ...]:
        """The packs of one rank: every `ranks`-th one of the step."""
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks} does not exist")
        if len(self.packs) % ranks:
            raise ValueError(
                f"a step of {counted(len(self.packs), 'pack')} does not divide over {ranks} ranks; set plan.packs to a multiple of {ranks}"
            )
        return self.packs[rank::ranks]


@runtime_checkable
class Plan(Protocol):
    """The interface of a plan for loading. `skipped`: how many clips of the index are never trained on, by reason."""

    skipped: dict[str, int]

    def at(self, step: int) -> StepPlan: ...

    def replacement(self, item: Item, attempt: int) -> Item | None: ...
