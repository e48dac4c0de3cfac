"""What values each key takes, and the conversion of typed words to values.

The kind of a key comes from the first of these that has one: the mark that starts the key's comment in its YAML, as in `output: null #
<path> …`; the annotation of the parameter of its node's `_target_`; the mapping that holds it; its value. Marks are text, path, out (a path
that is written), int, number, bool, [text] for a list, {number} for a mapping with any names, a|b. A key whose value is null may be null,
others only with `|null` in their mark.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from sora.config.command_line.grammar import Leaf, Tree, bracketed, cut, tree, word
from sora.config.command_line.notes import comments
from sora.config.targets import TARGET, find, parameters

MARK = re.compile(r"<([^<>]+)>")
INT, NUMBER = re.compile(r"[+-]?\d(_?\d)*", re.ASCII), re.compile(r"[+-]?(\d(_?\d)*\.?(\d(_?\d)*)?|\.\d(_?\d)*)([eE][+-]?\d+)?", re.ASCII)
NAMES = {"str": "text", "Path": "path", "float": "number", "Any": "any", "object": "any"}
NAMES |= {name: name for name in ("text", "path", "int", "number", "bool")}
TOLD = {"text": "text", "path": "a path", "int": "a whole number", "number": "a number", "bool": "true or false"}
LARGEST = 1 << 63  # bound of integers and other numbers: larger ones overflow in the first multiplication
FARTHEST = 1e100
FUNCTIONS = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\(.*\)")  # Hydra's sweep functions, for -m


@dataclass(frozen=True)
class ValueKind:
    """What a key takes. scalars: some of text, path, int, number, bool, any. items: the kind of a list's items, if it may be a list.
    values: the kind of a mapping's values, if it may have any names. node: whether it may be an object with a `_target_`, or a mapping with
    its own keys. null: whether it may be null."""

    scalars: frozenset[str] = frozenset()
    items: ValueKind | None = None
    values: ValueKind | None = None
    node: bool = False
    null: bool = False

    def __or__(self, other: ValueKind) -> ValueKind:
        return ValueKind(
            self.scalars | other.scalars,
            self.items or other.items,
            self.values or other.values,
            self.node or other.node,
            self.null or other.null,
        )

    @property
    def any(self) -> bool:
        return "any" in self.scalars

    @property
    def told(self) -> str:
        """The kind in words, for a message: "a whole number or null"."""
        parts = [TOLD[name] for name in TOLD if name in self.scalars]
        parts += [f"a list [{self.items.inside}, …]"] if self.items else []
        parts += [f"a mapping {{name: {self.values.inside}, …}}"] if self.values else []
        parts += ["an object {_target_: …, key: …}"] if self.node else []
        return " or ".join([*parts, *(["null"] if self.null else [])]) or "anything"

    @property
    def inside(self) -> str:
        names = [name for name in TOLD if name in self.scalars] + [f"[{items.inside}, …]" for items in [self.items] if items]
        return "|".join([*names, *(["{…}"] if self.values or self.node else [])]) or "…"


ANY = ValueKind(frozenset({"any"}))
TEXT = ValueKind(frozenset({"text"}))


@cache
def of_annotation(text: str) -> ValueKind:
    """The kind of an annotation or a mark; `ANY` if it cannot be determined."""
    try:
        return _of(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return ANY


def _of(node: ast.expr) -> ValueKind:
    if isinstance(node, ast.BinOp):
        return _of(node.left) | _of(node.right)
    if isinstance(node, ast.Constant):
        return ValueKind(null=True) if node.value is None else _of(ast.parse(str(node.value), mode="eval").body)
    if isinstance(node, ast.List):
        return ValueKind(items=_of(node.elts[0]))
    if isinstance(node, ast.Set):
        return ValueKind(values=_of(node.elts[0]))
    if isinstance(node, ast.Name) and node.id == "out":
        return ValueKind(frozenset({"path", "out"}))
    if isinstance(node, ast.Name):
        plain = {"null": ValueKind(null=True), "list": ValueKind(items=ANY), "tuple": ValueKind(items=ANY), "dict": ValueKind(values=ANY)}
        return plain.get(node.id) or (ValueKind(frozenset({NAMES[node.id]})) if node.id in NAMES else ValueKind(node=True))
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = ast.unparse(node.value)
        if name == "Literal":
            return TEXT
        if name in ("Sequence", "list", "tuple", "Iterable", "Collection"):
            return ValueKind(items=_of(inner[0]))
        if name in ("Mapping", "dict"):
            return ValueKind(values=_of(inner[-1]))
        return ValueKind(node=True)  # Callable[…]
    return ANY


def of_value(value: Any) -> ValueKind:
    """The kind of a value in a YAML file; `ANY` for null."""
    if isinstance(value, bool):
        return ValueKind(frozenset({"bool"}))
    if isinstance(value, int):
        return ValueKind(frozenset({"int"}))
    if isinstance(value, float):
        return ValueKind(frozenset({"number"}))
    if isinstance(value, str) and value != "???":
        return TEXT
    if isinstance(value, list):
        kinds = [of_value(item) for item in value] or [ANY]
        return ValueKind(items=kinds[0] if all(kind == kinds[0] for kind in kinds) else ANY)
    return ValueKind(node=True) if isinstance(value, dict) and value else ANY


class Kinds:
    """What each key of a composition takes. tree: its plain values. marks: of the files that it is composed of, by key."""

    def __init__(self, tree: Mapping[str, Any], marks: Mapping[str, str]) -> None:
        self.tree, self.marks = tree, marks
        self._known: dict[str, Mapping[str, ValueKind]] = {}

    def of(self, key: str, now: Mapping[str, Any] | None = None) -> ValueKind:
        """The kind of a key. now: the present values, in which a `_target_` may differ from the composition's."""
        above, _, name = key.rpartition(".")
        declared = _at(self.tree, key)
        if name == TARGET:
            return TEXT
        if key in self.marks:
            kind = of_annotation(self.marks[key])
            return replace(kind, null=True) if declared is None else kind
        holder = _at(now if now is not None else self.tree, above) if above else None
        if isinstance(holder, dict) and TARGET in holder and (kind := self._annotated(holder[TARGET]).get(name)):
            return kind
        if above and (values := self.of(above, now).values):
            return values
        return of_value(declared)

    def _annotated(self, target: object) -> Mapping[str, ValueKind]:
        name = str(target)
        if name not in self._known:
            self._known[name] = annotated(target)
        return self._known[name]

    def value(self, key: str, text: str, now: Mapping[str, Any]) -> Any:
        """The value of a key from a typed word. Raises ValueError, naming the key and what fits."""
        kind = self.of(key, now)
        structured = {"[": kind.items or kind.any, "{": kind.values or kind.node or kind.any}.get(text.strip()[:1])
        try:
            unreadable(text)
            written = tree(text) if structured and (not kind.scalars or bracketed(text)) else word(text)
            return self._typed(written, kind, key, now)
        except WrongKind:
            raise ValueError(f"{key}={text} is of the wrong kind: {self._fitting(key, kind, text, declared=_at(self.tree, key))}") from None
        except ValueError as error:
            raise ValueError(f"{key}={text}: {error}") from None

    def _fitting(self, key: str, kind: ValueKind, text: str, declared: Any) -> str:
        own = declared if isinstance(declared, Mapping) and TARGET not in declared and not kind.scalars else ()
        named = ", ".join(f"{key}.{name}=" for name in own)
        said = f"it takes its own keys, {named}" if named else f"it takes {kind.told}"
        if kind.items and not bracketed(text) and text:
            said += f", such as [{text}]"
        elif not kind.scalars & {"text", "path"} and (len(cut(text)) > 1 or FUNCTIONS.fullmatch(text)):
            said += "; several values are run one after another with -m (--multirun)"
        elif isinstance(declared, bool | int | float):
            said += f" (as it stands: {str(declared).lower()})"
        return said

    def _typed(self, written: Tree, kind: ValueKind, key: str, now: Mapping[str, Any]) -> Any:
        if isinstance(written, Leaf):
            return scalar(written, kind)
        if isinstance(written, list):
            items = kind.items or (ANY if kind.any else None)
            if items is None:
                raise WrongKind
            return [self._typed(item, items, f"{key}[]", now) for item in written]
        if kind.values is not None and TARGET not in written:
            return {name: self._typed(item, kind.values, f"{key}.{name}", now) for name, item in written.items()}
        if not (kind.node or kind.any):
            raise WrongKind
        target = written.get(TARGET)
        known: Callable[[str], ValueKind] = (lambda name: self.of(f"{key}.{name}", now)) if "[]" not in key else (lambda _: ANY)
        if isinstance(target, Leaf):
            named = annotated(target.text)
            known = lambda name: named.get(name) or (TEXT if name == TARGET else ANY)  # noqa: E731
        return {name: self._typed(item, known(name), f"{key}.{name}", now) for name, item in written.items()}


