"""Ranks that notice each other's death at once, whatever they are doing, and end then.

A rank that waits in a gloo collective learns within a second that another is gone; one that computes, or waits in NCCL, may take minutes.
So ranks hold connections along a tree. The kernel closes those of a process that dies, for whatever reason, and its neighbours pass the
news on. Nothing is sent while all live, and there is no timeout, so a slow rank is never taken for a dead one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, Trainer

from sora.system import distributed as ranks
from sora.training.faults.watchdog import STALLED, kill_children
from sora.training.module import TrainingModule

BRANCHES = 32  # connections that a rank accepts, besides the one it opens
TOKEN = 16  # bytes of a secret that all ranks of this run know
ADDRESS = 64
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a lost node closes nothing: half a minute
NEWS = re.compile(rb"(lost|failed) (\d+)\n")
REACH = 10.0  # seconds to connect


@dataclass
class _Line:
    """A connection to another rank; the rank is -1 until it has identified itself."""

    connection: socket.socket
    rank: int
    heard: bytes = b""


class Peers:
    """A context in which this process ends after another rank has died.

    grace: seconds for this rank to end by itself, as all do when they fail alike; after that it names the dead rank and exits with the code
    that makes a job start again. reaction: seconds that a rank with an error from a library waits for news of a dead rank, which may have
    caused it. Call `connect` once ranks can communicate; without it, or with one rank, the context does nothing.
    """

    def __init__(self, *, grace: float = 5.0, reaction: float = 2.0) -> None:
        self._grace, self._reaction, self._over = grace, reaction, threading.Event()
        self._gone = ""  # the message on another rank's death
        self._died = threading.Event()
        self._lines: list[_Line] = []
        self._listening: socket.socket | None = None
        self._token = b""
        self._rank = 0

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Tell the others how this rank ends; a rank that ends without a word has died."""
        if kind is not None and issubclass(kind, RuntimeError) and (self._gone or (self._lines and self._died.wait(self._reaction))):
            sys.stderr.write(f"\n{error}\n")  # before waiting for a rank that may be gone
            self._end()
        self._over.set()
        self._tell("bye" if kind is None else f"failed {self._rank}")
        self._close()

    def _tell(self, word: str) -> None:
        for line in list(self._lines):
            with contextlib.suppress(OSError):
                line.connection.sendall(f"{word}\n".encode())

    def connect(self, device: torch.device) -> None:
        """Connect to other ranks. Every rank must call this."""
        if not ranks.several() or self._lines:
            return
        world, self._rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        here, self._token = _reachable(), secrets.token_bytes(TOKEN)
        self._listening = socket.create_server((here, 0), backlog=BRANCHES)
        port = self._listening.getsockname()[1]
        told = self._token + f"{here} {port}".encode().ljust(ADDRESS - TOKEN, b"\0")
        everyone = [bytes(each.tolist()) for each in ranks.gathered(torch.tensor(list(told), dtype=torch.uint8, device=device))]
        children = [rank for rank in range(BRANCHES * self._rank + 1, BRANCHES * (self._rank + 1) + 1) if rank < world]
        if not children:
            self._listening.close()
            self._listening = None
        if self._rank:
            self._join((self._rank - 1) // BRANCHES, everyone)
        os.register_at_fork(after_in_child=_closing(weakref.ref(self)))
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def _join(self, parent: int, everyone: list[bytes]) -> None:
        host, port = everyone[parent][TOKEN:].rstrip(b"\0").decode().split()
        try:
            connection = socket.create_connection((host, int(port)), timeout=REACH)
        except OSError as error:
            print(f"rank {self._rank} cannot reach rank {parent} at {host}:{port} ({error}); a dead rank is noticed when it is waited for")
            return
        connection.settimeout(None)
        _keep_alive(connection)
        connection.sendall(everyone[parent][:TOKEN] + self._rank.to_bytes(4))
        self._lines.append(_Line(connection, parent))

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):  # closed while this rank ends
            if self._listening is not None:
                selector.register(self._listening, selectors.EVENT_READ, None)
            for line in self._lines:
                selector.register(line.connection, selectors.EVENT_READ, line)
            while not self._over.is_set():
                for key, _ in selector.select(timeout=1.0):
                    if key.data is None:
                        self._accept(selector)
                    elif not self._hear(key.data):
                        selector.unregister(key.data.connection)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        assert self._listening is not None
        connection, _ = self._listening.accept()
        _keep_alive(connection)
        line = _Line(connection, -1)
        self._lines.append(line)
        selector.register(connection, selectors.EVENT_READ, line)

    def _hear(self, line: _Line) -> bool:
        """Read from a connection; return whether it stays open."""
        try:
            data = line.connection.recv(4096)
        except OSError:
            data = b""
        line.heard += data
        if line.rank < 0 and len(line.heard) >= TOKEN + 4:
            if not secrets.compare_digest(line.heard[:TOKEN], self._token):
                data = b""
            else:
                line.rank, line.heard = int.from_bytes(line.heard[TOKEN : TOKEN + 4]), line.heard[TOKEN + 4 :]
        said = NEWS.findall(line.heard) if line.rank >= 0 else []
        for word, rank in said[:1]:
            self._lost(int(rank), died=word == b"lost")
        if data:
            return True
        if line.rank >= 0 and not said and b"bye\n" not in line.heard:
            self._lost(line.rank, died=True)
        self._lines.remove(line)
        line.connection.close()
        return False

    def _lost(self, rank: int, *, died: bool) -> None:
        """Pass the news on, and end this process unless it ends by itself."""
        self._gone = f"rank {rank} has {'died' if died else 'failed'}"
        if died:
            self._died.set()
        self._tell(f"{'lost' if died else 'failed'} {rank}")
        if self._over.wait(self._grace):
            return
        self._end()

    def _end(self) -> None:
        sys.stderr.write(f"\n{self._gone}, so rank {self._rank} ends too; the run goes on from its newest checkpoint\n")
        sys.stderr.flush()
        kill_children()
        os._exit(STALLED)

    def _close(self) -> None:
        for line in self._lines:
            line.connection.close()
        if self._listening is not None:
            self._listening.close()


class PeerConnection(Callback):
    """Connects the ranks when a fit begins, because they can communicate from then on."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def on_fit_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._peers.connect(pl_module.device)


def _closing(peers: weakref.ref[Peers]) -> Callable[[], None]:
    """A function that closes the connections in forked children, which would otherwise keep them open."""

    def close() -> None:
        if (found := peers()) is not None:
            found._close()

    return close


def _reachable() -> str:
    """The address of this machine as the first rank's machine sees it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))  # sends nothing, but chooses a route
            return probe.getsockname()[0]
    except OSError:  # IPv6 only: ranks on other nodes report that they cannot reach this one
        return "127.0.0.1"


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # exists on Linux
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
