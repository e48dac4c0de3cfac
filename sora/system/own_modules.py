"""The user's own modules: which ones a command names, where their files lie, and how every process of the command imports them.

The variable SORA_OWN lists them, one a line: the name of an importable module, or the path of a file. Only the user's environment and a
command line (`own=[…]`, see `sora.config.own`) can set it, never a configuration. This module imports none of them.
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
    """The named modules; for a module that is named by its file, the path of the file."""
    return _read(os.environ.get(OWN, ""))


@lru_cache(maxsize=8)
def _read(lines: str) -> Mapping[str, Path | None]:
    words = [line.strip() for line in lines.splitlines() if line.strip()]
    return {module_name(word) if is_path(word) else word: Path(word) if is_path(word) else None for word in words}


def is_path(word: str) -> bool:
    """Whether a word is a path and not the name of a module."""
    return word.endswith(".py") or os.sep in word


def module_name(path: str | Path) -> str:
    """The module name of a file: its name without .py, with _ for characters that Python names cannot have."""
    return re.sub(r"\W", "_", unicodedata.normalize("NFKC", Path(path).stem))


class OwnFiles:
    """Finds modules that are named by a file, before any other module of that name."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = named().get(name)
        return None if file is None else spec_from_file_location(name, file)


class OwnFolder:
    """Finds packages of named modules in the working directory if they are nowhere else, as `python -m` does and `sora` does not."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        tops = {module.partition(".")[0] for module, file in named().items() if file is None}
        return PathFinder.find_spec(name, [os.getcwd()]) if path is None and name in tops else None


def install() -> None:
    """Make the named modules importable in this process."""
    if OwnFiles not in sys.meta_path:
        sys.meta_path.insert(0, OwnFiles)
        sys.meta_path.append(OwnFolder)


def source(name: str) -> Path | None:
    """The Python file of a module, without importing it or its package; None if there is none."""
    origin = _found(name)[0]
    return Path(origin) if origin is not None and origin.endswith(".py") and os.path.isfile(origin) else None


def folders(name: str) -> list[str]:
    """The folders with the modules of a package; empty for a module that is no package."""
    return [folder for folder in _found(name)[1] if os.path.isdir(folder)]


def _found(name: str) -> tuple[str | None, list[str]]:
    """The file of a module, and the folders with its submodules."""
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
    """Whether this process has imported the module."""
    return name in sys.modules


def files(name: str) -> dict[str, Path]:
    """The files that importing a named module has read: its own, or those of all imported modules of its package."""
    if (file := named().get(name)) is not None:
        return {file.name: file}
    top = name.partition(".")[0]
    modules = [each for each in sys.modules if each == top or each.startswith(f"{top}.")]
    return {_label(each, path): path for each in sorted({*modules, name}) if (path := source(each)) is not None}


def _label(module: str, path: Path) -> str:
    """The name of a module's file in a record: its path from the folder that holds the package."""
    return module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")


def file_of(name: str, label: str) -> Path | None:
    """The present path of a file with a label of `files`."""
    if (file := named().get(name)) is not None:
        return file
    return source(label.removesuffix(".py").removesuffix("/__init__").replace("/", "."))


def record(names: Iterable[str]) -> dict[str, Any]:
    """The record of own modules in run.json: the path of a file, the SHA-256 of every file that was read, and their git commit."""
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
    """The commit of the repository that holds the files, and whether they differ from it or are not in it (dirty); None outside a
    repository."""
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
