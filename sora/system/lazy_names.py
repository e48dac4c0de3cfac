"""The names that a package offers, found when they are asked for: importing it imports none of its files."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


@cache
def offered(stub: Path) -> dict[str, str]:
    """The module of each name that a package's stub imports, by name."""
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    return {name.asname or name.name: str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that offers what the stub beside it imports (PEP 562).

    package: its `__name__`. file: its `__file__`; the stub, `__init__.pyi`, lies in the same folder, and is what type checkers read.
    """
    stub = Path(file).with_suffix(".pyi")

    def find(name: str) -> Any:
        module = None if name.startswith("_") else offered(stub).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return find, lambda: sorted(offered(stub))
