"""A dataset as a sequence of clips, each decoded when it is accessed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from sora.data.index.index import Caption, ClipRow, Index
from sora.data.loading.loader import read_clip
from sora.video.files import CONFINED
from sora.video.reader import VideoReader


class DatasetClip(NamedTuple):
    """A clip: its RGB frames at `fps` frames a second, its captions, and its row of the index."""

    key: str
    frames: UInt8[np.ndarray, "T H W 3"]
    fps: float
    captions: tuple[Caption, ...]
    row: ClipRow


class ClipDataset:
    """The clips of a dataset, or of one split of it, in the order in which they were written. Clips are decoded in a child process, which
    is killed if a file takes too long or too much memory.

    index: the table of the clips, whose columns (`frames`, `heights`, `widths`, `fps`) are arrays. reader: decodes the clips.
    """

    def __init__(self, index: Index, reader: VideoReader = CONFINED) -> None:
        self.index, self.reader = index, reader

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> DatasetClip:
        """The clip with this number; negative numbers count from the end. Raises ValueError, with the clip's key, if it does not decode."""
        number = range(len(self))[number]
        frames = read_clip(self.index, number, reader=self.reader)
        row = self.index.row(number)
        return DatasetClip(row.key, frames, row.fps, self.index.captions(number), row)

    def __iter__(self) -> Iterator[DatasetClip]:
        return (self[number] for number in range(len(self)))


def open_dataset(folder: str | Path, split: str | None = None) -> ClipDataset:
    """Open the clips of a dataset that `sora prepare` or `sora data index` made. split: "train" or "heldout"; None for all.

    Raises:
        ValueError: there is no such dataset or split, or a file of it is damaged; the message names it.
    """
    return ClipDataset(Index.open(folder, split))
