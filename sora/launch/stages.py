"""Runs commands one after another, each in its own process: finished ones are skipped, interrupted ones continue or start again.

    FOLDER/stages/NAME.json       a finished stage: its command, the hash of what it depends on, seconds, commit
    FOLDER/stages/NAME.begun      a started stage: the same hash, and the seconds that earlier attempts took

A stage depends on its command, the configuration that the command composes, the version of sora, and the dependencies of the stages before
it. If any of these changes, the stage's output is removed and made again, as are those of all later stages. The location of FOLDER is not
part of the hash, so it may be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sora
from sora.gate.forms import Fields, fitting, real, text
from sora.system import processes
from sora.system.files import read_json, write_json

ROOT = Path(sora.__file__).resolve().parent.parent
MARKER = Fields({**dict.fromkeys(("stage", "title", "command", "depends", "commit"), text), "seconds": real(0)}, closed=True)
BEGUN = Fields({}, may={"depends": text, "seconds": real(0)})
PATIENCE = 120.0  # seconds that a stage may take to save after it was asked to stop


@dataclass(frozen=True)
class Stage:
    """One command. output: the folder that it creates (None: it adds to another stage's). goes_on: whether it can continue from a partial
    output. mark: a file in the output that shows it is complete, for commands that refuse a complete output."""

    name: str
    title: str
    verb: str
    overrides: tuple[str, ...]
    output: Path | None
    after: tuple[str, ...] = ()
    goes_on: bool = False
    mark: str | None = None

    @property
    def command(self) -> str:
        return f"sora {self.verb} {shlex.join(self.overrides)}"


@dataclass(frozen=True)
class FinishedStage:
    """The marker of a finished stage."""

    stage: str
    title: str
    command: str
    depends: str
    seconds: float
    commit: str


def run_stages(stages: Sequence[Stage], folder: Path, *, again: str | None = None) -> list[FinishedStage]:
    """Run the stages that are not finished, in order; return all stages' markers. again: make this stage and those that depend on it again.

    All commands are composed before the first runs. Raises ValueError if that fails or a stage does, KeyboardInterrupt for Ctrl-C.
    """
    names = [stage.name for stage in stages]
    if again is not None and again not in names:
        raise ValueError(f"there is no stage {again!r}; the stages: {', '.join(names)}")
    hashes: dict[str, str] = {}
    earlier: dict[str, str] = {}  # hashes by older versions, which included the folder's name
    for stage in stages:
        hashes[stage.name] = depends(stage, [hashes[name] for name in stage.after], folder)
        earlier[stage.name] = depends(stage, [earlier[name] for name in stage.after], None)
    if again is not None:
        _forget(folder, again, stages)
    done = []
    for number, stage in enumerate(stages, 1):
        heading = f"[{number}/{len(stages)}] {stage.title}"
        kept = finished(stage, folder, hashes[stage.name]) or finished(stage, folder, earlier[stage.name])
        if kept is not None:
            print(f"{heading}: done before, in {kept.seconds:.0f} s", flush=True)
        else:
            print(f"\n{heading}\n  {stage.command}", flush=True)
            kept = _make(stage, folder, hashes[stage.name], stages)
        done.append(kept)
    return done


def refuse_others(stages: Sequence[Stage], folder: Path) -> None:
    """Raise ValueError if a stage's output exists although no stage started in this folder: it is somebody else's, and would be removed."""
    if (folder / "stages").is_dir():
        return
    if there := next((stage.output for stage in stages if stage.output is not None and stage.output.exists()), None):
        raise ValueError(f"{there} exists and was not made by this command, which would make it anew; choose another output=FOLDER")


def depends(stage: Stage, before: Sequence[str], folder: Path | None) -> str:
    """The hash of everything that determines a stage's output. Raises ValueError if its command does not compose.

    folder: its own location is left out of the hash.
    """
    from omegaconf import OmegaConf

    from sora.config.command_line.flags import usual_folders
    from sora.config.compose import compose, require_all

    try:
        composed = compose(stage.verb, stage.overrides, usual_folders())
        require_all(composed, stage.verb)
    except ValueError as error:
        raise ValueError(f"the stage {stage.name!r} ({stage.command}) cannot run: {error}") from error
    if folder is None:
        parts: list[Any] = [stage.command, OmegaConf.to_yaml(composed.config)]
    else:
        parts = [stage.verb, placeless(OmegaConf.to_container(composed.config, resolve=False), f"{folder}{os.sep}")]
    return hashlib.sha256(json.dumps([*parts, sora.__version__, *before]).encode()).hexdigest()


def placeless(value: Any, home: str) -> Any:
    """A configuration's values with paths in `home` relative to it."""
    if isinstance(value, dict):
        return {key: placeless(item, home) for key, item in value.items()}
    if isinstance(value, list):
        return [placeless(item, home) for item in value]
    return f"FOLDER{os.sep}{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(home) else value


def finished(stage: Stage, folder: Path, hashed: str) -> FinishedStage | None:
    """The marker of a finished stage with the same dependencies whose output exists; else None."""
    marker = _marker(folder, stage.name)
    if not marker.exists() or (stage.output is not None and not stage.output.is_dir()):
        return None
    try:
        found = FinishedStage(**fitting(read_json(marker, within=folder), MARKER, str(marker)))
    except ValueError:  # a marker of another version, or a damaged one: the stage runs again
        return None
    return found if found.depends == hashed else None


def _make(stage: Stage, folder: Path, hashed: str, stages: Sequence[Stage]) -> FinishedStage:
    """Run one stage to its end and write its marker."""
    marker, begun = _marker(folder, stage.name), _begun(folder, stage.name)
    earlier = fitting(read_json(begun, within=folder), BEGUN, str(begun), "delete it") if begun.exists() else {}
    refused = stage.output is not None and stage.mark is not None and (stage.output / stage.mark).exists()
    same = stage.goes_on and earlier.get("depends") == hashed and not refused
    _forget(folder, stage.name, stages)
    if not same and stage.output is not None and stage.output.exists():
        shutil.rmtree(stage.output)
    spent = float(earlier.get("seconds", 0.0)) if same else 0.0
    write_json(begun, {"depends": hashed, "seconds": spent})
    start = time.monotonic()
    try:
        code = run_command(stage.verb, stage.overrides)
    finally:
        spent += time.monotonic() - start
        write_json(begun, {"depends": hashed, "seconds": spent})
    if code:
        told = "mend what it says above and run the same command again; finished stages are kept"
        raise ValueError(f"the stage {stage.name!r} stopped with exit code {code}: {told}")
    commit = processes.git_commit(ROOT) or f"version {sora.__version__}"
    done = FinishedStage(stage.name, stage.title, stage.command, hashed, round(spent, 2), commit)
    write_json(marker, asdict(done))
    begun.unlink(missing_ok=True)
    return done


def run_command(verb: str, overrides: Sequence[str]) -> int:
    """Run `python -m sora.VERB …` in this terminal; return its exit code. A stop signal to this process stops the command first."""
    return processes.command([sys.executable, "-m", f"sora.{verb}", *overrides], env=environment(), patience=PATIENCE)


def environment() -> Mapping[str, str]:
    """This process's environment, with this sora first on the import path, so that children find it in whatever folder they start."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _forget(folder: Path, name: str, stages: Sequence[Stage]) -> None:
    """Remove the markers of a stage that will run again and of all later stages, before their outputs change."""
    stale = {name}
    for stage in stages:
        if stage.name in stale or stale & set(stage.after):
            stale.add(stage.name)
            _marker(folder, stage.name).unlink(missing_ok=True)
            _begun(folder, stage.name).unlink(missing_ok=True)


def _marker(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"


def _begun(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.begun"
