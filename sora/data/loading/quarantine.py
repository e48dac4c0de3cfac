"""Clips that could not be read while training, or not be learned from: named once with their reason; too many of them stop the run."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sora.data.plan.steps import Item, Plan
from sora.gate.files import appending, read
from sora.gate.forms import Fields, fits, text, whole
from sora.gate.texts import CARD, LIST, json_of
from sora.system.draws import sample_id
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.data.index.index import Index

T = TypeVar("T")
LEAD = 1024  # steps from which on a held sample is left out: more than any loader prepares ahead, so that all know it by then


class BadClip(ValueError):
    """A clip that cannot be trained on, for what its own bytes or captions are: it is noted, and another one stands in for it."""


class Quarantine:
    """The list `quarantine.jsonl` of a run, one line (key, dataset, fingerprint, shard, reason) per bad clip, for all loader processes.

    A dataset is known by its fingerprint: folders of one name may hold clips of the same keys. Old lines have its name alone.

    A clip that cannot be read is bad at once, whoever finds it. A sample that training could not learn from is held: it has a "sample_id"
    and a step "from" which it is bad, far enough ahead that no process has prepared that step yet. So what a step holds follows from the
    run so far, and never from how far ahead a worker was.

    clips: how many the dataset has. max_share: of them may be bad before the run stops, and one in any case if it is not 0.
    path: None keeps the list in memory. setting: the key of the configuration that sets max_share.
    """

    def __init__(self, path: Path | str | None, *, clips: int, max_share: float, setting: str = "data.max_bad_share") -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"{setting} is {max_share}; it is a share, from 0 (stop at the first bad clip) to 1")
        self.setting = setting
        self.path, self.clips, self.max_share = Path(path) if path else None, clips, max_share
        self._reasons: dict[tuple[str, str], str] = {}  # by dataset (its fingerprint; its name in old lines) and key
        self._held: dict[int, tuple[int, str]] = {}  # by sample: from which step, and why
        self._step, self._read = 0, 0

    def enter(self, step: int) -> None:
        """What is asked from now on is for this step of the plan."""
        self._step = step
        if self.path is not None and self._size() != self._read:
            self._load(read(self.path, most=LIST.bytes, within=self.path.parent))

    def _size(self) -> int:
        assert self.path is not None
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return self._read

    def add(self, key: str, *, shard: str, reason: str, dataset: str = "", fingerprint: str = "", sample: int | None = None) -> None:
        """Record a clip that cannot be read; a `ValueError` when more than `max_share` of the clips are bad. See `owner`."""
        entry = {"key": key, "dataset": dataset, "fingerprint": fingerprint, "shard": shard, "reason": reason}
        if self._knows(entry) or self._is_held(sample):
            return
        if self.path is None:
            self._keep(entry)
        else:
            self._append([entry])
        self._limit(f"{key}: {reason}")

    def hold(self, keys: Mapping[int, str], *, step: int, reason: str) -> None:
        """Record samples (ids, each with its clip's key, "" where it is not known) that step `step` of the plan could not learn from.

        A `ValueError` when more than `max_share` of the clips are bad.
        """
        new = {sample: key for sample, key in keys.items() if sample not in self._held}
        if self.path is None:
            self._held |= dict.fromkeys(new, (step + LEAD, reason))
        else:
            self._append([{"key": key, "reason": reason, "sample_id": sample, "from": step + LEAD} for sample, key in new.items()])
        self._limit(f"{', '.join(key or str(sample) for sample, key in keys.items())}: {reason}")

    def _is_held(self, sample: int | None) -> bool:
        return sample in self._held and self._held[sample][0] <= self._step

    def _limit(self, last: str) -> None:
        bad = len(self._reasons) + len(self._held)
        if bad > max(self.max_share * self.clips, self.max_share > 0):  # of however few clips, one alone stops nothing
            raise ValueError(
                f"{bad} of {counted(self.clips, 'clip')} cannot be read{' or learned from' if self._held else ''}, more than"
                f" {self.setting}={self.max_share:g} allows; "
                f"the last: {last}" + (f"; all are listed in {self.path}" if self.path else "")
            )

    def refuse(self, key: str, *, dataset: str = "", fingerprint: str = "", sample: int | None = None) -> None:
        """Raise BadClip for a clip that this process knows to be bad: it is not tried again, which may cost two decoders."""
        if (reason := self._reason({"key": key, "dataset": dataset, "fingerprint": fingerprint})) is not None:
            raise BadClip(reason)
        if sample is not None and self._is_held(sample):
            raise BadClip(self._held[sample][1])

    def keys(self) -> set[str]:
        """The bad clips known so far."""
        if self.path is not None and self.path.exists():
            self._load(read(self.path, most=LIST.bytes, within=self.path.parent))
        return {key for _, key in self._reasons}

    def _append(self, entries: list[dict[str, Any]]) -> None:
        """Under a lock: another process may have recorded the same clips."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(appending(self.path), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            self._load(content)
            new = [entry for entry in entries if not self._knows(entry)]
            if not new:
                return
            torn = b"\n" if content and not content.endswith(b"\n") else b""  # a process was killed while it wrote a line
            lines = torn + b"".join(json.dumps(entry).encode() + b"\n" for entry in new)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            self._load(lines)
            self._read = len(content) + len(lines)

    def _knows(self, entry: Mapping[str, Any]) -> bool:
        if "sample_id" in entry:
            return entry["sample_id"] in self._held
        return self._reason(entry) is not None

    def _reason(self, entry: Mapping[str, Any]) -> str | None:
        """Why a clip is bad, if it is known."""
        names = (entry.get("fingerprint", ""), entry.get("dataset", ""))
        return next((self._reasons[name, entry["key"]] for name in names if (name, entry["key"]) in self._reasons), None)

    def _keep(self, entry: Mapping[str, Any]) -> None:
        self._reasons[entry.get("fingerprint") or entry.get("dataset", ""), entry["key"]] = entry["reason"]

    def _load(self, content: bytes) -> None:
        self._read = len(content)
        for line in content.splitlines():
            if (entry := _entry(line)) is None:
                continue
            if "sample_id" in entry:
                self._held.setdefault(entry["sample_id"], (entry["from"], entry["reason"]))
            else:
                self._keep(entry)


LINE = Fields(
    {"key": text, "reason": text},
    may={**dict.fromkeys(("dataset", "fingerprint", "shard"), text), "sample_id": whole(0, (1 << 64) - 1), "from": whole()},
)  # of quarantine.jsonl


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says of a clip or a sample; None for one that was torn when a process was killed, or that nothing here has written."""
    try:
        entry = json_of(line, limit=CARD)
    except (ValueError, RecursionError):
        return None
    return entry if fits(entry, LINE) and ("sample_id" not in entry or "from" in entry) else None


def owner(index: Index) -> dict[str, str]:
    """What a clip's dataset is called, for `Quarantine`: "dataset", its folder's name, and "fingerprint", by which it is known."""
    return {"dataset": index.folder.resolve().name, "fingerprint": index.dataset_fingerprint}


def planned_keys(plan: Plan, key: Callable[[int], str], step: int) -> dict[int, str]:
    """The key of each clip that a plan has at a step, by the id of the sample cut from it. key: of a row."""
    return {sample_id(key(item.row), item.window): key(item.row) for item in plan.at(step).items}


@contextmanager
def of_the_clip() -> Iterator[None]:
    """Raise `BadClip` for a ValueError inside: what is read there is a clip's own bytes, so the clip is at fault. Any other ValueError is a
    mistake of the program's, which must not pass for a bad clip."""
    try:
        yield
    except BadClip:
        raise
    except ValueError as error:
        raise BadClip(str(error)) from error


def first_readable(
    planned: Item, read: Callable[[Item], T], *, plan: Plan, quarantine: Quarantine, locate: Callable[[Item], tuple[Index, int]]
) -> tuple[T | None, str]:
    """What `read` gives of the planned clip, or of the first one that may stand in for it and can be read; None, and why, where no other
    fits in its place.

    Each clip that cannot be read, for which `read` raises `BadClip`, is noted in the quarantine. locate: the dataset and the row of an
    item.
    """
    item, attempt = planned, 0
    while True:
        index, row = locate(item)
        member, dataset = index.member(row), owner(index)
        sample = sample_id(member.key, item.window)
        try:
            quarantine.refuse(member.key, **dataset, sample=sample)
            return read(item), ""
        except BadClip as error:
            quarantine.add(member.key, shard=member.shard, reason=str(error), **dataset, sample=sample)
            substitute = plan.replacement(planned, attempt)
            if substitute is None:
                return None, str(error)
            item, attempt = substitute, attempt + 1
