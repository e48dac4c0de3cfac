"""Limits on files from hosts: they must come fast enough and have the stated size; all errors are reported in one way."""

from __future__ import annotations

import time
from typing import Any

PATIENCE, PACE = 20.0, 128 << 10  # seconds that a file may take, and bytes per further second


class UnfitAnswer(ConnectionError):
    """A wrong answer of a host, for which asking again will not help."""


def refuse_slow(size: int, seconds: float, named: str) -> None:
    """Raise UnfitAnswer if `size` bytes took too long."""
    if seconds > PATIENCE + size / PACE:
        raise UnfitAnswer(f"{named} gave {size} bytes in {seconds:.0f} s, too few to wait for")


class HostFile:
    """An open file on a host; any error is raised as a `ConnectionError` that names the file."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._file.read(size)
        except (ValueError, UnfitAnswer):
            raise
        except Exception as error:  # every package behind fsspec has its own errors
            why = str(error) or "no answer in time"
            raise ConnectionError(f"{self._url} could not be read on: {type(error).__name__}: {why}") from error

    def seek(self, offset: int, /) -> int:
        return self._file.seek(offset)

    def close(self) -> None:
        self._file.close()


def within(size: int, url: str) -> Any:
    """A callback for fsspec that raises `UnfitAnswer` if a file has more than `size` bytes or comes too slowly."""
    from fsspec.callbacks import Callback

    class Within(Callback):
        def __init__(self) -> None:
            super().__init__()
            self._began, self._got = time.monotonic(), 0

        def relative_update(self, inc: int = 1) -> None:
            self._got += inc
            refuse_slow(self._got, time.monotonic() - self._began, url)
            if self._got > size:
                raise UnfitAnswer(f"{url} gives more than the {size} bytes that it says to have")

    return Within()
