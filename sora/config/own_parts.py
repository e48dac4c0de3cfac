"""Whether a user's own function or class can take the place of sora's options of a group; decided from the source, without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sora.config import own
from sora.config.own import Defined
from sora.config.roles import misfit
from sora.config.targets import TARGET, find

_TOP = re.compile(r"^(\w+): *(\S*)", re.MULTILINE)
BY_NAME = {"guidance": ("clips", "path")}  # arguments that functions of a group get by name, besides those without a default
SORAS = {
    "vae": "a run keeps its VAE as a file that names no class",
    "logger": "it runs in a process of its own, which knows sora's by name",
}


@dataclass(frozen=True)
class Like:
    """A function or class that an option of sora's names, and the arguments that the program gives it by name."""

    node: Defined
    given: frozenset[str]


def refuse_unlike(tree: Mapping[str, Any], available: Mapping[str, Mapping[str, Path]]) -> None:
    """Raise ValueError if a part of a configuration is an own function or class that cannot replace sora's options of that group.

    Functions are compared by their positional and named arguments, classes by the methods that all options have.
    """
    for group, node in tree.items():
        if group not in available or not isinstance(node, Mapping) or own.module_of(str(node.get(TARGET))) is None:
            continue
        target = str(node[TARGET])
        if group in SORAS:
            raise ValueError(f"{group}._target_={target}: {group} has to be one of sora's, as {SORAS[group]}")
        made = find(target)
        known = [each for path in available[group].values() if (each := _of_sora(path, path.stat().st_mtime_ns)) is not None]
        functions = [each for each in known if isinstance(each.node, ast.FunctionDef)]
        if made is None or not known:
            continue
        if isinstance(made.node, ast.ClassDef):
            _refuse_class(group, target, made.node, [each.node for each in known])
        elif not functions:
            wanted = sorted({each.node.name for each in known})
            raise ValueError(f"{group} takes a class, as {' or '.join(wanted[:3])} is one, and {target} is a function; write a class")
        else:
            _refuse_function(group, target, made.node, functions[0], [str(key) for key in node])


@lru_cache(maxsize=1024)
def _of_sora(path: Path, changed: int) -> Like | None:
    """The function or class of sora's in an option's file; None if it names another one."""
    del changed  # part of the cache's key: a changed file may name another
    top = dict(_TOP.findall(path.read_text(encoding="utf-8", errors="replace")))
    if not top.get(TARGET, "").startswith("sora."):
        return None
    try:
        definition = find(top[TARGET])
    except ValueError:  # an option in the user's own folder; reported where it is chosen
        return None
    if definition is None or not isinstance(definition.node, ast.FunctionDef):
        return None if definition is None else Like(definition.node, frozenset())
    arguments = definition.node.args
    needed = {item.arg for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None}
    return Like(definition.node, frozenset(needed - set(top)))


def _places(node: ast.FunctionDef) -> dict[str, bool]:
    """The positional parameters of a function, and whether each is required."""
    items = [*node.args.posonlyargs, *node.args.args]
    return {item.arg: place < len(items) - len(node.args.defaults) for place, item in enumerate(items)}


def _refuse_function(group: str, target: str, node: ast.FunctionDef, like: Like, said: list[str]) -> None:
    assert isinstance(like.node, ast.FunctionDef)
    takes, given, arguments = list(_places(like.node)), _places(node), node.args
    if why := misfit(len(takes), given, said, group, endless=arguments.vararg is not None):
        is_one = f"{target} is one of ({', '.join(given)}){why}"
        raise ValueError(f"{group} takes a function of ({', '.join(takes)}), as {like.node.name} is one, and {is_one}")
    names = {*list(given)[len(takes) :], *(item.arg for item in arguments.kwonlyargs)}
    if (lacking := sorted({*like.given, *BY_NAME.get(group, ())} - names)) and arguments.kwarg is None:
        raise ValueError(f"{group} is given {' and '.join(lacking)} by name, as {like.node.name} is, and {target} does not take it")


def _methods(node: ast.ClassDef) -> set[str]:
    """The public methods and fields of a class."""
    found = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    found |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    found |= {name.id for item in node.body if isinstance(item, ast.Assign) for name in item.targets if isinstance(name, ast.Name)}
    return {name for name in found if name == "__call__" or not name.startswith("_")}


def _refuse_class(group: str, target: str, node: ast.ClassDef, known: list[Defined]) -> None:
    if node.bases:  # its methods may be inherited
        return
    classes = [each for each in known if isinstance(each, ast.ClassDef)]
    methods = [{name for name in _methods(each) if _is_method(each, name)} for each in classes if not each.bases]
    wanted = set.intersection(*methods) if methods else set() if classes else {"__call__"}
    if lacking := sorted(wanted - _methods(node)):
        raise ValueError(f"{group} takes a class with {', '.join(sorted(wanted))}, and {target} has no {', '.join(lacking)}")


def _is_method(node: ast.ClassDef, name: str) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == name for item in node.body)
