"""How far a curation is, from the files in its work folder: a plan of its stages and units, and the results that are there."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from sora.curation.inputs import Unit
from sora.curation.results import Results
from sora.curation.running import Step
from sora.data.index.rows import write_table
from sora.data.index.units import JobPart
from sora.gate import parquet
from sora.gate.forms import Fields, fitting, text, whole
from sora.gate.texts import LIST, read_json
from sora.system.files import write_json

PLAN, UNITS = "curation.json", "plan"
_LATEST = 256  # results by whose times a rate is measured
_SHOWN = 5  # reasons
SCORING = ("score", "embed")  # how the names of stages begin on which no other depends
FORM = Fields({"version": whole(1, 1), "stages": [text]})


class StageProgress(NamedTuple):
    """How far a stage is. barred: units that failed in a stage before. rate: units a second lately, 0 if it is not known. seconds: the time
    left at this rate; None if not known.

    reasons: units that failed, as people know them, and why, the first few.
    """

    stage: str
    done: int
    failed: int
    barred: int
    left: int
    rate: float
    seconds: float | None
    reasons: list[tuple[str, str]]


def write_stages(work: Path, stages: Sequence[Results]) -> None:
    """Write which stages there are, in their order, for `progress`. Nothing else reads it."""
    write_json(work / PLAN, {"version": 1, "stages": [results.folder.name for results in stages]})


def write_units(work: Path, step: Step, units: Sequence[Unit], part: JobPart) -> None:
    """Write the units that a job is to do of a stage, for `progress`."""
    table = pa.table({"name": [step.named(unit) for unit in units], "told": [unit.told for unit in units]}, schema=_TOLD)
    write_table(work / UNITS / f"{step.stage.folder}-{part.number}-of-{part.of_all}.parquet", table, lasting=False)


_TOLD = pa.schema([("name", pa.string()), ("told", pa.string())])


def progress(work: Path) -> Iterator[StageProgress]:
    """How far each stage of a work folder is, in order. Raises ValueError if it is none."""
    if not (work / PLAN).is_file():
        raise ValueError(f"{work} is no work folder of sora curate, or nothing was begun there: it has no {PLAN}")
    plan = fitting(read_json(work / PLAN, limit=LIST, within=work), FORM, str(work / PLAN), "give the command of the curation again")
    lost = set[str]()  # units, as people know them, that failed where all that follows needs a result
    for folder in plan["stages"]:
        told: dict[str, str] = {}
        for path in sorted((work / UNITS).glob(f"{glob.escape(folder)}-*.parquet")):
            table = parquet.read(path, within=work)
            if not table.schema.equals(_TOLD) or table["name"].null_count or table["told"].null_count:
                raise ValueError(f"{path} is not as sora curate wrote it; give the command of the curation again")
            told |= dict(zip(table["name"].to_pylist(), table["told"].to_pylist(), strict=True))
        if told:
            results = Results(work / folder)
            settled = {name: how for name, how in results.settled().items() if name in told}
            yield _progress(results, told, settled, lost)
            if not results.name.startswith(SCORING):
                lost |= {told[name] for name, (_, failed) in settled.items() if failed}


def _progress(results: Results, told: dict[str, str], settled: dict[str, tuple[float, bool]], lost: Collection[str]) -> StageProgress:
    failed = sorted(name for name, (_, is_failure) in settled.items() if is_failure)
    barred = sum(told[name] in lost for name in told.keys() - settled.keys())
    left = len(told) - len(settled) - barred
    times = sorted(when for when, _ in settled.values())[-_LATEST:]
    lasted = times[-1] - times[0] if len(times) > 1 else 0.0
    rate = (len(times) - 1) / lasted if lasted > 0 else 0.0
    seconds = left / rate if rate else None
    reasons = [(told[name], failure.reason) for name in failed[:_SHOWN] if (failure := results.failure(name)) is not None]
    return StageProgress(results.name, len(settled) - len(failed), len(failed), barred, left, rate, seconds, reasons)
