"""Lazy imports for packages: a public name is imported when it is first used, so importing the package imports none of its files."""

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
    """The `__getattr__` and `__dir__` of a package whose public names are those that its stub imports (PEP 562).

    package: its `__name__`. file: its `__file__`. The stub, `__init__.pyi`, lies in the same folder; type checkers read it too.
    """
    stub = Path(file).with_suffix(".pyi")

    def find(name: str) -> Any:
        module = None if name.startswith("_") else offered(stub).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return find, lambda: sorted(offered(stub))
