"""JSON, lines of JSON and YAML as plain values, within the limits of their kind of file.

Text that two readers may read differently is refused: duplicate keys, numbers that no float holds, lone surrogates, YAML tags, aliases and
merges.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from sora.gate.files import read

_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")  # escapes of surrogates
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BITS = 1024  # bits of an integer; Python cannot print one of 5,000 digits, which hexadecimal writes shorter
_SCALARS = (str, int, float, bool, type(None))


class FileLimit(NamedTuple):
    """Limits for a kind of file: bytes, items in all its lists and mappings together, and depth of nesting."""

    bytes: int
    items: int
    depth: int = 48


CARD = FileLimit(4 << 20, 200_000)  # describes one thing: run.json, vae.json, remote.json, a sidecar, a marker
STATE = FileLimit(64 << 20, 2_000_000)  # grows with a run: state.json, scores.json
LIST = FileLimit(256 << 20, 8_000_000)  # grows with shards, tensors or steps: dataset.json, manifest.json, metrics.jsonl
CONFIG = FileLimit(1 << 20, 20_000)  # YAML, of which about 100 kB are read per second


def read_json(path: Path | str, *, limit: FileLimit = CARD, within: Path | str | None = None) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it does not exist, is no regular file, leads out of `within`, exceeds a limit, or is no JSON; the message names it.
    """
    content = read(path, most=limit.bytes, within=within)
    try:
        return json_of(content, limit=limit)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def json_of(content: bytes, *, limit: FileLimit) -> Any:
    """The value of JSON in UTF-8. Raises ValueError for other text, a duplicate key, a number that is not finite, a lone surrogate, or more
    than a limit."""
    refuse_many(content, limit)
    try:
        value = json.loads(content.decode("utf-8"), parse_float=_finite, parse_constant=_no_number, object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"it has lists and mappings within one another, over {limit.depth} deep") from None
    if content.count(b"[") + content.count(b"{") > limit.depth:
        refuse_deep(value, limit)
    if _ESCAPED.search(content):
        refuse_odd(value)
    return value


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of pairs. Raises ValueError for a duplicate key, because one of its values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"an object has the key {twice[:60]!a} twice")
    return found


def refuse_deep(value: Any, limit: FileLimit) -> None:
    """Raise ValueError for lists and mappings that are nested too deeply."""
    ahead = [(value, 1)]
    while ahead:
        one, depth = ahead.pop()
        if depth > limit.depth:
            raise ValueError(f"it has lists and mappings within one another, over {limit.depth} deep")
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        ahead += [(inner, depth + 1) for inner in inside if isinstance(inner, dict | list)]


def refuse_many(content: bytes, limit: FileLimit) -> None:
    """Raise ValueError for JSON, or lines of JSON, with too many items."""
    if sum(map(content.count, _BEFORE_ITEMS)) > limit.items:
        bare = _STRINGS.sub(b"", content)  # commas inside strings do not count
        if (items := sum(map(bare.count, _BEFORE_ITEMS))) > limit.items:
            raise ValueError(f"it has {items:,} items, and {limit.items:,} are the most that such a file has")


_BEFORE_ITEMS = (b"[", b"{", b",", b"\n")


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"{word[:60]} is larger than any number that is read")
    return number


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def json_lines(content: bytes, *, limit: FileLimit) -> Iterator[Any]:
    """The values of lines of JSON; other lines, such as one that was cut, are skipped. Raises ValueError above a limit."""
    refuse_many(content, limit)
    for line in content.split(b"\n"):
        try:
            yield json_of(line, limit=limit)
        except (ValueError, RecursionError):
            continue


def read_lines(path: Path | str, *, within: Path | str | None = None) -> list[Any]:
    """The values of a file of JSON lines, see `json_lines`. Raises ValueError if it is no regular file, or exceeds a limit."""
    content = read(path, most=LIST.bytes, within=within)
    try:
        return list(json_lines(content, limit=LIST))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def yaml_of(content: bytes, *, limit: FileLimit = CONFIG) -> Any:
    """The value of YAML in UTF-8: mappings with text keys, lists, text, finite numbers, booleans and null; no aliases, tags or merges.

    Raises:
        ValueError: it is no YAML, holds anything else, or exceeds a limit.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """A YAML loader that refuses aliases (a few lines of which expand beyond memory), tags, merges and duplicate keys, and checks
        limits while it reads."""

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.items, self.depth = 0, 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.items, self.depth = self.items + 1, self.depth + 1
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"it holds an alias, line {self.peek_event().start_mark.line + 1}")
            if (tag := getattr(self.peek_event(), "tag", None)) is not None:
                raise ValueError(f"it holds the tag {tag[:60]!a}, line {self.peek_event().start_mark.line + 1}; write the value without")
            if self.items > 2 * limit.items:
                raise ValueError(f"it has over {limit.items:,} items, the most that such a file has")
            if self.depth > limit.depth:
                raise ValueError(f"it has lists and mappings within one another, over {limit.depth} deep")
            found = super().compose_node(parent, index)
            self.depth -= 1
            return found

        def flatten_mapping(self, node: Any) -> None:
            """Check that keys are unique, and refuse `<<` instead of merging."""
            seen = set[str]()
            for key, _ in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if key.tag == "tag:yaml.org,2002:merge":
                    raise ValueError(f"it merges one mapping into another (<<), line {line}; write the keys themselves")
                if name in seen:
                    raise ValueError(f"a mapping has the key {name[:60]!a} twice, line {line}")
                seen.add(name)

    try:
        value = yaml.load(content.decode("utf-8"), Loader=Plain)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{error.problem or error.context}{f', line {mark.line + 1}' if mark else ''}") from None
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    refuse_odd(value)
    return value


def refuse_odd(value: Any, place: str = "") -> None:
    """Raise ValueError, naming its place, for a value other than mappings with text keys, lists and plain values (a date or bytes, say),
    for a number that is not finite, and for a lone surrogate."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{place or 'it'} has the key {key!r}, which is no text")
            _refuse_half(key, place)
            refuse_odd(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            refuse_odd(item, f"{place}.{number}".lstrip("."))
    elif not isinstance(value, _SCALARS):
        raise ValueError(f"{place or 'it'} is {str(value)[:60]!r}, a {type(value).__name__}: write a text in quotes, or a number")
    elif isinstance(value, str):
        _refuse_half(value, place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place or 'it'} is {value}, and a finite number fits")
    elif isinstance(value, int) and value.bit_length() > _BITS:
        raise ValueError(f"{place or 'it'} is a number of very many digits")


def _refuse_half(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place or 'it'} holds half a character (a lone surrogate): {text[:60]!a}") from None
