"""Reads and writes metrics.jsonl, one whole line for each logged step; a resumed run first removes the lines of steps that it will make
again. Also checks that a metrics.csv is a table of steps."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora.gate.files import appending
from sora.gate.files import read as file_content
from sora.gate.forms import Fields, Form, Maybe, anything, fitting, real, text, whole
from sora.gate.texts import CARD, LIST, json_of, read_lines
from sora.system import files as storage

STEPPED = Fields({"step": whole()}, may={"weights": text})  # of a line of metrics.jsonl and evaluation.jsonl
MEASURED = Fields({"step": whole(), "data_share": real(0, 1)}, may={"mfu": Maybe(real(0))})  # the same, of lines with a share of the peak
EVENT = Fields({"event": text})  # of events.jsonl


class MetricsLog:
    """Appends each line with a single write; a line that a full disk cut short is removed, so that readers never see half a line."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.problem: str | None = None

    def rewind(self, step: int) -> None:
        """Remove the lines of steps after `step` and a torn last line. The file is replaced atomically."""
        if not self.path.exists():
            return
        lines = file_content(self.path, most=LIST.bytes).split(b"\n")
        kept = [line for line in lines if (found := _step(line)) is not None and found <= step]
        with storage.whole_file(self.path) as staging:
            staging.write_bytes(b"".join(line + b"\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> bool:
        """Append one line and return True; False if the disk does not take it. The reason is then in `problem`, and training goes on."""
        data = (json.dumps({name: _plain(value) for name, value in values.items()}) + "\n").encode()
        try:
            handle = appending(self.path)
        except (OSError, ValueError) as error:
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


def read(path: Path, form: Form = anything) -> list[dict[str, Any]]:
    """The lines of a metrics or events file, without a torn last line. Raises ValueError if a line does not have the given form."""
    if not os.path.lexists(path):
        return []
    rows = read_lines(path, within=Path(path).parent)
    for number, row in enumerate(rows, 1):
        fitting(row, form, f"{path}, its entry {number},")
    return rows


def refuse_other_table(path: Path) -> None:
    """Raise ValueError if the metrics.csv of a run that continues is not a table of steps. A torn last line, which a kill leaves, is
    accepted.

    A tracker reads the table in a separate process whose failure no run would notice, so it is checked here first.
    """
    if not os.path.lexists(path):
        return
    content = file_content(path, most=LIST.bytes, within=path.parent)
    try:
        table = csv.reader(io.StringIO(content[: content.rfind(b"\n") + 1].decode("utf-8"), newline=""), strict=True)
        names = next(table, ["step"])
        if "step" not in names or len(set(names)) < len(names):
            raise ValueError("its first line names no steps, or a column twice")
        place = names.index("step")
        for row in filter(None, table):
            if len(row) != len(names):
                raise ValueError(f"its line {table.line_num} has {len(row)} fields, and the first {len(names)}")
            if re.fullmatch(r"[0-9]{1,15}", row[place]) is None:
                raise ValueError(f"its line {table.line_num} has the step {row[place][:60]!a}")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it, or choose logger=none: metrics.jsonl has all of it") from None


def _step(line: bytes) -> int | None:
    try:
        step = json_of(line, limit=CARD)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


def _plain(value: Any) -> Any:
    """The value with numbers that JSON lacks (NaN, infinities) replaced by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
