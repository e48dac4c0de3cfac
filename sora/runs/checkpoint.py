"""Checkpoints that are whole or do not exist, and that say by name what is damaged.

One folder per saved step:

    checkpoints/step-00001000/
        model.safetensors ema.safetensors optimizer.safetensors rng.safetensors      tensors, and nothing but tensors
        state.json                                                                   counters and facts
        manifest.json                                                                size and SHA-256 of each of these files, and of itself

If several ranks save, each writes its tensors to a file of its own (model-00003-of-00008.safetensors, …), and the manifest says which box
of which tensor is in which file (`sora.runs.manifest`). Any number of ranks can therefore read it, and each opens only files with numbers
it needs. A checkpoint is written to a staging folder, every file is synced, the manifest is written last, and the folder is renamed: a kill
or a full disk at any moment leaves the older checkpoints as they were. A folder is never overwritten. No file is a pickle. RUN/snapshots/
may keep the averages of removed checkpoints: the same files, in smaller folders of the same form.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sora.gate.files import refuse_links_out, refuse_outside
from sora.gate.forms import fitting
from sora.gate.texts import STATE as STATE_LIMIT
from sora.gate.texts import read_json
from sora.runs import manifest
from sora.runs.manifest import MANIFEST, STATE_FORM, Contents, contents, contradicted, kind_of, misfit_of
from sora.runs.shards import Stored, TensorShard, owned, scanned
from sora.runs.tensorfile import write_tensors
from sora.system import files as storage

STATE = "state.json"
SNAPSHOTS = "snapshots"
NAME = re.compile(r"step-(\d{8,12})")
Report = Callable[[str], object]


@dataclass(frozen=True)
class TrainingState:
    """All that a run needs to continue as if it had never stopped.

    step, samples, tokens: how much the run has trained on. tensors: by file ("model", "ema", "optimizer", "rng") and by name. facts: JSON
    values (sums of the open logging window, skipped steps, hashes of what the run depends on).
    """

    step: int
    samples: int
    tokens: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any] = field(default_factory=dict)


def folder_of(checkpoints: Path, step: int) -> Path:
    return Path(checkpoints) / f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint folder holds, or None for any other folder."""
    match = NAME.fullmatch(Path(folder).name)
    return int(match[1]) if match else None


def listed(checkpoints: Path) -> list[Path]:
    """Every checkpoint folder, oldest first, whole or not."""
    found = [path for path in Path(checkpoints).glob("step-*") if path.is_dir() and step_of(path) is not None]
    return sorted(found, key=lambda path: step_of(path) or 0)


def save(checkpoints: Path, state: TrainingState, *, keep: int, keep_every: int = 0) -> Path:
    """Save `state` as a new folder of `checkpoints` and return the folder; for a run of a single rank. See `Saving`."""
    saving = Saving(checkpoints, state, rank=0, ranks=1)
    try:
        saving.write()
        return saving.commit(keep=keep, keep_every=keep_every)
    except BaseException:
        saving.abandon()
        raise


