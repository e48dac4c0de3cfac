"""Checks the folders of configuration files that a command line adds to `conf/`: which other files theirs may name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from sora.config.words import listed, meant
from sora.gate.interpolation_limits import calls_resolver


def refuse_leading_out(folders: Sequence[Path], *, known: Collection[str]) -> None:
    """Raise ValueError for a file in these folders whose `defaults` lead out of the composed folders (by `..`, an absolute path, a URL or a
    resolver), and for a folder without a group. known: names of the groups."""
    for folder in folders:
        _refuse_groupless(folder, known)
        for path in sorted(folder.rglob("*.yaml")):
            for entry in _entries(path):
                steps = entry.replace("\\", "/").split("/")
                if ".." in steps or "" in steps[1:-1] or entry.startswith("//") or "://" in entry or calls_resolver(entry):
                    raise ValueError(
                        f"{path}: defaults names {entry!r}, which leads out of {folder}; name an option of a group, such as /text: byte"
                    )


def _refuse_groupless(folder: Path, known: Collection[str]) -> None:
    there = sorted({path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")})
    if not any(name.partition("/")[0] in known for name in there):
        lies = f"; its files lie in {listed(there)}{meant(there[0], known)}" if there else ""
        raise ValueError(
            f"{folder} holds no options{lies}; a folder of options is laid out by groups, as in experiment/mine.yaml or dit/mine.yaml, and "
            f"the groups are {listed(known)}"
        )


def _entries(path: Path) -> Iterator[str]:
    """The groups and options in a file's defaults; nothing for a file that cannot be read, which is reported where it is chosen."""
    from omegaconf import OmegaConf

    try:
        if "defaults" not in path.read_text(encoding="utf-8", errors="replace"):
            return
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception:  # any error of the YAML reader
        return
    for item in (tree.get("defaults") or []) if isinstance(tree, dict) else []:
        for key, value in item.items() if isinstance(item, dict) else [(item, None)]:
            yield str(key)
            yield from map(str, value if isinstance(value, list) else [] if value is None else [value])
