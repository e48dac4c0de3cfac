"""Reads the captions in what a model wrote: JSON, also where it is fenced, wrapped in words, cut short or of the wrong types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sora.captions.captioner import CaptionFields
from sora.captions.wording import inert
from sora.gate.forms import shown
from sora.gate.texts import FileLimit, json_of

LIMIT = FileLimit(1 << 20, 2_000, 8)  # of an answer's content
LISTS = ("subjects", "actions")
TEXTS = ("short", "dense", "camera", "light", "style", "text_seen")
# What models call the fields where no schema holds them.
OTHERWISE: Mapping[str, str] = MappingProxyType(
    {
        "short_caption": "short",
        "summary": "short",
        "dense_caption": "dense",
        "caption": "dense",
        "description": "dense",
        "detailed": "dense",
    }
    | {"subject": "subjects", "action": "actions", "events": "actions", "camera_motion": "camera", "lighting": "light", "text": "text_seen"}
)
REFUSAL = re.compile(r"(?i)\b(i'?m sorry|i am sorry|i cannot|i can'?t|i'm unable|i am unable|as an ai)\b")


def caption_in(content: str) -> tuple[CaptionFields, tuple[str, ...]]:
    """The caption in the content of an answer, and notes: "repaired" if it was no JSON as it stood, "steering" as `inert` has it.

    Raises:
        ValueError: it holds no caption, or several; the message says what it holds instead.
    """
    if not content.strip():
        raise ValueError("the answer is empty")
    if len(content) > LIMIT.bytes:
        raise ValueError(f"the answer has {len(content):,} characters, and {LIMIT.bytes:,} are the most that is read")
    value, repaired = _object(content)
    fields, bent = _fields(value)
    found, notes = inert(fields)
    return found, (*(("repaired",) if repaired or bent else ()), *notes)


def _object(content: str) -> tuple[dict[str, Any], bool]:
    """The object in a text, and whether it had to be looked for or mended."""
    text = content.strip()
    try:
        value, repaired = _json(text), False
    except ValueError:
        value, repaired = _found(text), True
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"the answer has {len(value)} captions, and the request was for one")
        value, repaired = value[0], True
    if not isinstance(value, dict):
        raise ValueError(f"the answer is no JSON object but {shown(value)}")
    return value, repaired


def _json(text: str) -> Any:
    return json_of(text.encode("utf-8"), limit=LIMIT)


def _found(text: str) -> Any:
    """The first JSON object within a text, with trailing commas taken out and what was cut off closed."""
    start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    if start < 0:
        why = "refuses" if REFUSAL.search(text) else "holds no JSON"
        raise ValueError(f"the answer {why}: {shown(text)}")
    body, ends = _balanced(text[start:])
    try:
        return _json(body)
    except (ValueError, RecursionError) as error:
        cut = "is cut short" if not ends else "is no JSON"
        raise ValueError(f"the answer {cut} ({str(error)[:120]}): {shown(text[start:])}") from None


def _balanced(text: str) -> tuple[str, bool]:
    """The beginning of a text up to where its first bracket closes, without commas before closing brackets, and whether it does. Where it
    does not, what is whole of it, closed: the last text is left out if it is cut."""
    opened: list[str] = []
    out: list[str] = []
    whole = 0  # length of `out` behind the last whole item
    closing: list[str] = []
    place = 0
    while place < len(text):
        letter = text[place]
        if letter == '"':
            end = _end_of_string(text, place)
            if end < 0:
                break
            out.append(text[place:end])
            place = end
            continue
        if letter in "{[":
            opened.append("}" if letter == "{" else "]")
        elif letter in "}]":
            if not opened or opened.pop() != letter:
                break
            while out and (not out[-1].strip() or out[-1] == ","):
                out.pop()
        elif letter == ",":
            whole, closing = len(out), list(opened)
        out.append(letter)
        place += 1
        if not opened:
            return "".join(out), True
    return "".join([*out[:whole], *closing[::-1]]), False


def _end_of_string(text: str, start: int) -> int:
    found = _STRING.match(text, start)
    return found.end() if found else -1


_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def _fields(value: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The fields of an object by their names here, and whether a name or a type was another."""
    found, bent = dict[str, Any](), False
    for said, held in value.items():
        name = re.sub(r"[^a-z]+", "_", said.lower()).strip("_")
        name = OTHERWISE.get(name, name)
        if name not in LISTS and name not in TEXTS:
            continue
        if name in found:
            raise ValueError(f"the answer says {name} twice")
        found[name], other = _list(held) if name in LISTS else _text(held)
        bent = bent or other or name != said
    if lacking := [name for name in ("short", "dense") if name not in found]:
        has = ", ".join(shown(key) for key in list(value)[:8]) or "none"
        raise ValueError(f"the answer has no {' and no '.join(lacking)}; its keys are {has}")
    return found, bent


def _text(value: Any) -> tuple[str, bool]:
    if isinstance(value, str):
        return value, False
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "; ".join(value), True
    if value is None:
        return "", True
    if isinstance(value, bool | dict | list):
        return json.dumps(value, ensure_ascii=False), True
    return str(value), True


def _list(value: Any) -> tuple[list[str], bool]:
    if isinstance(value, list):
        items = [_text(item) for item in value]
        return [text for text, _ in items], any(other for _, other in items)
    text, _ = _text(value)
    return [item.strip() for item in re.split(r"[;\n]", text) if item.strip()], True
