"""What a plan says: which clips form which pack at which optimiser step, and what is cut from each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from sora.system.terminal import counted


class Crop(NamedTuple):
    """A box of a clip: `frames` from frame `start`, `height` x `width` from row `top` and column `left`.

    In frames and pixels of a stored clip, or in latent frames, rows and columns of an encoded one.
    """

    start: int
    frames: int
    top: int
    left: int
    height: int
    width: int


class Item(NamedTuple):
    """One clip of a pack: its row in the index, the epoch that its draws belong to, and the box cut from it (None: all of it).

    `window` tells apart the samples cut from one clip in one epoch; with the clip's key it makes the sample id. `size`: (H, W) that the
    box is scaled to (None: as it is), always with the box's own aspect ratio but for rounding to whole patches.
    """

    row: int
    epoch: int
    window: int = 0
    crop: Crop | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Pack:
    """The clips that one device sees at once, in packed order."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class StepPlan:
    """What one optimiser step trains on. Its clips may belong to several epochs, where one ends inside it."""

    step: int
    packs: tuple[Pack, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return tuple(item for pack in self.packs for item in pack.items)

    def share(self, *, ranks: int, rank: int) -> tuple[Pack, ...]:
        """The packs of one rank: every `ranks`-th of them."""
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks} does not exist")
        if len(self.packs) % ranks:
            raise ValueError(
                f"a step of {counted(len(self.packs), 'pack')} does not divide over {ranks} ranks; set plan.packs to a multiple of {ranks}"
            )
        return self.packs[rank::ranks]


@runtime_checkable
class Plan(Protocol):
    """What loading asks of a plan. `skipped`: why clips of the index are never trained on, and how many."""

    skipped: dict[str, int]

    def at(self, step: int) -> StepPlan: ...

    def replacement(self, item: Item, attempt: int) -> Item | None: ...
