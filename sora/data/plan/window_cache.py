"""How many packs the windows of a plan have, kept in a file, so that a run that goes on at a late step need not count them again.

Only a cache: whatever is wrong with the file, whatever plan it is of and whoever else wrote it, the windows are counted anew and the plan
is the same. So it begins with this user's seal (`sora.gate.trust`): a stranger's may say anything, and unpack to more than memory holds.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sora.data.plan.mixture import DrawnClips
from sora.gate import trust
from sora.gate.files import read
from sora.gate.texts import LIST
from sora.system.files import whole_file

_EVERY = 16  # windows counted between two writes
MARK = 64  # windows from one remembered state to the next
_MARKS = 4  # of these states are kept
_SEAL, _NUMBER = 32, 8  # bytes of the file's beginning: the seal on plan and content, how many windows


class Counted:
    """path: of the file, which is written as soon as its folder exists. identity: of the plan, everything that its packs depend on."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._identity, self._next, self._ours = Path(path), identity, _EVERY, False

    def load(self) -> tuple[list[int], dict[int, DrawnClips | None]] | None:
        """Packs before each window, and what waits at the beginning of some; None if there is no sound file of this plan."""
        try:
            content = read(self.path, most=LIST.bytes, within=self.path.parent)
        except (OSError, ValueError):
            return None
        body = content[_SEAL + _NUMBER :]
        if not trust.sealed(content[:_SEAL].hex(), *self._said(body)):
            return None
        try:
            with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
                waiting = {int(window): DrawnClips(arrays[f"rows {window}"], arrays[f"epochs {window}"]) for window in arrays["marks"]}
                before = arrays["before"].tolist()
        except (BadZipFile, KeyError, ValueError):
            return None
        self._next, self._ours = len(before) + _EVERY, True
        return before, {window: drawn if len(drawn.rows) else None for window, drawn in waiting.items()}

    def keep(self, before: Sequence[int], marks: Mapping[int, DrawnClips | None]) -> None:
        """Write what is known, once in a while, unless another process has written as much."""
        if len(before) < self._next:
            return
        self._next = len(before) + _EVERY
        if not self.path.parent.is_dir() or self._written() >= len(before):
            return
        kept = sorted(window for window in marks if not window % MARK)[-_MARKS:]
        arrays: dict[str, Any] = {"before": np.asarray(before, np.int64), "marks": np.array(kept, np.int64)}
        for window in kept:
            waiting = marks[window] or DrawnClips(np.zeros(0, np.int64), np.zeros(0, np.int64))
            arrays |= {f"rows {window}": waiting.rows, f"epochs {window}": waiting.epochs}
        file = io.BytesIO()
        np.savez(file, **arrays)
        body = file.getvalue()
        if (seal := trust.seal(*self._said(body))) is None:
            return
        try:
            with whole_file(self.path) as staging:
                staging.write_bytes(bytes.fromhex(seal) + len(before).to_bytes(_NUMBER, "big") + body)
        except (OSError, ValueError):  # a full disk, or a folder in its place, ends what must be written, not what may be
            return
        self._ours = True

    def _written(self) -> int:
        """How many windows the file has, unless it is known to be of no use."""
        if not self._ours:
            return 0
        try:
            with open(self.path, "rb") as file:
                return int.from_bytes(file.read(_SEAL + _NUMBER)[_SEAL:], "big")
        except OSError:
            return 0

    def _said(self, body: bytes) -> tuple[str, str, str]:
        """What the seal is on."""
        return "packs of a plan", self._identity, hashlib.sha256(body).hexdigest()
