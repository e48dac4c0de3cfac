"""Whether an own function or class can be what a group is for, told from the source: sora's options of the group are what it is like."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sora.config import own
from sora.config.own import Defined
from sora.config.roles import misfit
from sora.config.targets import TARGET, find

_NAMED = re.compile(rf"^{TARGET}: *[\"']?([\w.]+)", re.MULTILINE)


def refuse_unlike(tree: Mapping[str, Any], available: Mapping[str, Mapping[str, Path]]) -> None:
    """Raise ValueError where a part of a configuration is an own function or class that cannot do what sora's options of that group do.

    Of functions is compared how many arguments they are called with by place, of classes which methods all of the options have.
    """
    for group, node in tree.items():
        if group not in available or not isinstance(node, Mapping) or own.module_of(str(node.get(TARGET))) is None:
            continue
        made = find(node[TARGET])
        known = [each for path in available[group].values() if (each := _of_sora(path, path.stat().st_mtime_ns)) is not None]
        functions = [each for each in known if isinstance(each, ast.FunctionDef)]
        if made is None or not known:
            continue
        if isinstance(made.node, ast.ClassDef):
            _refuse_class(group, str(node[TARGET]), made.node, known)
        elif not functions:
            wanted = sorted({each.name for each in known})
            raise ValueError(f"{group} takes a class, as {' or '.join(wanted[:3])} is one, and {node[TARGET]} is a function; write a class")
        else:
            _refuse_function(group, str(node[TARGET]), made.node, functions, [str(key) for key in node])


@lru_cache(maxsize=1024)
def _of_sora(path: Path, changed: int) -> Defined | None:
    """What an option's file names of sora's."""
    del changed  # a file that has changed names another
    named = _NAMED.search(path.read_text(encoding="utf-8", errors="replace"))
    if named is None or not named[1].startswith("sora."):
        return None
    try:
        definition = find(named[1])
    except ValueError:  # an option of a folder of one's own, which is told where it is chosen
        return None
    return None if definition is None else definition.node


def _places(node: ast.FunctionDef) -> dict[str, bool]:
    """What a function takes by place, and whether it must be given."""
    items = [*node.args.posonlyargs, *node.args.args]
    return {item.arg: place < len(items) - len(node.args.defaults) for place, item in enumerate(items)}


def _refuse_function(group: str, target: str, node: ast.FunctionDef, known: list[ast.FunctionDef], said: list[str]) -> None:
    like = known[0]
    takes, given = list(_places(like)), _places(node)
    if why := misfit(len(takes), given, said, group, endless=node.args.vararg is not None):
        raise ValueError(
            f"{group} takes a function of ({', '.join(takes)}), as {like.name} is one, and {target} is one of ({', '.join(given)}){why}"
        )


def _methods(node: ast.ClassDef) -> set[str]:
    """Methods and fields that others may use."""
    found = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    found |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    found |= {name.id for item in node.body if isinstance(item, ast.Assign) for name in item.targets if isinstance(name, ast.Name)}
    return {name for name in found if name == "__call__" or not name.startswith("_")}


def _refuse_class(group: str, target: str, node: ast.ClassDef, known: list[Defined]) -> None:
    if node.bases:  # which may have them
        return
    classes = [each for each in known if isinstance(each, ast.ClassDef)]
    methods = [{name for name in _methods(each) if _is_method(each, name)} for each in classes if not each.bases]
    wanted = set.intersection(*methods) if methods else set() if classes else {"__call__"}
    if lacking := sorted(wanted - _methods(node)):
        raise ValueError(f"{group} takes a class with {', '.join(sorted(wanted))}, and {target} has no {', '.join(lacking)}")


def _is_method(node: ast.ClassDef, name: str) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == name for item in node.body)