class Saving:
    """A checkpoint that is being written. Every rank calls `write`; when all have, the first rank calls `commit`.

    copied: copy this rank's tensors at once, so that training may go on while another thread writes.

    Raises:
        ValueError: the folder exists, `load` would refuse the state, or (`write`) a tensor is not finite.
        OSError: the disk is full or gone; nothing has changed then.
    """

    def __init__(self, checkpoints: Path, state: TrainingState, *, rank: int, ranks: int, copied: bool = False) -> None:
        self.path = folder_of(checkpoints, state.step)
        if self.path.exists():
            raise ValueError(f"{self.path} exists already; remove it or name another folder")
        self._staging = self.path.with_name(f"{storage.STAGING}{self.path.name}")
        self._rank, self._ranks = rank, ranks
        self._state = {"step": state.step, "samples": state.samples, "tokens": state.tokens, "facts": dict(state.facts)}
        if found := misfit_of(json.loads(json.dumps(self._state))):
            raise ValueError(f"{self.path} is not written, as no resume would take it: {found[0]} {found[1]}")
        self._names = {kind: sorted(state.tensors[kind]) for kind in sorted(state.tensors)}
        self._pieces = {kind: owned(state.tensors[kind], rank=rank, ranks=ranks) for kind in self._names}
        if copied:
            self._pieces = {kind: {name: _copy(piece) for name, piece in found.items()} for kind, found in self._pieces.items()}
            self._state = json.loads(json.dumps(self._state))

    def write(self) -> None:
        """Write and sync this rank's files, and last a list of them."""
        self._staging.mkdir(parents=True, exist_ok=True)
        files, told = {}, {}
        for kind, found in self._pieces.items():
            told[kind] = manifest.told(self._names[kind], found)
            if not found and self._ranks > 1:
                continue
            name = f"{kind}.safetensors" if self._ranks == 1 else f"{kind}-{self._rank:05d}-of-{self._ranks:05d}.safetensors"
            files[name] = write_tensors(self._staging / name, {name: piece.values for name, piece in found.items()})
        self._pieces = {}
        self._files = files
        if self._ranks > 1:
            storage.write_text(self._part(self._rank), manifest.compact({"files": files, "tensors": told}))

    def commit(self, *, keep: int, keep_every: int, snapshots: int = 0, every: int = 1, report: Report = print) -> Path:
        """Rename the staged folder to the checkpoint, then remove older ones; for the first rank, after all ranks have written.

        keep: number of newest checkpoints that stay, at least 1. keep_every: steps that are multiples of it are never removed; 0 for none.
        snapshots: number of removed checkpoints whose weight averages for post-hoc EMA are kept. every: of the steps that are not multiples
        of it only the newest stays, and they neither remove others nor leave snapshots; so the result does not depend on when a run was
        stopped. report: called with a message if an old checkpoint could not be removed.
        """
        found = self._merged()
        text = manifest.spread(self._state)
        (self._staging / STATE).write_text(text, encoding="utf-8")
        files = {**found.files, STATE: {"bytes": len(text.encode()), "sha256": storage.text_hash(text)}}
        (self._staging / MANIFEST).write_text(manifest.text_of(found._replace(files=files)), encoding="utf-8")
        for name in (STATE, MANIFEST):
            storage.sync(self._staging / name)
        storage.sync(self._staging)
        self._staging.rename(self.path)
        storage.sync(self.path.parent)
        try:
            _let_go(self.path.parent, keep=keep, keep_every=keep_every, snapshots=snapshots, every=every, report=report)
        except OSError as error:  # the new checkpoint is saved all the same
            report(f"older checkpoints could not be let go ({error}); the next save tries it again")
        return self.path

    def abandon(self) -> None:
        """Remove the staged files; for the first rank, when no rank writes any more."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def _part(self, rank: int) -> Path:
        return self._staging / f"part-{rank:05d}.json"

    def _merged(self) -> Contents:
        if self._ranks == 1:
            return Contents(self._files, {}, {})
        parts = [storage.read_json(self._part(rank)) for rank in range(self._ranks)]
        files = {name: facts for part in parts for name, facts in part["files"].items()}
        tensors = {kind: manifest.merged(names, [part["tensors"][kind] for part in parts]) for kind, names in self._names.items()}
        for rank in range(self._ranks):
            self._part(rank).unlink()
        return Contents(files, tensors, {})


def _copy(piece: TensorShard) -> TensorShard:
    values = piece.values.detach()
    return replace(piece, values=values.to("cpu", copy=True))


def verify(path: Path, *, only: Collection[str] | None = None) -> None:
    """Raise ValueError, naming the file, unless every byte of the checkpoint, or of the kinds of tensors in `only`, is as written."""
    outline(path)
    check(path, [name for name in contents(path).files if only is None or name == STATE or kind_of(name) in only])


def outline(path: Path, *, sizes: Collection[str] | None = None) -> None:
    """Raise ValueError, naming the file, unless a checkpoint has exactly the files that it should, in their sizes; no file is read.

    sizes: the files whose sizes are checked, each by a call to the file system; None checks all.
    """
    path = Path(path)
    refuse_outside(path.parent, path.parent.parent)
    if (path.parent.parent / "run.json").exists():  # a run may be a stranger's; any other folder was named by the user
        refuse_outside(path, path.parent.parent)
    refuse_links_out(path, home=path.parent.parent)
    files = contents(path).files
    with os.scandir(path) as entries:
        present = {entry.name: entry.is_file() for entry in entries if entry.name != MANIFEST}
    if strangers := sorted(set(present) - set(files)):
        raise ValueError(f"{path / strangers[0]} does not belong to this checkpoint; remove it or use another checkpoint")
    for name, facts in files.items():
        if not present.get(name, False):
            raise ValueError(f"{path / name} is missing; use another checkpoint")
        if (sizes is None or name in sizes) and (size := (path / name).stat().st_size) != facts["bytes"]:
            raise ValueError(f"{path / name} is damaged: {size} bytes instead of {facts['bytes']}; use another checkpoint")


def check(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError, naming the file, unless the files `names` have the hashes in the checkpoint's manifest."""
    files = contents(path).files
    with ThreadPoolExecutor(max_workers=min(8, max(1, len(names)))) as pool:
        hashes = pool.map(storage.file_hash, [path / name for name in names])
    for name, found in zip(names, hashes, strict=True):
        if found != files[name]["sha256"]:
            raise ValueError(f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}; use another checkpoint")


