"""A run is one folder; only one process trains in it at a time, and it is resumed in place.

RUN/config.yaml      the resolved configuration
RUN/run.json         kind, names and hashes of what the run depends on, code version, the user's modules with hashes of their files, the
                     step of its first checkpoint, where it started and the sizes it trained on (see `places.py`), and by dataset
                     the sets of captions that it is pinned to, with the hashes of their content
RUN/init.json        only with init=: the file that the run started from, and the config.json beside that file
RUN/checkpoints/     whole checkpoints, see `checkpoint.py`
RUN/metrics.jsonl    one line per logged step
RUN/events.jsonl     problems and manual actions: skipped steps, signals, resumes, failed saves
RUN/samples/  RUN/vae/  RUN/report.html
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sora
from sora.gate import trust
from sora.gate.files import appending, read, refuse_links_out
from sora.gate.former_names import with_current_names
from sora.gate.forms import Either, Fields, Maybe, Named, anything, digest, fitting, flag, real, text, whole, word
from sora.gate.interpolation_limits import refuse_growth, refuse_resolvers
from sora.gate.texts import CONFIG, read_json, yaml_of
from sora.runs import checkpoint
from sora.system import files as storage
from sora.system.locks import alone_in
from sora.system.processes import git_commit
from sora.system.terminal import Lines
from sora.vae import artefact

KINDS = ("vae", "diffusion", "captioner")
MOST_STEPS = 10**12
FORM = Fields(
    {"kind": word(*KINDS)},
    may={
        "depends": Named(text),
        "id": text,
        "seal": Maybe(text),
        "code": Named(text),
        "saved": whole(0, MOST_STEPS),
        "place": {"folder": text, "from": text},
        "datasets": Named(text),
        "sets": [Named(text)],
        "usual": Named(real(0)),
        "exported": Fields({"ema": anything}, may={"averaged": flag}),
        "own": Named(Fields({"files": Named(digest)}, may={"file": text, "git": {"commit": text, "dirty": flag}}, closed=True)),
    },
)  # of run.json
SEALED = "run"  # the first word of what is sealed; the hash of config.yaml follows
INIT = Fields({"config": Maybe(Named(anything))}, may={"step": Maybe(whole(0, MOST_STEPS)), "hash": text})  # of init.json
NODE = Fields({"_target_": text})  # an object of config.yaml, by the name of its class
NETWORKS = {  # what is built to use a run, by kind
    "diffusion": ("patches", "text", "dit", "objective", "path", "density"),
    "vae": ("vae",),
    "captioner": ("patches", "captioner_net", "attributes", "objective"),
}
_CHOSEN = {"selection": Maybe(Either(text, [Maybe(text)])), "sets": Maybe([Either(text, [text])])}
_READ = {"folders": Maybe(Either(text, [text])), "split": Maybe(text), "areas": Maybe([whole(1)]), "rate": Maybe(real(0))}
_DATA = Fields({}, may={**_READ, **_CHOSEN})
_NODES = (
    *NETWORKS["diffusion"],
    *NETWORKS["captioner"][1:3],
    "pixels",
    "optimizer",
    "schedule",
    "ema",
    "guard",
    "plan",
    "reader",
    "trainer",
    "logger",
)
_NUMBERS = {"steps": whole(0, MOST_STEPS), "seed": whole(-(1 << 63), 1 << 64)}
_PLAIN = {"kind": word(*KINDS), **_NUMBERS, "output": Maybe(text), "data": Maybe(_DATA)}
# Every reader checks this form of config.yaml; a command that trains compares it with the keys of `sora train`, too.
CONFIG_FORM = Fields({}, may={**_PLAIN, **dict.fromkeys(_NODES, Maybe(NODE))})


@dataclass(frozen=True)
class Run:
    """The paths of a run, and the operations on its files."""

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
    def began_with(self) -> Mapping[str, Any] | None:
        """What init.json says of the weights that the run started from; None if there are none. ValueError if the file is damaged."""
        return fitting(read_json(self.init_file, within=self.folder), INIT, str(self.init_file)) if self.init_file.is_file() else None

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
        return fitting(read_json(self.info_file, within=self.folder), FORM, str(self.info_file))

    @property
    def own(self) -> bool:
        """Whether the run may read paths outside its folder: this user wrote its configuration, or the command line allows its folder."""
        return trust.allowed(self.folder) or trust.sealed(self.info.get("seal"), *self._said())

    def may_read(self, path: Path | str) -> bool:
        """Whether the run may read a path that it names: it lies in the run, the run is the user's `own`, or the command line allows it."""
        return trust.within(path, self.folder) or trust.allowed(path) or self.own

    def seal(self) -> None:
        """Record that this user wrote the content of config.yaml."""
        self.note(seal=trust.seal(*self._said()))

    def _said(self) -> tuple[Any, ...]:
        return SEALED, storage.file_hash(self.config_file)

    @property
    def config(self) -> dict[str, Any]:
        """The stored configuration, as plain values with the present names of targets; nothing in it is run. Raises ValueError if it is
        damaged, or calls a resolver, which would replace a value by the environment's or a file's."""
        path = self.config_file
        if not path.exists():
            raise ValueError(f"{path} does not exist: {self.folder} is no run")
        content = read(path, most=CONFIG.bytes, within=self.folder)
        try:
            refuse_growth(content.decode("utf-8", "replace"))
            value = yaml_of(content)
            refuse_resolvers(value)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
        return with_current_names(fitting(value, CONFIG_FORM, str(path)))

    def newest(self) -> Path | None:
        return checkpoint.newest(self.checkpoints)

    def has_saved(self, step: int) -> None:
        """Record that the run has saved a checkpoint: if none is found later, training must not start from step 0."""
        if "saved" not in (info := self.info):
            storage.write_json(self.info_file, {**info, "saved": step})

    def note(self, **facts: Any) -> None:
        """Store facts in run.json; they replace earlier facts of the same names."""
        if any((info := self.info).get(name) != value for name, value in facts.items()):
            storage.write_json(self.info_file, {**info, **facts})

    def depend_on(self, depends: Mapping[str, str], *, vae: Path | None) -> None:
        """Record the hashes that the run depends on from now on. `vae` replaces the run's VAE, which is kept under another name."""
        info = self.info
        before = info["depends"].get("vae", "")
        if vae is not None and depends["vae"] != before:
            staging, aside = self.folder / f"{storage.STAGING}vae", self.folder / f"vae-{before[:12]}"
            shutil.rmtree(staging, ignore_errors=True)
            artefact.copy(vae, staging)
            if self.vae.exists():
                shutil.rmtree(aside, ignore_errors=True)
                self.vae.rename(aside)
            staging.rename(self.vae)
        storage.write_json(self.info_file, {**info, "depends": dict(depends)})

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to events.jsonl. If the disk is full, the event is only printed, and the run goes on."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **facts}) + "\n"
        try:
            with os.fdopen(appending(self.events_file), "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            print(f"could not write {self.events_file}: {error}; the event was {line.strip()}")


def create(
    folder: Path, *, config: str, info: Mapping[str, Any], vae: Path | None = None, files: Mapping[str, str] = MappingProxyType({})
) -> Run:
    """Create the folder of a new run, completely or not at all.

    config: YAML text. info: `kind` and what the run depends on. vae: the folder of the VAE that is copied into the run. files: more
    texts, by name.

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
            artefact.copy(vae, staging / "vae")
        for name, content in files.items():
            (staging / name).write_text(content, encoding="utf-8")
        seal = trust.seal(SEALED, storage.text_hash(config))
        storage.write_json(staging / "run.json", {**info, "id": secrets.token_hex(8), "code": code_version(), "seal": seal})
    return Run(folder)


def run_of(path: Path, step: int | None = None) -> tuple[Path, int | None]:
    """The folder of the run that a path names, and a step of it. The path of one of a run's checkpoints names its step, too.

    Raises ValueError if `step` contradicts the path.
    """
    path = Path(path)
    named = path if checkpoint.step_of(path) is not None else path.absolute()  # a user inside a checkpoint's folder says "."
    found = checkpoint.step_of(named)
    if found is None or not (named.parent.parent / "run.json").is_file():
        return path, step
    if step not in (None, found):
        raise ValueError(f"{path} is the checkpoint of step {found}, and step={step} asks for another; leave one of them out")
    return named.parent.parent, found


def open_run(folder: Path) -> Run:
    """The run in `folder`. Raises ValueError if a file of a run is missing, or a link leads out of the folder."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}; resume= and checkpoint= want the folder of a run")
    if not (folder / "run.json").exists():
        above = next((path for path in folder.absolute().parents if (path / "run.json").is_file()), None)
        raise ValueError(f"{folder} is no run: it has no run.json" + (f"; did you mean {above}?" if above else ""))
    refuse_links_out(folder)
    return Run(folder)


