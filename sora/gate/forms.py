"""Declared forms of plain values, and the first place in which a value departs from its form.

    FORM = Fields({"kind": word("vae", "diffusion"), "steps": whole(1)}, may={"note": text})
    fitting(value, FORM, "run.json")        # the value, or ValueError: run.json: steps is 'x', and a whole number from 1 fits

A form is a `Scalar`, `[form]` for a list, `{key: form}` for a mapping with these keys and possibly others, or one of the classes below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGEST = 1 << 53  # integers up to it are exact in every JSON reader


@dataclass(frozen=True)
class Scalar:
    """A value without parts. says: what fits, for messages."""

    says: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Fields:
    """A mapping with required keys (`must`) and optional keys (`may`). closed: it has no other keys."""

    must: Mapping[str, Form]
    may: Mapping[str, Form] = field(default_factory=dict)
    closed: bool = False


@dataclass(frozen=True)
class Named:
    """A mapping with any text as keys and values of one form. name: the form of the keys."""

    form: Form
    name: Scalar | None = None


@dataclass(frozen=True)
class Items:
    """A list with `least` to `most` values of one form."""

    form: Form
    least: int = 0
    most: int = LARGEST


@dataclass(frozen=True)
class Row:
    """A list with a form for each position."""

    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Maybe:
    """None, or a value of a form."""

    form: Form


@dataclass(frozen=True)
class Either:
    """A value of one of two forms; a message describes the second."""

    one: Form
    other: Form


Form = Scalar | Fields | Named | Items | Row | Maybe | Either | Mapping[str, Any] | list[Any]


def whole(least: int = 0, most: int = LARGEST) -> Scalar:
    """An integer from `least` to `most`."""
    ends = f"from {least:,}" if most == LARGEST else f"from {least:,} to {most:,}"
    return Scalar(f"a whole number {ends}", lambda value: type(value) is int and least <= value <= most)


def real(least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> Scalar:
    """A finite number from `least` to `most`, both included; with `above`, `least` is excluded."""
    ends = [f"{'above' if above else 'from'} {least:g}"] if least > -math.inf else []
    ends += [f"to {most:g}"] if most < math.inf else []

    def fits(value: Any) -> bool:
        if type(value) is not float and type(value) is not int:
            return False
        return (least < value if above else least <= value) and value <= most and -math.inf < value < math.inf

    return Scalar(" ".join(["a finite number", *ends]), fits)


def word(*words: str) -> Scalar:
    return Scalar(" or ".join(words), lambda value: isinstance(value, str) and value in words)


def matching(pattern: str, says: str) -> Scalar:
    """A text that fully matches a regular expression."""
    compiled = re.compile(pattern)
    return Scalar(says, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None)


text = Scalar("a text", lambda value: isinstance(value, str) and len(value) <= 1 << 20)
flag = Scalar("true or false", lambda value: isinstance(value, bool))
anything = Scalar("anything", lambda value: True)
digest = matching(r"[0-9a-f]{64}", "a SHA-256 in hexadecimal")
count, some, number = whole(), whole(1), real()
inside = Scalar("the path of a file in its folder", lambda value: _is_path(value) and ".." not in value.split("/"))
beside = Scalar("the name of a file in its folder", lambda value: _is_path(value) and "/" not in value and value not in (".", ".."))


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 4096 and value[0] != "/" and "\0" not in value


def misfit(value: Any, form: Form) -> tuple[str, str] | None:
    """The dotted place where a value first departs from a form, and what is wrong there; None if it fits."""
    if isinstance(form, Scalar):
        return None if form.fits(value) else ("", f"is {shown(value)}, and {form.says} fits")
    if isinstance(form, Maybe):
        return None if value is None else misfit(value, form.form)
    if isinstance(form, Either):
        return None if misfit(value, form.one) is None else misfit(value, form.other)
    if isinstance(form, list | Items | Row):
        return _of_list(value, form)
    return _of_mapping(value, form)


def _of_list(value: Any, form: list[Any] | Items | Row) -> tuple[str, str] | None:
    if not isinstance(value, list):
        return "", f"is {shown(value)}, and a list fits"
    if isinstance(form, Row):
        if len(value) != len(form.forms):
            return "", f"is a list of {len(value):,}, and {len(form.forms)} fit"
        pairs = zip(value, form.forms, strict=True)
    else:
        items = Items(form[0]) if isinstance(form, list) else form
        if not items.least <= len(value) <= items.most:
            most = "" if items.most == LARGEST else f" to {items.most:,}"
            return "", f"is a list of {len(value):,}, and {items.least:,}{most or ' or more'} fit"
        pairs = ((item, items.form) for item in value)
    for place, (item, inner) in enumerate(pairs):
        if found := misfit(item, inner):
            return _within(str(place), found)
    return None


def _of_mapping(value: Any, form: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return "", f"is {shown(value)}, and a mapping fits"
    if isinstance(form, Named):
        for name, item in value.items():
            if form.name is not None and not form.name.fits(name):
                return "", f"has the key {shown(name)}, and {form.name.says} fits"
            if found := misfit(item, form.form):
                return _within(shown(name).strip("'\""), found)
        return None
    fields = form if isinstance(form, Fields) else Fields(form)
    for name, inner in fields.must.items():
        if name not in value:
            return _within(name, ("", "is missing"))
        if found := misfit(value[name], inner):
            return _within(name, found)
    for name, inner in fields.may.items():
        if name in value and (found := misfit(value[name], inner)):
            return _within(name, found)
    if fields.closed and (more := [name for name in value if name not in fields.must and name not in fields.may]):
        return "", f"has the key {shown(more[0])}, which is none of {', '.join([*fields.must, *fields.may])}"
    return None


def _within(place: str, found: tuple[str, str]) -> tuple[str, str]:
    return (f"{place}.{found[0]}" if found[0] else place), found[1]


def shown(value: Any) -> str:
    """A value for a message, as a short ASCII text, because it may be a stranger's."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value):,}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else f"{value[:60]}…").replace("\\u2026", "…")
    said = str(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of very many digits"
    return said if len(said) <= 60 else f"{said[:60]}…"


def fits(value: Any, form: Form) -> bool:
    """Whether a value has a form."""
    return misfit(value, form) is None


def fitting(value: Any, form: Form, named: str, advice: str = "") -> Any:
    """Return the value if it has a form; else raise ValueError with the file (`named`) and the key. advice: what to do about it."""
    if found := misfit(value, form):
        place, what = found
        raise ValueError(f"{named} is damaged: {f'{place} ' if place else 'it '}{what}{f'; {advice}' if advice else ''}")
    return value
