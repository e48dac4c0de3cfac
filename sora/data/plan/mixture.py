"""The clips that a stage of the run draws, and which clip comes at which draw: in a new order every epoch, mixed by weights.

The k-th draw is a pure function of k. No memory is held per clip, except for two bits where some of a source's clips are left out: one bit
for whether a clip is usable, and 4 bytes for every 32 clips to find the k-th usable one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sora.data.plan.clips import ClipLimits, ClipTable
from sora.data.plan.order import ROUND, permutation, shares_of, turns
from sora.system.terminal import counted

_CHUNK = 1 << 16  # rows measured at once
_BLOCK = 32  # rows that share one count of usable rows


@dataclass(frozen=True, kw_only=True)
class CurriculumStage:
    """A part of the run. until: clips seen when it ends (None: never). images: the share of clips that are single frames (None: as in the
    data). weights: of the datasets (None: every clip once an epoch)."""

    until: int | None = None
    frames: int | None = None
    area: int | None = None
    images: float | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.images is not None and not 0 <= self.images <= 1:
            raise ValueError(f"plan.images={self.images} is a share of the clips, from 0 to 1 (null: as they come)")
        for name in ("until", "frames", "area"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"plan: {name}={value} has to be 1 or more, or null for no limit")

    @property
    def limits(self) -> ClipLimits:
        return ClipLimits(self.frames, self.area)


def staged(base: CurriculumStage, curriculum: Sequence[Mapping[str, Any]]) -> tuple[CurriculumStage, ...]:
    """The stages of a run: each stage of the curriculum on top of `base`, then `base` itself unless the last stage never ends."""
    known = [field.name for field in fields(CurriculumStage)]
    found: list[CurriculumStage] = []
    for number, said in enumerate(curriculum):
        if unknown := sorted(set(said) - set(known)):
            raise ValueError(f"plan.curriculum[{number}] has no key {', '.join(unknown)}; its keys: {', '.join(known)}")
        given: dict[str, Any] = {name: getattr(base, name) for name in known} | {"until": None} | dict(said)
        given["weights"] = None if given["weights"] is None else tuple(given["weights"])
        stage = CurriculumStage(**given)
        if found and (found[-1].until is None or (stage.until is not None and stage.until <= found[-1].until)):
            raise ValueError(f"plan.curriculum[{number}] follows one until {found[-1].until}; all stages but the last need a later `until`")
        found.append(stage)
    return (*found, base) if not found or found[-1].until is not None else tuple(found)


class MixtureSource:
    """The usable rows among `first` to `last` - 1, in a new order every epoch.

    images: only single frames (True), only longer clips (False), or both (None). `count` usable rows hold `tokens` tokens; `skipped` counts
    the other rows by reason.
    """

    def __init__(self, clips: ClipTable, first: int, last: int, *, limits: ClipLimits, budget: int, images: bool | None, seed: int) -> None:
        self.clips, self.first, self.last, self.limits, self.budget, self.images = clips, first, last, limits, budget, images
        self.seed = seed
        self.skipped: Counter[str] = Counter()
        self.tokens = self.cut = self.longest = 0
        good = [np.packbits(self._scan(rows)) for rows in self._chunks()]
        bits = np.concatenate([*good, np.zeros(-sum(map(len, good)) % (_BLOCK // 8), np.uint8)])
        counts = np.bitwise_count(bits).reshape(-1, _BLOCK // 8).sum(axis=1, dtype=np.int64)
        self.count = int(counts.sum())
        # where all rows are usable, a position is its row and nothing is held
        self._bits = None if self.count == last - first else bits
        before = np.concatenate(([0], np.cumsum(counts)))
        self._before = before.astype(np.uint32 if self.count < 1 << 32 else np.int64) if self._bits is not None else before[:0]
        self._order = lru_cache(maxsize=4)(self._ordered)

    def _scan(self, rows: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Which rows are usable; the others are counted by reason."""
        grids, reasons = self.clips.measured(rows, self.limits)
        tokens = grids.prod(axis=1)
        wanted = np.ones(len(rows), np.bool_) if self.images is None else (grids[:, 0] == 1) == self.images
        for code, count in enumerate(np.bincount(reasons[wanted], minlength=len(self.clips.reasons))):
            if code and count:
                self.skipped[self.clips.reasons[code]] += int(count)
        long = wanted & (reasons == 0) & (tokens > self.budget)
        if long.any():
            self.skipped[self.too_long] += int(long.sum())
            self.longest = max(self.longest, int(tokens[long].max()))
        good = wanted & (reasons == 0) & ~long
        self.tokens += int(tokens[good].sum())
        if self.limits.frames is not None:
            self.cut += int((good & (self.clips.frames(rows) > self.limits.frames)).sum())
        return good

    @property
    def too_long(self) -> str:
        return f"longer than the token budget of {self.budget}"

    def most_frames(self) -> int:
        """The largest `ClipLimits.frames`, in frames as trained, at which every clip is within the budget; 0 if there is none."""
        longest = max(int(self.clips.frames(rows).max()) for rows in self._chunks())
        low, high = 0, longest  # bisection: the largest limit known to fit, and the largest that may
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(self.limits._replace(frames=middle)) else (low, middle - 1)
        limits = self.limits._replace(frames=low)
        return max(int(self.clips.taken(rows, limits)[:, 0].max()) for rows in self._chunks()) if low else 0

    def _fits(self, limits: ClipLimits) -> bool:
        measured = (self.clips.measured(rows, limits) for rows in self._chunks())
        return all(int(each.grids.prod(axis=1)[each.reasons == 0].max(initial=0)) <= self.budget for each in measured)

    def _chunks(self) -> Iterator[Int[np.ndarray, "n"]]:
        return (np.arange(start, min(start + _CHUNK, self.last)) for start in range(self.first, self.last, _CHUNK))

    def usable(self, rows: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Which rows can be drawn."""
        inside = (rows >= self.first) & (rows < self.last)
        if self._bits is None:
            return inside
        places = np.clip(rows, self.first, self.last - 1) - self.first
        return inside & (self._bits[places >> 3] >> (7 - (places & 7)) & 1).astype(np.bool_)

    def rows(self, epoch: int, places: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The rows at some positions of an epoch's order."""
        chosen = np.asarray(self._order(epoch)(places), dtype=np.int64)
        if self._bits is None:
            return self.first + chosen
        block = np.searchsorted(self._before, chosen, side="right") - 1
        good = np.unpackbits(self._bits.reshape(-1, _BLOCK // 8)[block], axis=1)
        nth = (chosen - self._before[block] + 1).astype(np.uint8)
        return self.first + block * _BLOCK + np.argmax(np.cumsum(good, axis=1, dtype=np.uint8) == nth[:, None], axis=1)

    def _ordered(self, epoch: int) -> Any:
        stream = f"plan/{self.clips.fingerprint}/{self.first}-{self.last}/{self.images}"
        return permutation(stream, seed=self.seed, epoch=epoch, size=self.count)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=4)(self._ordered)


class DrawnClips(NamedTuple):
    """Clips in the order of their draws, and for each the epoch of its source."""

    rows: Int[np.ndarray, "n"]
    epochs: Int[np.ndarray, "n"]


class Mixture:
    """The sources of one stage. Draws count from the stage's beginning, epochs from `epoch`, so that no stage repeats another's draws.

    One source, without weights: its epochs follow one another. Several sources take turns, so that any `ROUND` draws hold each one's share,
    and each source has its own epochs.
    """

    def __init__(self, clips: ClipTable, stage: CurriculumStage, *, budget: int, seed: int, epoch: int) -> None:
        self.clips, self.stage, self.epoch, self._budget, self._seed = clips, stage, epoch, budget, seed
        self.sources = self._made()
        shares = np.array(self._shares)
        if not self.count:
            raise ValueError(_empty(self))
        self.turns = turns(shares / shares.sum(), ROUND)
        self._per_round = np.bincount(self.turns, minlength=len(self.sources))
        self._before_turn = np.stack([np.cumsum(self.turns == number) - (self.turns == number) for number in range(len(self.sources))])

    def _made(self) -> tuple[MixtureSource, ...]:
        stage, clips = self.stage, self.clips
        ranges = list(zip(clips.starts, clips.starts[1:], strict=False))
        weights = shares_of(stage.weights, [last - first for first, last in ranges])
        if stage.weights is None:  # all datasets as one
            ranges, weights = [(0, clips.starts[-1])], (1.0,)
        kinds = {None: 1.0} if stage.images is None else {True: stage.images, False: 1 - stage.images}
        wanted = [(place, kind, weight) for place, weight in zip(ranges, weights, strict=True) for kind in kinds]
        made = tuple(
            MixtureSource(clips, *place, limits=stage.limits, budget=self._budget, images=kind, seed=self._seed)
            for place, kind, _ in wanted
        )
        self._shares = [0.0] * len(made)
        for kind, share in kinds.items():
            # a dataset without images (or without videos) leaves its share to the others
            mine = {place: weight for place, (_, other, weight) in enumerate(wanted) if other is kind and made[place].count}
            total = sum(mine.values())
            if share and not total and any(source.count for source in made):
                name = "single frames" if kind else "clips of several frames" if kind is not None else "datasets with weights"
                raise ValueError(f"plan.images={stage.images}, data.weights={stage.weights}: there are no {name} that fit")
            for place, weight in mine.items():
                self._shares[place] = share * weight / total if total else 0.0
        return made

    @cached_property
    def skipped(self) -> Counter[str]:
        found = sum((source.skipped for source in self.sources), Counter())
        unwanted = sum(source.count for source, share in zip(self.sources, self._shares, strict=True) if not share)
        return found + Counter({"data.weights or plan.images leave them no share": unwanted})

    @property
    def count(self) -> int:
        """How many clips can be drawn."""
        return sum(source.count for source, share in zip(self.sources, self._shares, strict=True) if share > 0)

    @property
    def mean_tokens(self) -> float:
        """The mean number of tokens of a drawn clip."""
        shares = np.array(self._shares) / sum(self._shares)
        return float(sum(share * source.tokens / source.count for share, source in zip(shares, self.sources, strict=True) if share > 0))

    @property
    def whole(self) -> int | None:
        """The number of draws after which every clip has come once more; None if sources of several sizes take turns."""
        return self.sources[0].count if len(self.sources) == 1 else None

    def draw(self, first: int, last: int) -> DrawnClips:
        """Draws `first` to `last` - 1."""
        numbers = np.arange(first, last)
        rounds, places = np.divmod(numbers, ROUND)
        owners = self.turns[places]
        times = rounds * self._per_round[owners] + self._before_turn[owners, places]
        rows, epochs = np.empty_like(numbers), np.empty_like(numbers)
        for number, source in enumerate(self.sources):
            mine = np.flatnonzero(owners == number)
            if not mine.size:
                continue
            epochs[mine], within = np.divmod(times[mine], source.count)
            for epoch in np.unique(epochs[mine]).tolist():
                these = epochs[mine] == epoch
                rows[mine[these]] = source.rows(self.epoch + epoch, within[these])
        return DrawnClips(rows, epochs + self.epoch)

    def epochs(self, draws: int) -> int:
        """How many epochs of its most repeated source the first `draws` draws reach."""
        if self.whole is not None:
            return -(-draws // self.whole)
        rounds = -(-draws // ROUND)
        return max(-(-rounds * int(turn) // max(source.count, 1)) for turn, source in zip(self._per_round, self.sources, strict=True))

    def source_of(self, row: int) -> MixtureSource | None:
        """The source that a row is drawn from."""
        return next((source for source in self.sources if source.usable(np.array([row]))[0]), None)


def fitting(sources: Sequence[MixtureSource], budget: int) -> str:
    """A text for errors: the values of the keys under which the clips longer than a budget of tokens would fit."""
    first = f"raise plan.budget to {max(source.longest for source in sources)}"
    frames = min(source.most_frames() for source in sources)
    if not frames:
        return f"{first}, or prepare smaller clips: {budget} tokens do not hold one patch of time of each"
    return f"{first}, cut clips with plan.frames={frames}, or prepare shorter or smaller clips"


def _empty(mixture: Mixture) -> str:
    clips, stage = mixture.clips.starts[-1], mixture.stage
    reasons = "; ".join(f"{count} {reason}" for reason, count in mixture.skipped.items()) or "there are none"
    long = [source for source in mixture.sources if source.longest]
    advice = fitting(long, mixture.sources[0].budget) if long else "change the key that leaves them out"
    limits = ", ".join(f"plan.{name}={value}" for name, value in stage.limits._asdict().items() if value is not None)
    none = f"of {counted(int(clips), 'clip')} none can be used{f' with {limits}' if limits else ''}"
    return f"an epoch would be empty: {none} ({reasons}); {advice}"
