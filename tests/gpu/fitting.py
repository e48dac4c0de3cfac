"""Sizes that fit the device's memory, where the one that was meant does not."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TypeVar

import torch

from tests.gpu.record import Report

Found = TypeVar("Found")


def fitting(what: str, sizes: Mapping[str, Callable[[], Found]]) -> Generator[Report, None, Found | None]:
    """What the first of some sizes, the largest first, gives on this device; each one that was tried is a row, with whether it fits.

    None if none fits, which is a row too.
    """
    for size, work in sizes.items():
        found, fits = None, True
        try:
            found = work()
        except (torch.cuda.OutOfMemoryError, RuntimeError, MemoryError) as refused:
            if not (isinstance(refused, MemoryError) or "out of memory" in str(refused)):
                raise
            fits = False
        yield Report(row={"tried": what, "size": size, "fits": fits})
        if fits:
            return found
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    yield Report(row={"tried": what, "size": "any of these", "fits": False})
    return None
