"""Whether the target of a node fits its key: an attention pattern is no MLP, though both are functions of two arguments."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args

SIGNATURE = re.compile(r"Callable\[\[(?P<takes>.*?)\], ")
SCALARS = ("bool", "float", "int", "str")
BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def refuse_other(annotation: str, home: str, made: Callable[..., Any], place: str, *, said: Collection[str] = ()) -> None:
    """Raise ValueError if the class or function `made` cannot be the value of a parameter with this annotation in module `home`.

    Functions are compared by their positional arguments: how many, and which are plain numbers or text. A class must be the annotated one,
    or have its methods. Other annotations are not checked. said: keys of the node.
    """
    name = annotation.removesuffix(" | None")
    wanted = getattr(sys.modules[home], name, None) if name.isidentifier() else None
    takes = _called_with(name, wanted)
    if inspect.isfunction(made):
        parameters = inspect.signature(made).parameters.values()
        given = [item for item in parameters if item.kind in BY_PLACE]
        if takes is None and inspect.isclass(wanted):
            raise ValueError(f"{place} takes a {name}, and {_name(made)} is a function; choose a class of that room")
        if takes is None:
            return
        endless = any(item.kind is item.VAR_POSITIONAL for item in parameters)
        why = misfit(len(takes), {item.name: item.default is item.empty for item in given}, said, place, endless=endless)
        if why or not all(map(_alike, takes, given)):
            shown = ", ".join(written(item.annotation) or item.name for item in given)
            is_one = f"{_name(made)} is one of ({shown}){why}"
            raise ValueError(f"{place} takes a function of ({', '.join(takes)}), and {is_one}; choose another")
    elif inspect.isclass(wanted) and not _is_a(made, wanted):
        lacks = [name for name in _methods(wanted) if getattr(made, name, None) is None]
        why = f" (it has no {', '.join(lacks)})" if lacks else ""
        raise ValueError(f"{place} takes a {name}, and {_name(made)} is none{why}; choose another")


def misfit(takes: int, given: Mapping[str, bool], said: Collection[str], place: str, *, endless: bool) -> str:
    """Why a function cannot be called with `takes` positional arguments; "" if it can. given: its positional parameters, and whether each
    is required. said: parameters that the configuration sets. endless: whether it has *args."""
    names = list(given)
    if len(names) < takes and not endless:
        return f": it is called with {takes}, and takes {len(names)}"
    if twice := [name for name in names[:takes] if name in said]:
        return f": {twice[0]} is set, and is given by place, too; write it behind the others, or behind a *"
    if lacking := [name for name in names[takes:] if given[name] and name not in said]:
        return f": nothing gives it {', '.join(lacking)}; a setting has a default, or is set in the configuration ({place}.{lacking[0]}=…)"
    return ""


def _called_with(annotation: str, wanted: Any) -> list[str] | None:
    """The positional arguments of an annotated function type: from the text, an alias or a callable protocol; None for other types."""
    if match := SIGNATURE.match(annotation):
        return match["takes"].split(", ")
    if inspect.isclass(wanted):
        call = vars(wanted).get("__call__")
        parameters = [] if call is None else list(inspect.signature(call).parameters.values())[1:]
        return None if call is None else [written(item.annotation) for item in parameters if item.kind in BY_PLACE]
    takes = next(iter(get_args(wanted)), None)
    return [written(item) for item in takes] if isinstance(takes, list) else None


def written(annotation: Any) -> str:
    """An annotation as text, whether or not its module postpones annotations."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return annotation if isinstance(annotation, str) else ""
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _alike(wanted: str, given: inspect.Parameter) -> bool:
    said = written(given.annotation)
    return not said or said == wanted or not {said, wanted}.intersection(SCALARS)


def _is_a(made: Any, wanted: type) -> bool:
    if not getattr(wanted, "_is_protocol", False):
        return not inspect.isclass(made) or issubclass(made, wanted)
    return all(getattr(made, name, None) is not None for name in _methods(wanted))


def _methods(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if inspect.isfunction(value) and (name == "__call__" or name[0] != "_")]


def _name(made: Any) -> str:
    return f"{made.__module__}.{made.__qualname__}"
