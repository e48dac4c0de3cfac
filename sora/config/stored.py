"""Limits of a stored configuration: by itself it cannot run a program, contact a server, or loosen the limits of decoders.

A run's config.yaml may be a stranger's (`Run.own` tells). Programs are never run from a stored configuration, not even from the user's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.config.targets import PROGRAMS, TARGET, find

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.runs.run import Run

SERVED = "sora.training.logging.sinks.Wandb"  # the tracker that contacts a server
READER = ("seconds", "memory_gb", "pixels", "frames", "rate", "bytes")  # keys of a reader that limit what decoding may use


def refuse_programs(config: DictConfig | Mapping[str, Any], said: Sequence[str]) -> None:
    """Raise ValueError for a file that is a program, such as TorchScript, unless the command line names its path (`said`: keys) and, if it
    is not the published file, its SHA-256."""
    tree = _plain(config)
    for key, node in _nodes(tree):
        if _defined(node[TARGET]) not in PROGRAMS or node.get("path") is None:
            continue
        path, name = node["path"], f"{key}.path"
        if not any(name == word or ("." in word and name.startswith(f"{word}.")) for word in said):  # not a group's option
            raise ValueError(
                f"{name}={path} is a TorchScript file, which is a program, and stands in a file, not on this command line; if you trust "
                f"it, say it now: {_words(tree, key, node)}"
            )
        _refuse_unknown_program(tree, key, node)


def _words(tree: Mapping[str, Any], key: str, node: Mapping[str, Any]) -> str:
    """The command-line words that set a node: its path, or, for a node inside a group, the option with all values that differ, because a
    resume replaces the whole group."""
    from sora.config.check import flatten
    from sora.config.command_line.commands import spelled
    from sora.config.command_line.grammar import quoted
    from sora.config.compose import config_dir, groups

    group, _, inner = key.partition(".")
    if not inner:
        return shlex.quote(f"{key}.path={spelled(node['path'])}")
    wanted = {name: value for name, value in flatten(dict(tree[group])).items() if not name.startswith(f"{inner}.")}
    best: list[str] | None = None
    for option, path in groups([config_dir()]).get(group, {}).items():
        own = {name: value for name, value in flatten(_plain_file(path)).items() if not name.startswith(f"{inner}.")}
        words = [
            f"{group}={option}",
            *(f"{group}.{name}={spelled(value)}" for name, value in wanted.items() if own.get(name, ...) != value),
        ]
        if own.keys() == wanted.keys() and (best is None or len(words) < len(best)):
            best = words
    values = [f"{name}: {quoted(value) if isinstance(value, str) else spelled(value).lower()}" for name, value in node.items()]
    return shlex.join([*(best or []), f"{key}={{{', '.join(values)}}}"])


def _refuse_unknown_program(tree: Mapping[str, Any], key: str, node: Mapping[str, Any]) -> None:
    from sora.metrics.extractors.i3d_files import SCRIPT
    from sora.metrics.extractors.weights import hashes

    path, said = Path(node["path"]), node.get("sha256")
    if path.is_file() and (found := hashes(path)).blob != SCRIPT and said != found.sha256:
        whose = f"not the file of {key}.sha256={said}" if said else "not the published one"
        raise ValueError(
            f"{key}.path={path} is a TorchScript file, which is a program, and {whose}; if you trust it, say which file you mean: "
            f"{_words(tree, key, {**node, 'sha256': found.sha256}) if '.' in key else f'{key}.sha256={found.sha256}'}"
        )


def refuse_unsaid(run: Run, asked: DictConfig, said: Sequence[str]) -> None:
    """Raise ValueError if another user's run, when resumed, would contact a server or loosen the limits of decoders, unless the command
    line asks for it (`said`: keys and groups)."""
    if run.own:
        return
    tree = _plain(asked)
    logger = tree.get("logger")
    if isinstance(logger, Mapping) and _defined(logger.get(TARGET)) == SERVED and "logger" not in said:
        raise ValueError(
            f"{run.config_file} would send metrics to a server (logger=wandb), and no command of yours wrote that configuration; say which "
            "logger you want: logger=none, or logger=wandb"
        )
    refuse_loose_reader(run, tree, said)


def refuse_loose_reader(run: Run, config: Mapping[str, Any], said: Sequence[str] = ()) -> None:
    """Raise ValueError if another user's run would decode with another reader than the default, or with more time or memory."""
    reader = config.get("reader")
    if run.own or reader is None or "reader" in said:
        return
    from omegaconf import OmegaConf

    from sora.config.compose import config_dir

    usual: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "reader" / "pyav.yaml"))
    if (found := _looser(reader, usual, "reader", said)) is not None:
        key, value, most = found
        raise ValueError(
            f"{run.config_file} sets {key}={value}, which confines decoders less than reader=pyav does ({most}), and no command of yours "
            f"wrote that configuration; say reader=pyav, or {key}={value}"
        )


def _looser(node: Any, usual: Mapping[str, Any], key: str, said: Sequence[str]) -> tuple[str, Any, Any] | None:
    """The first key of a reader that is looser than in the usual one, with both values; None if there is none."""
    if not isinstance(node, Mapping):
        return key, node, usual.get(TARGET)
    for name, most in usual.items():
        at, value = f"{key}.{name}", node.get(name)
        if isinstance(most, Mapping):
            if (found := _looser(value, most, at, said)) is not None:
                return found
        elif at not in said and (value != most if name == TARGET else name in READER and not _at_most(value, most)):
            return at, value, most
    return None


def _at_most(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most


def _nodes(tree: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with a target, with its key."""
    if isinstance(tree, Mapping):
        if TARGET in tree:
            yield key, tree
        for name, value in tree.items():
            yield from _nodes(value, f"{key}.{name}".lstrip("."))
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value, key)


def _defined(target: Any) -> str:
    """The module and name where a target is defined, whatever alias names it."""
    definition = find(target)
    return str(target) if definition is None else f"{definition.module}.{definition.node.name}"


def _plain_file(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return tree


def _plain(config: DictConfig | Mapping[str, Any]) -> Mapping[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    tree: Any = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    return tree
