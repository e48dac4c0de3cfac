"""What the references of a configuration, `${width}`, may stand for at most, and that they are references alone."""

from __future__ import annotations

from typing import Any

LARGEST = 1 << 26  # characters
MOST = 24  # references; looking up what 3^8 of them stand for takes seconds


def refuse_growth(text: str) -> None:
    """Raise ValueError where references could stand for more than memory and patience hold, as `a: ${b}${b}`, `b: ${c}${c}`.

    R references make the most of a text where each level names the next one three times: 3^(R/3) copies of it.
    """
    count = text.count("${")
    if count > MOST or (count and len(text) * 3 ** (count / 3) > LARGEST):
        raise ValueError(
            f"its {count} references could stand for very much: at most {MOST}, and {LARGEST:,} characters, are looked up; write the values"
        )


def refuse_resolvers(tree: Any, place: str = "") -> None:
    """Raise ValueError for any `${name:…}` in a tree: a configuration holds values, it does not run or read anything."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            refuse_resolvers(str(key), place)  # which nothing looks up today
            refuse_resolvers(value, f"{place}.{key}".lstrip("."))
    elif isinstance(tree, list):
        for item in tree:
            refuse_resolvers(item, place)
    elif isinstance(tree, str) and calls_resolver(tree):
        raise ValueError(f"{place or 'a value'}: {tree!r} calls a resolver, which is refused; write the value itself")


def calls_resolver(text: str) -> bool:
    """Whether a text holds a reference with a colon, also one whose name is a reference itself: `${${name}:HOME}`."""
    depth = 0
    for place, letter in enumerate(text):
        if text.startswith("${", place):
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
        elif letter == ":" and depth:
            return True
    return False
