"""Reads what the page of a recaptioning shows from its table, and the frames of the clips that it shows from the dataset."""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

from sora.captions.checks.checking import checked
from sora.captions.checks.flags import FLAGS
from sora.captions.checks.words import words_of
from sora.captions.taking import TakenFrames
from sora.data.index.index import Index

WORST, PLAIN, FAILED = 24, 12, 200  # clips that are shown: with flags, without, and without captions
_SIDE = 224  # pixels of the longer side of frames
_MEASURED = 20_000  # clips whose words are counted
_DIFFERS = re.compile(r"[('\";]|, |: ")  # begins what is of one clip alone in a reason
_COUNT = re.compile(r"\d{1,3}(?:,\d{3})+|\d{4,}")  # likewise, but for statuses
Take = Callable[[Sequence[int]], Iterator[tuple[int, list[TakenFrames] | str]]]  # the frames of some rows, or why there are none


class ShownCaption(NamedTuple):
    """A clip as the page shows it. old: the captions that it has, by who wrote them and kind. structured: the other fields by name. frames:
    JPEGs with their seconds, width and height."""

    key: str
    flags: Sequence[str]
    old: Sequence[tuple[str, str]]
    short: str
    dense: str
    second: str
    structured: Mapping[str, str]
    frames: Sequence[tuple[float, bytes, int, int]]


class CaptionerWords(NamedTuple):
    """Words of the captions of one captioner and kind over the clips that were looked at. different: words that are not the same."""

    captioner: str
    kind: str
    lengths: list[int]
    different: int


@dataclass
class CaptionView:
    """What the page shows. failures: clips by cause. costs: name and value. commands: what to call next."""

    title: str
    clips: int = 0
    captioned: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str, int]] = field(default_factory=list)
    words: list[CaptionerWords] = field(default_factory=list)
    worst: list[ShownCaption] = field(default_factory=list)
    plain: list[ShownCaption] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0
    attempts: int = 0
    cost: float | None = None
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def view_of(index: Index, rows: Path, take: Take, *, title: str, captioner: str) -> CaptionView:
    """The view of a recaptioning whose table is written. index: with the captions that were there before. take: gives frames of rows."""
    view = CaptionView(title)
    said = _Words()
    graded: list[tuple[tuple[int, int], dict[str, Any]]] = []
    fair: list[tuple[bytes, dict[str, Any]]] = []
    for row in checked(rows):
        view.clips += 1
        for name in ("tokens_in", "tokens_out", "requests", "attempts"):
            setattr(view, name, getattr(view, name) + row[name])
        if row["reason"]:
            view.failures[cause(row["reason"])] += 1
            if len(view.failed) < FAILED:
                view.failed.append((row["key"], row["reason"], row["attempts"]))
            continue
        view.captioned += 1
        view.flags.update(row["flags"])
        view.flagged += bool(row["flags"])
        if view.captioned <= _MEASURED:
            for kind in ("short", "dense"):
                said.add(captioner, kind, row[kind])
            for one in index.captions(row["row"]):
                said.add(one.captioner, one.kind, one.text)
        if row["flags"]:
            graded = nlargest(WORST, [*graded, (_grade(row), row)], key=lambda item: item[0])
        else:
            digest = blake2b(row["key"].encode("utf-8", "surrogatepass"), digest_size=8).digest()
            fair = nlargest(PLAIN, [*fair, (digest, row)], key=lambda item: item[0])
    shown = [row for _, row in graded], [row for _, row in fair]
    frames = {row: _frames(found) for row, found in take([row["row"] for rows in shown for row in rows])}
    view.worst, view.plain = ([_shown(index, row, frames.get(row["row"], [])) for row in rows] for rows in shown)
    view.words = said.all()
    return view


def _grade(row: Mapping[str, Any]) -> tuple[int, int]:
    """How grave the flags of a caption are: by the gravest, then by how many there are; the first clips of equal ones."""
    places = list(FLAGS)
    return len(places) - min(places.index(flag) for flag in row["flags"]), len(row["flags"])


def cause(reason: str) -> str:
    """A reason without what differs from clip to clip, to be counted by."""
    return _DIFFERS.split(_COUNT.sub("…", reason), maxsplit=1)[0].strip() or reason


def _shown(index: Index, row: Mapping[str, Any], frames: Sequence[tuple[float, bytes, int, int]]) -> ShownCaption:
    old = [(f"{one.captioner}, {one.kind}", one.text) for one in index.captions(row["row"])]
    fields = {name: "; ".join(value) if isinstance(value, list) else value for name, value in json.loads(row["structured"]).items()}
    given = {name: value for name, value in fields.items() if value}
    return ShownCaption(row["key"], row["flags"], old, row["short"], row["dense"], row["second"], given, frames)


def _frames(found: list[TakenFrames] | str) -> list[tuple[float, bytes, int, int]]:
    from PIL import Image

    shown: list[tuple[float, bytes, int, int]] = []
    for one in found if not isinstance(found, str) else ():
        for time, pixels in zip(one.times, one.frames, strict=True):
            picture, file = Image.fromarray(pixels), io.BytesIO()
            picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            picture.save(file, "JPEG", quality=80)
            shown.append((time, file.getvalue(), *picture.size))
    return shown


class _Words:
    """Counts of words by captioner and kind."""

    def __init__(self) -> None:
        self._lengths: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._words: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def add(self, captioner: str, kind: str, text: str) -> None:
        words = words_of(text)
        self._lengths[captioner, kind].append(len(words))
        self._words[captioner, kind].update(words)

    def all(self) -> list[CaptionerWords]:
        return [CaptionerWords(*place, lengths, len(self._words[place])) for place, lengths in sorted(self._lengths.items())]
