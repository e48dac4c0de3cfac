"""A reader that does to its process what a hostile clip does to a decoder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

import numpy as np

from sora.video.files import PYAV
from sora.video.reader import Reading, ReadReport


@dataclass(frozen=True, kw_only=True)
class Misbehaving:
    """Reads `b"..."` clips that say what is to happen; others give one grey frame that tells the process."""

    marks: str = ""  # a folder in which a mark says that "once" has been

    def identity(self) -> str:
        return "misbehaving 1"

    def probe(self, source, *, name=None, timeline=False):
        raise NotImplementedError("no header here")

    def read(self, source, *, start=0.0, first=None, frames=None, fps=None, size=None, name=None):
        self.do(source.decode(), name)
        pid = np.frombuffer(os.getpid().to_bytes(12, "big"), np.uint8).reshape(1, 2, 2, 3)
        return Reading(pid.copy(), 8.0, ReadReport(decoded=1))

    def do(self, said, name):
        if said == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if said == "hang":
            time.sleep(600)
        if said == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if said == "exit":
            os._exit(137)
        if said == "eat":
            kept = [np.empty(1 << 27, np.uint8) for _ in range(64)]
            raise AssertionError(f"8 GB in {len(kept)} pieces fitted")
        if said == "connect":
            socket.socket()
        if said == "start":
            subprocess.run(["true"], check=True)
        if said == "bug":
            raise KeyError("a mistake of ours")
        if said == "refuse":
            raise ValueError(f"{name} is not for us")
        if said == "write":
            open(f"{self.marks}/written", "w").close()
        if said == "once" and not os.path.exists(f"{self.marks}/once"):
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Hostile(Misbehaving):
    """PyAV, but for the clips that are named: what happens, and its key after a colon."""

    keys: list[str]

    def identity(self) -> str:
        return PYAV.identity()

    def read(self, source, *, start=0.0, first=None, frames=None, fps=None, size=None, name=None):
        for said in self.keys:
            what, _, key = said.partition(":")
            if f"clip {key} " in name:
                self.do(what, name)
        return PYAV.read(source, start=start, first=first, frames=frames, fps=fps, size=size, name=name)


@dataclass(frozen=True, kw_only=True)
class Absent(Misbehaving):
    """A backend that is not there."""

    def identity(self) -> str:
        raise ImportError("no backend of that name")