class WrongKind(ValueError):
    """A value of another kind than its key takes."""


def scalar(leaf: Leaf, kind: ValueKind) -> Any:
    """A scalar of a kind from its text. Raises `WrongKind` if it does not fit, or ValueError for an empty path or an invalid number."""
    text, plain = leaf.text, not leaf.quoted
    if text == "???":
        raise ValueError("??? is the mark of what must still be given, and no value")
    if plain and text == "null" and (kind.null or kind.any):
        return None
    if plain and kind.scalars & {"bool", "any"} and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if plain and kind.scalars & {"int", "number", "any"} and NUMBER.fullmatch(text) and not (kind.any and "_" in text):
        return numeral(text, kind)
    if kind.scalars & {"path"} and not text.strip():
        raise ValueError("it is empty, where a path belongs")
    if kind.scalars & {"text", "path", "any"}:
        return text
    if plain and text.lower().lstrip("+-.") in ("nan", "inf"):
        raise ValueError("it is no number that can be used")
    raise WrongKind


def numeral(text: str, kind: ValueKind) -> int | float:
    whole = kind.scalars & {"int", "any"} or "number" in kind.scalars
    if whole and INT.fullmatch(text) and len(text) < 30 and abs(int(text)) < LARGEST:
        return int(text)
    number = float(text)
    if not usable(number) or INT.fullmatch(text):
        raise ValueError("it is too large a number")
    if "int" in kind.scalars and number.is_integer() and "number" not in kind.scalars:
        if not usable(int(number)):
            raise ValueError("it is too large a number")
        return int(number)
    if not kind.scalars & {"number", "any"}:
        raise WrongKind
    return number


