"""The end of a curation of a dataset: its scores and its selection as sets beside its shards, of which none is written again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora.curation.deciding import decided, is_score
from sora.curation.inputs import Inputs
from sora.curation.results import Results, changed
from sora.curation.running import Step
from sora.data.index.index import Index
from sora.data.index.keyed_sets import SCORE_SETS, SELECTIONS, SetKind
from sora.data.index.set_writers import ScoreSetWriter, SelectionWriter
from sora.system.locks import NAME, alone_in

_DIGITS = 8  # of a stage's hash in a set's name
_PATIENCE = 60.0  # seconds for another job that writes sets


@dataclass(frozen=True, kw_only=True)
class WrittenSets:
    """The names of sets that a dataset has now."""

    scores: Sequence[str]
    selection: str


def write_sets(
    folder: Path, inputs: Inputs, *, name: str, select: Results, decision: str, scoring: Sequence[Step], rules: Mapping[str, Any]
) -> WrittenSets:
    """Write one set of scores for each scoring step and the selection `name`; those that are there with the same settings stay. Jobs of one
    work folder do so one after another.

    rules: the settings of the selection.

    Raises:
        LockHeld: another job has been writing them for a long time.
        ValueError: sets of these names are there with other settings.
    """
    work = select.folder.parent
    with alone_in(work, f"writing sets of {folder} for", name=f"{NAME}-writing-sets", advice="wait for it", patience=_PATIENCE):
        index = Index.open(folder)
        scores = [_write_scores(index, inputs, step) for step in scoring]
        settings = {"rules": dict(rules), "stage": select.folder.name, "decision": decision}
        if not _is_there(SELECTIONS, index, name, settings):
            _write_selection(index, inputs, name, select=select, decision=decision, settings=settings)
    return WrittenSets(scores=scores, selection=name)


def _write_selection(index: Index, inputs: Inputs, name: str, *, select: Results, decision: str, settings: Mapping[str, Any]) -> None:
    writer = SelectionWriter(index, name, settings=settings)
    shards = {unit.name: unit.shard for unit in inputs.units}
    for unit, rows in decided(select, decision, inputs):
        shard = shards.pop(unit)
        assert shard is not None
        writer.write(shard, {row["key"]: row["rule"] for row in rows})
    for shard in shards.values():  # no stage could work on it
        assert shard is not None
        writer.write(shard, dict.fromkeys(index.shard_keys(shard), "unreadable"))
    writer.finish({"command": "curate"})


def _write_scores(index: Index, inputs: Inputs, step: Step) -> str:
    kind = "cheap" if step.stage.name == "scores" else step.stage.name
    name = f"{kind}_{step.stage.hash[:_DIGITS]}"
    settings = {"stage": step.stage.folder, "settings": dict(step.stage.settings)}
    if _is_there(SCORE_SETS, index, name, settings):
        return name
    writer = ScoreSetWriter(index.folder, name, dataset=index.dataset_fingerprint, settings=settings)
    for unit in inputs.units:
        assert unit.shard is not None
        found: dict[str, dict[str, float]] = {}
        if step.lost(unit) is None:
            keys = index.shard_keys(unit.shard)
            for row in step.read(unit, only=is_score).to_pylist():
                if row["number"] >= len(keys):
                    raise changed(
                        step.results.path(step.named(unit)), f"it has scores of clip {row['number']}, and its shard {len(keys)} clips"
                    )
                numbers = {name: value for name, value in row.items() if isinstance(value, float) and math.isfinite(value)}
                found[keys[row["number"]]] = numbers
        writer.write(unit.shard, found)
    writer.finish({"command": "curate"})
    return name


def _is_there(kind: SetKind, index: Index, name: str, settings: Mapping[str, Any]) -> bool:
    if not kind.manifest(index.folder, name).exists():
        return False
    said = kind.described(index.folder, name, dataset=index.dataset_fingerprint)
    if said.get("settings") != settings:
        raise ValueError(f"{kind.manifest(index.folder, name)} is of other settings; name another with dataset=NAME, or delete it")
    return True
