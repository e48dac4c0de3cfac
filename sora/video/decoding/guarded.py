"""Runs a video reader in a child process with a time and a memory limit, so that no clip can crash or hang the training process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sora.system.own_modules import OWN
from sora.system.processes import Parent, born_deaf
from sora.video.decoding.child import Call, described
from sora.video.reader import Reading, ReadReport, Source, Timeline, VideoInfo, VideoReader, named

_START = 300.0  # seconds that a child may take to import its backend on a busy machine
_SLACK = 10.0  # seconds after the child's own timeout until the parent kills it
# Only variables without secrets; SORA_OWN has names of modules, which may define the user's own reader.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR", OWN)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class GuardedReader:
    """Runs `reader`, a `VideoReader`, in a child process, which each process starts at its first call.

    seconds: the most that one call may take. memory_gb: memory that the child may allocate beyond the loaded backend's. restart_after:
    reads after which the child is replaced, against memory leaks. A clip that kills or hangs the child is tried once more in a new child;
    then it is a `ValueError` with its name, like any clip that does not decode. A backend that itself does not work raises `RuntimeError`.
    The child has no secrets of the environment and no open file of this process, and, where the kernel allows it, cannot open connections
    or start programs.
    """

    _child: _Child | None = None
    _identity: str | None = None

    def __init__(self, *, reader: VideoReader, seconds: float, memory_gb: float, restart_after: int) -> None:
        if seconds <= 0 or memory_gb <= 0 or restart_after < 1:
            raise ValueError(
                f"reader.seconds={seconds:g}, reader.memory_gb={memory_gb:g}, reader.restart_after={restart_after}: give numbers above 0"
            )
        self.reader, self.seconds, self.memory_gb, self.restart_after = reader, seconds, memory_gb, restart_after

    def identity(self) -> str:
        if self._identity:
            return self._identity
        idle = self._child is None
        try:
            told = self._identity = str(self._asked({"do": "identity"}, b"", "the reader")[0]["identity"])
        except RuntimeError as error:  # before the first clip, so that a missing backend is reported as such
            raise ValueError(str(error)) from None
        if idle:
            self.close()
        return told

    def probe(self, source: Source, *, name: str | None = None, timeline: bool = False) -> VideoInfo:
        """See `VideoReader`."""
        told = named(source, name)
        answer, _ = self._asked({"do": "probe", "timeline": timeline, **_said(source, told)}, _content(source), told)
        info = answer["info"]
        if info["timeline"] is not None:
            times, keys = info["timeline"]
            info["timeline"] = Timeline(np.asarray(times, np.float64), np.asarray(keys, bool))
        return VideoInfo(**info)

    def read(
        self,
        source: Source,
        *,
        start: float = 0.0,
        first: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> Reading:
        """See `VideoReader`."""
        told = named(source, name)
        call = {"do": "read", "start": start, "first": first, "frames": frames, "fps": fps, "size": size, **_said(source, told)}
        answer, pixels = self._asked(call, _content(source), told)
        assert pixels is not None
        return Reading(pixels, answer["fps"], ReadReport(**answer["report"]))

    def close(self) -> None:
        """End the child; the next call starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_child": None}  # a child process cannot be pickled

    def _asked(self, call: Call, content: bytes, named: str) -> tuple[dict[str, Any], np.ndarray | None]:
        for attempt in (1, 2):
            child = self._running()
            try:
                answer, pixels = child.ask(call, content)
            except (EOFError, OSError) as error:
                child.kill()
                self._child = None
                if attempt == 1:
                    continue
                raise ValueError(f"{named} {self._ending(child, error)}, twice") from None
            except BaseException:  # such as Ctrl-C: the pending answer must not be taken for that of the next call
                child.kill()
                self._child = None
                raise
            if "refused" in answer:
                raise ValueError(answer["refused"])
            if "failed" in answer:
                raise RuntimeError(f"the process that decodes failed, and not because of a clip:\n{answer['failed']}")
            return answer, pixels
        raise AssertionError("two attempts end in an answer or an error")

    def _running(self) -> _Child:
        """The child of this process; one that a fork copied belongs to another process."""
        if self._child is not None and (self._child.owner != os.getpid() or self._child.calls >= self.restart_after):
            self.close()
        if self._child is None:
            self._child = _Child(self.reader, self.seconds, self.memory_gb)
        return self._child

    def _ending(self, child: _Child, error: Exception) -> str:
        code = child.process.returncode
        if isinstance(error, TimeoutError) or code == -signal.SIGALRM:
            return f"took over {self.seconds:g} seconds to decode (reader.seconds)"
        if code is not None and code < 0:
            return f"killed the process that decoded it ({signal.Signals(-code).name}; reader.memory_gb={self.memory_gb:g})"
        return f"ended the process that decoded it (exit code {code})"


