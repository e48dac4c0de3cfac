"""The page of `sora curate`: where clips were lost, each score with its limits and the clips on both sides of them, cuts, duplicates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from sora.ingest.statistics import lasting
from sora.report import plots
from sora.report.page import (
    Commands,
    Figure,
    Figures,
    Folded,
    Page,
    Part,
    Picture,
    PictureGrid,
    Plot,
    Prose,
    Section,
    Table,
    number,
    render,
)
from sora.system.files import write_text
from sora.system.terminal import counted

NEAREST = 8  # clips that are shown on each side of a limit
_GROUPS = 24  # groups of duplicates that are shown
_MEMBERS = 6
_CUTS = 24  # cuts that are shown
_PARTS = {  # parts of videos that are no clips, see `sora.curation.spans`
    "transition": "frames of a dissolve, fade or wipe",
    "trimmed": "frames beside a cut",
    "too short": "less than spans.least_seconds between two cuts",
}
_LISTED = 200  # videos without a clip


class ShownPart(NamedTuple):
    """A part of a video as the page shows it. when: seconds into its source. clip: whether it is a clip, so that there are stills of it.
    goes_on: whether it is the next of the equal parts of one long shot, so that no cut lies before it."""

    source: str
    number: int
    when: float
    rule: str
    reason: str
    clip: bool
    goes_on: bool = False


class Still(NamedTuple):
    """A JPEG of one frame, and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class ScoreView:
    """One score over all clips. values: of the clips at the same places of `CurationView.clips`, NaN where there is none. about: what it
    means. unit: of its values, "" for a share. limits: the rule's [least, most], None for no limit."""

    name: str
    about: str
    values: Sequence[float]
    limits: tuple[float | None, float | None] = (None, None)
    unit: str = ""

    @property
    def told(self) -> str:
        """The name, and what it means."""
        return f"{self.name}: {self.about}" if self.about else self.name


@dataclass(frozen=True, kw_only=True)
class CurationView:
    """What the page shows. clips: all of them. losses: by reason, (clips, seconds); "" for the kept ones. still: the first, middle or last
    frame of the clip at a place; None if there is none. groups: places of clips that show the same, the best one first. lost, passed:
    videos without a clip, and files that were not examined, and why. commands: what to call next."""

    title: str
    clips: Sequence[ShownPart]
    losses: Mapping[str, tuple[int, float]]
    scores: Sequence[ScoreView]
    groups: Sequence[Sequence[int]]
    lost: Sequence[tuple[str, str]]
    passed: Sequence[tuple[str, str]]
    still: Callable[[int, str], Still | None]
    notes: Sequence[str] = ()
    commands: Sequence[str] = field(default_factory=tuple)


def write_page(path: Path, view: CurationView) -> None:
    """Write the page to one HTML file."""
    sections = [Section("Funnel", _funnel(view)), Section("Scores", _scores(view))]
    sections += [Section("Cuts", cuts)] if (cuts := _cuts(view)) else []
    sections += [Section("Duplicates", groups)] if (groups := _duplicates(view)) else []
    sections += [Section("Videos without a clip", _listed(("video", "why"), view.lost))] if view.lost else []
    sections += [Section("Passed over", _listed(("file", "why"), view.passed))] if view.passed else []
    sections += [Section("Next", [Commands(view.commands)])] if view.commands else []
    kept, seconds = view.losses.get("", (0, 0.0))
    length, unit = lasting(seconds)
    lead = f"{counted(kept, 'clip is', 'clips are')} kept, {number(length)} {unit}, of {number(len(view.clips))} parts of the videos."
    write_text(path, render(Page(view.title, lead, sections)))


def _funnel(view: CurationView) -> list[Part]:
    ordered = sorted(view.losses.items(), key=lambda item: (item[0] == "", -item[1][1]))
    whole = sum(seconds for _, seconds in view.losses.values())
    scaled, unit = lasting(whole)
    each = scaled / whole if whole else 0.0
    rows = [
        (rule or "kept", clips, seconds * each, f"{100 * seconds / whole:.1f} %" if whole else "") for rule, (clips, seconds) in ordered
    ]
    kept, figures = view.losses.get("", (0, 0.0)), list[Figure]()
    figures.append(Figure("clips kept", number(kept[0]), f"{number(kept[1] * each)} {unit}"))
    figures.append(Figure("parts of all videos", number(len(view.clips)), f"{number(scaled)} {unit}"))
    parts: list[Part] = [Figures(figures)]
    if rows:
        drawn = plots.bars({row[0]: row[2] for row in rows}, across=unit)
        parts.append(Plot(drawn, f"What each rule left out, in {unit}, and what is kept"))
        parts.append(Table(("first reason", "parts", unit, f"of all {unit}"), [*rows, ("all", len(view.clips), scaled, "100 %")]))
    explained = [f"{name}: {meaning}" for name, meaning in _PARTS.items() if name in view.losses]
    if explained:
        parts.append(Prose(f"Videos are parted at their cuts. {'; '.join(explained)}."))
    return parts + [Prose(note) for note in view.notes]


