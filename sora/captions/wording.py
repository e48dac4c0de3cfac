"""Makes the texts of a captioner inert: they are a stranger's, and go to terminals, pages, tables, text encoders and further prompts."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sora.captions.captioner import CaptionFields

# Characters that steer a terminal (C0, C1) or end a line; and those that steer the direction of text or are not seen.
_CONTROL = "\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"
_UNSEEN = "\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
STEERS = re.compile(f"[{_CONTROL}{_UNSEEN}]")
_SEEN_AS_SPACE = re.compile(f"[{_CONTROL}]")
LENGTHS: Mapping[str, int] = MappingProxyType(
    {"short": 1_000, "dense": 6_000, "camera": 500, "light": 500, "style": 500, "text_seen": 2_000} | {"subjects": 500, "actions": 500}
)  # characters; of lists, of each item
MOST_ITEMS = 40  # of a list
HINT = 1_000  # characters of a text that is put into a prompt


def plain(text: str) -> str:
    """A text without characters that steer or are not seen, in one line, in Unicode's composed form."""
    return " ".join(unicodedata.normalize("NFC", STEERS.sub("", _SEEN_AS_SPACE.sub(" ", text))).split())


def inert(fields: Mapping[str, Any]) -> tuple[CaptionFields, tuple[str, ...]]:
    """The fields of a caption, each a plain line, and the notes that this leaves: "steering" if characters were taken out.

    Raises:
        ValueError: a text is longer than a caption of its kind is, a list has too many items, short or dense is empty, or a text has half a
            character.
    """
    steered, found = False, dict[str, Any]()
    for name, most in LENGTHS.items():
        value = fields.get(name, "")
        items = [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
        if len(items) > MOST_ITEMS:
            raise ValueError(f"{name} has {len(items):,} items, and {MOST_ITEMS} are the most")
        for item in items:
            if len(item) > most:
                raise ValueError(f"{name} has {len(item):,} characters, and {most:,} are the most")
            if any("\ud800" <= letter <= "\udfff" for letter in item):
                raise ValueError(f"{name} holds half a character (a lone surrogate)")
        steered = steered or any(STEERS.search(item) for item in items)
        lines = [line for line in map(plain, items) if line]
        found[name] = tuple(lines) if name in ("subjects", "actions") else " ".join(lines)
    for name in ("short", "dense"):
        if not found[name]:
            raise ValueError(f"{name} is empty")
    return CaptionFields(**found), ("steering",) if steered else ()


def quoted(text: str, *, most: int = HINT) -> str:
    """A stranger's text as it may stand in a prompt: a JSON string of at most `most` characters, so that it ends where its quotes do."""
    line = plain(text.encode("utf-8", "replace").decode())
    return json.dumps(line if len(line) <= most else f"{line[: most - 1]}…", ensure_ascii=False)
