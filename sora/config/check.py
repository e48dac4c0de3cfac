"""Checks a composed configuration: its keys, the types of its values, its targets and their keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from sora.config.build import fitting
from sora.config.kinds import Kinds, fits, refuse
from sora.config.own import KEY
from sora.config.targets import TARGET, find, parameters
from sora.config.words import listed, meant
from sora.gate.interpolation_limits import refuse_resolvers
from sora.system.own_modules import OWN


def flatten(config: DictConfig | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"dit.width": 384, …}`: every leaf by its dotted key; an empty mapping is a leaf that takes any key."""
    tree = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    assert isinstance(tree, dict)
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def check_values(config: DictConfig, kinds: Kinds, *, said_by: str, older: bool = False) -> None:
    """Raise ValueError unless every key of `config` exists in the composition of `kinds` and every value is of its kind.

    said_by: the command line or file that the message blames. A node with another target than in the composition has the keys of that
    target, which `check_targets` checks. older: `config` may be of any version of the program, and may have keys that this one lacks.
    """
    tree = _container(config)
    if KEY in tree:
        raise ValueError(f"{said_by} sets {KEY}; own modules are named on the command line or in {OWN} alone, take it out and say it there")
    _compare(tree, kinds.tree, "", said_by, kinds, tree, older)


def _container(config: DictConfig) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(config, resolve=False)
    refuse_resolvers(tree)
    return tree


def _compare(
    tree: Mapping[str, Any], reference: Mapping[str, Any], place: str, said_by: str, kinds: Kinds, whole: dict[str, Any], older: bool
) -> None:
    if tree.get(TARGET) != reference.get(TARGET) or not reference:
        return
    free = place and kinds.of(place.rstrip("."), whole).values
    for key, value in tree.items():
        name = f"{place}{key}"
        if key not in reference and older:
            continue
        if key not in reference and not free:
            names = [str(name) for name in reference]
            where = f"{place.rstrip('.')} has" if place else "its keys are"
            raise ValueError(f"{said_by}: there is no key {name!r}{meant(str(key), names)}; {where} {listed(names)}")
        known = reference.get(key)
        if isinstance(known, dict) and known and isinstance(value, dict):
            _compare(value, known, f"{name}.", said_by, kinds, whole, older)
        elif not fits(value, kind := kinds.of(name, whole)):
            refuse(said_by, name, value, kind)


def leave_behind(config: DictConfig, before: DictConfig, said: Collection[str]) -> None:
    """Remove from nodes whose target differs from that in `before` the keys that only the old target takes, except those in `said`."""
    for key in _left_over(_container(config), _container(before), ""):
        if key not in said:
            parent, _, name = key.rpartition(".")
            with open_dict(node := OmegaConf.select(config, parent)):
                del node[name]


def _left_over(tree: dict[str, Any], before: dict[str, Any], place: str) -> list[str]:
    """The full keys in `tree` that nodes share with those in `before`, but which their new targets do not take."""
    found = [
        left
        for key, value in tree.items()
        if isinstance(value, dict) and isinstance(before.get(key), dict)
        for left in _left_over(value, before[key], f"{place}{key}.")
    ]
    if TARGET not in tree or tree[TARGET] == before.get(TARGET):
        return found
    definition = find(tree[TARGET])
    known = parameters(definition) if definition is not None else None
    return found + [f"{place}{key}" for key in tree if known is not None and key in before and key != TARGET and key not in known]


def check_targets(config: DictConfig | dict[str, Any], place: str) -> None:
    """Raise ValueError unless every `_target_` is allowed and takes the keys beside it, with values of their types; nothing is imported."""
    tree = _container(config) if isinstance(config, DictConfig) else config
    if TARGET in tree:
        try:
            definition = find(tree[TARGET])
        except ValueError as error:
            raise ValueError(f"{place}.{error}" if place and str(error).startswith(TARGET) else str(error)) from None
        known = parameters(definition) if definition is not None else None
        for key, value in tree.items():
            if key == TARGET or known is None:
                continue
            if key not in known:
                raise ValueError(f"{place}: {tree[TARGET]} has no key {key!r}{meant(key, known)}; its keys: {listed(known)}")
            if not (isinstance(value, dict) and TARGET in value) and "${" not in str(value):
                fitting(value, known[key].annotation, f"{place}.{key}")
    for key, value in tree.items():
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, dict):
                check_targets(item, f"{place}.{key}".lstrip(".") + (f"[{index}]" if isinstance(value, list) else ""))


def require_given(config: DictConfig, verb: str) -> None:
    """Raise ValueError for required keys that were not given, all listed, and for a run without steps."""
    refuse_unmeasured(config)
    if config.steps < 1:
        raise ValueError(f"steps={config.steps} must be at least 1: the optimiser steps of the whole run")
    needed = ("data.folders",) if config.kind == "captioner" else ("data.folders", "vae")  # a captioner may see pixels
    if missing := [key for key in needed if OmegaConf.select(config, key) is None]:
        raise ValueError(f"needs {' '.join(f'{key}=…' for key in missing)}; see sora {verb} --help")


def refuse_unmeasured(config: DictConfig) -> None:
    """Raise ValueError if `evaluation.every` is set but no evaluation is chosen."""
    evaluation = config.get("evaluation") or {}
    if set(evaluation) == {"every"} and evaluation["every"] is not None:
        raise ValueError(
            f"evaluation.every={evaluation['every']} measures nothing with evaluation=none; choose what is measured: evaluation=loss, or "
            "evaluation=videos"
        )