def unreadable(text: str) -> None:
    """Raise ValueError for text that no configuration may hold: references, the mark `???` of a missing value, undecodable bytes."""
    if "${" in text:
        raise ValueError(
            "${…} is not looked up in what is typed; write the value itself (a shell expands $NAME outside single quotes; a prompt with "
            "such letters can stand in prompts=FILE)"
        )
    if not text.isascii() and text != text.encode("utf-8", "replace").decode("utf-8"):
        raise ValueError(f"it holds bytes that are no text in UTF-8: {text!a}; type it in UTF-8, and rename a file whose name is not")


def usable(number: float) -> bool:
    """Whether a number is small enough to compute with."""
    return abs(number) < (LARGEST if isinstance(number, int) else FARTHEST)


def fits(value: Any, kind: ValueKind) -> bool:
    """Whether a value in a YAML file is of a kind. References and missing values (`???`) always fit."""
    if kind.any or (isinstance(value, str) and (value == "???" or "${" in value)):
        return True
    if value is None:
        return kind.null
    if isinstance(value, bool):
        return "bool" in kind.scalars
    if isinstance(value, int):
        return bool(kind.scalars & {"int", "number"}) and usable(value)
    if isinstance(value, float):
        return usable(value) and ("number" in kind.scalars or ("int" in kind.scalars and usable(int(value)) and value.is_integer()))
    if isinstance(value, list):
        return kind.items is not None and all(fits(item, kind.items) for item in value)
    if isinstance(value, dict):
        return kind.node or (kind.values is not None and all(fits(item, kind.values) for item in value.values()))
    return bool(kind.scalars & {"text", "path"})


def settled(value: Any, kind: ValueKind) -> Any:
    """A fitting value in the form that programs use: 24.0 as 24 for an integer, `~` expanded in paths. A path to be written loses `x/..`
    where x does not exist, because x would be created on the way."""
    if isinstance(value, list) and kind.items is not None:
        return [settled(item, kind.items) for item in value]
    if isinstance(value, str) and "out" in kind.scalars and ".." in (parts := Path(value).parts):
        value = str(_without_detours(parts))
    if isinstance(value, float) and "int" in kind.scalars and "number" not in kind.scalars and value.is_integer():
        return int(value)
    if isinstance(value, str) and "path" in kind.scalars and value.startswith("~"):
        try:
            return str(Path(value).expanduser())
        except RuntimeError:
            who = value.partition("/")[0]
            raise ValueError(f"{value}: there is no home folder of {who!r}; a name that begins with ~ is written ./{value}") from None
    return value


def _without_detours(parts: Sequence[str]) -> Path:
    """A path without `x/..` where x does not exist; an existing x may be a link, and stays."""
    path = Path()
    for part in parts:
        path = path.parent if part == ".." and path.name not in ("", "..") and not os.path.lexists(path) else path / part
    return path


def annotated(target: object) -> Mapping[str, ValueKind]:
    """The kinds of a target's keys, as far as annotations tell; empty for a target that is not allowed."""
    try:
        definition = find(target) if isinstance(target, str) else None
    except ValueError:
        return {}
    known = parameters(definition) if definition is not None else None
    found = {name: of_annotation(item.annotation) for name, item in (known or {}).items() if item.annotation}
    return {name: kind for name, kind in found.items() if not kind.any}


def refuse(said_by: str, name: str, value: Any, kind: ValueKind) -> NoReturn:
    """Raise ValueError for a value in a file that does not fit."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and kind.scalars & {"text", "path"}
    hint = "; YAML reads it as a number: put it in quotes" if number else ""
    raise ValueError(f"{said_by}: {name}={value!r} is of the wrong kind: it takes {kind.told}{hint}")


def marks(files: Sequence[Path], chosen: Mapping[str, str | None]) -> dict[str, str]:
    """The marks in the comments of YAML files, by dotted key of the composition; later files win."""
    told = comments(files, chosen)
    return {key: mark[1] for key, note in told.items() if (mark := MARK.match(note))}


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
