"""What attacks are written with: a command's end, what must hold of it, and the ways of spoiling a file.

def test_…(sora, runs):
    run = runs.copy("dit")                       # a small run of this test's own
    (run / "run.json").write_text("[]")
    assert_refused(sora("sample", f"checkpoint={run}", "prompt=x"), "run.json")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, MEMORY_MB = 30.0, 2048.0  # that an attack may take until a command has ended with its line
PATIENCE = 3 * SECONDS  # until it is killed: the law is of the time that it works itself, whatever else the machine does
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended. ended_for: "time" or "memory" where it was killed for taking too much. left: processes it left behind.

    seen: (what, whom) of every connection, look-up of a host and program that it started.
    """

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    cpu: float
    peak_mb: float
    ended_for: str
    left: int
    seen: tuple[tuple[str, str], ...]

    @property
    def told(self) -> str:
        """For the message of a test that fails."""
        took = f"{self.code} {self.ended_for} in {self.seconds:.1f} s ({self.cpu:.1f} s of work)"
        return f"sora {' '.join(self.words)}\n-> {took}\n{self.out[-800:]}\n{self.err[-2000:]}"


class Server:
    """Commands in forks of one process, see `tests.attacks.server`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.server"], cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.baseline_mb = self._answer()["baseline_mb"]

    def __call__(self, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, seconds: float = PATIENCE) -> Ended:
        """`sora WORDS`, from `cwd` (None: an empty folder), with more of an environment."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        (place / "here").mkdir()
        order = {"words": words, "cwd": str(cwd or place / "here"), "env": dict(env or {}), "seconds": seconds, "memory_mb": 2 * MEMORY_MB}
        order |= {name: str(place / name) for name in ("out", "err", "seen")}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        out, err = ((place / name).read_text(errors="replace") if (place / name).exists() else "" for name in ("out", "err"))
        seen = (place / "seen").read_text().splitlines() if (place / "seen").exists() else []
        return Ended(tuple(words), out=out, err=err, seen=tuple(tuple(json.loads(line)) for line in seen), **answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that runs commands has ended"
        return json.loads(line)


def assert_bounded(ended: Ended) -> None:
    """It ended by itself, within time and memory, without a traceback, alone and without a connection."""
    assert not ended.ended_for, ended.told
    assert ended.cpu < SECONDS, f"{ended.cpu:.1f} s of work\n{ended.told}"
    assert ended.peak_mb < MEMORY_MB, f"{ended.peak_mb:.0f} MB\n{ended.told}"
    assert "Traceback" not in ended.err, ended.told
    assert not ended.left, f"left {ended.left} processes\n{ended.told}"
    assert not [what for what, _ in ended.seen if what.startswith("socket.")], f"{ended.seen}\n{ended.told}"


def assert_refused(ended: Ended, *names: str) -> None:
    """The same, and it was refused as a user's mistake: one line on stderr that names what is named here."""
    assert_bounded(ended)
    assert ended.code == 2, ended.told
    said = ended.err.strip()
    told = [line for line in said.splitlines() if line.startswith("sora ")]
    assert told, ended.told
    if "resuming would change" not in said:  # which lists what would, a line for each key
        assert said.splitlines()[-1] == told[-1], f"more than one line\n{ended.told}"
    assert len(said) < 4000, f"a line of {len(said)} letters\n{ended.told}"
    for name in names:
        assert name in said, f"{name!r} is not named\n{ended.told}"


def in_turn(first: Sequence[Any], second: Sequence[Any], each: int = 1) -> list[tuple[Any, Any]]:
    """Pairs in which every one of `first` stands with `each` of `second`, these in turn: all doors and all kinds, in less time."""
    return [(one, second[(place * each + step) % len(second)]) for place, one in enumerate(first) for step in range(min(each, len(second)))]


# ---- ways of spoiling a file, each of a few lines

Spoil = Callable[[Path], object]


def fifo(path: Path) -> None:
    """Nobody ever writes into it: whoever opens it waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def zeros(path: Path) -> None:
    """A file without an end."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def elsewhere(path: Path) -> None:
    """The same words, in a file outside of the folder."""
    outside = Path(tempfile.mkdtemp(dir=path.parents[1])) / f"outside{path.suffix}"
    path.rename(outside)
    path.symlink_to(outside)


def huge(path: Path) -> None:
    """Four gigabytes that take no room on the disk."""
    with open(path, "ab") as file:
        file.truncate(4 << 30)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def content(data: bytes | str) -> Spoil:
    """Other bytes."""
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


def changed(key: str, value: Any) -> Spoil:
    """A JSON file with another value at a dotted key; numbers are places in a list."""

    def spoil(path: Path) -> None:
        whole = json.loads(path.read_text())
        place, (*above, last) = whole, [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in above:
            place = place[part]
        place[last] = value
        path.write_text(json.dumps(whole))

    return spoil


def without(key: str) -> Spoil:
    """A JSON file that lacks a dotted key."""

    def spoil(path: Path) -> None:
        whole = json.loads(path.read_text())
        place, (*above, last) = whole, [int(part) if part.isdigit() else part for part in key.split(".")]
        for part in above:
            place = place[part]
        del place[last]
        path.write_text(json.dumps(whole))

    return spoil


DEEP = "[" * 900 + "]" * 900
BROKEN: Mapping[str, Spoil] = {
    "fifo": fifo,
    "zeros": zeros,
    "elsewhere": elsewhere,
    "huge": huge,
    "folder": folder,
    "empty": content(b""),
    "binary": content(bytes(range(256)) * 8),
    "deep": content(DEEP),
    "a list": content("[]"),
    "a number": content("1"),
    "nothing": content("null"),
}
WRONG: Sequence[Any] = (None, True, -1, 1e300, 10**18, "x", [], {}, [[]], {"a": {}})  # values of many kinds
