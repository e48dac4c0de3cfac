"""The stage `select`: it decides about every clip of all units, in the order of the units' names, so in the same order in every run."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sora.curation.inputs import Inputs, SourceFacts, Unit
from sora.curation.running import Step
from sora.curation.selecting import Candidate, SelectionRules
from sora.curation.stages import Results
from sora.safety.claims import NO_CLAIMS, OriginClaims
from sora.system.files import local, whole_file

DECIDED = pa.schema(
    [
        ("unit", pa.string()),
        ("source", pa.string()),
        ("number", pa.int32()),
        ("key", pa.string()),
        ("first", pa.int64()),
        ("end", pa.int64()),
        ("start", pa.float64()),
        ("seconds", pa.float64()),
        ("rule", pa.string()),
        ("reason", pa.string()),
        ("synthetic", pa.bool_()),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)  # one row for each clip. rule, reason: why it is left out, both "" if it is kept
_ROWS = 8192  # rows that are written together


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is decided on. clips, scores: the steps that list and score clips; probed: that of a video's facts. copies: for (unit, number)
    the better clip that it repeats."""

    inputs: Inputs
    clips: Step
    scores: Sequence[Step]
    probed: Step | None
    copies: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def lost(self, unit: Unit) -> str | None:
        """Why a unit has no clips to decide on; None if it has."""
        for step in (self.clips, *self.scores):
            if (failure := step.lost(unit)) is not None:
                return f"{step.stage.name}: {failure.reason}"
        return None

    def candidates(self, unit: Unit) -> Iterator[tuple[dict, Candidate]]:
        """The clips of a unit, each as a row of its table of clips and as a candidate."""
        tables = [step.results.read(unit.name, only=is_score).to_pylist() for step in self.scores]
        scores: dict[int, dict[str, float]] = {}
        reasons: dict[int, str] = {}
        for row in (row for table in tables for row in table):
            scores.setdefault(row["number"], {}).update({name: value for name, value in row.items() if isinstance(value, float)})
            reasons[row["number"]] = reasons.get(row["number"]) or row.get("reason") or ""
        facts, claims = self.inputs.facts.get(unit.name, SourceFacts()), self._claims(unit)
        for row in self.clips.results.read(unit.name).to_pylist():
            known = {"fps": row["fps"], "height": float(row["height"]), "width": float(row["width"]), "seconds": row["duration"]}
            candidate = Candidate(
                source=unit.told,
                content=unit.name,
                number=row["number"],
                seconds=row["duration"],
                scores=known | scores.get(row["number"], {}),
                facts=facts,
                claims=claims,
                copy_of=self.copies.get((unit.name, row["number"]), ""),
                reason=row["reason"] or reasons.get(row["number"], ""),
            )
            yield row, candidate

    def _claims(self, unit: Unit) -> OriginClaims:
        if self.probed is None:
            return NO_CLAIMS
        return OriginClaims(**json.loads(self.probed.results.read(unit.name, only=lambda name: name == "claims")["claims"][0].as_py()))


def is_score(column: str) -> bool:
    """Whether a column of a result of scores has scores, or the number or reason of its row, rather than a signature or a still."""
    return not column.startswith(("signature_", "still_"))


def decide(judged: Judged, selection: SelectionRules, path: Path) -> None:
    """Decide about all clips and write the decisions to a parquet file.

    Raises:
        ValueError: a rule is about a score that no clip has.
    """
    decider, rows, names = selection.deciding(), list[dict](), set[str]()
    with whole_file(path) as staging, pq.ParquetWriter(local(staging), DECIDED, compression="zstd") as writer:
        for unit in judged.inputs.units:
            if judged.lost(unit) is not None:
                continue
            for row, candidate in judged.candidates(unit):
                names |= candidate.scores.keys()
                decision = decider(candidate)
                said = {name: row[name] for name in ("number", "key", "first", "end", "start")}
                said |= {
                    "unit": unit.name,
                    "source": unit.told,
                    "seconds": row["duration"],
                    "rule": decision.rule,
                    "reason": decision.reason,
                }
                rows.append(said | {"synthetic": candidate.claims.synthetic, "scores": sorted(candidate.scores.items())})
            if len(rows) >= _ROWS:
                _write(writer, rows)
        _write(writer, rows)
        if names:
            decider.refuse_unknown(names)


def _write(writer: pq.ParquetWriter, rows: list[dict]) -> None:
    if rows:
        writer.write_table(pa.table({name: [row[name] for row in rows] for name in DECIDED.names}, schema=DECIDED))
        rows.clear()


def decided(results: Results, name: str) -> Iterator[tuple[str, list[dict]]]:
    """The decisions about the clips of one unit after another: its name, and a row for each clip."""
    unit, rows = "", list[dict]()
    for table in results.groups(name):
        for row in table.to_pylist():
            if row["unit"] != unit and rows:
                yield unit, rows
                rows = []
            unit = row["unit"]
            rows.append(row | {"scores": dict(row["scores"] or ())})
    if rows:
        yield unit, rows


@dataclass
class Funnel:
    """What became of all clips: counts and seconds by the rule that left them out ("": kept), and what never was a clip."""

    clips: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, rows: Sequence[Mapping]) -> None:
        for row in rows:
            self.clips[row["rule"]] += 1
            self.seconds[row["rule"]] += row["seconds"]

    @property
    def kept(self) -> int:
        return self.clips[""]
