"""Clips that could not be read while training: named once with their reason, and too many of them stop the run."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path


class Quarantine:
    """The list `quarantine.jsonl` of a run, one line (key, dataset, shard, reason) per bad clip, shared by all loader processes.

    clips: how many the dataset has. max_share: of them may be bad before the run stops. path: None keeps the list in memory.
    setting: the key of the configuration that sets max_share.
    """

    def __init__(self, path: Path | str | None, *, clips: int, max_share: float, setting: str = "data.max_bad_share"):
        if not 0 <= max_share <= 1:
            raise ValueError(f"{setting} is {max_share}; it is a share, from 0 (stop at the first bad clip) to 1")
        self.setting = setting
        self.path, self.clips, self.max_share = Path(path) if path else None, clips, max_share
        self._reasons: dict[tuple[str, str], str] = {}  # by dataset and key

    def add(self, key: str, *, shard: str, reason: str, dataset: str = "") -> None:
        """Record a bad clip; a `ValueError` when more than `max_share` of the clips are bad."""
        if (dataset, key) in self._reasons:
            return
        if self.path is None:
            self._reasons[dataset, key] = reason
        else:
            self._append(dataset, key, shard, reason)
        bad = len(self._reasons)
        if bad > self.max_share * self.clips:
            raise ValueError(
                f"{bad} of {self.clips} clips cannot be read, more than {self.setting}={self.max_share:g} allows; "
                f"the last: {key}: {reason}" + (f"; all are listed in {self.path}" if self.path else "")
            )

    def refuse(self, key: str, *, dataset: str = "") -> None:
        """Raise ValueError for a clip that this process knows to be bad: it is not tried again, which may cost two decoders."""
        if (dataset, key) in self._reasons:
            raise ValueError(self._reasons[dataset, key])

    def keys(self) -> set[str]:
        """The bad clips known so far."""
        if self.path is not None and self.path.exists():
            self._load(self.path.read_bytes())
        return {key for _, key in self._reasons}

    def _append(self, dataset: str, key: str, shard: str, reason: str) -> None:
        """Under a lock: another process may have recorded the same clip."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            self._load(content)
            if (dataset, key) in self._reasons:
                return
            torn = b"\n" if content and not content.endswith(b"\n") else b""  # a process was killed while it wrote a line
            line = json.dumps({"key": key, "dataset": dataset, "shard": shard, "reason": reason}).encode()
            file.write(torn + line + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._reasons[dataset, key] = reason

    def _load(self, content: bytes) -> None:
        for line in content.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a torn line
                continue
            self._reasons[entry.get("dataset", ""), entry["key"]] = entry["reason"]
