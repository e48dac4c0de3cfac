"""The plan for training a VAE: random crops of stored frames, of one shape per step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from sora.data.plan.order import ROUND, permutation, shares_of, turns
from sora.data.plan.steps import Crop, Item, Pack, StepPlan
from sora.system.draws import generator, sample_id
from sora.system.terminal import counted


@runtime_checkable
class ClipRows(Protocol):
    """The parts of an index that `CropPlan` needs: the clips' keys and sizes, and its fingerprint."""

    frames: Int[np.ndarray, "rows"]
    heights: Int[np.ndarray, "rows"]
    widths: Int[np.ndarray, "rows"]

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...


class CropPlan:
    """Random crops of frames in batches of one shape, from one or several datasets mixed by weight.

    Step s has the shape `shapes[s % len(shapes)]`, (frames, height, width). Its `batch` crops are dealt evenly to `packs` packs. Each
    (shape, dataset) pair runs through its own epochs: every clip that is large enough once per epoch, in a Philox order; the crop's place
    follows from (seed, epoch, key). Datasets take turns so that any `order.ROUND` crops of a shape hold each dataset's share exactly and
    evenly spread; without weights a dataset's share is its number of clips. Rows count through the indexes in order. `skipped` counts clips
    that are too small for every shape.
    """

    def __init__(
        self,
        indexes: Sequence[ClipRows],
        *,
        shapes: Sequence[Sequence[int]],
        batch: int,
        packs: int,
        weights: list[float] | tuple[float, ...] | None,
        seed: int,
    ) -> None:
        self.shapes = tuple(_shape(shape) for shape in shapes)
        self.batch, self.packs, self.seed = batch, packs, seed
        if not self.shapes:
            raise ValueError("plan.shapes is empty; list crops as [frames, height, width], such as [[17, 32, 32]]")
        if batch < 1 or packs < 1 or batch % packs:
            raise ValueError(f"plan.batch={batch} does not divide into plan.packs={packs}; make it a multiple")
        self._indexes = tuple(indexes)
        self._starts = (0, *accumulate(len(index) for index in indexes))
        self.weights = shares_of(weights, [len(index) for index in indexes])
        self.skipped: dict[str, int] = {}
        self._fitting = tuple(tuple(self._eligible(shape, number) for number in range(len(indexes))) for shape in self.shapes)
        self._count_skipped()
        self._turns = tuple(self._turns_of(shape, rows) for shape, rows in zip(self.shapes, self._fitting, strict=True))
        self._order = lru_cache(maxsize=4 * len(self.shapes) * len(indexes))(self._epoch_order)

    def at(self, step: int) -> StepPlan:
        """The packs of a step, counted from 0."""
        visit, window = divmod(step, len(self.shapes))
        items = [self._item(visit * self.batch + place, window) for place in range(self.batch)]
        each = self.batch // self.packs
        packs = tuple(Pack(tuple(items[first : first + each])) for first in range(0, self.batch, each))
        return StepPlan(step=step, packs=packs)

    def replacement(self, item: Item, attempt: int) -> Item | None:
        """The clip that replaces one that cannot be read: the next of the same dataset that is large enough, with its own crop."""
        dataset = self.dataset(item.row)
        fitting = self._fitting[item.window][dataset]
        if attempt >= len(fitting) - 1:
            return None
        place = int(np.searchsorted(fitting, item.row - self._starts[dataset]))
        row = int(fitting[(place + 1 + attempt) % len(fitting)])
        return self._cropped(dataset, row, item.epoch, item.window)

    def dataset(self, row: int) -> int:
        """Which of the indexes a row belongs to."""
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def locate(self, row: int) -> tuple[int, int]:
        """(number of the index, row within that index)."""
        dataset = self.dataset(row)
        return dataset, row - self._starts[dataset]

    def _item(self, number: int, window: int) -> Item:
        """Crop `number` of a shape, counted from the start of the run."""
        turns = self._turns[window]
        rounds, place = divmod(number, ROUND)
        dataset = int(turns[place])
        drawn = rounds * int((turns == dataset).sum()) + int((turns[:place] == dataset).sum())
        epoch, place = divmod(drawn, len(self._fitting[window][dataset]))
        return self._cropped(dataset, int(self._order(window, dataset, epoch)[place]), epoch, window)

    def _cropped(self, dataset: int, row: int, epoch: int, window: int) -> Item:
        index, (frames, height, width) = self._indexes[dataset], self.shapes[window]
        draw = generator("crop", seed=self.seed, epoch=epoch, sample=sample_id(index.keys[row], window))
        start, top, left = (
            int(draw.integers(int(size[row]) - wanted + 1))
            for size, wanted in ((index.frames, frames), (index.heights, height), (index.widths, width))
        )
        crop = Crop(start=start, frames=frames, top=top, left=left, height=height, width=width)
        return Item(row=self._starts[dataset] + row, epoch=epoch, window=window, crop=crop)

    def _epoch_order(self, window: int, dataset: int, epoch: int) -> Int[np.ndarray, "clips"]:
        fitting = self._fitting[window][dataset]
        stream = f"plan/{self._indexes[dataset].fingerprint}/{self.shapes[window]}"
        return fitting[permutation(stream, seed=self.seed, epoch=epoch, size=len(fitting))(np.arange(len(fitting)))]

    def _eligible(self, shape: tuple[int, int, int], number: int) -> Int[np.ndarray, "clips"]:
        index, (frames, height, width) = self._indexes[number], shape
        return np.flatnonzero((index.frames >= frames) & (index.heights >= height) & (index.widths >= width))

    def _count_skipped(self) -> None:
        for number, index in enumerate(self._indexes):
            used = np.unique(np.concatenate([fitting[number] for fitting in self._fitting]))
            if len(used) < len(index):
                self.skipped[f"dataset {number}: smaller than every crop of plan.shapes"] = len(index) - len(used)

    def lines(self, names: Sequence[str]) -> list[str]:
        """For each shape, a line on how many clips of each dataset it is cut from and how many are too small. names: of the datasets."""
        told = []
        for shape, fitting in zip(self.shapes, self._fitting, strict=True):
            parts = zip(fitting, self._indexes, names, strict=True)
            counts = [f"{len(rows)} of {counted(len(index), 'clip')} of {name}" for rows, index, name in parts]
            told.append(f"crops of {'x'.join(map(str, shape))}: {', '.join(counts)}")
        return told + [f"left out: {counted(count, 'clip')} ({reason})" for reason, count in self.skipped.items()]

    def _smaller(self, shape: tuple[int, int, int]) -> str:
        """A text for errors: the largest crop within this shape that every clip holds."""
        sizes = [np.stack((index.frames, index.heights, index.widths), axis=1) for index in self._indexes if len(index)]
        if not sizes:
            return "there are no clips at all"
        least = np.min([each.min(axis=0) for each in sizes], axis=0)
        fits = [min(int(least[0]), shape[0]), min(int(least[1]), shape[1]), min(int(least[2]), shape[2])]
        return f"every clip holds one of {_told(fits)}: plan.shapes=[{fits}]".replace(", ", ",")

    def _turns_of(self, shape: tuple[int, int, int], fitting: Sequence[np.ndarray]) -> Int[np.ndarray, "round"]:
        shares = np.array([weight if len(rows) else 0.0 for weight, rows in zip(self.weights, fitting, strict=True)])
        if not shares.sum():
            raise ValueError(f"no clip is as large as the crop {_told(shape)} (frames x height x width); {self._smaller(shape)}")
        return turns(shares / shares.sum(), ROUND)


def _told(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"plan.shapes holds {list(shape)}; a crop is [frames, height, width], each 1 or more")
    frames, height, width = shape
    return frames, height, width
