"""The stage `duplicates`: which clips of all units show the same, from the signatures that the stage `scores` has left."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from sora.curation.duplicates.grouping import ClipColumns, find_duplicates
from sora.curation.duplicates.signature import Signature
from sora.curation.inputs import Inputs, Unit
from sora.curation.result_forms import ResultForm
from sora.curation.results import CurationStage, Results, changed, hashed
from sora.curation.running import Step
from sora.curation.steps.modelling import Embedding
from sora.curation.steps.scoring import SIGNATURE

Member = tuple[str, int]  # the name of a unit, and the number of a clip in it
_KEPT = 256  # units whose signatures are in memory
FOUND = pa.schema([("unit", pa.string()), ("number", pa.int32()), ("group", pa.int32()), ("rank", pa.int32()), ("guard", pa.string())])
# One row for each clip that shows what another one shows. group: -1 without; rank: 0 is the best. guard: the clip of `against` it shows


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Units with the steps that list and score their clips, and the one that embeds them, if it is wanted. told: the name of the whole, for
    messages; "" for the input itself."""

    units: Sequence[Unit]
    clips: Step
    scores: Step
    embedded: Step | None = None
    told: str = ""


@dataclass(frozen=True)
class Copies:
    """What was found. groups: clips that show the same, the best first. guards: for a clip that shows a clip of `against`, that one."""

    groups: list[list[Member]] = field(default_factory=list)
    guards: Mapping[Member, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Deduplication:
    """Settings of the stage. overlap: share of the shorter clip, in (0, 1], that lies beside pictures of the other. against: datasets, such
    as those of evaluations, none of whose clips may be shown again. embedding: the stage by whose vectors clips are compared, too (None:
    none). similarity: the least cosine of those that count as the same, in (0, 1]."""

    form = ResultForm(schema=FOUND, least={"number": 0, "group": -1, "rank": 0}, rising=False)
    overlap: float
    against: Sequence[Path] = ()
    embedding: Embedding | None = None
    similarity: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"duplicates.similarity={self.similarity} must lie in (0, 1]")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"duplicates.overlap={self.overlap} must lie in (0, 1]")

    def stage(self, scores: CurationStage, guards: Sequence[Inputs], embedded: CurationStage | None = None) -> CurationStage:
        settings: dict[str, object] = {"overlap": self.overlap, "against": [one.identity for one in guards]}
        if embedded is None:
            return CurationStage("duplicates", 1, settings, (scores,))
        return CurationStage("duplicates", 1, settings | {"similarity": self.similarity}, (scores, embedded))

    def __call__(self, scored: Scored, guards: Sequence[Scored], results: Results) -> Copies:
        """Find duplicates, unless that was done."""
        lost = [[unit.name for unit in one.units if one.scores.lost(unit)] for one in (scored, *guards)]
        bare = [[unit.name for unit in one.units if one.embedded and one.embedded.lost(unit)] for one in (scored, *guards)]
        name = hashed([unit.name for unit in scored.units], lost, *([bare] if self.embedding else []))
        if not results.has(name):
            results.write(name, self._found(scored, guards))
        found = _read(results.read(name))
        known = {unit.name for unit in scored.units}
        if odd := next((unit for group in (*found.groups, found.guards) for unit, _ in group if unit not in known), None):
            raise changed(results.path(name), f"its unit {odd[:100]} is none of the input")
        return found

    def _found(self, scored: Scored, guards: Sequence[Scored]) -> pa.Table:
        clips, members = _table([scored])
        against, _ = _table(guards)
        similarity = self.similarity if self.embedding is not None else None
        found = find_duplicates(clips, against=against if len(against) else None, overlap=self.overlap, similarity=similarity)
        places = dict(zip(clips.keys, members, strict=True))
        rows: dict[Member, dict[str, object]] = {}
        for group, keys in enumerate(found.groups):
            for rank, key in enumerate(keys):
                rows[places[key]] = {"group": group, "rank": rank, "guard": ""}
        for key, guard in found.guarded.items():
            rows.setdefault(places[key], {"group": -1, "rank": 0})["guard"] = guard
        listed = [{"unit": unit, "number": number, **said} for (unit, number), said in sorted(rows.items())]
        return pa.table({name: [row[name] for row in listed] for name in FOUND.names}, schema=FOUND)


