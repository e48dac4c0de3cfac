"""The child process of `GuardedReader`, which reads the clips that it is sent and does nothing else.

Calls and answers are JSON; a clip's bytes and the frames lie in two files in memory. The process ends when the parent is gone, or by its
own timer: a signal without a handler kills it even inside a decoder.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import traceback
from dataclasses import asdict, fields, is_dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sora.gate.confine import confine
from sora.system.processes import Parent, ignore_asking
from sora.video.reader import Source, VideoInfo, VideoReader

Call = dict[str, Any]
_KEPT = 64 << 20  # bytes of the file of frames that stay allocated between reads


def described(value: Any) -> Any:
    """A JSON-able description of a dataclass (its type and fields), whose fields are plain values or such dataclasses."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    kind, values = type(value), {one.name: described(getattr(value, one.name)) for one in fields(value)}
    return {"type": f"{kind.__module__}:{kind.__qualname__}", "fields": values}


def rebuilt(description: Any) -> Any:
    """The value that `described` describes. The description comes from the process that started this one, so it is trusted."""
    if not isinstance(description, dict):
        return description
    module, _, name = description["type"].partition(":")
    kind = getattr(importlib.import_module(module), name)
    return kind(**{key: rebuilt(value) for key, value in description["fields"].items()})


def serve(said: int, clip: int, frames: int, parent: int, lasting: bool) -> None:
    """Answer calls until nobody holds the other end of the socket, or the `Parent` is gone."""
    ignore_asking()
    Parent(parent, lasting).hold_to()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    connection = Connection(said)
    order = json.loads(connection.recv_bytes())
    try:
        reader = rebuilt(order["reader"])
        _ = reader.identity()  # imports the backend before memory is limited and its output is silenced
        nowhere = os.open(os.devnull, os.O_WRONLY)
        _limit(order["memory"])
        confine()
    except ValueError as error:
        _tell(connection, {"failed": str(error)})
        return
    except Exception:  # a bug: this process's output is not shown, so the parent raises it
        _tell(connection, {"failed": traceback.format_exc()})
        return
    _tell(connection, {"ready": True})
    os.dup2(nowhere, 2)
    while True:
        try:
            call = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        signal.setitimer(signal.ITIMER_REAL, order["seconds"])
        answer = _answered(reader, call, clip, frames)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _tell(connection, answer)


def _answered(reader: VideoReader, call: Call, clip: int, frames: int) -> dict[str, Any]:
    try:
        if call["do"] == "identity":
            return {"identity": reader.identity()}
        source: Source = _content(clip, call["size_of_clip"]) if call["path"] is None else call["path"]
        if call["do"] == "probe":
            return {"info": _plain(reader.probe(source, name=call["name"], timeline=call["timeline"]))}
        size = tuple(call["size"]) if call["size"] else None
        asked = {name: call[name] for name in ("start", "first", "frames", "fps", "name")}
        got = reader.read(source, size=size, **asked)
        _write(frames, got.frames)
        return {"shape": got.frames.shape, "fps": got.fps, "report": asdict(got.report)}
    except ValueError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"{call['name']} needs more memory than a clip may take (reader.memory_gb)"}
    except Exception:  # a clip's fault would be a ValueError: the parent raises this and ends the run
        return {"failed": traceback.format_exc()}


def _content(clip: int, size: int) -> bytes:
    content = os.pread(clip, size, 0)
    while len(content) < size:  # one call reads 2 GiB at most
        content += os.pread(clip, size - len(content), len(content))
    return content


def _write(file: int, frames: np.ndarray) -> None:
    content, written = np.ascontiguousarray(frames).data.cast("B"), 0
    if os.fstat(file).st_size > _KEPT:
        os.ftruncate(file, _KEPT)
    while written < len(content):
        written += os.pwrite(file, content[written:], written)


def _plain(info: VideoInfo) -> dict[str, Any]:
    values = {one.name: getattr(info, one.name) for one in fields(info)}
    if info.timeline is not None:
        values["timeline"] = [column.tolist() for column in info.timeline]
    return values


def _limit(memory: int) -> None:
    """Let this process map `memory` bytes more than it has now, and write no core file when a clip crashes it."""
    with open("/proc/self/statm", "rb") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = mapped + memory if hard == resource.RLIM_INFINITY else min(mapped + memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _tell(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())
