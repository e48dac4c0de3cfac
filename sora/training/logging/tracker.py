"""Hands metrics to a tracker that may be slow, dead or wrong, without ever waiting for it.

The tracker is another process at the end of a pipe. Training puts lines into a bounded queue; if it is full, the line is dropped and
counted. At the end the tracker has a few seconds and is then killed, with all processes that it started. The record is metrics.jsonl; the
tracker has a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sora.system.processes import born_deaf
from sora.training.logging import sinks

Sink = sinks.Csv | sinks.TensorBoard | sinks.Wandb


class NoTracker:
    """No tracker: metrics are in the run folder only."""

    def log(self, step: int, values: Mapping[str, Any]) -> None: ...
    def media(self, step: int, name: str, path: Path, caption: str) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """A sink in its own process.

    first: it gets metrics of later steps only. patience: seconds that `close` waits for it. room: lines that may wait before lines are
    dropped.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        folder: Path,
        identity: str,
        config: Mapping[str, Any],
        first: int,
        patience: float,
        room: int,
        command: list[str] | None = None,
    ) -> None:
        self.dropped = 0
        self.problem: str | None = None
        self._patience = patience
        self._name = type(sink).__name__
        self._lines: queue.Queue[str | None] = queue.Queue(maxsize=room)
        self._process = self._start(command or [sys.executable, "-P", str(Path(sinks.__file__))])
        told = {"folder": Path(folder).resolve(), "identity": identity, "config": dict(config), "first": first, "patience": patience}
        self._put(sinks.described(sink, **told))
        threading.Thread(target=self._feed, name="tracker", daemon=True).start()

    def _start(self, command: list[str]) -> subprocess.Popen[str] | None:
        # -P: the folder of the script must not become an import path, its modules have common names.
        # A session of its own: Ctrl-C and scancel reach the trainer alone, and what the tracker starts can be ended with it.
        try:
            with born_deaf():
                return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        except OSError as error:
            self.problem = f"could not be started ({error})"
            return None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._put({"step": step, "values": dict(values)})

    def media(self, step: int, name: str, path: Path, caption: str) -> None:
        """Pass on a file in the run folder."""
        self._put({"step": step, "media": name, "path": str(Path(path).resolve()), "caption": caption})

    def close(self) -> None:
        """Let the tracker finish within its patience, then kill it. Safe to call twice."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=0.1)
        if self._process is not None:
            self._end(self._process)
        if self.problem or self.dropped:
            print(
                f"{self._name} {self.problem or 'was slow'}; {self.dropped} lines were dropped. "
                "metrics.jsonl in the run folder has them all"
            )

    def _end(self, process: subprocess.Popen[str]) -> None:
        try:
            process.wait(timeout=self._patience)
        except subprocess.TimeoutExpired:
            self.problem = self.problem or f"did not finish within {self._patience} s"
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.returncode and not self.problem:
            self.problem = f"ended with exit code {process.returncode}"

    def _put(self, message: Mapping[str, Any]) -> None:
        try:
            self._lines.put_nowait(json.dumps(message) + "\n")
        except queue.Full:
            self.dropped += 1
        except (TypeError, ValueError) as error:
            self.dropped += 1
            self.problem = self.problem or f"was given what it cannot take ({error})"

    def _feed(self) -> None:
        try:
            if self._process is None or self._process.stdin is None:
                raise ValueError("it is not there")
            with self._process.stdin as pipe:
                while (line := self._lines.get()) is not None:
                    pipe.write(line)
                    pipe.flush()
        except (OSError, ValueError) as error:
            self.problem = self.problem or f"went away ({error})"
            while self._lines.get() is not None:  # keep the queue from filling up
                self.dropped += 1