def part_to_check(path: Path, *, rank: int, ranks: int) -> list[str]:
    """The files of a checkpoint that `rank` must hash; those of all `ranks` together are all files, balanced by size."""
    sizes = {name: facts["bytes"] for name, facts in contents(path).files.items()}
    loads, mine = [0] * ranks, []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        loads[least] += sizes[name] + 1
        if least == rank:
            mine.append(name)
    return mine


def kinds(path: Path) -> set[str]:
    """The kinds of tensors in a checkpoint: "model", "ema", …"""
    return {kind for name in contents(Path(path)).files if (kind := kind_of(name))}


def profiles(path: Path) -> dict[str, float]:
    """The relative widths of the weight averages in a checkpoint from which post-hoc EMA computes others, by kind."""
    return state_of(Path(path))["facts"].get("profiles", {})


def state_of(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's state.json; ValueError if it has another form, or another step than the folder's name."""
    found = fitting(read_json(path / STATE, limit=STATE_LIMIT, within=path), STATE_FORM, str(path / STATE), "use another checkpoint")
    if other := contradicted(found):
        raise ValueError(f"{path / STATE} is damaged: {other} is not what its counters say; use another checkpoint")
    if step_of(path) not in (None, found["step"]):
        raise ValueError(f"{path} is the checkpoint of step {found['step']} under another's name; use another checkpoint")
    return found


def load(path: Path, *, only: Collection[str] | None = None, verified: bool = False) -> TrainingState:
    """Load a checkpoint, or the kinds of its tensors in `only`; a tensor is read when it is first used.

    verified: true skips the check of every byte, which the caller has done.

    Raises:
        ValueError: the folder is no checkpoint, or a file in it is missing, torn or changed; the message names the file.
    """
    path = Path(path)
    if not verified:
        verify(path, only=only)
    state, listed = state_of(path), contents(path)
    files: dict[str, list[str]] = {}
    for name in sorted(listed.files):
        if kind := kind_of(name):
            files.setdefault(kind, []).append(name)
    if missing := sorted(set(only or ()) - set(files)):
        raise ValueError(f"{path} holds no {missing[0]}.safetensors; it holds {', '.join(files)}")
    tensors = {}
    for kind in files if only is None else only:
        says = kind in listed.tensors
        layouts = manifest.layouts(path, listed, kind) if says else scanned(path, files[kind], listed.boxes.get(kind, {}))
        tensors[kind] = Stored(path, layouts)
    return TrainingState(step=state["step"], samples=state["samples"], tokens=state["tokens"], tensors=tensors, facts=state["facts"])


def newest(checkpoints: Path, *, report: Callable[[str], object] = print, look: Callable[[Path], object] | None = None) -> Path | None:
    """The newest whole checkpoint; None if there are none at all.

    Damaged ones are reported and passed over. If there are checkpoints but none is whole, this raises ValueError, because a run must never
    start again from step 0 by itself. look: raises for a damaged checkpoint; None is `verify`, which reads every byte.
    """
    found = listed(checkpoints)
    problems = []
    for path in reversed(found):
        try:
            (look or verify)(path)
        except (ValueError, OSError) as error:
            if path.is_dir():  # else the run removed it meanwhile
                problems.append(str(error))
            continue
        for problem in problems:
            report(f"passed over a damaged checkpoint: {problem}")
        return path
    if found and not problems:  # all were removed meanwhile
        return newest(checkpoints, report=report, look=look)
    if found:
        raise ValueError(f"no checkpoint in {checkpoints} is whole: {'; '.join(problems)}. To start again, choose another output folder")
    return None


def sweep(folder: Path) -> int:
    """Remove files that a killed process left half-written; return how many. Only for the one process that owns the run."""
    rubbish = list(Path(folder).rglob(f"{storage.STAGING}*"))
    for path in rubbish:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(rubbish)


def _let_go(checkpoints: Path, *, keep: int, keep_every: int, snapshots: int, every: int, report: Report) -> None:
    steps = {step_of(path) or 0: path for path in listed(checkpoints)}
    regular = [step for step in steps if step % every == 0]
    staying = {*regular[-max(1, keep) :], max(steps)} | {step for step in steps if keep_every and step % keep_every == 0}
    for step, path in steps.items():
        if step in staying:
            continue
        try:
            if snapshots and step % every == 0:
                keep_part(path, checkpoints.parent / SNAPSHOTS, kinds=profiles(path))
        except ValueError as error:
            report(f"{path.name} leaves no averages, and is set aside as {_set_aside(path).name}: {error}")
            continue
        _remove(path)
    found = {step_of(path) or 0: path for path in listed(checkpoints.parent / SNAPSHOTS)} if snapshots else {}
    for step in sorted(set(found) - set(thinned(list(found), snapshots))):
        _remove(found[step])


def set_aside(checkpoints: Path, *, after: int) -> list[Path]:
    """Rename the checkpoints of steps above `after`, which the run will reach again, so that they count as none; return their new paths."""
    return [_set_aside(path) for path in listed(checkpoints) if (step_of(path) or 0) > after]


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def undo(checkpoints: Path, *, after: int) -> list[int]:
    """Remove the checkpoints and snapshots of steps above `after`, for a run that goes back to that step; return the removed steps."""
    undone = []
    for path in (*listed(checkpoints), *listed(checkpoints.parent / SNAPSHOTS)):
        if (step := step_of(path) or 0) > after:
            _remove(path)
            undone.append(step)
    return sorted(set(undone))


def _remove(path: Path) -> None:
    """Remove a checkpoint's folder. It is renamed first, so that a kill leaves a staging folder to sweep and not half a checkpoint."""
    aside = path.with_name(f"{storage.STAGING}old-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` steps, spread evenly: the one that leaves the smallest gap is dropped first, but never the first or last step."""
    left = sorted(steps)
    while len(left) > max(2, most):
        gaps = [after - before for before, after in zip(left, left[2:], strict=False)]
        del left[1 + gaps.index(min(gaps))]
    return left


def keep_part(path: Path, folder: Path, *, kinds: Collection[str]) -> None:
    """Store the tensors of some kinds as a checkpoint of the same name in `folder`, by hard links where possible, else copies."""
    if not kinds or (folder / path.name).exists():
        return
    taken = contents(path).of(kinds)
    staging = folder / f"{storage.STAGING}{path.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in taken.files:
        try:
            os.link(path / name, staging / name)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copy2(path / name, staging / name)  # the file system has no hard links
            storage.sync(staging / name)
    (staging / MANIFEST).write_text(manifest.text_of(taken), encoding="utf-8")
    storage.sync(staging / MANIFEST)
    storage.sync(staging)
    staging.rename(folder / path.name)
    storage.sync(folder)
