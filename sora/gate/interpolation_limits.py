"""Limits on the interpolations of a configuration, `${width}`: they must not grow exponentially, and must not call resolvers."""

from __future__ import annotations

from typing import Any

LARGEST = 1 << 26  # characters
MOST = 24  # references; resolving 3^8 copies takes seconds


def refuse_growth(text: str) -> None:
    """Raise ValueError for references that could expand to more text than memory or patience allow, as `a: ${b}${b}`, `b: ${c}${c}`.

    R references expand most if each level names the next one three times, to 3^(R/3) copies.
    """
    count = text.count("${")
    if count > MOST or (count and len(text) * 3 ** (count / 3) > LARGEST):
        raise ValueError(
            f"its {count} references could stand for very much: at most {MOST}, and {LARGEST:,} characters, are looked up; write the values"
        )


def refuse_resolvers(tree: Any, place: str = "") -> None:
    """Raise ValueError for any `${name:…}` in a tree: a configuration must hold values, and run or read nothing."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            refuse_resolvers(str(key), place)  # nothing resolves keys today
            refuse_resolvers(value, f"{place}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for item in tree:
            refuse_resolvers(item, place)
    elif isinstance(tree, str) and calls_resolver(tree):
        raise ValueError(f"{place or 'a value'}: {tree!r} calls a resolver, which is refused; write the value itself")


def calls_resolver(text: str) -> bool:
    """Whether a text has a reference with a colon, also if its name is a reference, as in `${${name}:HOME}`."""
    depth = 0
    for place, letter in enumerate(text):
        if text.startswith("${", place):
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
        elif letter == ":" and depth:
            return True
    return False