@contextmanager
def owned(run: Run) -> Iterator[None]:
    """Lock the run for this process and remove the files of a killed one. Raises ValueError if another process trains in it."""
    with alone_in(run.folder, "training in", advice="stop it first, or choose another output=FOLDER"):
        checkpoint.sweep(run.folder)
        yield


def changes(stored: Mapping[str, Any], asked: Mapping[str, Any], *, free: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, as {dotted key: (stored, asked)}, without the keys `free` and all keys below them."""
    before, after = _flat(stored), _flat(asked)
    differing = [key for key in sorted({*before, *after}) if before.get(key, MISSING) != after.get(key, MISSING)]
    return {key: (before.get(key, MISSING), after.get(key, MISSING)) for key in differing if not _covered(key, free)}


def refuse_changes(found: Mapping[str, tuple[Any, Any]], *, allowed: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Raise ValueError unless `allowed` covers every change; return the changes."""
    refused = {key: pair for key, pair in found.items() if not _covered(key, allowed)}
    if refused:
        lines = "\n".join(f"  {key}: {before!r} in the run, {after!r} now" for key, (before, after) in refused.items())
        keys = ",".join(refused)
        raise Lines(f"resuming would change what the run is:\n{lines}\nset them back, or say so on purpose with resume_allow=[{keys}]")
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
    """The versions that write a run: the package's, the commit if it is a checkout, and those of its dependencies."""
    import torch

    commit = git_commit(Path(sora.__file__).parent.parent)
    return {"sora": sora.__version__, "commit": commit, "torch": torch.__version__, "python": platform.python_version()}
