"""Where metrics may go besides the run folder: CSV, TensorBoard, wandb. Each runs in a process of its own, started by `tracker.py`.

That process is this file, alone: it reads one JSON object per line and imports nothing of the framework, so whatever a tracker does
(hang, crash, wait ninety seconds for a server) happens elsewhere than in training. It does not outlive the trainer by more than its
patience. A run that goes on from step `first` tells the later ones again: what was told of them before is taken back.
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
    """metrics.jsonl alone."""


@dataclass
class Csv:
    """metrics.csv in the run folder; columns that appear later make it be written anew. Its rows are in the file alone."""

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
        """The rows of steps up to `until` under these columns."""
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
        """The file is in the run folder already."""

    def close(self) -> None:
        """Every row is on disk."""


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Lines but one that a killed process left half of."""
    return (line for line in lines if line.endswith("\n"))


@dataclass
class TensorBoard:
    """Event files in RUN/tensorboard. Needs the package tensorboard. Videos stay in the run folder: its own video writer drops them."""

    def open(self, folder: Path, identity: str, config: dict[str, Any], first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder.absolute() / "tensorboard"  # relative, a name with a colon is a URL
        begun = place.is_dir() and any(place.iterdir())
        self._writer = SummaryWriter(str(place), purge_step=first + 1)
        if not begun:  # it takes no text back
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
    """Weights & Biases. A server that does not answer within `timeout` seconds is done without: the run is kept offline in RUN/wandb.

    It takes no step twice: what was told first stays, and later ones are dropped there.
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
    """Open the sink that the first line describes, then do what each further line says, to the end of the input."""
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
    """The first line: which sink, of which run and from which step on, and whose: of the process that calls this."""
    owner = {"owner": os.getpid(), "patience": patience, "first": first}
    return {"sink": type(sink).__name__, "settings": asdict(sink), "folder": str(folder), "identity": identity, "config": config, **owner}


def follow(owner: int, patience: float) -> None:
    """End this process and all that it has started `patience` seconds after its owner's death, whatever it is waiting for."""
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
    except OSError as error:  # a full disk, which the trainer tells of, too, where it stops the run
        _say(f"{start['sink']} cannot go on: {error.strerror or error}")
        sys.exit(1)


if __name__ == "__main__":
    # as in sora/system/processes.py, of which this file knows nothing
    asking = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    for number in asking:
        signal.signal(number, signal.SIG_IGN)  # the trainer decides when this ends: it closes the pipe
    signal.pthread_sigmask(signal.SIG_UNBLOCK, asking)
    main()
