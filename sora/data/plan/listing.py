"""A plan that goes through some clips once, for an evaluation; the datasets that read a training plan's steps read it too."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from sora.data.plan.clips import ClipLimits, ClipTable
from sora.data.plan.filling import Packed
from sora.data.plan.steps import Item, Pack, Plan, StepPlan
from sora.system.draws import sample_id
from sora.tokens import Grid


@runtime_checkable
class PackPlan(Plan, Protocol):
    """A plan of packs of at most `budget` tokens and `max_clips` clips."""

    clips: ClipTable
    budget: int
    max_clips: int


class Listing:
    """A plan of `count` clips spread evenly over all (None: every one), uncropped, in packs; step s is pack s, and `len` counts the packs.

    budget, max_clips: the most tokens and clips of a pack. seed: decides the windows that long videos are cut to, which never change. Clips
    that fit no pack are left out and counted in `skipped`; nothing replaces a clip that cannot be read. ValueError if none is left.
    """

    def __init__(self, clips: ClipTable, *, count: int | None, budget: int, max_clips: int, seed: int) -> None:
        total = clips.starts[-1]
        if count is not None and count < 1:
            raise ValueError(f"{count} held-out clips: give at least one, or null for all of them")
        rows = np.unique(np.linspace(0, total - 1, min(count or total, total)).round().astype(np.int64))
        measured = clips.measured(rows, ClipLimits())
        tokens = measured.grids.prod(axis=1)
        usable = (measured.reasons == 0) & (tokens <= budget)
        found = {clips.reasons[reason]: int((measured.reasons == reason).sum()) for reason in np.unique(measured.reasons).tolist()}
        self.skipped = {reason: number for reason, number in found.items() if reason}
        if long := int(((measured.reasons == 0) & (tokens > budget)).sum()):
            self.skipped["longer than plan.budget"] = long
        if not usable.any():
            raise ValueError(f"none of {len(rows)} held-out clips can be used: {self.skipped}")
        self.clips, self.budget, self.max_clips = clips, budget, max_clips
        self.rows, self.grids = rows[usable], tuple(Grid(*grid) for grid in measured.grids[usable].tolist())
        cuts = clips.cut(self.rows, np.zeros_like(self.rows), ClipLimits(), seed=seed)
        self._items = [Item(row=row, epoch=0, crop=crop, size=size) for row, (crop, size) in zip(self.rows.tolist(), cuts, strict=True)]
        filled = Packed().fill(measured.grids[usable], budget=budget, max_clips=max_clips, closing=True)
        self._packs = [part.tolist() for part in np.split(filled.order, filled.ends[:-1])]

    def __len__(self) -> int:
        return len(self._packs)

    @property
    def samples(self) -> tuple[int, ...]:
        """The sample ids of all clips, in the order of `rows` and `grids`."""
        return tuple(sample_id(self.clips.key(row)) for row in self.rows.tolist())

    def at(self, step: int) -> StepPlan:
        """Pack number `step`, counted from 0."""
        return StepPlan(step=step, packs=(Pack(tuple(self._items[place] for place in self._packs[step])),))

    def replacement(self, item: Item, attempt: int) -> Item | None:
        """None: the evaluation's figures are of these clips and no others."""
        return None
