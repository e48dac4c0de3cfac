"""Words that name an option in other ways than GROUP=OPTION: with a number of devices, or of a group inside a part of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sora.config.command_line.grammar import Word
from sora.config.words import listed, meant


def counted(argument: str, available: dict[str, dict[str, Path]]) -> list[str]:
    """Replace `cluster=h100x512` by `cluster=h100 cluster.devices=512`, if the option counts devices; return other words unchanged."""
    group, _, option = argument.partition("=")
    name, _, count = option.rpartition("x")
    options = available.get(group, {})
    if option in options or name not in options or not count.isdecimal():
        return [argument]
    node = OmegaConf.load(options[name])
    return [f"{group}={name}", f"{group}.devices={count}"] if isinstance(node, DictConfig) and "devices" in node else [argument]


def nested(words: Sequence[Word], available: Mapping[str, Mapping[str, Path]]) -> tuple[list[Word], dict[str, Any]]:
    """The words that are no options of a part, and the nodes of those that are, by key: `dit/block=gated` replaces dit.block by the node in
    DIR/dit/block/gated.yaml.

    Raises:
        ValueError: there is no such option, or its file is no node.
    """
    kept, nodes = [], {}
    for word in words:
        if "/" not in word.key or word.key not in available:
            kept.append(word)
            continue
        options, key = available[word.key], word.key.replace("/", ".")
        if word.value not in options:
            raise ValueError(f"there is no {word}{meant(word.value, options)}; its options: {listed(options)}")
        nodes[key] = _node(options[word.value])
    return kept, nodes


def _node(path: Path) -> dict[str, Any]:
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # any error of the YAML reader
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or "defaults" in tree:
        raise ValueError(f"{path} is no node: an option within a part holds _target_ and its keys, and no defaults")
    return tree


def set_nodes(config: DictConfig, nodes: Mapping[str, Any]) -> None:
    """Replace the nodes of the configuration at these keys; ValueError if it has no such key."""
    for key, node in nodes.items():
        above = OmegaConf.select(config, key.rpartition(".")[0])
        if not isinstance(above, DictConfig) or key.rpartition(".")[2] not in above:
            raise ValueError(f"{key.replace('.', '/')}= does not fit here: there is no {key} for it to stand in")
        OmegaConf.update(config, key, node, merge=False, force_add=True)
