"""How many files are reached from a module when its imports are followed, lazy ones too. `python tools/reach.py sora.train …`"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "sora"
USUAL = ("sora.dit.dit", "sora.generation.generator", "sora.training.module", "sora.train")


def source(name: str) -> Path | None:
    place = ROOT.joinpath(*name.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def imported(path: Path) -> frozenset[Path]:
    """The files of the package that a file imports; a package's own file is among them where it does more than say what the package is."""
    package = (path.parent.relative_to(ROOT.parent).as_posix()).replace("/", ".")
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [each for alias in node.names for each in (f"{base}.{alias.name}" if source(f"{base}.{alias.name}") else base,)]
        for name in names:
            if name.split(".")[0] != "sora":
                continue
            parts = name.split(".")
            for end in range(2, len(parts) + 1):
                file = source(".".join(parts[:end]))
                if file is not None and (file.name != "__init__.py" or len(ast.parse(file.read_text()).body) > 1):
                    found.add(file)
    return frozenset(found)


def reach(start: str) -> set[Path]:
    """Every file that is read when the module is, itself included."""
    first = source(start)
    if first is None:
        raise SystemExit(f"there is no module {start}")
    seen: set[Path] = set()
    ahead = [first]
    while ahead:
        path = ahead.pop()
        if path not in seen:
            seen.add(path)
            ahead += imported(path)
    return seen


if __name__ == "__main__":
    for start in sys.argv[1:] or USUAL:
        files = reach(start)
        lines = sum(len(path.read_text().splitlines()) for path in files)
        print(f"{start:32} {len(files):4} files {lines:7,} lines")
