"""The stage `select`: it decides about every clip of all units, in the order of the units' names, so in the same order in every run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from sora.curation.inputs import Inputs, SourceFacts, Unit
from sora.curation.result_forms import ResultForm
from sora.curation.results import Results, changed
from sora.curation.running import Step
from sora.curation.scores.table import BASIC_SCORES
from sora.curation.selecting import KEPT, Candidate, Decider, SelectionRules
from sora.curation.steps.deduplicating import Copies, Member
from sora.gate.forms import Fields, fitting, flag, text, word
from sora.gate.texts import LIST, json_of
from sora.safety.claims import NO_CLAIMS, OriginClaims

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
DECISIONS = ResultForm(
    schema=DECIDED, rising=False, least={"number": 0, "first": 0, "end": 1, "start": -math.inf, "seconds": 0}, spans="each"
)
_CLAIMS = Fields(
    {"state": word("none", "unread", "valid", "trusted", "invalid"), "synthetic": flag, "why": text}
    | {"training": word("", "allowed", "constrained", "notAllowed")},
    closed=True,
)
_ROWS = 8192  # rows that are written together


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is decided on. clips, scores: the steps that list and score clips; probed: that of a video's facts. copies: clips that show the
    same."""

    inputs: Inputs
    clips: Step
    scores: Sequence[Step]
    probed: Step | None
    copies: Copies

    def lost(self, unit: Unit) -> str | None:
        """Why a unit has no clips to decide on; None if it has."""
        for step in (self.clips, *self.scores):
            if (failure := step.lost(unit)) is not None:
                return f"{failure.stage}: {failure.reason}"
        return None

    def candidates(self, unit: Unit) -> Iterator[tuple[dict, Candidate]]:
        """The clips of a unit, each as a row of its table of clips and as a candidate."""
        tables = [step.read(unit, only=is_score).to_pylist() for step in self.scores]
        scores: dict[int, dict[str, float]] = {}
        reasons: dict[int, str] = {}
        for row in (row for table in tables for row in table):
            scores.setdefault(row["number"], {}).update({name: value for name, value in row.items() if isinstance(value, float)})
            reasons[row["number"]] = reasons.get(row["number"]) or row.get("reason") or ""
        facts, claims = self.inputs.facts.get(unit.name, SourceFacts()), self._claims(unit)
        for row in self.clips.read(unit).to_pylist():
            listed = unit.shard is not None  # then what is known of it stands in its own row
            known = {name: float(row[column]) for name, column in zip(BASIC_SCORES, ("duration", "height", "width", "fps"), strict=True)}
            candidate = Candidate(
                source=row["source"] if listed else unit.told,
                content=row["digest"] if listed else unit.name,
                number=row["number"],
                seconds=row["duration"],
                scores=known | scores.get(row["number"], {}),
                facts=SourceFacts((), *(row[name] for name in ("licence", "consent", "origin"))) if listed else facts,
                claims=replace(claims, synthetic=row["synthetic"]) if listed else claims,
                guard=self.copies.guards.get((unit.name, row["number"]), ""),
                reason=row["reason"] or reasons.get(row["number"], ""),
                video=row["video"] if listed else "",
            )
            yield row, candidate

    def _claims(self, unit: Unit) -> OriginClaims:
        if self.probed is None:
            return NO_CLAIMS
        said = self.probed.read(unit, only=lambda name: name == "claims")["claims"][0].as_py()
        path = self.probed.results.path(unit.name)
        try:
            return OriginClaims(**fitting(json_of(said.encode(), limit=LIST), _CLAIMS, "claims"))
        except ValueError as error:
            raise changed(path, str(error)) from None


def is_score(column: str) -> bool:
    """Whether a column of a result of scores has scores, or the number or reason of its row, rather than a signature or a still."""
    return not column.startswith(("signature_", "still_"))


def decide(judged: Judged, selection: SelectionRules, results: Results, name: str) -> None:
    """Decide about all clips and save the decisions as the result `name`.

    Raises:
        ValueError: a rule is about a score that no clip has.
    """
    decider, rows, names = selection.deciding(), list[dict](), set[str]()
    repeated = _repeated(judged, decider)
    with results.writing(name, DECIDED) as add:
        for unit in judged.inputs.units:
            if judged.lost(unit) is not None:
                continue
            for row, candidate in judged.candidates(unit):
                names |= candidate.scores.keys()
                decision = decider(candidate, copy_of=repeated.get((unit.name, row["number"]), ""))
                said = {name: row[name] for name in ("number", "key", "first", "end", "start")}
                said |= {
                    "unit": unit.name,
                    "source": candidate.source,
                    "seconds": row["duration"],
                    "rule": decision.rule,
                    "reason": decision.reason,
                }
                rows.append(said | {"synthetic": candidate.claims.synthetic, "scores": sorted(candidate.scores.items())})
            if len(rows) >= _ROWS:
                _write(add, rows)
        _write(add, rows)
        if names:
            decider.refuse_unknown(names)


def _repeated(judged: Judged, decider: Decider) -> dict[Member, str]:
    """The clips that repeat the best clip of their group that no other rule leaves out, and that clip's source and number."""
    units = {unit.name: unit for unit in judged.inputs.units}
    asked: dict[str, set[int]] = {}
    for unit, number in (member for group in judged.copies.groups for member in group):
        asked.setdefault(unit, set()).add(number)
    fit: dict[Member, str] = {}
    for name, numbers in asked.items():
        if judged.lost(units[name]) is None:
            for row, candidate in judged.candidates(units[name]):
                if row["number"] in numbers and decider.alone(candidate) is KEPT:
                    fit[name, row["number"]] = row["key"] or f"{units[name].told} clip {row['number']}"
    found: dict[Member, str] = {}
    for group in judged.copies.groups:
        alive = [member for member in group if member in fit]
        found |= dict.fromkeys(alive[1:], fit[alive[0]]) if alive else {}
    return found


def _write(add: Callable[[pa.Table, int], None], rows: list[dict]) -> None:
    if rows:
        add(pa.table({name: [row[name] for row in rows] for name in DECIDED.names}, schema=DECIDED), _ROWS)
        rows.clear()


def decided(results: Results, name: str, inputs: Inputs) -> Iterator[tuple[str, list[dict]]]:
    """The decisions about the clips of one unit after another: its name, and a row for each clip.

    Raises:
        ValueError: they are of another input, or out of order.
    """
    known = {unit.name for unit in inputs.units}
    unit, number, rows = "", -1, list[dict]()
    for table in results.groups(name):
        for row in table.to_pylist():
            if row["unit"] != unit:
                if row["unit"] < unit or row["unit"] not in known:
                    raise changed(results.path(name), f"its unit {row['unit'][:100]} is none of the input, or out of order")
                if rows:
                    yield unit, rows
                unit, number, rows = row["unit"], -1, []
            if row["number"] <= number:
                raise changed(results.path(name), f"clip {row['number']} of {unit} is out of order")
            number = row["number"]
            rows.append(row | {"scores": dict(row["scores"])})
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
