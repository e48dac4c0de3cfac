"""Clips of a held-out split, in packs for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sora.data.loading.latents import LatentData

if TYPE_CHECKING:
    from sora.data.index.index import Index
    from sora.data.plan.listing import Listing
    from sora.tokens import Grid


@dataclass(frozen=True)
class HeldOutClips:
    """Clips of a split of a run's datasets, prepared as the training clips are, in packs for evaluation.

    read: `[step]` gives the packs of a step. encode: makes a batch of a pack (None: it is one). shape: a grid in frames and pixels.
    """

    data: Any
    listing: Listing
    read: Callable[[int], Sequence[Any]]
    encode: Callable[[Any, Any], Any] | None
    shape: Callable[[Grid], dict[str, int]]

    def batches(self, step: int, device: Any) -> list[Any]:
        """The packs of a step, ready for the network."""
        return [pack.to(device) if self.encode is None else self.encode(pack, device) for pack in self.read(step)]

    @property
    def indexes(self) -> tuple[Index, ...]:
        return tuple(item.index for item in self.data.latents) if isinstance(self.data, LatentData) else self.data.indexes

    def place(self, row: int) -> tuple[int, int]:
        """(dataset, row within that dataset) of a row of the listing."""
        dataset = int(np.searchsorted(self.listing.clips.starts, row, side="right")) - 1
        return dataset, row - self.listing.clips.starts[dataset]
