"""Refuses keys on a command line that have no effect there, so that nobody believes they do."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def refuse_idle(config: Mapping[str, Any], said: Collection[str], idle: Collection[str], *, why: str) -> None:
    """Raise ValueError for a key on the command line (`said`) that is in `idle`, by its first part or whole.

    why: the situation without effect, as in "without cluster=".
    """
    from omegaconf import OmegaConf

    for key in said:
        if key in idle or key.partition(".")[0] in idle:
            value = OmegaConf.select(config, key)  # pyright: ignore[reportArgumentType]
            raise ValueError(f"{key}{'' if OmegaConf.is_config(value) else f'={value}'} has no effect {why}; leave it out")
