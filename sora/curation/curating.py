"""A curation from its input to a dataset: stages over units, then decisions over all clips, then the kept clips as shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sora.curation.deciding import DECISIONS, Funnel, Judged, decide, decided
from sora.curation.engines.local import Engine
from sora.curation.inputs import Inputs, InputSettings, Unhashed, Unit, inputs_of
from sora.curation.joining import Making, NothingMade, Shards, write_dataset
from sora.curation.results import CurationStage, Results, hashed
from sora.curation.running import StageFunction, Step, forget_failed, run_step, tally
from sora.curation.scores.table import BASIC_SCORES
from sora.curation.selecting import SelectionRules
from sora.curation.status import write_stages, write_units
from sora.curation.steps.deduplicating import Copies, Deduplication, Scored
from sora.curation.steps.finding import CLIPS, Cuts, ListClips, Probe
from sora.curation.steps.modelling import ModelScoring, texts_of
from sora.curation.steps.scoring import CheapScoring
from sora.curation.steps.transcoding import Transcode
from sora.curation.writing_sets import WrittenSets, write_sets
from sora.data.index.index import DATASET
from sora.data.index.units import WHOLE, JobPart
from sora.ingest.tree import Refused
from sora.system.files import sweep
from sora.system.locks import LockHeld

_NOT = {"probe": "probed", "cuts": "cut", "transcode": "transcoded"}
_SHOWN = 3  # reasons
STOPS = ("probe", "cuts", "scores", "select", "transcode")  # where `until` may stop
Counting = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, kw_only=True)
class CurationSettings:
    """What a curation's results depend on, as objects. dataset: the name of its folder in the work folder (None: one with its hash)."""

    reading: InputSettings
    cuts: Cuts
    scoring: Sequence[CheapScoring | ModelScoring]
    duplicates: Deduplication | None
    selection: SelectionRules
    transcode: Transcode
    shards: Shards
    dataset: str | None = None


@dataclass
class Curated:
    """What a curation has come to. waiting: what other parts have left to do, or where it was told to stop; "" if it is whole.

    lost: videos on which a stage failed, with the reason. decision: the name of the result of `select`. groups: (unit, number) of clips
    that show the same, the best first. dataset: the folder that was made, and described: the content of its dataset.json. sets: instead,
    those that were written beside the dataset that was the input. nothing: why there is neither, though all was decided; "" otherwise.
    retried: how often a stage tried a unit again that had failed.
    """

    inputs: Inputs
    waiting: str = ""
    funnel: Funnel | None = None
    lost: Sequence[Refused] = ()
    decision: str = ""
    groups: Sequence[Sequence[tuple[str, int]]] = ()
    dataset: Path | None = None
    sets: WrittenSets | None = None
    described: dict[str, Any] | None = None
    nothing: str = ""
    retried: int = 0

    def report(self) -> dict[str, Any]:
        """All lists, for a file."""
        funnel = self.funnel or Funnel()
        parts = {rule or "kept": {"parts": count, "seconds": funnel.seconds[rule]} for rule, count in sorted(funnel.clips.items())}
        return {
            "parts": parts,
            "refused": [one._asdict() for one in (*self.inputs.refused, *self.lost)],
            "passed_over": [one._asdict() for one in self.inputs.passed],
            "copies": self.inputs.copies,
            "unmade": (self.described or {}).get("unmade", []),
        }


