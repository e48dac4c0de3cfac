"""Destinations of metrics besides the run folder: CSV, TensorBoard, wandb. Each runs in its own process, which `tracker.py` starts.

That process runs this file alone: it reads one JSON object per line and imports nothing of sora, so a tracker that hangs, crashes or waits
for a server does not disturb training. It ends at most its patience after the trainer. A run that continues from step `first` sends later
steps again; a sink removes what it had of them.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class Nowhere:
    """No sink: metrics.jsonl is the only record."""


@dataclass
class Csv:
    """metrics.csv in the run folder; a new column makes it be rewritten. Rows are kept in the file only."""

    def open(self, folder: Path, identity: str, config: dict[str, Any], first: int) -> None:
        self._path = folder / "metrics.csv"
        self._columns: list[str] = []
        if self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                self._columns = list(csv.DictReader(_whole(file)).fieldnames or [])
            self._rewrite(self._columns, until=first)

    def log(self, step: int, values: dict[str, Any]) -> None:
        row = {"step": step, **values}
        if not set(row) <= set(self._columns):
            self._rewrite(list(dict.fromkeys([*self._columns, *row])), until=step)
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self, columns: list[str], *, until: int) -> None:
        """Rewrite the rows of steps up to `until` with these columns."""
        staging = self._path.with_name(f".staging-{os.getpid()}-{self._path.name}")
        try:
            with open(staging, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                if self._path.exists():
                    with open(self._path, newline="", encoding="utf-8") as old:
                        writer.writerows(row for row in csv.DictReader(_whole(old)) if int(row["step"]) <= until)
            os.replace(staging, self._path)
        except OSError:  # a full disk
            staging.unlink(missing_ok=True)
            raise
        self._columns = columns

    def media(self, step: int, name: str, path: Path, caption: str) -> None:
        """Do nothing: the file is in the run folder already."""

    def close(self) -> None:
        """Do nothing: every row is on disk."""


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """The lines without an incomplete one that a killed process left."""
    return (line for line in lines if line.endswith("\n"))


@dataclass
class TensorBoard:
    """Event files in RUN/tensorboard. Needs the package tensorboard, whose video writer drops videos, so these stay in the run folder."""

    def open(self, folder: Path, identity: str, config: dict[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder.absolute() / "tensorboard"  # in a relative path, a name with a colon is a URL
        begun = place.is_dir() and any(place.iterdir())
        self._writer = SummaryWriter(str(place), purge_step=first + 1)
        if not begun:  # text cannot be removed from it later
            self._writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```")

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def media(self, step: int, name: str, path: Path, caption: str) -> None:
        self._writer.add_text(name, f"{caption}: {path}", step)

    def close(self) -> None:
        self._writer.close()


@dataclass
class Wandb:
    """Weights & Biases. If the server does not answer within `timeout` seconds, the run is recorded offline in RUN/wandb.

    wandb takes each step once: the first values stay, and later ones are dropped.
    """

    project: str
    entity: str | None
    mode: str
    tags: list[str]
    timeout: float

    def open(self, folder: Path, identity: str, config: dict[str, Any], first: int) -> None:
        import wandb

        def start(mode: str) -> Any:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,  # pyright: ignore[reportArgumentType]
                tags=list(self.tags),
                id=identity,
                name=folder.name,
                resume="allow",
                dir=str(folder),
                config=config,
                settings=wandb.Settings(init_timeout=self.timeout, silent=True),
            )

        try:
            self._run = start(self.mode)
        except Exception as error:
            _say(f"wandb is not to be had ({error}); keeping the run offline, send it later with wandb sync {folder / 'wandb'}/offline-*")
            wandb.teardown()
            self._run = start("offline")

    def log(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=step)

    def media(self, step: int, name: str, path: Path, caption: str) -> None:
        import wandb

        self._run.log({name: wandb.Video(str(path), caption=caption)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def serve(first: str, lines: Iterable[str]) -> None:
    """Open the sink that the first line describes, then run the call in each further line, to the end of the input."""
    start = json.loads(first)
    sink = next(kind for kind in (Csv, TensorBoard, Wandb) if kind.__name__ == start["sink"])(**start["settings"])
    sink.open(Path(start["folder"]), start["identity"], start["config"], start["first"])
    for line in lines:
        message = json.loads(line)
        if "media" in message:
            sink.media(message["step"], message["media"], Path(message["path"]), message["caption"])
        else:
            sink.log(message["step"], message["values"])
    sink.close()


def described(sink: Any, *, folder: Path, identity: str, config: dict[str, Any], first: int, patience: float) -> dict[str, Any]:
    """The first line for a sink's process: the sink, its run, the first step, and the id of the calling process."""
    owner = {"owner": os.getpid(), "patience": patience, "first": first}
    return {"sink": type(sink).__name__, "settings": asdict(sink), "folder": str(folder), "identity": identity, "config": config, **owner}


def follow(owner: int, patience: float) -> None:
    """End this process and its children `patience` seconds after the owner's death, whatever they wait for."""
    while os.getppid() == owner:
        time.sleep(0.5)
    time.sleep(patience)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    first = sys.stdin.readline()
    start = json.loads(first)
    threading.Thread(target=follow, args=(start["owner"], start["patience"]), daemon=True).start()
    try:
        serve(first, sys.stdin)
    except OSError as error:  # a full disk; the trainer reports it too if it stops the run
        _say(f"{start['sink']} cannot go on: {error.strerror or error}")
        sys.exit(1)


if __name__ == "__main__":
    # as in sora/system/processes.py, which this file must not import
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    for number in asking:
        signal.signal(number, signal.SIG_IGN)  # the trainer decides when this process ends, by closing the pipe
    signal.pthread_sigmask(signal.SIG_UNBLOCK, asking)
    main()