def _read(table: pa.Table) -> Copies:
    groups: dict[int, list[tuple[int, Member]]] = {}
    guards: dict[Member, str] = {}
    for row in table.to_pylist():
        member = (row["unit"], row["number"])
        if row["group"] >= 0:
            groups.setdefault(row["group"], []).append((row["rank"], member))
        if row["guard"]:
            guards[member] = row["guard"]
    return Copies([[member for _, member in sorted(ranked)] for _, ranked in sorted(groups.items())], guards)


def _table(several: Sequence[Scored]) -> tuple[ClipColumns, list[Member]]:
    """All clips with a signature, and where each lies."""
    members, places = list[Member](), list[tuple[Step, Unit]]()
    keys, digests, pixels, sharp = list[str](), list[str](), list[int](), list[float]()
    for scored, unit, clip, sharpness in _clips(several):
        own = f"{unit.name}:{clip['number']}"
        keys.append(f"{scored.told} {clip['key'] or own}".lstrip())
        digests.append(clip["digest"] or own)
        pixels.append(clip["height"] * clip["width"])
        sharp.append(sharpness)
        members.append((unit.name, clip["number"]))
        places.append((scored.scores, unit))
    signatures = Signatures(places, [number for _, number in members])
    embeddings = _embeddings(several, members)
    return ClipColumns(keys=keys, digests=digests, signatures=signatures, pixels=pixels, sharpness=sharp, embeddings=embeddings), members


def _embeddings(several: Sequence[Scored], members: Sequence[Member]) -> np.ndarray | None:
    """The embeddings of clips as rows; zeros, which are like no other, for a clip without one. None if nobody asked for them."""
    found: dict[Member, np.ndarray] = {}
    for scored in several:
        if scored.embedded is None:
            return None
        for unit in scored.units:
            if scored.embedded.lost(unit) is not None:
                continue
            for row in (row for row in scored.embedded.read(unit).to_pylist() if not row["reason"]):
                if not row["embedding"] or len(row["embedding"]) % 4:
                    raise changed(scored.embedded.results.path(unit.name), f"an embedding of {len(row['embedding'])} bytes")
                found[unit.name, row["number"]] = np.frombuffer(row["embedding"], "<f4")
    lengths = {len(vector) for vector in found.values()}
    if len(lengths) > 1:
        folders = ", ".join(str(scored.embedded.results.folder) for scored in several if scored.embedded is not None)
        raise ValueError(f"{folders}: embeddings have {' and '.join(map(str, sorted(lengths)))} numbers; a scorer gives as many for each")
    nothing = np.zeros(max(lengths, default=1), np.float32)
    return np.stack([found.get(member, nothing) for member in members]) if members else nothing[None][:0]


def _clips(several: Sequence[Scored]) -> Iterator[tuple[Scored, Unit, dict, float]]:
    for scored in several:
        for unit in scored.units:
            if scored.scores.lost(unit) is not None:
                continue
            sharp = scored.scores.read(unit, only=lambda name: name in ("number", "sharpness", "reason")).to_pylist()
            known = {row["number"]: row["sharpness"] for row in sharp if not row["reason"]}
            for clip in scored.clips.read(unit).to_pylist():
                if clip["number"] in known:
                    yield scored, unit, clip, known[clip["number"]]


class Signatures(Sequence[Signature]):
    """The signatures of clips, read from the results of `scores` when they are asked for. places: the step and unit of each clip."""

    def __init__(self, places: Sequence[tuple[Step, Unit]], numbers: Sequence[int]) -> None:
        self._places, self._numbers = places, numbers
        self._kept: OrderedDict[tuple[str, str], dict[int, Signature]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Signature: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Signature]: ...
    def __getitem__(self, place: int | slice) -> Signature | Sequence[Signature]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        step, unit = self._places[place]
        key = (step.stage.folder, unit.name)
        if key not in self._kept:
            rows = step.read(unit, only=lambda name: name in ("number", "reason", *SIGNATURE)).to_pylist()
            try:
                self._kept[key] = {row["number"]: Signature.of(*(row[name] for name in SIGNATURE)) for row in rows if not row["reason"]}
            except ValueError as error:
                raise changed(step.results.path(step.named(unit)), str(error)) from None
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key][self._numbers[place]]