def _scores(view: CurationView) -> list[Part]:
    parts: list[Part] = []
    for score in view.scores:
        limits = [limit for limit in score.limits if limit is not None]
        if not any(math.isfinite(value) for value in score.values):
            continue
        across = f"{score.name}{f', {score.unit}' if score.unit else ''}"
        found: list[Part] = [Plot(plots.histogram(score.values, across=across, limits=limits), score.told)]
        for name, limit in zip(("least", "most"), score.limits, strict=True):
            if limit is not None:
                found += _around(view, score, limit, least=name == "least")
        if not limits:
            low, high = _extremes(score.values)
            found += _shelf(view, low, score, "lowest") + _shelf(view, high, score, "highest")
        parts += found if limits else [Folded(score.told, found)]
    return parts or [Prose("No score was asked for.")]


def _around(view: CurationView, score: ScoreView, limit: float, *, least: bool) -> list[Part]:
    """The clips nearest to a limit, which itself is allowed, on both sides."""
    below, above = _beside(score.values, limit, least=least)
    fits, not_ = "fits the rule", "does not fit the rule"
    first = f"just below {limit:g}, which {not_}" if least else f"{limit:g} and just below, which {fits}"
    second = f"{limit:g} and just above, which {fits}" if least else f"just above {limit:g}, which {not_}"
    return _shelf(view, below, score, f"{score.name} {first}") + _shelf(view, above, score, f"{score.name} {second}")


def _shelf(view: CurationView, places: Sequence[int], score: ScoreView, title: str) -> list[Part]:
    return [Prose(title), _pictures(view, places, score)] if places else []


def _beside(values: Sequence[float], limit: float, *, least: bool) -> tuple[list[int], list[int]]:
    """The places of the values nearest to a limit on both sides, those nearest to it first. least: a value at the limit counts as above."""
    finite = [(value, place) for place, value in enumerate(values) if math.isfinite(value)]
    under = [item[0] < limit or (item[0] == limit and not least) for item in finite]
    below = sorted((item for item, is_under in zip(finite, under, strict=True) if is_under), key=lambda item: (-item[0], item[1]))
    above = sorted(item for item, is_under in zip(finite, under, strict=True) if not is_under)
    return [place for _, place in below[:NEAREST]], [place for _, place in above[:NEAREST]]


def _extremes(values: Sequence[float]) -> tuple[list[int], list[int]]:
    ordered = sorted((value, place) for place, value in enumerate(values) if math.isfinite(value))
    places = [place for _, place in ordered]
    return places[:NEAREST], [place for place in places[::-1] if place not in places[:NEAREST]][:NEAREST]


def _pictures(view: CurationView, places: Sequence[int], score: ScoreView) -> PictureGrid:
    return PictureGrid([one for place in places if (one := _picture(view, place, f"{score.name} {score.values[place]:.4g}"))])


def _picture(view: CurationView, place: int, caption: str, moment: str = "middle") -> Picture | None:
    still, clip = view.still(place, moment), view.clips[place]
    if still is None:
        return None
    fate = f"left out: {clip.rule}" if clip.rule else "kept"
    note = f"{clip.source} at {clip.when:.1f} s, {fate}"
    return Picture(still.jpeg, still.width, still.height, caption, note)


def _cuts(view: CurationView) -> list[Part]:
    """The frames on both sides of some cuts, spread over all: the last of one clip, and the first of the next of the same video."""
    clips = [place for place, one in enumerate(view.clips) if one.clip]
    pairs = [(one, two) for one, two in pairwise(clips) if view.clips[one].source == view.clips[two].source]
    parted = sum(view.clips[two].goes_on for _, two in pairs)
    pairs = [pair for pair in pairs if not view.clips[pair[1]].goes_on]
    step = max(1, len(pairs) // _CUTS)
    pictures: list[Picture] = []
    for one, two in pairs[::step][:_CUTS]:
        before = _picture(view, one, f"clip {view.clips[one].number} ends", "last")
        after = _picture(view, two, f"clip {view.clips[two].number} begins", "first")
        pictures += [before, after] if before and after else []
    parts: list[Part] = []
    if pictures:
        parts += [Prose(f"Frames on both sides of {counted(len(pictures) // 2, 'cut')}."), PictureGrid(pictures, paired=True)]
    if parted:
        where = counted(parted, "place", "places")
        parts.append(Prose(f"At {where} a shot that lasts longer than spans.most_seconds is parted into equal clips: no cut is there."))
    return parts


def _duplicates(view: CurationView) -> list[Part]:
    parts: list[Part] = []
    for group in view.groups[:_GROUPS]:
        shown = [_picture(view, place, "the best of this group" if place == group[0] else "shows the same") for place in group[:_MEMBERS]]
        more = f", {len(group) - _MEMBERS} more of them" if len(group) > _MEMBERS else ""
        parts += [Prose(f"{counted(len(group), 'clip shows', 'clips show')} the same{more}"), PictureGrid([one for one in shown if one])]
    left = len(view.groups) - _GROUPS
    return parts + ([Prose(f"{counted(left, 'more group', 'more groups')} of duplicates.")] if left > 0 else [])


def _listed(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[Part]:
    more: list[Part] = [Prose(f"{len(rows) - _LISTED} more; report.json has all.")] if len(rows) > _LISTED else []
    return [Table(head, list(rows[:_LISTED])), *more]
