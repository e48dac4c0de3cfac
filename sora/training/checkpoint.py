"""Checkpoints that are whole or do not exist, and that say by name what is damaged.

One folder per saved step:

    checkpoints/step-00001000/
        model.safetensors ema.safetensors optimizer.safetensors rng.safetensors      tensors, and nothing but tensors
        state.json                                                                   counters and facts
        manifest.json                                                                size and SHA-256 of each of these files, and of itself

It is staged beside its place, every file is synced, the manifest is written last, and the folder is renamed: a kill or a full disk at
any moment leaves the older ones as they were. A folder is never overwritten. There is no pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sora import storage
from sora.training.tensorfile import read_tensors, write_tensors

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class TrainingState:
    """All that a run needs to go on as if it had never stopped.

    step, samples, tokens: what has been trained on so far. tensors: by file ("model", "ema", "optimizer", "rng") and by name.
    facts: JSON values beside them (sums of the open logging window, skipped steps, hashes of what the run depends on).
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


def save(checkpoints: Path, state: TrainingState, *, keep: int, keep_every: int = 0, writes: bool = True) -> Path:
    """Commit `state` as a new folder of `checkpoints`, then let go of older ones; returns the folder.

    keep: how many of the newest stay (at least 1). keep_every: steps that divide by it stay for ever; 0 for none.
    writes: False on ranks that only take part in gathering sharded tensors.

    Raises:
        ValueError: the folder exists, or a tensor is not finite. OSError: the disk is full or gone; nothing has changed then.
    """
    path = folder_of(checkpoints, state.step)
    if not writes:
        for name in sorted(state.tensors):
            write_tensors(None, state.tensors[name])
        return path
    with storage.whole_folder(path) as staging:
        files: dict[str, dict[str, int | str]] = {}
        for name in sorted(state.tensors):
            files[f"{name}.safetensors"] = write_tensors(staging / f"{name}.safetensors", state.tensors[name])
        text = _render({"step": state.step, "samples": state.samples, "tokens": state.tokens, "facts": dict(state.facts)})
        (staging / STATE).write_text(text, encoding="utf-8")
        files[STATE] = {"bytes": len(text.encode()), "sha256": storage.text_hash(text)}
        (staging / MANIFEST).write_text(_manifest(files), encoding="utf-8")
    with suppress(OSError):  # the save is done; older ones go after the next
        _let_go(Path(checkpoints), keep=keep, keep_every=keep_every)
    return path


def verify(path: Path) -> None:
    """Raise ValueError, naming the file, unless every byte of the checkpoint is what was written."""
    path = Path(path)
    files = _files(path)
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if strangers := sorted(present - set(files)):
        raise ValueError(f"{path / strangers[0]} does not belong to this checkpoint; remove it or use another checkpoint")
    for name, facts in files.items():
        if not (path / name).is_file():
            raise ValueError(f"{path / name} is missing; use another checkpoint")
        if (size := (path / name).stat().st_size) != facts["bytes"]:
            raise ValueError(f"{path / name} is damaged: {size} bytes instead of {facts['bytes']}; use another checkpoint")
    with ThreadPoolExecutor(max_workers=min(8, len(files))) as pool:
        hashes = pool.map(storage.file_hash, [path / name for name in files])
    for (name, facts), found in zip(files.items(), hashes, strict=True):
        if found != facts["sha256"]:
            raise ValueError(f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}; use another checkpoint")


def load(path: Path, *, only: tuple[str, ...] | None = None) -> TrainingState:
    """Read a whole checkpoint (or `only` some of its tensor files), every file verified first.

    Raises:
        ValueError: it is no checkpoint, or a file of it is missing, torn or changed; the message names the file.
    """
    path = Path(path)
    verify(path)
    state = storage.read_json(path / STATE)
    names = [name.removesuffix(".safetensors") for name in _files(path) if name.endswith(".safetensors")]
    if missing := sorted(set(only or ()) - set(names)):
        raise ValueError(f"{path} holds no {missing[0]}.safetensors; it holds {', '.join(names)}")
    tensors = {name: read_tensors(path / f"{name}.safetensors") for name in names if only is None or name in only}
    return TrainingState(step=state["step"], samples=state["samples"], tokens=state["tokens"], tensors=tensors, facts=state["facts"])


def newest(checkpoints: Path, *, report=print) -> Path | None:
    """The newest whole checkpoint; None if there are none at all.

    Damaged ones are passed over, and named through `report`. When there are checkpoints but none is whole this is a ValueError: a run
    never starts again from step 0 by itself.
    """
    found = listed(checkpoints)
    problems = []
    for path in reversed(found):
        try:
            verify(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        for problem in problems:
            report(f"passed over a damaged checkpoint: {problem}")
        return path
    if found:
        raise ValueError(f"no checkpoint in {checkpoints} is whole: {'; '.join(problems)}. To start again, choose another output folder")
    return None


def sweep(folder: Path) -> int:
    """Remove what a killed process left half-written; returns how many. Only for the one process that owns the run."""
    rubbish = list(Path(folder).rglob(f"{storage.STAGING}*"))
    for path in rubbish:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(rubbish)


def _files(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_dir():
        raise ValueError(f"{path} does not exist or is no checkpoint folder")
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path / MANIFEST} is missing: {path} is no whole checkpoint")
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        whole = _manifest(manifest["files"]) == text
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged: {error}; use another checkpoint") from None
    if manifest.get("format") != FORMAT and not whole:
        raise ValueError(f"{path / MANIFEST} is damaged, or of format {manifest.get('format')} where this version reads {FORMAT}")
    if not whole:
        raise ValueError(f"{path / MANIFEST} is damaged: it does not match its own SHA-256; use another checkpoint")
    return manifest["files"]


def _manifest(files: Mapping[str, Any]) -> str:
    """The text of a manifest. Written in one way only, so that a changed byte anywhere in it shows."""
    body = {"format": FORMAT, "files": dict(sorted(files.items()))}
    return _render({**body, "sha256": hashlib.sha256(_render(body).encode()).hexdigest()})


def _render(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _let_go(checkpoints: Path, *, keep: int, keep_every: int) -> None:
    older = listed(checkpoints)[: -max(1, keep)]
    for path in older:
        step = step_of(path) or 0
        if keep_every and step % keep_every == 0:
            continue
        aside = path.with_name(f"{storage.STAGING}old-{path.name}")  # so that a kill in the middle leaves rubbish, not half a checkpoint
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
