"""Sizes are bounded where they are asked for: by key, or by what the machine has, with both numbers told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Of networks that can be built at all; the largest published ones have some 100 blocks of a width of some 16,000.
MOST: Mapping[str, int] = {
    **dict.fromkeys(("depth", "dual", "blocks", "decoder_blocks", "levels"), 1024),
    **dict.fromkeys(("width", "widths", "inner", "text_width", "pooled_width"), 1 << 17),
    **dict.fromkeys(("heads", "kv_heads", "registers"), 4096),
    "latent_channels": 4096,
}
ANY = 1 << 24  # of any other whole number of a network, such as a vocabulary


def refuse_size(key: str, value: Any) -> None:
    """Raise ValueError for a whole number of a network, or a list with one, that is above what its key (the last part of it) may be."""
    most = MOST.get(key.rpartition(".")[2], ANY)
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, list | tuple):
            refuse_size(key, item)
        elif isinstance(item, int) and not isinstance(item, bool) and abs(item) > most:
            raise ValueError(f"{key}={item:,} is above {most:,}, the most that is built; lower {key}")


def memory() -> int:
    """Bytes of memory that this process may use: of the machine, or of its control group if that has less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            said = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        found += [int(said)] if said.isdecimal() else []
    return min(found)


@contextmanager
def bounded(most: int | None, what: str, *, advice: str) -> Iterator[None]:
    """Networks that are built inside have at most `most` numbers in their weights (None: what this machine's memory holds in float32).

    Weights are counted as they are made, before they are filled and take memory. what, advice: for the message. Raises ValueError for more.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook as when_made

    room, made = memory() // 4 if most is None else most, 0

    def count(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += 0 if parameter is None or parameter.is_meta else parameter.numel()
        if made > room:
            raise ValueError(f"{what} has over {made - 1:,} numbers, and {fits}; {advice}")

    fits = f"this machine's memory holds {room:,}" if most is None else f"{room:,} are there"
    handle = when_made(count)
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # one weight alone that no machine holds
        if "allocate memory" not in str(error) and "overflow" not in str(error).lower():
            raise
        raise ValueError(f"{what} has a weight that cannot be allocated, and {fits}; {advice}") from None
    finally:
        handle.remove()
