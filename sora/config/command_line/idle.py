"""Keys of a command line that nothing of what it asks for reads: refused, so that nobody believes that they did something."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def refuse_idle(config: Mapping[str, Any], said: Collection[str], idle: Collection[str], *, why: str) -> None:
    """Raise ValueError for a key that the command line names (`said`) and that stands in `idle`, by its first name or whole.

    why: where such a key has no effect, as in "without cluster=".
    """
    from omegaconf import OmegaConf

    for key in said:
        if key in idle or key.partition(".")[0] in idle:
            value = OmegaConf.select(config, key)  # pyright: ignore[reportArgumentType]
            raise ValueError(f"{key}{'' if OmegaConf.is_config(value) else f'={value}'} has no effect {why}; leave it out")
