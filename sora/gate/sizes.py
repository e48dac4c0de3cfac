"""Upper bounds of sizes in a configuration: by key, or by this machine's memory. Messages give both numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# Bounds for networks; the largest published ones have about 100 blocks of width 16,000.
MOST: Mapping[str, int] = {
    **dict.fromkeys(("depth", "dual", "blocks", "decoder_blocks", "levels"), 1024),
    **dict.fromkeys(("width", "widths", "inner", "text_width", "pooled_width"), 1 << 17),
    **dict.fromkeys(("heads", "kv_heads", "registers"), 4096),
    "latent_channels": 4096,
}
MOST_WORKERS = 1024  # processes that one command starts on a machine
ANY = 1 << 24  # bound of all other integers of a network, such as a vocabulary


def refuse_size(key: str, value: Any) -> None:
    """Raise ValueError for an integer of a network, or a list with one, above the bound of its key (the last part of the dotted key)."""
    most = MOST.get(key.rpartition(".")[2], ANY)
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, list | tuple):
            refuse_size(key, item)
        elif isinstance(item, int) and not isinstance(item, bool) and abs(item) > most:
            raise ValueError(f"{key}={item:,} is above {most:,}, the most that is built; lower {key}")


class Number(NamedTuple):
    """The range of numbers that a key takes. above: `least` is excluded. whole: integers only."""

    least: float = -math.inf
    above: bool = False
    whole: bool = False
    most: float = math.inf

    def of(self, value: Any, named: str) -> float:
        """The value as a number. Raises ValueError if it is none or out of range."""
        if isinstance(value, str | bool) or not isinstance(value, int | float):
            quotes = "; write it without quotes" if isinstance(value, str) and number_in(value) is not None else ""
            raise ValueError(f"{named}={value!r} is no number{quotes}")
        if self.whole and (not math.isfinite(value) or value != int(value)):
            raise ValueError(f"{named}={value} is no whole number")
        low = value <= self.least if self.above else value < self.least
        if not math.isfinite(value) or low or value > self.most:
            bounds = "" if self.least == -math.inf else f" {'above' if self.above else 'of at least'} {self.least:g}"
            raise ValueError(
                f"{named}={value} is out of range: give a number{bounds}{'' if self.most == math.inf else f', {self.most:g} at most'}"
            )
        return int(value) if self.whole else float(value)


def number_in(text: str, otherwise: Any = None) -> Any:
    """The number that a text spells, or `otherwise`."""
    for kind in (int, float):
        try:
            return kind(text.strip())
        except ValueError:
            continue
    return otherwise


def refuse_numbers(config: Mapping[str, Any], numbers: Mapping[str, Number]) -> None:
    """Raise ValueError for a key of a configuration whose value is not in its range; null is allowed."""
    for key, number in numbers.items():
        if config.get(key) is not None:
            number.of(config[key], key)


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if that has less."""
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
    """A context in which built networks may have at most `most` weights in all (None: as many as this machine's memory holds in float32).

    Weights are counted as they are created, before they are filled and take memory. what, advice: for the message. Raises ValueError for
    more.
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
    except (RuntimeError, MemoryError) as error:  # a single weight that no machine holds
        if "allocate memory" not in str(error) and "overflow" not in str(error).lower():
            raise
        raise ValueError(f"{what} has a weight that cannot be allocated, and {fits}; {advice}") from None
    finally:
        handle.remove()
