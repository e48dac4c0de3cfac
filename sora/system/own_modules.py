"""Code of the user's own: which modules a command names, where their files lie, and how they are imported in every process that it starts.

They stand in the variable SORA_OWN, one a line: the name of a module that can be imported, or the path of one file. Only the user's
environment and a command line (`own=[…]`, see `sora.config.own`) set it, never a configuration. Nothing is imported here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from sora.system.files import file_hash
from sora.system.processes import born_deaf

OWN = "SORA_OWN"
PATIENCE = 10.0  # seconds that git may take


def named() -> Mapping[str, Path | None]:
    """The modules that may be imported, by name; the file of those that are named by one."""
    return _read(os.environ.get(OWN, ""))


@lru_cache(maxsize=8)
def _read(lines: str) -> Mapping[str, Path | None]:
    words = [line.strip() for line in lines.splitlines() if line.strip()]
    return {module_name(word) if is_path(word) else word: Path(word) if is_path(word) else None for word in words}


def is_path(word: str) -> bool:
    """Whether a word means a file, and not a module by its name."""
    return word.endswith(".py") or os.sep in word


def module_name(path: str | Path) -> str:
    """What the module of a file is called: the file's name without .py, with _ for what no name of Python holds."""
    return re.sub(r"\W", "_", unicodedata.normalize("NFKC", Path(path).stem))


class OwnFiles:
    """Finds the modules that are named by a file, before any other module of that name."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = named().get(name)
        return None if file is None else spec_from_file_location(name, file)


class OwnFolder:
    """Finds packages of named modules in the current folder, where nothing else has them: `sora` does not look there, `python -m` does."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        tops = {module.partition(".")[0] for module, file in named().items() if file is None}
        return PathFinder.find_spec(name, [os.getcwd()]) if path is None and name in tops else None


def install() -> None:
    """From here on the named modules can be imported in this process."""
    if OwnFiles not in sys.meta_path:
        sys.meta_path.insert(0, OwnFiles)
        sys.meta_path.append(OwnFolder)


def source(name: str) -> Path | None:
    """The Python file of a module, which is not imported, nor is a package that it lies in; None where there is none."""
    origin = _found(name)[0]
    return Path(origin) if origin is not None and origin.endswith(".py") and os.path.isfile(origin) else None


def folders(name: str) -> list[str]:
    """The folders in which the modules of a package may lie; none of what is no package."""
    return [folder for folder in _found(name)[1] if os.path.isdir(folder)]


def _found(name: str) -> tuple[str | None, list[str]]:
    """Where a module lies, and the folders of what it may hold."""
    top, *parts = name.split(".")
    spec = next((found for finder in sys.meta_path if (found := finder.find_spec(top, None)) is not None), None)
    if spec is None:
        return None, []
    origin, inside = spec.origin, list(spec.submodule_search_locations or ())
    for part in parts:
        lies = [path for folder in inside for path in (f"{folder}/{part}/__init__.py", f"{folder}/{part}.py") if os.path.isfile(path)]
        origin, inside = next(iter(lies), None), [os.path.join(folder, part) for folder in inside]
    return origin, inside


def loaded(name: str) -> bool:
    """Whether something has imported the module in this process."""
    return name in sys.modules


def files(name: str) -> dict[str, Path]:
    """The files that importing a named module has read: its own, and of a package those of all its modules that are imported now."""
    if (file := named().get(name)) is not None:
        return {file.name: file}
    top = name.partition(".")[0]
    modules = [each for each in sys.modules if each == top or each.startswith(f"{top}.")]
    return {_label(each, path): path for each in sorted({*modules, name}) if (path := source(each)) is not None}


def _label(module: str, path: Path) -> str:
    """How a record names a module's file: from the folder that holds the package."""
    return module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")


def file_of(name: str, label: str) -> Path | None:
    """Where a file that `files` has named lies now."""
    if (file := named().get(name)) is not None:
        return file
    return source(label.removesuffix(".py").removesuffix("/__init__").replace("/", "."))


def record(names: Iterable[str]) -> dict[str, Any]:
    """What a run keeps of own modules: the path of a file, the SHA-256 of every file that was read, and where git has them."""
    kept: dict[str, Any] = {}
    for name in names:
        read = files(name)
        kept[name] = {"files": {label: file_hash(path) for label, path in read.items()}}
        if (file := named().get(name)) is not None:
            kept[name]["file"] = str(file)
        if (state := git_state(read.values())) is not None:
            kept[name]["git"] = state
    return kept


def git_state(paths: Iterable[Path]) -> dict[str, Any] | None:
    """The commit of the repository that files lie in, and whether they differ from it (dirty; so are files that it does not hold); None
    outside of one."""
    places = [str(path.resolve()) for path in paths]
    if not places:
        return None
    git = ["git", "-c", "core.fsmonitor=false", "-C", os.path.dirname(places[0])]
    try:
        commit = _said([*git, "rev-parse", "HEAD"])
        return {"commit": commit.strip(), "dirty": bool(_said([*git, "status", "--porcelain", "--ignored", "--", *places]))}
    except (OSError, subprocess.SubprocessError):
        return None


def _said(words: list[str]) -> str:
    with born_deaf():
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
