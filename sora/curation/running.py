"""Runs a stage over units: those without a result are worked on by an engine, and each result is saved as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa

from sora.curation.inputs import Unit
from sora.curation.result_forms import ResultForm
from sora.curation.results import CurationStage, Failure, Results
from sora.curation.steps.finding import UnitWork
from sora.ingest.tree import Run


class Tally(NamedTuple):
    """Counts of a stage's units. done: with a result. failed: with a reason instead. barred: that failed in a stage before."""

    done: int
    failed: int
    barred: int
    left: int


class StageFunction(Protocol):
    """What makes the result of a unit: a table of the form that it states."""

    @property
    def form(self) -> ResultForm: ...

    def __call__(self, work: UnitWork) -> pa.Table: ...


def own_name(unit: Unit) -> str:
    return unit.name


@dataclass(frozen=True)
class Step:
    """A stage with its function and the steps that come before it. reads: whether the function takes their results. tables, texts: for a
    unit, more that it takes. named: the name of a unit's result, where that depends on more than the unit's content. group_rows: the most
    rows of a row group of a result."""

    stage: CurationStage
    results: Results
    function: StageFunction
    after: tuple[Step, ...] = ()
    reads: bool = True
    tables: Callable[[Unit], dict[str, pa.Table]] | None = None
    texts: Callable[[Unit], tuple[str, ...]] | None = None
    named: Callable[[Unit], str] = own_name
    group_rows: int = 4096

    def has(self, unit: Unit) -> bool:
        """Whether a unit has a result or a failure here."""
        return self.results.has(self.named(unit))

    def failure(self, unit: Unit) -> Failure | None:
        """Why a unit has no result here; None if it has one, or has not been tried."""
        return self.results.failure(self.named(unit))

    def read(self, unit: Unit, *, only: Callable[[str], bool] = lambda name: True) -> pa.Table:
        """The result of a unit, those columns whose names are wanted."""
        return self.results.read(self.named(unit), only=only)

    def groups(self, unit: Unit) -> Iterator[pa.Table]:
        """The result of a unit, one row group after another."""
        return self.results.groups(self.named(unit))

    def lost(self, unit: Unit) -> Failure | None:
        """Why a unit has no result and will have none: it failed here or in a stage before. None otherwise."""
        for step in self.after:
            if (failure := step.lost(unit)) is not None:
                return failure
        return self.failure(unit)

    def ready(self, unit: Unit) -> bool:
        """Whether all stages before have a result for a unit."""
        return all(step.has(unit) and step.lost(unit) is None for step in self.after)

    def work(self, unit: Unit) -> UnitWork:
        tables = {step.stage.name: step.read(unit) for step in self.after} if self.reads else {}
        more = self.tables(unit) if self.tables is not None else {}
        return UnitWork(unit, tables | more, self.texts(unit) if self.texts is not None else ())


def run_step(step: Step, units: Sequence[Unit], *, run: Run, report: Callable[[int], None] = lambda done: None) -> None:
    """Work on the units that have no result yet and that no stage before failed on. report: called with how many units are settled."""
    settled = 0

    def left() -> Iterator[UnitWork]:
        nonlocal settled
        for unit in units:  # looked at late, as another job may have made a result meanwhile
            if step.has(unit) or not step.ready(unit):
                settled += 1
                report(settled)
            else:
                yield step.work(unit)

    for done in run(step.function, left()):
        unit = done.item.unit
        if done.result is None:
            # Where a video lies is not part of what is known about it.
            step.results.fail(step.named(unit), Failure(done.reason.removeprefix(f"{unit.path} "), done.died))
        else:
            step.results.write(step.named(unit), done.result, group_rows=step.group_rows)
        settled += 1
        report(settled)


def forget_failed(step: Step, units: Sequence[Unit]) -> int:
    """Remove the failures of units, so that they are tried again; how many there were."""
    return sum(step.results.forget(step.named(unit)) for unit in units)


def tally(step: Step, units: Sequence[Unit]) -> Tally:
    """How many units are done, failed, barred by a stage before and left."""
    done = failed = barred = 0
    for unit in units:
        if step.has(unit):
            lost = step.failure(unit) is not None
            done, failed = done + (not lost), failed + lost
        elif step.lost(unit) is not None:
            barred += 1
    return Tally(done, failed, barred, len(units) - done - failed - barred)