class Curation:
    """Runs the stages. part: this job's share of the units. counting: gives a progress bar for a stage and its number of units."""

    def __init__(
        self, place: Path, work: Path, settings: CurationSettings, *, engine: Engine, counting: Counting, part: JobPart = WHOLE
    ) -> None:
        self.place, self.work, self.settings = place, work, settings
        self.engine, self.counting, self.part = engine, counting, part
        self._known: Inputs | None = None
        self._retried = 0

    @cached_property
    def steps(self) -> list[Step]:
        """The steps over units, in order; the first that lists clips is `listing`."""
        return [*self._before, self.listing, *self.scoring, *self._embedded(self.listing)]

    @cached_property
    def _before(self) -> list[Step]:
        return [] if self.from_dataset else [self._step(Probe().stage(), Probe())]

    @cached_property
    def from_dataset(self) -> bool:
        return (self.place / DATASET).is_file()

    @cached_property
    def listing(self) -> Step:
        """The step whose results list the clips of a unit."""
        if self.from_dataset:
            return self._step(ListClips().stage(), ListClips())
        (probed,) = self._before
        return self._step(self.settings.cuts.stage(probed.stage), self.settings.cuts, probed, reads=False)

    def _embedded(self, listing: Step) -> list[Step]:
        """The step that embeds clips, if it is wanted."""
        said = self.settings.duplicates
        if said is None or said.embedding is None:
            return []
        return [self._step(said.embedding.stage(listing.stage), said.embedding, listing)]

    @cached_property
    def scoring(self) -> list[Step]:
        """The steps that score clips."""
        return [self._scoring(one) for one in self.settings.scoring]

    def _scoring(self, one: CheapScoring | ModelScoring) -> Step:
        stage = one.stage(self.listing.stage)
        if isinstance(one, CheapScoring) or not one.scorer.needs_text:
            return self._step(stage, one, self.listing)
        inputs = self._known
        assert inputs is not None, "steps are asked for once the input is known"
        return self._step(stage, one, self.listing, named=one.named(inputs), texts=partial(texts_of, inputs))

    def _step(self, stage: CurationStage, function: StageFunction, *after: Step, **more: Any) -> Step:
        return Step(stage, Results(self.work / stage.folder, function.form), function, after, **more)

    @cached_property
    def select(self) -> Results:
        after = tuple(step.stage for step in self.steps)
        return Results(self.work / CurationStage("select", 2, self.settings.selection.described(), after).folder, DECISIONS)

    @cached_property
    def transcode(self) -> Step:
        return self._step(self.settings.transcode.stage(), self.settings.transcode, group_rows=1)

    def run(self, *, until: str | None = None, retry: bool = False) -> Curated:
        """Do what is left to do. until: the stage after which to stop. retry: try units again that failed.

        Raises:
            ValueError: settings do not fit the input, each other or what is there; before any work, as far as it can be known.
        """
        self._refuse(until)
        sweep(self.work)
        self._retried = 0
        done = self._ran(until=until, retry=retry)
        done.retried = self._retried
        return done

    def _ran(self, *, until: str | None, retry: bool) -> Curated:
        mine = self._known = self._inputs(self.part)
        write_stages(self.work, [step.results for step in (*self.steps, *(() if self.from_dataset else (self.transcode,)))])
        for step in self.steps:
            write_units(self.work, step, mine.units, self.part)
        self._run(self.steps, mine.units, until=until, retry=retry)
        if self.part.of_all > 1:
            try:
                whole = self._inputs(WHOLE, unread=False)
            except Unhashed as error:
                return Curated(mine, waiting=str(error))
            self._known = whole
            for name in ("scoring", "steps"):  # the names of results that cover captions follow from the input
                self.__dict__.pop(name, None)
            for step in self.steps if until is None else ():
                if left := tally(step, whole.units).left:
                    return Curated(mine, waiting=f"{left} of {len(whole.units)} units of {step.stage.name}")
        else:
            whole = mine
        if until in STOPS[:3]:
            return Curated(whole, waiting=f"until={until}")
        return self._decided(whole, until=until, retry=retry)

    def _refuse(self, until: str | None) -> None:
        """Raise ValueError for settings that would only end hours of work."""
        if self.from_dataset and until not in (None, "scores", "select"):
            raise ValueError(f"until={until}: a dataset's clips are scored and selected, not {_NOT[until]}; until=scores or until=select")
        names = {*BASIC_SCORES, *(name for one in self.settings.scoring for name in one.names)}
        self.settings.selection.deciding().refuse_unknown(names)
        for place in self.settings.duplicates.against if self.settings.duplicates else ():
            if not (place / DATASET).is_file():
                raise ValueError(f"duplicates.against: {place} is no dataset; sora prepare or sora data index makes one")

    def _decided(self, inputs: Inputs, *, until: str | None, retry: bool) -> Curated:
        copies, after = self._copies(inputs, retry=retry)
        probed = self._before[0] if self._before else None
        judged = Judged(inputs=inputs, clips=self.listing, scores=self.scoring, probed=probed, copies=copies)
        decision = self._decide(judged, after)
        funnel, sources = Funnel(), set[str]()
        for _, rows in decided(self.select, decision, inputs):
            funnel.add(rows)
            sources |= {row["source"] for row in rows if not row["rule"]}
        lost = [Refused(unit.told, 0.0, why) for unit in inputs.units if (why := judged.lost(unit)) is not None]
        done = Curated(inputs, funnel=funnel, lost=lost, decision=decision, groups=copies.groups)
        if until == "select":
            done.waiting = "until=select"
            return done
        done.nothing = self._nothing(done, sources)
        if done.nothing:
            return done
        if self.from_dataset:
            name = self.settings.dataset or f"curated_{hashed(decision, self.select.folder.name)[:8]}"
            rules = self.settings.selection.described()
            given = {"select": self.select, "decision": decision, "scoring": self.scoring, "rules": rules}
            try:
                done.sets = write_sets(self.place, inputs, name=name, **given)
            except LockHeld as error:  # of another part
                return Curated(inputs, waiting=f"the sets: {error}")
            return done
        making = Making(inputs=inputs, select=self.select, decision=decision, transcode=self.settings.transcode, made=self.transcode)
        chunks = {chunk.name: _Chunk(chunk, clips) for _, chunk, clips in making.chunks()}
        self._transcode(chunks, retry=retry)
        if until == "transcode":
            done.waiting = "until=transcode"
            return done
        identity = hashed(decision, self.select.folder.name, self.transcode.stage.folder, asdict(self.settings.shards))
        done.dataset = self.work / (self.settings.dataset or f"dataset-{identity[:8]}")
        about = {"command": "curate", "input": str(self.place), "select": self.settings.selection.described()}
        try:
            done.described = write_dataset(done.dataset, making, self.settings.shards, identity=identity, about=about)
        except LockHeld as error:  # of another part that ended at the same moment
            return Curated(inputs, waiting=f"the dataset: {error}")
        except NothingMade as error:
            done.dataset, done.nothing = None, str(error)
        return done

    def _nothing(self, done: Curated, sources: Collection[str]) -> str:
        """Why no dataset and no selection can be made of what was decided; "" if one can."""
        if not sources:
            counts = done.funnel.clips.most_common(_SHOWN) if done.funnel else ()
            why = ", ".join(f"{count} {rule}" for rule, count in counts if rule) or "; ".join(one.reason for one in done.lost[:1])
            return f"not one clip is kept{f' ({why})' if why else ''}"
        if len(sources) == 1 and self.settings.shards.held_out and not self.from_dataset:
            return f"held_out={self.settings.shards.held_out:g} is a share of the videos, and one alone has kept clips; set held_out=0"
        return ""

    def _copies(self, inputs: Inputs, *, retry: bool) -> tuple[Copies, str]:
        """What shows the same, and the name of the stage's folder; both empty if nobody asked for it."""
        said, scores = self.settings.duplicates, next((one for one in self.scoring if isinstance(one.function, CheapScoring)), None)
        if said is None or scores is None:
            return Copies(), ""
        guards = [self._guard(place, retry=retry) for place in said.against]
        embedded = next(iter(self._embedded(self.listing)), None)
        stage = said.stage(scores.stage, [of for of, _ in guards], embedded.stage if embedded else None)
        scored = Scored(units=inputs.units, clips=self.listing, scores=scores, embedded=embedded)
        with self.counting(stage.name, 1) as report:
            found = said(scored, [one for _, one in guards], Results(self.work / stage.folder, said.form))
            report(1)
        return found, stage.folder

    def _guard(self, place: Path, *, retry: bool) -> tuple[Inputs, Scored]:
        """The clips of a dataset that none of the input's may show again, scored as these are."""
        inputs = inputs_of(place, self.work, InputSettings(), run=self.engine)
        listing = self._step(ListClips().stage(), ListClips())
        scores = self._step(CheapScoring().stage(listing.stage), CheapScoring(), listing)
        embedded = self._embedded(listing)
        self._run([listing, scores, *embedded], inputs.units, until=None, retry=retry)
        return inputs, Scored(units=inputs.units, clips=listing, scores=scores, embedded=next(iter(embedded), None), told=str(place))

    def _decide(self, judged: Judged, after: str) -> str:
        """Decide about all clips, unless that was done; the name of the result. after: the stage that found duplicates."""
        name = hashed(judged.inputs.identity, after, [judged.lost(unit) for unit in judged.inputs.units])
        if not self.select.has(name):
            decide(judged, self.settings.selection, self.select, name)
        return name

    def _transcode(self, chunks: dict[str, _Chunk], *, retry: bool) -> None:
        step = replace(self.transcode, tables=lambda unit: {"kept": chunks[unit.name].table()})
        units = [chunk.unit for chunk in chunks.values()]
        mine = list(self.part.some(units).values())
        write_units(self.work, step, units, WHOLE)
        self._run([step], mine, until=None, retry=retry)
        if self.part.of_all > 1:
            self._run([step], units, until=None, retry=False)

    def _run(self, steps: Sequence[Step], units: Sequence[Unit], *, until: str | None, retry: bool) -> None:
        for step in steps:
            if retry:
                self._retried += forget_failed(step, units)
            with self.counting(step.stage.name, len(units)) as report:
                run_step(step, units, run=self.engine, report=report)
            if step.stage.name == until and until in STOPS[:2]:  # `scores` are several stages
                return

    def _inputs(self, part: JobPart, *, unread: bool = True) -> Inputs:
        with ExitStack() as stack:
            bar: list[Callable[[int], None]] = []

            def report(done: int, of: int) -> None:
                if not bar and done < of:  # else nothing is read again
                    bar.append(stack.enter_context(self.counting("inputs", of)))
                for tell in bar:
                    tell(done)

            said = {"run": self.engine, "part": part, "unread": unread, "progress": report}
            return inputs_of(self.place, self.work, self.settings.reading, **said)


@dataclass(frozen=True)
class _Chunk:
    unit: Unit
    clips: list[dict[str, Any]]

    def table(self) -> pa.Table:
        names = ("number", "first", "end")
        return pa.table(
            {name: [clip[name] for clip in self.clips] for name in names}, schema=pa.schema([CLIPS.field(name) for name in names])
        )
