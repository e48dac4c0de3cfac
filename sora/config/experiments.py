"""Experiments and presets: files that choose options of groups, and set keys of their verb only.

So an option that the command line names brings all values of its own file, as in Hydra, whatever the experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sora.config.check import flatten
from sora.config.words import meant

CHOOSERS = ("experiment", "preset")  # of trainings, and of published evaluations
Available = Mapping[str, Mapping[str, Path]]


def chosen(choices: Mapping[str, str | None]) -> dict[str, str]:
    """The options of the groups CHOOSERS that are in force."""
    return {group: option for group in CHOOSERS if (option := choices.get(group)) is not None}


def files_of(group: str, option: str, available: Available) -> list[Path]:
    """The file of an option, after the files of the options in its group that it builds on."""
    path = available.get(group, {}).get(option)
    if path is None:
        return []
    named = (entry for entry in defaults_of(path) if isinstance(entry, str) and entry != "_self_")
    return [*(file for name in named for file in files_of(group, name.removeprefix(f"/{group}/"), available)), path]


def defaults_of(path: Path) -> list[Any]:
    """The defaults list of a YAML file; empty if it has none."""
    tree = read(path)
    return list(tree.get("defaults") or []) if isinstance(tree, DictConfig) else []


def read(path: Path) -> Any:
    """The content of a YAML file, cached; do not change it."""
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> Any:
    del changed  # part of the cache's key: a changed file must be read again
    return OmegaConf.load(path)


def own_keys(files: Sequence[Path]) -> DictConfig:
    """The keys that the files of a verb and of its task set themselves, without those of groups."""
    trees = [tree for path in files if isinstance(tree := read(path), DictConfig)]
    return OmegaConf.create({key: value for tree in trees for key, value in tree.items_ex(resolve=False) if key != "defaults"})


def without_experiment(config: DictConfig, choices: Mapping[str, str | None], own: DictConfig, available: Available) -> DictConfig:
    """A composition in which the keys that an experiment set have the values of its verb's files again. own: see `own_keys`.

    Raises:
        ValueError: an experiment sets a key of a group; the message names its file and key, and where the key belongs.
    """
    config, known = config.copy(), flatten(_plain(own))
    for group, option in chosen(choices).items():
        for path in files_of(group, option, available):
            tree = _plain({name: value for name, value in read(path).items_ex(resolve=False) if name != "defaults"})
            for key in flatten(tree):
                if key in known or any(name.startswith(f"{key}.") for name in known):
                    OmegaConf.update(config, key, OmegaConf.select(own, key), merge=False)
                elif not any(known.get(above) == {} for above in _above(key)):
                    _refuse(key, f"{group}/{path.name}", choices, known, available)
    return config


def _above(key: str) -> list[str]:
    return [key.rsplit(".", count)[0] for count in range(1, key.count(".") + 1)]


def _plain(tree: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(tree if isinstance(tree, DictConfig) else OmegaConf.create(tree), resolve=False)
    return found


def _refuse(key: str, path: str, choices: Mapping[str, str | None], known: Mapping[str, Any], available: Available) -> None:
    group = key.partition(".")[0]
    if (option := choices.get(group)) is None:
        raise ValueError(f"{path} sets {key!r}, and there is no such key{meant(key, known)}")
    inside = [f"{group}.{name}" for name in flatten(_plain(own_keys(files_of(group, option, available))))]
    whose = f"a value of {group}={option}" if key in inside else f"which {group}={option} does not have{meant(key, inside)}"
    raise ValueError(
        f"{path} sets {key!r}, {whose}; an experiment chooses options and sets keys of its verb: write the value into an option of your "
        f"own, FOLDER/{group}/NAME.yaml (defaults: [{option}, _self_]), and choose it there (override /{group}: NAME)"
    )
