"""Captions and facts of a clip from JSON, table rows and plain text; a caption's kind follows from the name of its key."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from sora.data.index.rows import Caption
from sora.gate.records import LONGEST, json_of, refuse_half, text_of

ORIGINAL = "original"  # the kind of a caption whose key names no kind
FILE = "file"  # the entry of `keys` with the names of the key that names a video
_PLAIN = ("caption", "captions", "text", "prompt")
_ALONE = ("short", "dense", "camera", "style", ORIGINAL)  # kinds that may stand as a key by themselves
_BESIDE = ("long", "brief", "detailed", "background", "subject", "main_object", "motion", "action", "scene")  # caption_X or X_caption
_NAMES = ("file", "file_name", "filename", "file_path", "filepath", "path", "video", "video_path", "video_file", "name", "key")
_LIKE = re.compile(r"caption|prompt|text|descri")  # keys that might hold a caption: reported if they are not read
_WHOLE = frozenset({"kind", "text", "captioner"})
_MOST_EXTRA = 1 << 14  # bytes of a clip's other JSON entries
_TEXTS = {"licence": ("licence", "license"), "consent": ("consent",), "source": ("source", "url"), "split": ("split",)}
_OURS = ("key", "frames", "fps", "height", "width", "duration", "start", "scores", "extra")


@dataclass(frozen=True)
class CaptionWords:
    """How files with captions are found and how their keys are named: the `captions` settings of conf/prepare.yaml and conf/data.yaml.

    suffixes: of files beside a video, `NAME.txt` or `NAME.mp4.txt`, and of a sample's members in a shard; json is parsed, others are one
    text. tables: names of table files that a folder of videos may contain. keys: names of keys and columns by kind of caption, instead of
    the usual ones of that kind; for `file`, the key that names a video. Spelling does not matter: `Dense Caption` is `dense_caption`.
    """

    suffixes: Sequence[str] = ("txt", "caption", "cap", "json")
    tables: Sequence[str] = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
    keys: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("suffixes", "tables"):
            if not _is_names(value := getattr(self, name)):
                raise ValueError(f"captions.{name}={value!r} is no list of names, such as captions.{name}=[{','.join(_USUAL[name])}]")
        keys: Any = self.keys
        if not isinstance(keys, Mapping):
            raise ValueError(f"captions.keys={keys!r} is no mapping of kinds of captions to names of keys, such as {{dense: long_text}}")
        for kind, names in keys.items():
            if not str(kind).strip() or not (names is None or _is_names([names] if isinstance(names, str) else names)):
                raise ValueError(
                    f"captions.keys={{{kind}: {names!r}}}: give the name of a key or column to a kind, or a list of such names"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return CaptionWords, (tuple(self.suffixes), tuple(self.tables), dict(self.keys))

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The kind of caption that each key holds, by the key's normalised name."""
        usual: dict[str, list[str]] = {ORIGINAL: list(_PLAIN)}
        for kind in (*_ALONE, *_BESIDE):
            usual.setdefault(kind, []).extend([f"caption_{kind}", f"{kind}_caption", *([kind] if kind in _ALONE else [])])
        chosen = {kind: _listed(names) for kind, names in self.keys.items() if kind != FILE}
        usual = {kind: names for kind, names in usual.items() if kind not in chosen}
        own = {plain(name): str(kind) for kind, names in chosen.items() for name in names}
        return {plain(name): kind for kind, names in usual.items() for name in names} | own

    @property
    def chosen(self) -> set[str]:
        """The kinds whose keys were set, in place of the usual ones."""
        return {str(kind) for kind, names in self.keys.items() if kind != FILE and _listed(names)}

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Names of a column that names videos; the first one present counts."""
        return tuple(plain(name) for name in (_listed(self.keys[FILE]) if FILE in self.keys else _NAMES))

    @cached_property
    def _suffixes(self) -> frozenset[str]:
        return frozenset(suffix.lower().lstrip(".") for suffix in self.suffixes)

    def refuse_unmet(self, keys: Collection[str], columns: Collection[str], files: Iterable[str]) -> None:
        """Raise ValueError for a name that was set and that nothing has. keys: met in JSON, tables and file names; columns: met in tables
        alone; both normalised. files: all files beside the videos."""
        for kind, chosen in self.keys.items():
            there, names = columns if kind == FILE else keys, _listed(chosen)
            if names and not any(plain(name) in there for name in names):
                what = "no table has such a column" if kind == FILE else "no file or table has such a key or column"
                raise ValueError(f"captions.keys={{{kind}: {names[0]}}}: {what}; there are {_told(there)}")
        called = {PurePosixPath(name).name.lower() for name in files}
        for suffix in sorted(self._suffixes - set(CaptionWords.suffixes)):
            if not any(name.endswith(f".{suffix}") for name in called):
                ends = {name.rpartition(".")[2] for name in called if "." in name}
                raise ValueError(f"captions.suffixes=[{suffix}]: no file beside the videos ends so; others end with {_told(ends)}")
        for table in self.tables:
            if table not in CaptionWords.tables and table.lower() not in called:
                raise ValueError(f"captions.tables=[{table}]: no file beside the videos or above them is called so")

    def may_tell(self, suffix: str) -> bool:
        """Whether a file with this suffix may hold captions, if it belongs to a video."""
        return suffix.lower().rpartition(".")[2] in self._suffixes

    def told_by(self, suffix: str) -> str | None:
        """The kind of the captions in a file with this suffix after the video's name, such as "txt" or "dense.txt"; None for no
        captions."""
        middle = suffix.rpartition(".")[0]
        if not self.may_tell(suffix):
            return None
        return ORIGINAL if not middle else self.kinds.get(plain(middle))

    def is_table(self, name: str) -> bool:
        """Whether a file is a table of captions by its name alone."""
        return PurePosixPath(name).name.lower() in {table.lower() for table in self.tables}


def _told(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


_USUAL = {"suffixes": CaptionWords.suffixes, "tables": CaptionWords.tables}


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) and one.strip() for one in value)


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def plain(name: str) -> str:
    """A key normalised for comparison: lower case, with _ for spaces and hyphens."""
    return re.sub(r"[\s\-]+", "_", unicodedata.normalize("NFC", name).strip().casefold())


WORDS = CaptionWords()  # the defaults of conf/


@dataclass
class Said:
    """The texts of one value. captions: the non-empty ones. unread: keys that might hold captions and are not known. empty: how many texts
    are empty. keys: all keys that were met, normalised."""

    captions: list[Caption] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    empty: int = 0
    keys: set[str] = field(default_factory=set)

    def add(self, kind: str, text: str, captioner: str = ORIGINAL) -> None:
        refuse_half(text, "a caption")
        if len(text) > LONGEST:
            raise ValueError(f"a caption is too long, {len(text)} letters of at most {LONGEST}")
        if text.strip():
            self.captions.append(Caption(kind, text.strip(), captioner))
        else:
            self.empty += 1


def captions_of(entry: Any, words: CaptionWords, *, kind: str = ORIGINAL) -> Said:
    """The captions in a JSON value: a text of `kind`, a list of texts, or an object with caption kinds as keys.

    Under such a key captions may also have the form that sora writes, {"kind": …, "text": …, "captioner": …}. Raises ValueError for a
    caption that is no text.
    """
    found = Said()
    if isinstance(entry, dict):
        _of_object(entry, words, found)
    else:
        _of_value(entry, words, kind, found)
    return found


def _of_object(entry: Mapping[str, Any], words: CaptionWords, found: Said, *, inside: bool = False) -> None:
    """Add an object's captions to `found`. inside: the object is the value of a caption's key, so every text in it might be a caption."""
    found.keys.update(plain(name) for name in entry)
    for name, value in entry.items():
        kind = words.kinds.get(plain(name))
        if kind is not None:
            _of_value(value, words, kind, found, key=name)
        elif isinstance(value, str | list) and value and (inside or _LIKE.search(plain(name))) and plain(name) not in words.files:
            found.unread.append(name)


def _of_value(value: Any, words: CaptionWords, kind: str, found: Said, key: str = "") -> None:
    if isinstance(value, str):
        found.add(kind, value)
    elif isinstance(value, int) and not isinstance(value, bool):  # the number of a class, for text=classes
        found.add(kind, str(value))
    elif isinstance(value, list):
        for item in value:
            _of_value(item, words, kind, found, key)
    elif isinstance(value, dict) and value.keys() <= _WHOLE and {"kind", "text"} <= value.keys():
        if not all(isinstance(one, str) for one in value.values()):
            raise ValueError(f"a caption's kind, text and captioner are texts, not {json.dumps(value)[:80]}")
        found.add(value["kind"], value["text"], value.get("captioner", ORIGINAL))
    elif isinstance(value, dict):
        _of_object(value, words, found, inside=True)
    elif value is not None:
        raise ValueError(f"its {key or 'caption'} is {json.dumps(value)[:80]}, which is no text")


def joined(groups: Iterable[Sequence[Caption]]) -> tuple[Caption, ...]:
    """The captions of several files of one clip, without those that an earlier file had already."""
    found: list[Caption] = []
    for group in groups:
        texts = {said.text for said in found}
        found += [said for said in group if said.text not in texts]
    return tuple(found)


def facts_of(entry: Any, words: CaptionWords) -> dict[str, Any]:
    """Facts about a clip from its JSON in a shard, besides captions: those fields of `ClipFacts` that are present and of the right type.

    scores: the numbers in "scores", and those whose name ends in "score". extra: all other entries, up to 16 kB. Frames, fps and size are
    not taken from here, since the video itself has them.
    """
    found: dict[str, Any] = {}
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
    used = {*_OURS, *(one for names in _TEXTS.values() for one in names), *found["scores"]}
    rest = {name: value for name, value in entry.items() if name not in used and plain(name) not in words.kinds}
    extra = {**_mapping(entry.get("extra")), **rest}
    try:
        small = len(json.dumps(extra, allow_nan=False)) <= _MOST_EXTRA
    except ValueError:  # not-a-number
        small = False
    return found | {"extra": extra if small else {}}


def said_in(suffix: str, content: bytes, words: CaptionWords, *, kind: str = ORIGINAL) -> tuple[Said, dict[str, Any]]:
    """The captions and the `facts_of` of a text member of a shard; ValueError if it cannot be read."""
    named = f"its {suffix}"
    text = text_of(content, named)
    if suffix.rpartition(".")[2] != "json":
        return captions_of(text, words, kind=kind), {}
    entry = json_of(text, named)
    said, facts = captions_of(entry, words, kind=kind), facts_of(entry, words)
    refuse_half(json.dumps({**facts, "captions": [asdict(one) for one in said.captions]}, ensure_ascii=False), named)
    return said, facts


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
