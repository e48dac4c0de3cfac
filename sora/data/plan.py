"""The plan: which clips form which pack at which optimiser step, made from metadata alone.

A plan is a pure function of (fingerprint, seed, step). It knows nothing of workers, ranks or what was drawn before, so a
loader's whole state is one integer. A step is a fixed number of packs, and R ranks that divide it take them in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from sora.draws import generator, sample_id


class Crop(NamedTuple):
    """A box of a clip: `frames` from frame `start`, `height` x `width` pixels from row `top` and column `left`."""

    start: int
    frames: int
    top: int
    left: int
    height: int
    width: int


class Item(NamedTuple):
    """One clip of a pack: its row in the index, the epoch that its draws belong to, and the box cut from it (None: all of it).

    `window` tells apart the samples cut from one clip in one epoch; with the clip's key it makes the sample id.
    """

    row: int
    epoch: int
    window: int = 0
    crop: Crop | None = None


@dataclass(frozen=True)
class Pack:
    """The clips that one device sees at once, in packed order."""

    items: tuple[Item, ...]
    epoch: int


@dataclass(frozen=True)
class StepPlan:
    """What one optimiser step trains on. Packs of one step may belong to two epochs, where one ends inside it."""

    step: int
    epoch: int
    packs: tuple[Pack, ...]

    def share(self, *, ranks: int, rank: int) -> tuple[Pack, ...]:
        """The packs of one rank: every `ranks`-th of them."""
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks} does not exist")
        if len(self.packs) % ranks:
            raise ValueError(
                f"a step of {len(self.packs)} packs does not divide over {ranks} ranks; set plan.packs to a multiple of {ranks}"
            )
        return self.packs[rank::ranks]


@runtime_checkable
class Plan(Protocol):
    """What loading asks of a plan. `skipped`: why clips of the index are never trained on, and how many."""

    skipped: dict[str, int]

    def at(self, step: int) -> StepPlan: ...

    def replacement(self, item: Item, attempt: int) -> Item | None: ...


def _permutation(stream: str, *, seed: int, epoch: int, size: int) -> Int[np.ndarray, "size"]:
    return generator(stream, seed=seed, epoch=epoch, sample=0).permutation(size)


class _Epoch(NamedTuple):
    """The packs of an epoch: pack p holds rows[ends[p - 1]:ends[p]]."""

    rows: Int[np.ndarray, "clips"]
    ends: tuple[int, ...]

    def pack(self, number: int) -> Int[np.ndarray, "clips"]:
        return self.rows[self.ends[number - 1] if number else 0 : self.ends[number]]


class PackedPlan:
    """Packs of whole clips, first fit into a token budget.

    An epoch takes the clips in a Philox order of its own and puts each into the first of `window` open packs that has room for
    its tokens and fewer than `max_clips` clips; when none has, the fullest pack is closed. At the end of the epoch all open
    packs are closed, and the packs are shuffled, so that the few unfilled ones lie anywhere. Every clip comes exactly once per
    epoch; a pack belongs to one epoch, a step takes the next `packs` packs and may reach into the next epoch.

    tokens: of each row of the index. budget: tokens a pack holds. packs: a step's. A clip over the budget is an error before
    training that names it, or with `drop_long` counted in `skipped`. keys: only to name clips in errors.
    """

    def __init__(
        self,
        tokens: Sequence[int] | Int[np.ndarray, "rows"],
        *,
        budget: int,
        max_clips: int,
        packs: int,
        window: int,
        drop_long: bool,
        seed: int,
        fingerprint: str,
        keys: Sequence[str] | None = None,
    ):
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.budget, self.max_clips, self.packs, self.window, self.seed = budget, max_clips, packs, window, seed
        for name, value in (("budget", budget), ("max_clips", max_clips), ("packs", packs), ("window", window)):
            if value < 1:
                raise ValueError(f"plan.{name} is {value}; it has to be 1 or more")
        if self.tokens.size and self.tokens.min() < 1:
            raise ValueError(f"row {int(self.tokens.argmin())} has {self.tokens.min()} tokens; encode the dataset again")
        self.stream = f"plan/{fingerprint}"
        self.skipped: dict[str, int] = {}
        self.rows = np.flatnonzero(self.tokens <= budget)
        self._refuse_long(drop_long, keys)
        self._starts = [0]  # packs before each epoch
        self._packed = lru_cache(maxsize=4)(self._pack_epoch)
        self._of_size: dict[int, np.ndarray] = {}

    def _refuse_long(self, drop_long: bool, keys: Sequence[str] | None) -> None:
        long = np.flatnonzero(self.tokens > self.budget)
        if not self.rows.size:
            raise ValueError(
                f"an epoch would be empty: of {len(self.tokens)} clips none fits into plan.budget={self.budget} tokens"
                + (f"; the shortest has {self.tokens.min()}" if self.tokens.size else "")
            )
        if not long.size:
            return
        if not drop_long:
            names = ", ".join(f"{keys[row] if keys else f'row {row}'} ({self.tokens[row]})" for row in long[:5])
            raise ValueError(
                f"{long.size} of {len(self.tokens)} clips are longer than plan.budget={self.budget} tokens: {names}"
                f"{', …' if long.size > 5 else ''}; raise plan.budget to {self.tokens.max()} or set plan.drop_long=true"
            )
        self.skipped[f"longer than the token budget of {self.budget}"] = int(long.size)

    def at(self, step: int) -> StepPlan:
        """The packs of a step, counted from 0."""
        packs = tuple(self._pack(step * self.packs + slot) for slot in range(self.packs))
        return StepPlan(step=step, epoch=packs[0].epoch, packs=packs)

    def replacement(self, item: Item, attempt: int) -> Item | None:
        """The clip that stands in for one that cannot be read: the next row of as many tokens, so that the pack keeps its shape.

        None when no other row has as many.
        """
        size = int(self.tokens[item.row])
        if size not in self._of_size:
            self._of_size[size] = np.flatnonzero(self.tokens == size)
        same = self._of_size[size]
        if attempt >= len(same) - 1:
            return None
        place = int(np.searchsorted(same, item.row))
        return item._replace(row=int(same[(place + 1 + attempt) % len(same)]))

    def epoch_of(self, step: int) -> int:
        """The epoch in which a step begins."""
        return self._locate(step * self.packs)[0]

    def fill(self, epoch: int = 0) -> float:
        """The share of an epoch's token budget that clips fill."""
        return float(self.tokens[self.rows].sum() / (len(self._packed(epoch).ends) * self.budget))

    def packs_in(self, epoch: int) -> int:
        return len(self._packed(epoch).ends)

    def _locate(self, number: int) -> tuple[int, int]:
        """(epoch, number within it) of a pack counted from the run's start; earlier epochs are planned to count their packs."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + self.packs_in(len(self._starts) - 1))
        epoch = int(np.searchsorted(self._starts, number, side="right")) - 1
        return epoch, number - self._starts[epoch]

    def _pack(self, number: int) -> Pack:
        epoch, inner = self._locate(number)
        rows = self._packed(epoch).pack(inner)
        # Equal lengths stand together (the CPU's attention batches them); the row breaks ties.
        ordered = sorted(rows.tolist(), key=lambda row: (int(self.tokens[row]), row))
        return Pack(items=tuple(Item(row=row, epoch=epoch) for row in ordered), epoch=epoch)

    def _pack_epoch(self, epoch: int) -> _Epoch:
        order = self.rows[_permutation(self.stream, seed=self.seed, epoch=epoch, size=len(self.rows))]
        packs = first_fit(self.tokens[order].tolist(), budget=self.budget, max_clips=self.max_clips, window=self.window)
        shuffled = _permutation(f"{self.stream}/packs", seed=self.seed, epoch=epoch, size=len(packs))
        members = [packs[number] for number in shuffled]
        flat = np.fromiter((order[place] for pack in members for place in pack), dtype=np.int64, count=len(order))
        return _Epoch(rows=flat, ends=tuple(accumulate(len(pack) for pack in members)))


def first_fit(sizes: Sequence[int], *, budget: int, max_clips: int, window: int) -> list[list[int]]:
    """Places of `sizes` put into packs of at most `budget` and `max_clips`, with at most `window` packs open at a time.

    Each goes into the first open pack with room; when none has and `window` are open, the fullest is closed. All sizes are
    at most `budget`. Full packs close at once, so the search stays short.
    """
    smallest = min(sizes, default=0)
    closed: list[list[int]] = []
    room: list[int] = []
    open_packs: list[list[int]] = []
    for place, size in enumerate(sizes):
        slot = next((slot for slot, left in enumerate(room) if left >= size), None)
        if slot is None:
            if len(room) == window:
                fullest = min(range(window), key=room.__getitem__)
                closed.append(open_packs.pop(fullest))
                room.pop(fullest)
            slot = len(room)
            room.append(budget)
            open_packs.append([])
        room[slot] -= size
        open_packs[slot].append(place)
        if room[slot] < smallest or len(open_packs[slot]) == max_clips:
            closed.append(open_packs.pop(slot))
            room.pop(slot)
    return closed + open_packs


@runtime_checkable
class Rows(Protocol):
    """What `CropPlan` asks of an index: the clips' keys and sizes, and its fingerprint."""

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

    Step s has the shape `shapes[s % len(shapes)]`, (frames, height, width). Its `batch` crops are dealt evenly to `packs`
    packs. Each (shape, dataset) pair runs through its own epochs: every clip that is large enough once per epoch, in a Philox
    order; the crop's place follows from (seed, epoch, key). Datasets take turns so that any `ROUND` crops of a shape hold
    each one's share exactly and evenly spread; without weights a dataset's share is its number of clips. Rows count through
    the indexes in order. Clips too small for every shape
    are counted in `skipped`.
    """

    ROUND = 1024  # crops after which the datasets' shares are met exactly: weights are rounded to 1/1024

    def __init__(
        self,
        indexes: Sequence[Rows],
        *,
        shapes: Sequence[Sequence[int]],
        batch: int,
        packs: int,
        weights: Sequence[float] | None,
        seed: int,
    ):
        self.shapes = tuple(_shape(shape) for shape in shapes)
        self.batch, self.packs, self.seed = batch, packs, seed
        if not self.shapes:
            raise ValueError("plan.shapes is empty; list crops as [frames, height, width], such as [[17, 32, 32]]")
        if batch < 1 or packs < 1 or batch % packs:
            raise ValueError(f"plan.batch={batch} does not divide into plan.packs={packs}; make it a multiple")
        self._indexes = tuple(indexes)
        self._starts = (0, *accumulate(len(index) for index in indexes))
        self.weights = _weights(weights, [len(index) for index in indexes])
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
        packs = tuple(Pack(items=tuple(items[first : first + each]), epoch=items[first].epoch) for first in range(0, self.batch, each))
        return StepPlan(step=step, epoch=packs[0].epoch, packs=packs)

    def replacement(self, item: Item, attempt: int) -> Item | None:
        """The clip that stands in for one that cannot be read: the next of the same dataset that is large enough, cropped anew."""
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
        """(number of the index, row within it)."""
        dataset = self.dataset(row)
        return dataset, row - self._starts[dataset]

    def _item(self, number: int, window: int) -> Item:
        """Crop `number` of a shape, counted from the run's start."""
        turns = self._turns[window]
        rounds, place = divmod(number, self.ROUND)
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
        return fitting[_permutation(stream, seed=self.seed, epoch=epoch, size=len(fitting))]

    def _eligible(self, shape: tuple[int, int, int], number: int) -> Int[np.ndarray, "clips"]:
        index, (frames, height, width) = self._indexes[number], shape
        return np.flatnonzero((index.frames >= frames) & (index.heights >= height) & (index.widths >= width))

    def _count_skipped(self) -> None:
        for number, index in enumerate(self._indexes):
            used = np.unique(np.concatenate([fitting[number] for fitting in self._fitting]))
            if len(used) < len(index):
                self.skipped[f"dataset {number}: smaller than every crop of plan.shapes"] = len(index) - len(used)

    def lines(self, names: Sequence[str]) -> list[str]:
        """For each shape how many clips of each dataset it is cut from, and what is left out. names: of the datasets."""
        told = []
        for shape, fitting in zip(self.shapes, self._fitting, strict=True):
            parts = zip(fitting, self._indexes, names, strict=True)
            counts = [f"{len(rows)} of {len(index)} clips of {name}" for rows, index, name in parts]
            told.append(f"crops of {'x'.join(map(str, shape))}: {', '.join(counts)}")
        return told + [f"left out: {count} clips ({reason})" for reason, count in self.skipped.items()]

    def _turns_of(self, shape: tuple[int, int, int], fitting: Sequence[np.ndarray]) -> Int[np.ndarray, "round"]:
        shares = np.array([weight if len(rows) else 0.0 for weight, rows in zip(self.weights, fitting, strict=True)])
        if not shares.sum():
            sizes = "x".join(map(str, shape))
            raise ValueError(f"no clip is as large as the crop {sizes} (frames x height x width); make plan.shapes smaller")
        return turns(shares / shares.sum(), self.ROUND)


