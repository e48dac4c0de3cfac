"""Completes the stored configuration of a run that continues: every key that exists today, with a value of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sora.config.check import check_targets, check_values
from sora.config.command_line.grammar import parse
from sora.config.compose import Loader, config_dir, groups, kinds_of
from sora.config.targets import TARGET

_NOTHING = object()


def kept(verb: str, tree: Mapping[str, Any], arguments: Sequence[str], named: str) -> tuple[DictConfig, list[str]]:
    """A stored configuration of `sora VERB ARGUMENTS`, with missing keys set as it is composed today, and the names of these keys.

    named: the file, for messages. Raises ValueError, naming the key, if a value is of another kind than its key takes.
    """
    reference = Loader(verb, ()).load([parse(argument).option for argument in arguments])
    config = OmegaConf.create(dict(tree))
    check_values(config, kinds_of(verb, reference, groups([config_dir()])), said_by=named, older=True)
    check_targets(config, "")
    return config, _completed(config, reference.config)


def _completed(config: DictConfig, reference: DictConfig, place: str = "") -> list[str]:
    """Add the keys that only the reference has, and return them; keys inside nodes are not added, because they depend on the target."""
    lacking = []
    for key in reference:
        mine, theirs = config.get(key, _NOTHING), reference._get_node(key)
        if mine is _NOTHING and reference.get(key) is None:
            continue  # a missing key means null
        if mine is _NOTHING:
            config[key] = theirs
            lacking.append(f"{place}{key}")
        elif isinstance(mine, DictConfig) and isinstance(theirs, DictConfig) and TARGET not in theirs and TARGET not in mine:
            lacking += _completed(mine, theirs, f"{place}{key}.")
    return lacking