def _said(source: Source, named: str) -> Call:
    # absolute, as the child keeps the working directory of its start
    return {"path": None if isinstance(source, bytes) else os.path.abspath(source), "name": named}


def _content(source: Source) -> bytes:
    return source if isinstance(source, bytes) else b""


class _Line(Connection):
    """A connection that only its owner closes. Garbage collection of both at once would close its file descriptor twice, and the number may
    belong to another file by then."""

    def __del__(self) -> None:
        pass


class _Child:
    """The child process, a socket for calls and answers, and two files in memory, for clips and for frames. Only this side has timeouts."""

    def __init__(self, reader: VideoReader, seconds: float, memory_gb: float) -> None:
        self.owner, self.calls, self._seconds = os.getpid(), 0, seconds
        ours, theirs = socket.socketpair()
        self._clip, self._frames = os.memfd_create("clip"), os.memfd_create("frames")
        passed, parent = (theirs.fileno(), self._clip, self._frames), Parent.here()
        # As multiprocessing does for spawned processes: the child has the same module path.
        told = (*passed, parent.process, parent.lasting)
        code = f"import sys; sys.path[:] = {sys.path!r}; from sora.video.decoding.child import serve; serve{told!r}"
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ONE_THREAD
        quiet = subprocess.DEVNULL
        with theirs, born_deaf():
            self.process = subprocess.Popen([sys.executable, "-c", code], stdin=quiet, stdout=quiet, env=env, pass_fds=passed)
        self._said = _Line(ours.detach())
        try:
            self._tell({"reader": described(reader), "seconds": seconds, "memory": int(memory_gb * 2**30)})
            answer = self._answer(_START)
        except (EOFError, OSError):
            self.kill()
            raise RuntimeError(f"the process that decodes did not start (exit code {self.process.returncode})") from None
        if "failed" in answer:
            self.kill()
            raise RuntimeError(f"the process that decodes did not start:\n{answer['failed']}")

    def ask(self, call: Call, content: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
        """Send a call and a clip's bytes; return the answer and its frames. EOFError if the child dies, TimeoutError without an answer."""
        self.calls += 1
        os.ftruncate(self._clip, len(content))
        written = 0
        while written < len(content):
            written += os.pwrite(self._clip, memoryview(content)[written:], written)
        self._tell(call | {"size_of_clip": len(content)})
        answer = self._answer(self._seconds + _SLACK)
        if "shape" not in answer:
            return answer, None
        frames = np.empty(answer["shape"], np.uint8)
        room, filled = frames.data.cast("B"), 0
        while filled < len(room):
            more = os.preadv(self._frames, [room[filled:]], filled)
            if not more:
                raise EOFError("fewer frames than were said")
            filled += more
        return answer, frames

    def _tell(self, message: dict[str, Any]) -> None:
        self._said.send_bytes(json.dumps(message).encode())

    def _answer(self, seconds: float) -> dict[str, Any]:
        if not self._said.poll(seconds):
            raise TimeoutError
        return json.loads(self._said.recv_bytes())

    def kill(self) -> None:
        """Kill the child; `process.returncode` tells how it ended if it had ended before."""
        if self.owner == os.getpid():
            try:
                self.process.wait(0.5)  # its socket closes a moment before the process ends
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._let_go()

    def close(self) -> None:
        """Let the child end by itself, which it does when nobody holds the other end of its socket."""
        self._let_go()
        if self.owner == os.getpid():
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _let_go(self) -> None:
        if not self._said.closed:
            self._said.close()
            os.close(self._clip)
            os.close(self._frames)
