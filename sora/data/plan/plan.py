"""The plan of token budgets: packs of near-equal cost for every step, window by window.

Draws are cut into windows of about `window` steps. The clips of a window are filled into packs, packs are sorted by cost, and neighbours in
that order form a step, so that ranks wait little for one another. All of it follows from (columns, seed, step): the only state is a cache
that can be computed again, and the memory is that of a few windows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sora.data.plan.clips import ClipTable
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Filling
from sora.data.plan.mixture import CurriculumStage, DrawnClips, Mixture, fitting, staged
from sora.data.plan.steps import Item, Pack, StepPlan
from sora.data.plan.window_cache import MARK, Counted
from sora.system.draws import generator

_KEPT = 4  # windows whose packs are cached
_CHUNK = 1 << 14  # rows that are measured together
_NEAR = (1 << 20) // _CHUNK  # chunks that are searched for a replacement with exactly as many tokens


class WindowDraws(NamedTuple):
    """The draws of a window, counted from its stage's beginning. closing: no clip of it may wait for a later window."""

    stage: int
    first: int
    last: int
    closing: bool


class Packs(NamedTuple):
    """Packs as columns: pack p holds clips ends[p - 1] .. ends[p] - 1. stage: of the curriculum, for each clip."""

    rows: Int[np.ndarray, "n"]
    epochs: Int[np.ndarray, "n"]
    tokens: Int[np.ndarray, "n"]
    ends: Int[np.ndarray, "packs"]
    paid: Float[np.ndarray, "packs"]
    stage: int

    def some(self, first: int, last: int) -> Packs:
        """Packs `first` to `last` - 1."""
        start, stop = (int(self.ends[number - 1]) if number else 0 for number in (first, last))
        rows, epochs, tokens = (column[start:stop] for column in (self.rows, self.epochs, self.tokens))
        return Packs(rows, epochs, tokens, self.ends[first:last] - start, self.paid[first:last], self.stage)


