"""A reader in a process of its own, with a clock and a memory limit, so that whoever trains never dies or hangs of a clip."""

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

_START = 300.0  # seconds that a child may take to import its backend, on a machine that has much else to do
_SLACK = 10.0  # seconds after the child's own clock until it is killed from here
# Nothing that may hold a secret; SORA_OWN holds names of modules, where a reader of the user's own may lie.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR", OWN)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class GuardedReader:
    """`reader`, a `VideoReader`, in a child process that is started at the first use, by each process that uses it.

    seconds: that one call may take. memory_gb: that it may allocate beyond what the backend takes when it is loaded. restart_after:
    reads; a decoder that leaks is let go in time. A clip of which the child dies or hangs is tried once more in a new one, since it may
    not have been the clip's fault; then it is a `ValueError` that names it, as any clip that does not decode. That the backend itself does
    not work is a `RuntimeError`. The child has no secret of the environment, no open file of this process, and, where the kernel can see to
    it, opens no connection and starts no program.
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
        except RuntimeError as error:  # asked for before the first clip, so that a backend that is missing is told as what it is
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
        return self.__dict__ | {"_child": None}  # a process does not travel to another

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
            except BaseException:  # such as Ctrl-C: the answer that is still to come must not be taken for that of the next call
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
        """The child of this process; one that was forked along belongs to another."""
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
    # whole, as the child stays where it was when it was started
    return {"path": None if isinstance(source, bytes) else os.path.abspath(source), "name": named}


def _content(source: Source) -> bytes:
    return source if isinstance(source, bytes) else b""


class _Line(Connection):
    """A connection that only its owner closes. Where both are garbage at once, it would be closed first, and its number, which may mean
    another file by then, a second time by its owner."""

    def __del__(self) -> None:
        pass


class _Child:
    """The process, a socket for what is said, and two files in memory: clips go one way, frames the other. Only this side waits."""

    def __init__(self, reader: VideoReader, seconds: float, memory_gb: float) -> None:
        self.owner, self.calls, self._seconds = os.getpid(), 0, seconds
        ours, theirs = socket.socketpair()
        self._clip, self._frames = os.memfd_create("clip"), os.memfd_create("frames")
        passed, parent = (theirs.fileno(), self._clip, self._frames), Parent.here()
        # As for the processes that multiprocessing spawns: modules are found where they are found here.
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
        """What the child answers, and its frames; EOFError if it dies, TimeoutError if it does not answer."""
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
        """End it whatever it is doing; `process.returncode` tells how it had ended if it had."""
        if self.owner == os.getpid():
            try:
                self.process.wait(0.5)  # its socket closes a moment before it is gone
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._let_go()

    def close(self) -> None:
        """Let it end by itself: it does so when nobody holds the other end of its socket."""
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
