"""A file with the number of packs in each window of a plan, so that a run that resumes at a late step need not count them again.

It is only a cache: if the file is damaged, of another plan or of another user, the windows are counted anew and the plan is the same. It
begins with this user's seal (`sora.gate.trust`), since a stranger's file may claim anything, and unpack to more than memory holds.
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
_MARKS = 4  # the number of these states in the file
_SEAL, _NUMBER = 32, 8  # bytes at the file's beginning: the seal on plan and content, the number of windows


class Counted:
    """The cache file of one plan. path: is written once its folder exists. identity: a hash of everything that the packs depend on."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._identity, self._next, self._ours = Path(path), identity, _EVERY, False

    def load(self) -> tuple[list[int], dict[int, DrawnClips | None]] | None:
        """Packs before each window, and the clips that wait at the beginning of some; None if there is no sound file of this plan."""
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
        """Write the counts every 16 windows or so, unless another process has written as many."""
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
        except (OSError, ValueError):  # a cache that cannot be written (full disk, a folder in its place) is no error
            return
        self._ours = True

    def _written(self) -> int:
        """How many windows the file covers; 0 if it is known to be useless."""
        if not self._ours:
            return 0
        try:
            with open(self.path, "rb") as file:
                return int.from_bytes(file.read(_SEAL + _NUMBER)[_SEAL:], "big")
        except OSError:
            return 0

    def _said(self, body: bytes) -> tuple[str, str, str]:
        """The texts that the seal covers."""
        return "packs of a plan", self._identity, hashlib.sha256(body).hexdigest()
