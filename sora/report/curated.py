"""Reads what the page of a curation shows from the results in its work folder."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from sora.curation.curating import Curated, Curation
from sora.curation.deciding import decided
from sora.curation.scores.table import BASIC_SCORES, CHEAP_SCORES
from sora.curation.selecting import SelectionRules
from sora.curation.spans import Fate
from sora.curation.steps.finding import Cuts
from sora.curation.steps.scoring import CheapScoring
from sora.report.curation import CurationView, ScoreView, ShownPart, Still

_KEPT = 64  # units whose stills stay in memory


def view_of(curation: Curation, done: Curated, *, title: str, notes: Sequence[str], commands: Sequence[str]) -> CurationView:
    """The view of a curation that has decided about its clips."""
    clips, places, values, losses = (
        list[ShownPart](),
        dict[tuple[str, int], int](),
        dict[str, list[float]](),
        dict[str, tuple[int, float]](),
    )
    for _, rows in decided(curation.select, done.decision, done.inputs):
        before: Mapping[str, Any] | None = None
        for row in rows:
            places[row["unit"], row["number"]] = len(clips)
            _add(values, row["scores"], len(clips))
            clips.append(_shown(row, goes_on=not curation.from_dataset and _goes_on(before, row, curation.settings.cuts)))
            before = row
            count, seconds = losses.get(row["rule"], (0, 0.0))
            losses[row["rule"]] = count + 1, seconds + row["seconds"]
    for each in values.values():
        each += [math.nan] * (len(clips) - len(each))
    stills, copies = Stills(curation, list(places)), sorted(done.inputs.copies.items())
    return CurationView(
        title=title,
        clips=clips,
        losses=losses,
        scores=[_view(name, each, curation.settings.selection) for name, each in _ordered(values, curation.settings.selection)],
        groups=[[places[member] for member in group if member in places] for group in done.groups],
        lost=[(one.source, one.reason) for one in (*done.inputs.refused, *done.lost)],
        passed=[(one.source, one.reason) for one in done.inputs.passed] + [(name, f"the same bytes as {of}") for name, of in copies],
        still=stills,
        notes=notes,
        commands=commands,
    )


def _shown(row: Mapping[str, Any], *, goes_on: bool) -> ShownPart:
    named = row["key"] or row["source"]  # of a dataset's clip, its key: many have one source
    return ShownPart(named, row["number"], row["start"], row["rule"], row["reason"], _is_clip(row), goes_on)


def _is_clip(row: Mapping[str, Any]) -> bool:
    return row["rule"] not in get_args(Fate)


def _goes_on(before: Mapping[str, Any] | None, row: Mapping[str, Any], cuts: Cuts) -> bool:
    """Whether a clip is the next of the equal parts of one long shot. before: the part before it."""
    if before is None or cuts.most_seconds is None or before["end"] != row["first"] or not (_is_clip(before) and _is_clip(row)):
        return False
    if cuts.trim_frames:  # else a cut would have left frames out
        return True
    whole, frame = before["seconds"] + row["seconds"], row["seconds"] / (row["end"] - row["first"])
    return whole > cuts.most_seconds and abs(before["seconds"] - row["seconds"]) < 2.5 * frame


def _add(values: dict[str, list[float]], scores: Mapping[str, float], place: int) -> None:
    for name, value in scores.items():
        column = values.setdefault(name, [])
        column += [math.nan] * (place - len(column))
        column.append(value)


def _ordered(values: dict[str, list[float]], selection: SelectionRules) -> list[tuple[str, list[float]]]:
    """Scores with a rule first, in the order of the rules, then the others."""
    first = [name for name in selection.rules if name in values]
    return [(name, values[name]) for name in (*first, *(name for name in values if name not in first))]


def _view(name: str, values: list[float], selection: SelectionRules) -> ScoreView:
    least, most = selection.rules.get(name, (None, None))
    about = CHEAP_SCORES[name].meaning if name in CHEAP_SCORES else BASIC_SCORES.get(name, "")
    unit = CHEAP_SCORES[name].unit if name in CHEAP_SCORES else ""
    return ScoreView(name=name, about=about, values=values, limits=(least, most), unit=unit)


@dataclass
class Stills:
    """Callable that returns the first, middle or last frame of the clip at a place. members: unit and number of each clip."""

    curation: Curation
    members: Sequence[tuple[str, int]]
    _read: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def __call__(self, place: int, moment: str) -> Still | None:
        from PIL import Image

        unit, number = self.members[place]
        content = self._of(unit).get(number, {}).get(f"still_{moment}")
        if not content:
            return None
        try:
            width, height = Image.open(io.BytesIO(content), formats=("JPEG",)).size
        except (OSError, ValueError, Image.DecompressionBombError):  # no stage has made it
            return None
        return Still(content, width, height)

    def _of(self, unit: str) -> dict[int, dict[str, Any]]:
        if unit not in self._read:
            step = next((one for one in self.curation.scoring if isinstance(one.function, CheapScoring)), None)
            rows: list[dict[str, Any]] = []
            if step is not None and step.results.path(unit).is_file():
                rows = step.results.read(unit, only=lambda name: name == "number" or name.startswith("still_")).to_pylist()
            if len(self._read) >= _KEPT:
                self._read.pop(next(iter(self._read)))
            self._read[unit] = {row["number"]: row for row in rows}
        return self._read[unit]
