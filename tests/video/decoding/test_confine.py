"""What decodes others' files opens no connection, starts no program and writes to no file, whichever command it works for."""

import contextlib
import os
import socket
import subprocess
import sys
from functools import partial

import pytest

from sora import cli
from sora.data.index.index import Index
from sora.data.shards import stores
from sora.gate import confine
from sora.system.guarded_pool import in_order
from sora.video.decoding import pyav
from sora.video.files import LIMITS, encode
from tests.data.making import dataset, telling

FORBIDDEN = {
    "write": lambda place: open(place / "new", "w").close(),
    "change": lambda place: open(place / "old", "r+").close(),
    "append": lambda place: open(place / "old", "a").close(),
    "without a name": lambda place: os.open(place, os.O_TMPFILE | os.O_RDWR),
    "remove": lambda place: os.unlink(place / "old"),
    "rename": lambda place: os.rename(place / "old", place / "new"),
    "empty": lambda place: os.truncate(place / "old", 0),
    "link": lambda place: os.link(place / "old", place / "new"),
    "symbolic link": lambda place: os.symlink("old", place / "new"),
    "folder": lambda place: os.mkdir(place / "new"),
    "remove folder": lambda place: os.rmdir(place / "empty"),
    "pipe": lambda place: os.mkfifo(place / "new"),
    "rights": lambda place: os.chmod(place / "old", 0o777),
    "rights of what is open": lambda place: os.chmod(os.open(place / "old", os.O_RDONLY), 0o777),
    "owner": lambda place: os.chown(place / "old", os.getuid(), os.getgid()),
    "times": lambda place: os.utime(place / "old"),
    "attribute": lambda place: os.setxattr(place / "old", "user.x", b"1"),
    "socket": lambda place: socket.socket().close(),
    "local socket": lambda place: socket.socket(socket.AF_UNIX).close(),
    "datagrams": lambda place: socket.socket(type=socket.SOCK_DGRAM).close(),
    "program": lambda place: subprocess.run([sys.executable, "-c", f"open({str(place / 'new')!r}, 'w')"], check=True),
    "shell": lambda place: 1 / (os.waitstatus_to_exitcode(os.system(f"touch '{place}/new'")) == 0),
    "memory of another": lambda place: open(f"/proc/{os.getppid()}/mem", "r+b").close(),
}


def tried(place, name):
    try:
        FORBIDDEN[name](place)
    except (OSError, ZeroDivisionError) as error:
        return type(error).__name__
    return "done"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "empty").mkdir()
    return tmp_path


def state(place):
    return {path.name: (path.lstat().st_mode, path.lstat().st_mtime_ns, path.is_file() and path.read_text()) for path in place.iterdir()}


@pytest.mark.slow
def test_this_machine_has_the_means_or_says_in_a_line_that_it_has_not(monkeypatch, capsys, tmp_path):
    assert not confine.lacking()  # the laws below would hold of nothing
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    assert "Linux on riscv64 has no filter of system calls" in confine.lacking()
    dataset(tmp_path / "set", [(2, 16, 16)])
    assert cli.main(["data", "show", str(tmp_path / "set"), "workers=1"]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert "held by its clock and its memory limit alone" in note


def test_a_worker_can_do_nothing_but_read_and_answer(place):
    before = state(place)
    asked = partial(in_order, partial(tried, place), [*FORBIDDEN], seconds=60, memory_gb=64)
    assert {done.item: done.result for done in asked(workers=1)} == dict.fromkeys(FORBIDDEN, "PermissionError") | {
        "shell": "ZeroDivisionError"
    }
    assert state(place) == before
    free = {done.item: done.result for done in in_order(partial(tried, place), ["write"], workers=1, seconds=60, memory_gb=64, apart=False)}
    assert free == {"write": "done"}  # the law is of the confinement, not of the folder


def test_what_is_started_by_a_confined_process_is_confined(place):
    def forked(name):
        child = os.fork()
        if not child:
            os._exit(0 if tried(place, name) == "PermissionError" else 3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    child = os.fork()
    if not child:
        held = confine.confine() and confine.confined()
        os._exit(0 if held and not any(forked(name) for name in ("write", "socket", "program", "rename")) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and not confine.confined()


@pytest.fixture
def canary(monkeypatch, tmp_path):
    """A file that every decoder which may write writes: `stream` opens all videos and pictures."""
    wrote, opened = tmp_path / "canary", pyav.stream.__init__

    def opening(self, *asked, **more):
        with contextlib.suppress(PermissionError):
            wrote.write_text(f"{os.getpid()} decodes and may write")
        opened(self, *asked, **more)

    monkeypatch.setattr(pyav.stream, "__init__", opening)
    return wrote


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("far", [False, True])
def test_no_command_decodes_where_it_may_write(canary, tmp_path, workers, far):
    dataset(tmp_path / "set", [(5, 16, 16)] * 3)
    shards, output = tmp_path / "set", tmp_path / "near"
    (shards / "dataset.json").unlink()
    place = str(shards)
    if far:  # as of a network: such a worker is not confined itself
        import fsspec

        files = fsspec.filesystem("memory")
        for path in shards.glob("*.tar"):
            files.pipe(f"/{tmp_path.name}/{path.name}", path.read_bytes())
        place = f"memory://{tmp_path.name}"
    assert cli.main(["data", "index", place, f"output={output}", f"workers={workers}"]) == 0
    assert len(Index.open(output)) == 3 and stores.open_store(output).remote == far
    assert cli.main(["data", "check", str(output), f"workers={workers}"]) == 0
    assert cli.main(["data", "show", str(output), f"workers={workers}", f"output={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 3
    assert not canary.exists(), canary.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_prepare_decodes_where_it_may_not_write(canary, tmp_path, workers):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / f"videos/{number}.mp4").write_bytes(encode(telling(5, 16, 16, number), 8.0, lossless=True))
    words = [f"input={tmp_path / 'videos'}", f"output={tmp_path / 'set'}", "source.frames=5", "source.min_frames=5", "source.multiple=8"]
    assert cli.main(["prepare", *words, "source.lossless=true", f"workers={workers}"]) == 0
    assert len(Index.open(tmp_path / "set")) == 3 and not canary.exists()
    pyav.stream(tmp_path / "videos/0.mp4", limits=LIMITS).close()
    assert canary.exists()  # the canary sings where nothing holds it
