"""Packs of stored videos by plan: the index is a step number, the items are each clip's window at its planned rate and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from sora.data.index.index import Index
from sora.data.loading.quarantine import BadClip, Quarantine, first_readable, of_the_clip
from sora.data.plan.frames import FrameClips, VideoColumns
from sora.data.plan.listing import PackPlan
from sora.data.plan.steps import Item
from sora.patches.geometry import Geometry
from sora.system.draws import sample_id
from sora.video.reader import VideoReader


@dataclass(frozen=True)
class ClipFrames:
    """One clip of a pack. fps: frames a second. row: counts through all datasets. All draws for the clip follow from (sample, epoch)."""

    frames: UInt8[Tensor, "T H W 3"]
    fps: float
    row: int
    key: str
    sample: int
    epoch: int


def frame_clips(indexes: Sequence[Index], *, areas: Sequence[int], rate: float | None, geometry: Geometry) -> FrameClips:
    """The clips of some indexes for a `PackPlan`; see `FrameClips`."""
    columns = [VideoColumns(index.frames, index.heights, index.widths, index.fps) for index in indexes]
    starts = np.cumsum([0, *(len(index) for index in indexes)])

    def key(row: int) -> str:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        return indexes[number].member(row - int(starts[number])).key

    fingerprint = "\n".join(index.fingerprint for index in indexes)
    return FrameClips(columns, areas=areas, rate=rate, geometry=geometry, fingerprint=fingerprint, key=key)


class FramePacks(Dataset):
    """`[step] -> [[ClipFrames, ...], ...]`: the clips of each pack, in packed order. The plan replaces a clip that cannot be read.

    require: called with (number of the index, row); raises BadClip for a clip that must not be shown for another reason.
    """

    def __init__(
        self,
        indexes: Sequence[Index],
        plan: PackPlan,
        *,
        quarantine: Quarantine,
        reader: VideoReader,
        require: Callable[[int, int], None] | None = None,
    ) -> None:
        assert isinstance(plan.clips, FrameClips)
        self._require = require or _nothing_else
        self.indexes, self.plan, self.clips, self.quarantine, self.reader = tuple(indexes), plan, plan.clips, quarantine, reader

    def __getitem__(self, step: int) -> list[list[ClipFrames]]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[list[ClipFrames]]:
        """One rank's packs of a step."""
        self.quarantine.enter(step)
        return [self._pack(pack.items) for pack in self.plan.at(step).share(ranks=ranks, rank=rank)]

    def _pack(self, items: Sequence[Item]) -> list[ClipFrames]:
        found = [clip for clip in (self._readable(item) for item in items) if clip is not None]
        if not found:
            raise ValueError(f"no clip of the pack with {self.clips.key(items[0].row)} can be read, nor any that may stand in for them")
        return found

    def _readable(self, planned: Item) -> ClipFrames | None:
        return first_readable(planned, self._read, plan=self.plan, quarantine=self.quarantine, locate=self._place)[0]

    def _place(self, item: Item) -> tuple[Index, int]:
        number, row = self.locate(item.row)
        return self.indexes[number], row

    def _read(self, item: Item) -> ClipFrames:
        number, row = self.locate(item.row)
        self._require(number, row)
        index, member = self.indexes[number], self.indexes[number].member(row)
        fps = float(self.clips.rates(np.array([item.row]))[0])
        named = f"clip {member.key} of {index.folder / member.shard}"
        assert item.crop is not None and item.size is not None
        wanted, start = item.crop.frames, item.crop.start
        own = fps == float(index.fps[row])  # at its own rate a clip's frames are counted, not timed
        begin: dict[str, Any] = {"first": start} if own else {"start": start / fps, "fps": fps}
        with of_the_clip():
            got, _, report = self.reader.read(index.read_member(member), frames=wanted, size=item.size, name=named, **begin)
        if not report.clean or len(got) != wanted:
            raise BadClip(f"{named} does not decode cleanly: {report}")
        return ClipFrames(torch.from_numpy(got), fps, item.row, member.key, sample_id(member.key, item.window), item.epoch)

    def locate(self, row: int) -> tuple[int, int]:
        """(number of the index, row within that index) of a row counted through all datasets."""
        number = int(np.searchsorted(self.clips.starts, row, side="right")) - 1
        return number, row - self.clips.starts[number]


def _nothing_else(number: int, row: int) -> None:
    """Accept every clip."""
