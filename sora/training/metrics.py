"""metrics.jsonl: one whole line per logged step, and no line of a step that a resumed run has yet to make."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora import storage


class MetricsLog:
    """Appends lines by one write each; a line that a full disk cut is taken back, so readers never meet half of one."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.problem: str | None = None

    def rewind(self, step: int) -> None:
        """Keep the lines of steps up to `step`; later ones, and a torn last one, go. The file is replaced whole."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().split(b"\n")
        kept = [line for line in lines if (found := _step(line)) is not None and found <= step]
        with storage.whole_file(self.path) as staging:
            staging.write_bytes(b"".join(line + b"\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> bool:
        """Append one line. False if the disk would not take it; the reason is in `problem`, and training goes on."""
        data = (json.dumps({name: _plain(value) for name, value in values.items()}) + "\n").encode()
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            self.problem = str(error)
            return False
        try:
            before = os.fstat(handle).st_size
            try:
                written = os.write(handle, data)
            except OSError as error:
                written, self.problem = 0, str(error)
            if written == len(data):
                return True
            self.problem = self.problem or f"only {written} of {len(data)} bytes fitted"
            os.ftruncate(handle, before)
            return False
        finally:
            os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics or events file; a torn last line is left out."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _step(line: bytes) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> Any:
    """Numbers that JSON lacks become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
