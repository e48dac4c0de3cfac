"""Whether what a node names can do what its key is for: a pattern of attention is no MLP, though both are functions of two arguments."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, get_args

SIGNATURE = re.compile(r"Callable\[\[(?P<takes>.*?)\], ")
SCALARS = ("bool", "float", "int", "str")


def refuse_other(annotation: str, home: str, made: Callable[..., Any], place: str) -> None:
    """Raise ValueError where a parameter so annotated, in module `home`, cannot be what the class or function `made` gives.

    Of functions is compared what they are called with, by place: how many arguments, and which of them are plain numbers or words. Of
    classes, whether they are the one that is wanted or have its methods. What cannot be told so is not judged.
    """
    name = annotation.removesuffix(" | None")
    wanted = getattr(sys.modules[home], name, None) if name.isidentifier() else None
    takes = _called_with(name, wanted)
    if inspect.isfunction(made):
        given = [item for item in inspect.signature(made).parameters.values() if item.kind is not item.KEYWORD_ONLY]
        least = sum(item.default is item.empty for item in given)
        if takes is None and inspect.isclass(wanted):
            raise ValueError(f"{place} takes a {name}, and {_name(made)} is a function; choose a class of that room")
        if takes is not None and not (least <= len(takes) <= len(given) and all(map(_alike, takes, given))):
            said = ", ".join(written(item.annotation) for item in given)
            raise ValueError(f"{place} takes a function of ({', '.join(takes)}), and {_name(made)} is one of ({said}); choose another")
    elif inspect.isclass(wanted) and not _is_a(made, wanted):
        raise ValueError(f"{place} takes a {name}, and {_name(made)} is none; choose another")


def _called_with(annotation: str, wanted: Any) -> list[str] | None:
    """The arguments by place of a function so annotated: written out, an alias, or a protocol with such a call; None for no function."""
    if match := SIGNATURE.match(annotation):
        return match["takes"].split(", ")
    if inspect.isclass(wanted):
        call = vars(wanted).get("__call__")
        return None if call is None else [written(item.annotation) for item in list(inspect.signature(call).parameters.values())[1:]]
    takes = next(iter(get_args(wanted)), None)
    return [written(item) for item in takes] if isinstance(takes, list) else None


def written(annotation: Any) -> str:
    """An annotation as it is written, whether or not its module postpones them."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return annotation if isinstance(annotation, str) else ""
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _alike(wanted: str, given: inspect.Parameter) -> bool:
    said = written(given.annotation)
    return said == wanted or not {said, wanted} & set(SCALARS)


def _is_a(made: Any, wanted: type) -> bool:
    if not getattr(wanted, "_is_protocol", False):
        return not inspect.isclass(made) or issubclass(made, wanted)
    methods = [name for name, value in vars(wanted).items() if inspect.isfunction(value) and (name == "__call__" or name[0] != "_")]
    return all(getattr(made, name, None) is not None for name in methods)


def _name(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"
