"""A run is one folder; only one process trains in it at a time, and it is resumed in place.

RUN/config.yaml      the resolved configuration
RUN/run.json         kind, names and hashes of what the run depends on, code version, the step of its first checkpoint, where it was begun
                     and what sizes it trained on (see `places.py`)
RUN/init.json        of a run with init=: the file that it began with, and the config.json beside that
RUN/checkpoints/     whole checkpoints, see `checkpoint.py`
RUN/metrics.jsonl    one line per logged step
RUN/events.jsonl     what went wrong or was done by hand: skipped steps, signals, resumes, failed saves
RUN/samples/  RUN/vae/  RUN/report.html
"""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sora
from sora import storage
from sora.former_names import with_current_names
from sora.locks import alone_in
from sora.processes import born_deaf
from sora.references import refuse_growth
from sora.training import checkpoint

KINDS = ("vae", "diffusion")


@dataclass(frozen=True)
class Run:
    """The paths of a run, and the few things that may be done to them."""

    folder: Path

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def info_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def init_file(self) -> Path:
        return self.folder / "init.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def vae(self) -> Path:
        return self.folder / "vae"

    @property
    def info(self) -> dict[str, Any]:
        found = storage.read_json(self.info_file)
        parts = [found.get(name, {}) for name in ("depends", "code")] if isinstance(found, dict) else []
        texts = all(isinstance(part, dict) and all(isinstance(value, str) for value in part.values()) for part in parts)
        if not parts or not texts or found.get("kind") not in KINDS:
            raise ValueError(f"{self.info_file} is damaged: it does not say of which kind the run is and what it depends on")
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The stored configuration, as plain values, with the present names of targets: data, never something to be run."""
        import yaml

        class Plain(yaml.SafeLoader):
            """Without aliases, which no run writes: a few lines of them stand for more than memory holds."""

            def compose_node(self, parent: Any, index: Any) -> Any:
                if self.check_event(yaml.AliasEvent):
                    raise ValueError(f"it holds an alias{self.peek_event().start_mark}")
                return super().compose_node(parent, index)

        try:
            text = self.config_file.read_text(encoding="utf-8")
            refuse_growth(text)
            value = yaml.load(text, Loader=Plain)
        except FileNotFoundError:
            raise ValueError(f"{self.config_file} does not exist: {self.folder} is no run") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.config_file} is damaged: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{self.config_file} is damaged: it holds no configuration")
        return with_current_names(value)

    def newest(self) -> Path | None:
        return checkpoint.newest(self.checkpoints)

    def has_saved(self, step: int) -> None:
        """Note that there has been a checkpoint: who finds none from now on must not start from step 0."""
        if "saved" not in (info := self.info):
            storage.write_json(self.info_file, {**info, "saved": step})

    def note(self, **facts: Any) -> None:
        """Keep facts of the run in run.json, in place of earlier ones of their names."""
        if any((info := self.info).get(name) != value for name, value in facts.items()):
            storage.write_json(self.info_file, {**info, **facts})

    def depend_on(self, depends: Mapping[str, str], *, vae: Path | None) -> None:
        """From now on the run depends on these hashes. Another VAE takes the place of the one it took along, which stays beside it."""
        info = self.info
        before = info["depends"].get("vae", "")
        if vae is not None and depends["vae"] != before:
            staging, aside = self.folder / f"{storage.STAGING}vae", self.folder / f"vae-{before[:12]}"
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(vae, staging)
            if self.vae.exists():
                shutil.rmtree(aside, ignore_errors=True)
                self.vae.rename(aside)
            staging.rename(self.vae)
        storage.write_json(self.info_file, {**info, "depends": dict(depends)})

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to events.jsonl. A full disk does not stop a run from telling what happened on the terminal."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **facts}) + "\n"
        try:
            with open(self.events_file, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            print(f"could not write {self.events_file}: {error}; the event was {line.strip()}")


def create(folder: Path, *, config: str, info: Mapping[str, Any], vae: Path | None = None) -> Run:
    """Make the folder of a new run, whole or not at all.

    config: YAML text. info: `kind` and what the run depends on. vae: the artefact that a diffusion run takes along.

    Raises:
        ValueError: the folder holds a run already, or something else.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        raise ValueError(f"{folder} holds a run already; continue it with resume={folder}, or choose another output=FOLDER")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is no run; choose another output=FOLDER")
    if info["kind"] not in KINDS:
        raise ValueError(f"a run is of kind {' or '.join(KINDS)}, not {info['kind']!r}")
    if folder.exists():
        folder.rmdir()
    with storage.whole_folder(folder) as staging:
        for name in ("checkpoints", "samples"):
            (staging / name).mkdir()
        (staging / "config.yaml").write_text(config, encoding="utf-8")
        if vae is not None:
            shutil.copytree(vae, staging / "vae")
        storage.write_json(staging / "run.json", {**info, "id": secrets.token_hex(8), "code": code_version()})
    return Run(folder)


def open_run(folder: Path) -> Run:
    """The run in `folder`; a ValueError says what is missing if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; resume= and checkpoint= want the folder of a run")
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is no run: it has no run.json")
    return Run(folder)


@contextmanager
def owned(run: Run) -> Iterator[None]:
    """Hold the run for this process, and clear what a killed one left behind; ValueError where another process trains in it."""
    with alone_in(run.folder, "training in", advice="stop it first, or choose another output=FOLDER"):
        checkpoint.sweep(run.folder)
        yield


def changes(stored: Mapping[str, Any], asked: Mapping[str, Any], *, free: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, as {dotted key: (stored, asked)}, apart from `free` keys and all that lies below them."""
    before, after = _flat(stored), _flat(asked)
    differing = [key for key in sorted({*before, *after}) if before.get(key, MISSING) != after.get(key, MISSING)]
    return {key: (before.get(key, MISSING), after.get(key, MISSING)) for key in differing if not _covered(key, free)}


def refuse_changes(found: Mapping[str, tuple[Any, Any]], *, allowed: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Raise ValueError unless `allowed` covers every change; returns those that were allowed."""
    refused = {key: pair for key, pair in found.items() if not _covered(key, allowed)}
    if refused:
        lines = "\n".join(f"  {key}: {before!r} in the run, {after!r} now" for key, (before, after) in refused.items())
        keys = ",".join(refused)
        raise ValueError(f"resuming would change what the run is:\n{lines}\nset them back, or say so on purpose with resume_allow=[{keys}]")
    return dict(found)


class _Missing:
    def __repr__(self) -> str:
        return "(absent)"


MISSING = _Missing()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()}


def _covered(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def code_version() -> dict[str, str]:
    """What wrote this: the package's version, the commit if it is a checkout, and the versions below it."""
    import torch

    home = Path(sora.__file__).parent
    commit = ""
    if (home.parent / ".git").exists():
        with born_deaf():
            asked = subprocess.run(
                ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
            )
        commit = asked.stdout.strip()
    return {"sora": sora.__version__, "commit": commit, "torch": torch.__version__, "python": platform.python_version()}