class TokenPlan:
    """Packs of clips of any size within a budget of tokens.

    filling: how clips form packs (`Packed`, `Bucketed`, `Padded`). budget, max_clips: the most tokens and clips of a pack. packs: packs of
    a step; R ranks take every R-th. accumulate: micro-batches per rank when packs / accumulate ranks train; packs are sorted by cost and
    cut into `accumulate` bands, and micro-batch i of every rank comes from band i. window: steps planned together. frames, area, images:
    see `CurriculumStage`. drop_long: leave out and count clips over the budget instead of raising. curriculum: stages that change these.
    weights: of the datasets. width: of the network, for a cost without `quadratic`.

    Every clip that fits comes exactly once in each epoch (with weights: of its dataset). `skipped` counts those that never come, by reason.
    """

    def __init__(
        self,
        clips: ClipTable,
        *,
        filling: Filling,
        cost: Cost,
        budget: int,
        max_clips: int,
        packs: int,
        accumulate: int,
        window: int,
        frames: int | None,
        area: int | None,
        images: float | None,
        drop_long: bool,
        curriculum: Sequence[Mapping[str, Any]],
        weights: Sequence[float] | None,
        width: int | None,
        seed: int,
    ) -> None:
        for name, value in (("budget", budget), ("max_clips", max_clips), ("packs", packs), ("window", window), ("accumulate", accumulate)):
            if value < 1:
                raise ValueError(f"plan.{name} is {value}; it has to be 1 or more")
        if packs % accumulate:
            raise ValueError(f"plan.packs={packs} does not divide by plan.accumulate={accumulate}; make it a multiple")
        self.clips, self.filling, self.cost = clips, filling, cost.of_width(width)
        self.budget, self.max_clips, self.packs, self.accumulate, self.window, self.seed = (
            budget,
            max_clips,
            packs,
            accumulate,
            window,
            seed,
        )
        self._made = partial(TokenPlan, clips, filling=filling, cost=self.cost, budget=budget, max_clips=max_clips, packs=packs)
        base = CurriculumStage(frames=frames, area=area, images=images, weights=None if weights is None else tuple(weights))
        self.stages = staged(base, curriculum)
        self.mixtures: list[Mixture] = []
        self._begins = [0]  # windows before each stage
        epoch = 0
        for number in range(len(self.stages)):
            self.mixtures.append(Mixture(clips, self.stages[number], budget=budget, seed=seed, epoch=epoch))
            draws = self._draws_of(number)
            if draws is not None:
                epoch += self.mixtures[-1].epochs(draws)
                self._begins.append(self._begins[-1] + self._windows_before(number, draws))
        self.skipped = self._skipped(drop_long)
        self._before = [0]  # packs before each window
        self._marks: dict[int, DrawnClips | None] = {0: None}  # the clips that wait at the beginning of some windows
        self._windows: OrderedDict[int, Packs] = OrderedDict()
        self._counted: Counted | None = None

    def remember(self, path: Path) -> None:
        """Cache the number of packs of each window in a file, and read it: without it a late step has to count all windows before it.

        The file changes no result: if it is missing, damaged or of another plan, the same packs come, only later.
        """
        sources = [source for mixture in self.mixtures for source in mixture.sources]
        drawn = [(source.first, source.last, source.count, source.tokens, source.cut) for source in sources]
        settings = (self.clips.fingerprint, type(self.filling).__qualname__, self.cost, self.budget, self.max_clips, self.packs)
        identity = repr((settings, self.accumulate, self.window, self.seed, self.stages, drawn))
        self._counted = Counted(path, identity)
        if known := self._counted.load():
            self._before, self._marks = known[0], {0: None} | known[1]

    # ---- for loading

    def at(self, step: int) -> StepPlan:
        """The packs of a step, counted from 0."""
        found: list[Pack] = []
        for part in self.columns(step):
            items, start = self._items(part.rows, part.epochs, part.stage), 0
            for end in part.ends.tolist():
                found.append(Pack(tuple(items[start:end])))
                start = end
        return StepPlan(step=step, packs=tuple(found))

    def replacement(self, item: Item, attempt: int) -> Item | None:
        """The clip that replaces one that cannot be read: of the same source, the next row with as many tokens; else one with fewer.

        A clip with as many tokens is looked for among the next million rows. If packs have one shape, only clips of that shape among all
        rows will do. None if no other row fits.
        """
        stage = max(number for number, mixture in enumerate(self.mixtures) if mixture.epoch <= item.epoch)
        source, limits = self.mixtures[stage].source_of(item.row), self.stages[stage].limits
        if source is None:
            return None
        shape = self.clips.measured(np.array([item.row]), limits).grids
        size, exact = int(shape.prod()), self.filling.exact
        for alike in (True,) if exact else (True, False):
            for rows in islice(_chunks(item.row, source.first, source.last), _NEAR if alike and not exact else None):
                grids = self.clips.measured(rows, limits).grids
                sizes = grids.prod(axis=1)
                same = (grids == shape).all(axis=1) if exact else sizes == size
                fitting = rows[source.usable(rows) & (same if alike else (sizes < size))]
                if attempt < len(fitting):
                    return self._items(fitting[attempt : attempt + 1], np.array([item.epoch]), stage)[0]
                attempt -= len(fitting)
        return None

    # ---- for reports

    def columns(self, step: int) -> list[Packs]:
        """The packs of a step as columns, in several parts if the step spans several windows."""
        return self.packs_between(step * self.packs, (step + 1) * self.packs)

    def packs_between(self, first: int, last: int) -> list[Packs]:
        """Packs `first` to `last` - 1, counted from the start of the run."""
        self._walk(last)
        found = []
        while first < last:
            window = bisect_right(self._before, first) - 1
            start = self._before[window]
            stop = min(last, self._before[window + 1])
            found.append(self._planned(window).some(first - start, stop - start))
            first = stop
        return found

    def epoch_of(self, step: int) -> int:
        """The earliest epoch of a step's clips."""
        return min(int(part.epochs.min()) for part in self.columns(step))

    def packs_of_windows(self, windows: int) -> int:
        """How many packs the first `windows` windows have."""
        while len(self._before) <= windows:
            self._planned(len(self._before) - 1)
        return self._before[windows]

    def windows_of_epoch(self, stage: int = 0) -> int | None:
        """How many windows an epoch of a stage is cut into; None where datasets take turns by weight."""
        whole = self.mixtures[stage].whole
        return None if whole is None else self._cuts(stage)

    def alone(self, stage: int) -> TokenPlan:
        """The plan of one stage of the curriculum as if the run had nothing else."""
        if len(self.stages) == 1:
            return self
        only = self.stages[stage]
        limits = {"frames": only.frames, "area": only.area, "images": only.images, "weights": only.weights, "drop_long": True}
        settings = {"accumulate": self.accumulate, "window": self.window, "width": None, "seed": self.seed, "curriculum": ()}
        return self._made(**limits, **settings)

    # ---- windows

    def _skipped(self, drop_long: bool) -> dict[str, int]:
        found: Counter[str] = Counter()
        for number, mixture in enumerate(self.mixtures):
            for reason, count in mixture.skipped.items():
                found[reason if len(self.mixtures) == 1 else f"{reason}, in stage {number}"] += count
        long = [source for mixture in self.mixtures for source in mixture.sources if source.longest]
        if long and not drop_long:
            worst = max(long, key=lambda source: source.longest)
            names = self._longest_named(worst)
            raise ValueError(
                f"{sum(worst.skipped[worst.too_long] for worst in long)} of {self.clips.starts[-1]} clips are longer than "
                f"plan.budget={self.budget} tokens: {names}; {fitting(long, self.budget)}, or leave them out with plan.drop_long=true"
            )
        return dict(found)

    def _longest_named(self, source: Any, most: int = 5) -> str:
        named: list[str] = []
        for rows in _chunks(source.first - 1, source.first, source.last):
            grids, reasons = self.clips.measured(rows, source.limits)
            tokens = grids.prod(axis=1)
            for place in np.flatnonzero((tokens > self.budget) & (reasons == 0)).tolist():
                if len(named) == most:
                    return f"{', '.join(named)}, …"
                named.append(f"{self.clips.key(int(rows[place]))} ({tokens[place]})")
        return ", ".join(named)

    def _draws_of(self, stage: int) -> int | None:
        until = self.stages[stage].until
        return None if until is None else until - (self.stages[stage - 1].until or 0 if stage else 0)

    def _clips_of_window(self, stage: int) -> int:
        held = min(self.max_clips, self.budget / self.mixtures[stage].mean_tokens)
        return max(1, round(self.window * self.packs * held))

    def _cuts(self, stage: int) -> int:
        """How many windows one cycle of draws is cut into: an epoch, where the mixture has one."""
        whole = self.mixtures[stage].whole
        return 1 if whole is None else max(1, round(whole / self._clips_of_window(stage)))

    def _start(self, stage: int, window: int) -> int:
        """The first draw of a stage's window."""
        length, cuts = self.mixtures[stage].whole or self._clips_of_window(stage), self._cuts(stage)
        cycle, part = divmod(window, cuts)
        return cycle * length + length * part // cuts

    def _windows_before(self, stage: int, draws: int) -> int:
        """How many windows of a stage begin before draw `draws`."""
        length, cuts = self.mixtures[stage].whole or self._clips_of_window(stage), self._cuts(stage)
        window = draws // length * cuts
        while self._start(stage, window) < draws:
            window += 1
        return window

    def _span(self, window: int) -> WindowDraws:
        stage = min(bisect_right(self._begins, window), len(self.stages)) - 1
        inner = window - self._begins[stage]
        first, last, draws = self._start(stage, inner), self._start(stage, inner + 1), self._draws_of(stage)
        ends = draws is not None and last >= draws
        epoch_ends = self.mixtures[stage].whole is not None and (inner + 1) % self._cuts(stage) == 0
        return WindowDraws(stage, first, min(last, draws) if draws is not None else last, ends or epoch_ends)

    def _walk(self, packs: int) -> None:
        """Plan windows until at least `packs` packs are known."""
        while self._before[-1] < packs:
            self._planned(len(self._before) - 1)

    def _planned(self, window: int) -> Packs:
        if window in self._windows:
            self._windows.move_to_end(window)
            return self._windows[window]
        first = max(mark for mark in self._marks if mark <= window) if self.filling.waits else window
        waiting = self._marks[first] if self.filling.waits else None
        for number in range(first, window + 1):
            self._windows[number], waiting = self._plan(number, waiting)
            self._mark(number + 1, waiting)
            if number + 1 == len(self._before):
                self._before.append(self._before[number] + len(self._windows[number].ends))
                if self._counted is not None:
                    self._counted.keep(self._before, self._marks)
            while len(self._windows) > _KEPT:
                self._windows.popitem(last=False)
        return self._windows[window]

    def _plan(self, window: int, waiting: DrawnClips | None) -> tuple[Packs, DrawnClips | None]:
        """A window's packs in the order in which steps take them, and the clips that wait for the next window."""
        span = self._span(window)
        mixture = self.mixtures[span.stage]
        drawn = mixture.draw(span.first, span.last)
        if waiting is not None:
            drawn = DrawnClips(*(np.concatenate(pair) for pair in zip(waiting, drawn, strict=True)))
        grids = self.clips.measured(drawn.rows, mixture.stage.limits).grids
        order, ends, left = self.filling.fill(grids, budget=self.budget, max_clips=self.max_clips, closing=span.closing)
        tokens = grids.prod(axis=1)[order]
        paid = self.filling.paid(tokens, ends, cost=self.cost, budget=self.budget)
        owner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        sequence = self._sequence(window, paid)
        place = np.empty_like(sequence)
        place[sequence] = np.arange(len(sequence))
        # Equal lengths stand together in a pack (the CPU's attention batches them); the row breaks ties.
        within = np.lexsort((drawn.rows[order], tokens, place[owner]))
        sizes = np.diff(ends, prepend=0)[sequence]
        chosen = order[within]
        packs = Packs(drawn.rows[chosen], drawn.epochs[chosen], tokens[within], np.cumsum(sizes), paid[sequence], span.stage)
        rest = DrawnClips(drawn.rows[left], drawn.epochs[left]) if len(left) else None
        return packs, rest

    def _mark(self, window: int, waiting: DrawnClips | None) -> None:
        """Remember the clips that wait at a window: for each of the last `MARK` windows, and for every `MARK`-th earlier one."""
        if self.filling.waits:
            self._marks[window] = waiting
            if (window - MARK) % MARK:
                self._marks.pop(window - MARK, None)

    def _sequence(self, window: int, paid: Float[np.ndarray, "packs"]) -> Int[np.ndarray, "packs"]:
        """The order in which steps take a window's packs: [end of a step begun in an earlier window | whole steps | beginning of the next].

        The steps at both ends get packs from the middle of the order by cost, since their other packs are of windows of the same mix.
        """
        count = len(paid)
        if not self.filling.balanced:
            return np.arange(count)
        head = min(count, -self._before[window] % self.packs)
        steps = (count - head) // self.packs
        over = count - steps * self.packs
        draw = generator(f"plan/{self.clips.fingerprint}/steps", seed=self.seed, epoch=0, sample=window)
        shuffled = draw.permutation(count)
        ranked = shuffled[np.argsort(-paid[shuffled], kind="stable")]
        low = (count - over) // 2
        middle, rest = ranked[low : low + over], np.concatenate((ranked[:low], ranked[low + over :]))
        bands = rest.reshape(self.accumulate, steps, self.packs // self.accumulate)
        chosen = [band[draw.permutation(steps)] for band in bands]
        whole = np.stack(chosen, axis=1).reshape(-1) if steps else rest
        return np.concatenate((middle[:head], whole, middle[head:]))

    def _items(self, rows: Int[np.ndarray, "n"], epochs: Int[np.ndarray, "n"], stage: int) -> list[Item]:
        cuts = self.clips.cut(rows, epochs, self.stages[stage].limits, seed=self.seed)
        each = zip(rows.tolist(), epochs.tolist(), cuts, strict=True)
        return [Item(row=row, epoch=epoch, crop=crop, size=size) for row, epoch, (crop, size) in each]


def _chunks(row: int, first: int, last: int) -> Iterator[Int[np.ndarray, "n"]]:
    """All rows from the one after `row` on, wrapping around the end, without `row` itself, in arrays."""
    for start, stop in ((row + 1, last), (first, row)):
        for begin in range(start, stop, _CHUNK):
            yield np.arange(begin, min(begin + _CHUNK, stop))
