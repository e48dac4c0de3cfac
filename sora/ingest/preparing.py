"""The steps of `sora prepare`: any number of processes and jobs make and save the units of its source; then all are joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from sora.data.index.columns import FOLDER as COLUMNS
from sora.data.index.index import Caption, ClipFacts, DatasetWriter
from sora.data.index.units import Units, UnitWriter, is_kept
from sora.data.index.writer import DATASET
from sora.ingest.sources import STREAM, IngestJob, Made, SourceNote
from sora.ingest.tree import Refused, Run, listed
from sora.system.files import STAGING, write_json
from sora.system.terminal import counted

REPORT = "report.json"
_MADE, _REFUSED, _NOTED = "clip", "refused", "noted"  # the kinds of a unit's records


class Kept(NamedTuple):
    """A finished unit. identity: the name under which it is saved."""

    unit: Any
    identity: str


class _Step(NamedTuple):
    """A step of the work on unit `number` of `job.units`. last: whether it is the unit's last step."""

    number: int
    identity: str
    work: Any
    last: bool


class _Look:
    """Callable that returns a unit's identity and the steps that are left for it: None if it is saved already."""

    def __init__(self, job: IngestJob, units: Units) -> None:
        self._identity, self._steps, self._folder = job.identity, job.steps, units.folder

    def __call__(self, numbered: tuple[int, Any]) -> tuple[str, list[Any] | None]:
        identity = self._identity(numbered[1])
        return identity, None if is_kept(self._folder, identity) else self._steps(numbered[1])


class _Make:
    def __init__(self, job: IngestJob) -> None:
        self._make = job.make

    def __call__(self, step: _Step) -> list[Made | Refused | SourceNote]:
        return self._make(step.work)


def keep(
    job: IngestJob, units: Units, *, run: Run, report: Callable[[int, int], None] = lambda units, clips: None
) -> tuple[list[Kept], list[Refused]]:
    """Make and save those units of this part that are not saved yet; return the finished ones, in order, and why others give nothing.

    It ends early once there are `job.most` clips. report: called with the numbers of units and clips that are done.
    """
    kept: list[Kept] = []
    refused: list[Refused] = []
    clips = looked = 0
    enough = job.most if job.most is not None else float("inf")

    def steps() -> Iterator[_Step]:
        nonlocal clips, looked
        for done in run(_Look(job, units), iter(units.part.some(job.units).items())):
            number, unit = done.item
            looked += 1
            if done.result is None:
                refused.append(Refused(job.name_of(unit), 0.0, done.reason))
                continue
            identity, left = done.result
            kept.append(Kept(unit, identity))
            if left is None:
                clips += _clips(units.records(identity))
                report(looked, clips)
            for place, work in enumerate(left or ()):
                yield _Step(number, identity, work, place == len(left or ()) - 1)
            if clips >= enough:
                return

    with ExitStack() as stack:
        writing: UnitWriter | None = None
        for done in run(_Make(job), steps()):
            step: _Step = done.item
            if writing is None:
                writing = stack.enter_context(units.writing(step.identity))
            found = [Refused(job.name_of(job.units[step.number]), 0.0, done.reason)] if done.result is None else done.result
            writing.again = writing.again or done.died
            for one in found:
                if isinstance(one, Made):
                    writing.add({_MADE: asdict(one.facts)}, one.media)
                else:
                    writing.add({_NOTED if isinstance(one, SourceNote) else _REFUSED: one._asdict()})
            if step.last:
                clips += _clips([entry["record"] for entry in writing.records])
                writing = None
                stack.close()
                report(looked, clips)
                if clips >= enough:
                    break
    return kept, refused


def _clips(records: list[dict[str, Any]]) -> int:
    return sum(_MADE in record for record in records)


def join(
    job: IngestJob, units: Units, kept: list[Kept], refused: list[Refused], *, max_bytes: int, about: dict[str, Any]
) -> dict[str, Any]:
    """Join finished units: write shards, an index and `report.json` into the folder above theirs; return the content of dataset.json.

    The result also has the counts "refused" and "passed", and "told", lines for people.
    """
    folder, refused, noted, copied = units.output, [*job.refused, *refused], list[SourceNote](), 0
    _clear(folder)
    job.settle(_facts(record) for one in kept for record in units.records(one.identity) if _MADE in record)
    with DatasetWriter(folder, licence=job.licence, max_bytes=max_bytes) as writer:
        for one in kept:
            for record, media in units.read(one.identity):
                if _REFUSED in record:
                    refused.append(Refused(**record[_REFUSED]))
                elif _NOTED in record:
                    noted.append(SourceNote(**record[_NOTED]))
                elif job.most is None or writer.rows < job.most:
                    facts = job.completed(_facts(record))
                    copied += facts.extra.get(STREAM) == "copied"
                    writer.write(facts, media)
        if not writer.rows:
            raise ValueError(f"not one clip could be made{_why(job, refused)}")
        lists = {"refused": [one._asdict() for one in refused], "passed_over": [one._asdict() for one in job.passed]}
        lists["noted"] = [one._asdict() for one in noted]

        def told(described: dict[str, Any]) -> None:
            write_json(
                folder / REPORT,
                {
                    "clips": writer.rows,
                    "copied": copied,
                    "splits": described["splits"],
                    "captioned": described["captioned"],
                    **lists,
                    **job.notes,
                },
            )

        described = writer.finish(about, before=told)
    told_copied = [f"{counted(copied, 'clip keeps', 'clips keep')} the stream of their file, without a loss"] if copied else []
    return described | {"refused": len(refused), "passed": len(job.passed), "told": [*job.told, *_lines(noted), *told_copied]}


def _lines(noted: list[SourceNote]) -> list[str]:
    """Lines with the notes on all files: each note once, with the first file."""
    lines = []
    for what in sorted({one.what for one in noted}):
        files = [one for one in noted if one.what == what]
        frames = sum(one.frames for one in files)
        lines.append(f"{f'{frames} ' if frames else ''}{what}: {counted(len(files), 'file')}, the first {files[0].source}")
    return lines


def _facts(record: dict[str, Any]) -> ClipFacts:
    told = record[_MADE]
    return ClipFacts(**{**told, "captions": tuple(Caption(**caption) for caption in told["captions"])})


def _clear(folder: Path) -> None:
    """Remove the shards that an earlier, stopped call had joined: its settings may have been others."""
    patterns = ("video-*.tar", "meta-*.parquet", REPORT, DATASET, f"{COLUMNS}/*", f"{STAGING}*", f"{COLUMNS}/{STAGING}*")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        path.unlink(missing_ok=True)


def _why(job: IngestJob, refused: list[Refused]) -> str:
    told = [f"{one.source}: {one.reason}" for one in refused] or [f"{one.source} {one.reason}" for one in job.passed]
    return f" of {counted(len(job.units) + len(job.refused), 'file')}: {listed(told)}" if told else ""
