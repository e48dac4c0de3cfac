"""Captions that come beside videos: `name.txt` or `name.json` next to `name.mp4`, or one table for all (JSON lines or CSV)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from os.path import isfile
from pathlib import Path, PurePosixPath
from typing import Any

from sora.data.index import Caption

_NAME = ("file", "path", "video", "name", "key")
_PLAIN = ("caption", "text")
_KINDS = ("short", "dense", "camera", "style", "original")
_MOST_BYTES = 1 << 20  # of one sidecar
_MOST_EXTRA = 1 << 14  # of what else a clip's JSON says
_TEXTS = {"licence": ("licence", "license"), "consent": ("consent",), "source": ("source", "url"), "split": ("split",)}
_OURS = ("key", "frames", "fps", "height", "width", "duration", "captions", "start", "scores", "extra")


def captions_of(entry: Any) -> tuple[Caption, ...]:
    """Captions of a JSON value: a text, {"caption": text}, {"short": …, "dense": …}, {"captions": any of these, or a list of them}."""
    found: list[Caption] = []
    if isinstance(entry, str):
        found = [Caption("original", entry.strip(), "original")]
    elif isinstance(entry, list):
        found = [caption for item in entry for caption in captions_of(item)]
    elif isinstance(entry, dict) and "kind" in entry:
        text = str(entry.get("text", "")).strip()
        found = [Caption(str(entry["kind"]), text, str(entry.get("captioner", "original")))]
    elif isinstance(entry, dict):
        for name, value in entry.items():
            if name == "captions":
                found += captions_of(value)
            elif isinstance(value, str) and (name in _PLAIN or name in _KINDS or name.startswith("caption_")):
                kind = "original" if name in _PLAIN else name.removeprefix("caption_")
                found.append(Caption(kind, value.strip(), "original"))
    return tuple(caption for caption in found if caption.text)


def facts_of(entry: Any) -> dict[str, Any]:
    """What the JSON of a clip in a shard says of it: fields of `ClipFacts`, as far as they are there and of the right kind.

    scores: the numbers of "scores", and those whose name ends in "score". extra: what else it says, up to 16 kB. What the video
    itself tells (frames, fps, size) is not taken from here.
    """
    found: dict[str, Any] = {"captions": captions_of(entry)}
    if not isinstance(entry, dict):
        return found
    for name, names in _TEXTS.items():
        told = next((entry[one] for one in names if isinstance(entry.get(one), str) and entry[one]), None)
        if told is not None:
            found[name] = told
    if _is_number(entry.get("start")):
        found["start"] = float(entry["start"])
    scores = {**_mapping(entry.get("scores")), **{name: value for name, value in entry.items() if name.endswith("score")}}
    found["scores"] = {str(name): float(value) for name, value in scores.items() if _is_number(value)}
    used = {*_OURS, *_PLAIN, *_KINDS, *(one for names in _TEXTS.values() for one in names), *found["scores"]}
    rest = {name: value for name, value in entry.items() if name not in used and not name.startswith("caption_")}
    extra = {**_mapping(entry.get("extra")), **rest}
    try:
        small = len(json.dumps(extra, allow_nan=False)) <= _MOST_EXTRA
    except ValueError:  # not-a-number
        small = False
    return found | {"extra": extra if small else {}}


def said_in(suffix: str, content: bytes) -> dict[str, Any]:
    """`facts_of` a `txt` or `json` of a shard; one that cannot be read is a `ValueError`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its {suffix} is no text in UTF-8: {error}") from None
    found = {"captions": captions_of(text)} if suffix == "txt" else facts_of(_json(text, f"its {suffix}"))
    try:
        json.dumps(found, default=asdict, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"its {suffix} holds half a character (a lone surrogate)") from None
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def beside(video: Path) -> tuple[Caption, ...]:
    """The captions in `name.txt` and `name.json` next to a video; () when there is neither. Unreadable ones are a `ValueError`."""
    found: tuple[Caption, ...] = ()
    for suffix in (".txt", ".json"):
        path = video.with_suffix(suffix)
        if isfile(path):  # of a name that is too long `Path.is_file` raises
            text = _text(path)
            found += captions_of(text if suffix == ".txt" else _json(text, str(path)))
    return found


def files_of(videos: Sequence[str], files: Iterable[str]) -> set[str]:
    """Which of some files stand beside a video and say something of it."""
    known = {str(PurePosixPath(video).with_suffix("")) for video in videos}
    return {name for name in files if name.endswith((".txt", ".json")) and str(PurePosixPath(name).with_suffix("")) in known}


def table(path: Path, videos: Sequence[str]) -> tuple[dict[str, tuple[Caption, ...]], list[str]]:
    """Captions of `videos` (paths relative to their folder) from a .jsonl or .csv file, and the names in it that fit no video.

    A row names its video by "file" (or path, video, name, key): the relative path, the file's name, or its stem, where only one
    video has it. A table that fits no video at all is a `ValueError`.
    """
    known = _by_name(videos)
    found: dict[str, tuple[Caption, ...]] = {}
    unknown: list[str] = []
    for place, row in _rows(path):
        name = next((str(row[key]) for key in _NAME if row.get(key)), None)
        if name is None:
            raise ValueError(f"{place} names no video; give a column 'file'")
        video = known.get(str(PurePosixPath(name)))
        if video is None:
            unknown.append(name)
        else:
            found[video] = found.get(video, ()) + captions_of(dict(row))
    if not any(found.values()):
        shown = ", ".join(unknown[:3]) or "nothing"
        raise ValueError(f"{path} matches none of {len(videos)} videos: it names {shown}, the videos are {', '.join(videos[:3])}")
    return found, unknown


def _by_name(videos: Sequence[str]) -> dict[str, str]:
    """Every name that says one video without doubt: relative path, path without suffix, file name, stem."""
    names: dict[str, set[str]] = {}
    for video in videos:
        path = PurePosixPath(video)
        for name in {video, str(path.with_suffix("")), path.name, path.stem}:
            names.setdefault(name, set()).add(video)
    single = {name: next(iter(owners)) for name, owners in names.items() if len(owners) == 1}
    return single | {video: video for video in videos}


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"captions={path} does not exist")
    if path.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"captions={path} is neither .jsonl nor .csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from ((f"{path} row {number}", row) for number, row in enumerate(csv.DictReader(file), start=2))
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = _json(line, f"{path} line {number}")
                    if not isinstance(row, dict):
                        raise ValueError(f"{path} line {number} is no JSON object")
                    yield f"{path} line {number}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None


def _text(path: Path) -> str:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for a caption")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of very many digits
        raise ValueError(f"{place} is no JSON: {error}") from None
