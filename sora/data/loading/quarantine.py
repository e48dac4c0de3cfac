"""A list of clips that could not be read or that training could not learn from, each once with a reason; too many of them stop the run."""

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
LEAD = 1024  # steps after which a held sample is left out: more than any loader prepares ahead


class BadClip(ValueError):
    """A clip that cannot be trained on because of its own bytes or captions: it is recorded, and another clip replaces it."""


class Quarantine:
    """The list `quarantine.jsonl` of a run, one line (key, dataset, fingerprint, shard, reason) per bad clip, for all loader processes.

    A dataset is identified by its fingerprint: folders of one name may hold clips with the same keys. Old lines have only its name.

    A clip that cannot be read is bad at once, whichever process finds it. A sample that training could not learn from is held: it has a
    "sample_id" and a step "from" which it is bad, far enough ahead that no process has prepared that step yet. So a step's content follows
    from the run so far, and never from how far ahead a worker was.

    clips: how many the dataset has. max_share: the share of them that may be bad before the run stops; above 0, one bad clip is always
    allowed. path: None holds the list in memory. setting: the key of the configuration that sets max_share, for errors.
    """

    def __init__(self, path: Path | str | None, *, clips: int, max_share: float, setting: str = "data.max_bad_share") -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"{setting} is {max_share}; it is a share, from 0 (stop at the first bad clip) to 1")
        self.setting = setting
        self.path, self.clips, self.max_share = Path(path) if path else None, clips, max_share
        self._reasons: dict[tuple[str, str], str] = {}  # by dataset (fingerprint, or name in old lines) and key
        self._held: dict[int, tuple[int, str]] = {}  # by sample id: first step without it, and reason
        self._step, self._read = 0, 0

    def enter(self, step: int) -> None:
        """Set the step that later calls are about, and read new lines of the file."""
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
        """Record a clip that cannot be read; ValueError if more than `max_share` of the clips are bad. See `owner`."""
        entry = {"key": key, "dataset": dataset, "fingerprint": fingerprint, "shard": shard, "reason": reason}
        if self._knows(entry) or self._is_held(sample):
            return
        if self.path is None:
            self._keep(entry)
        else:
            self._append([entry])
        self._limit(f"{key}: {reason}")

    def hold(self, keys: Mapping[int, str], *, step: int, reason: str) -> None:
        """Record samples that step `step` of the plan could not learn from. keys: the clip's key by sample id, "" if not known.

        Raises ValueError if more than `max_share` of the clips are bad.
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
        if bad > max(self.max_share * self.clips, self.max_share > 0):  # one bad clip alone never stops a run
            raise ValueError(
                f"{bad} of {counted(self.clips, 'clip')} cannot be read{' or learned from' if self._held else ''}, more than"
                f" {self.setting}={self.max_share:g} allows; "
                f"the last: {last}" + (f"; all are listed in {self.path}" if self.path else "")
            )

    def refuse(self, key: str, *, dataset: str = "", fingerprint: str = "", sample: int | None = None) -> None:
        """Raise BadClip for a clip that is known to be bad, rather than try it again, which may cost two decoders."""
        if (reason := self._reason({"key": key, "dataset": dataset, "fingerprint": fingerprint})) is not None:
            raise BadClip(reason)
        if sample is not None and self._is_held(sample):
            raise BadClip(self._held[sample][1])

    def keys(self) -> set[str]:
        """The keys of the clips that are known to be bad."""
        if self.path is not None and self.path.exists():
            self._load(read(self.path, most=LIST.bytes, within=self.path.parent))
        return {key for _, key in self._reasons}

    def _append(self, entries: list[dict[str, Any]]) -> None:
        """Append lines under a lock, without clips that another process has recorded meanwhile."""
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
            torn = b"\n" if content and not content.endswith(b"\n") else b""  # a killed process left a torn line
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
        """Why a clip is bad; None if it is not known to be."""
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
)  # the form of a line of quarantine.jsonl


def _entry(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if a killed process left it torn, or if this program did not write it."""
    try:
        entry = json_of(line, limit=CARD)
    except (ValueError, RecursionError):
        return None
    return entry if fits(entry, LINE) and ("sample_id" not in entry or "from" in entry) else None


def owner(index: Index) -> dict[str, str]:
    """The identity of a clip's dataset for `Quarantine`: its folder's name as "dataset", and its "fingerprint"."""
    return {"dataset": index.folder.resolve().name, "fingerprint": index.dataset_fingerprint}


def planned_keys(plan: Plan, key: Callable[[int], str], step: int) -> dict[int, str]:
    """The key of each clip in a plan's step, by sample id. key: gives the key of a row."""
    return {sample_id(key(item.row), item.window): key(item.row) for item in plan.at(step).items}


@contextmanager
def of_the_clip() -> Iterator[None]:
    """Turn a ValueError inside the block into `BadClip`. Use it only around reads of a clip's own bytes: any other ValueError is a bug of
    the program, which must not pass for a bad clip."""
    try:
        yield
    except BadClip:
        raise
    except ValueError as error:
        raise BadClip(str(error)) from error


def first_readable(
    planned: Item, read: Callable[[Item], T], *, plan: Plan, quarantine: Quarantine, locate: Callable[[Item], tuple[Index, int]]
) -> tuple[T | None, str]:
    """What `read` returns for the planned clip, or for the first replacement that can be read; (None, reason) if no other clip fits.

    Each clip for which `read` raises `BadClip` is recorded in the quarantine. locate: gives the dataset and the row of an item.
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