def turns(shares: Float[np.ndarray, "datasets"], length: int) -> Int[np.ndarray, "length"]:
    """Who is served at each of `length` turns, so that shares (which sum to 1) are met and every one's turns lie evenly apart.

    Shares round to whole turns by the largest remainder; a positive one gets at least one turn.
    """
    exact = shares * length
    counts = np.maximum(np.floor(exact), shares > 0).astype(np.int64)
    for number in np.argsort(counts - exact, kind="stable")[: max(0, length - int(counts.sum()))]:
        counts[number] += 1
    while counts.sum() > length:
        counts[counts.argmax()] -= 1
    owners = np.repeat(np.arange(len(shares)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return owners[np.argsort(places, kind="stable")]


def _shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"plan.shapes holds {list(shape)}; a crop is [frames, height, width], each 1 or more")
    frames, height, width = shape
    return frames, height, width


def _weights(weights: Sequence[float] | None, sizes: Sequence[int]) -> tuple[float, ...]:
    if not sizes:
        raise ValueError("no dataset is given; set data.folders to one folder or more")
    if weights is None:
        return tuple(float(size) for size in sizes)
    if len(weights) != len(sizes) or min(weights) < 0 or not sum(weights):
        raise ValueError(f"weights {list(weights)} do not fit {len(sizes)} datasets; give one weight for each, 0 or more, not all 0")
    return tuple(float(weight) for weight in weights)
