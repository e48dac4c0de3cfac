import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sora.video.decoding.guarded import GuardedReader, _Child
from sora.video.files import PYAV
from sora.video.reader import VideoReader
from tests.data.making import counting, muxed, numbers
from tests.video.decoding.misbehaving import Absent, Misbehaving

pytestmark = pytest.mark.slow  # each starts processes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def guarded(tmp_path):
    reader = GuardedReader(reader=Misbehaving(marks=str(tmp_path)), seconds=0.5, memory_gb=0.5, restart_after=100)
    yield reader
    reader.close()


def child_of(reader: GuardedReader) -> int:
    return int.from_bytes(reader.read(b"fine").frames.tobytes(), "big")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_guarded_reader_reads_what_its_reader_reads():
    content = muxed(counting(30))
    guarded = GuardedReader(reader=PYAV, seconds=30, memory_gb=2, restart_after=100)
    assert isinstance(guarded, VideoReader)
    assert guarded.identity() == PYAV.identity()
    for settings in ({}, {"start": 0.4, "frames": 5}, {"fps": 12.5, "frames": 40}, {"size": (16, 16), "frames": 3}):
        ours, theirs = guarded.read(content, **settings), PYAV.read(content, **settings)
        assert np.array_equal(ours.frames, theirs.frames)
        assert (ours.fps, ours.report) == (theirs.fps, theirs.report)
    ours, theirs = guarded.probe(content, timeline=True), PYAV.probe(content, timeline=True)
    for mine, other in zip(ours.timeline, theirs.timeline, strict=True):
        assert np.array_equal(mine, other)
    assert guarded.probe(content) == PYAV.probe(content)
    guarded.close()


def test_a_relative_path_is_meant_from_where_one_stands_when_it_is_read(tmp_path, monkeypatch):
    """The child stays where it was started."""
    guarded = GuardedReader(reader=PYAV, seconds=30, memory_gb=2, restart_after=100)
    try:
        for count, folder in ((3, tmp_path / "a"), (5, tmp_path / "b ü")):
            folder.mkdir()
            (folder / "x.mp4").write_bytes(muxed(counting(count)))
            monkeypatch.chdir(folder)
            assert guarded.probe(Path("x.mp4")).frames == len(guarded.read(Path("x.mp4")).frames) == count
    finally:
        guarded.close()


def test_a_path_is_read_as_its_bytes_are(tmp_path):
    (tmp_path / "a.mp4").write_bytes(muxed(counting(5)))
    guarded = GuardedReader(reader=PYAV, seconds=30, memory_gb=2, restart_after=100)
    assert numbers(guarded.read(tmp_path / "a.mp4").frames) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"nothing\.mp4 cannot be read"):
        guarded.read(tmp_path / "nothing.mp4")
    guarded.close()


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("segv", "clip 7 killed the process that decoded it .SIGSEGV.*twice"),
        ("hang", r"clip 7 took over 0.5 seconds to decode \(reader.seconds\), twice"),
        ("exit", "clip 7 ended the process that decoded it .exit code 137.*twice"),
        ("eat", "clip 7 needs more memory than a clip may take .reader.memory_gb"),
        ("refuse", "clip 7 is not for us"),
    ],
)
def test_whatever_a_clip_does_is_a_value_error_and_the_next_one_is_read(guarded, does, why):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=why):
        guarded.read(does.encode(), name="clip 7")
    assert time.perf_counter() - begin < 20
    assert alive(child_of(guarded))


def test_a_process_that_does_not_even_run_its_clock_is_killed(guarded, monkeypatch):
    monkeypatch.setattr("sora.video.decoding.guarded._SLACK", 0.2)
    with pytest.raises(ValueError, match="took over 0.5 seconds"):
        guarded.read(b"stop", name="clip 7")
    assert alive(child_of(guarded))


def test_a_clip_is_tried_once_more_when_its_process_dies(guarded, monkeypatch, tmp_path):
    kill = _Child.kill
    monkeypatch.setattr(_Child, "kill", lambda child: ((tmp_path / "once").touch(), kill(child)))  # the child itself may not write
    assert guarded.read(b"once").report.decoded == 1


def test_an_interrupted_call_leaves_no_answer_for_the_next(guarded):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        guarded.read(b"fine")
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            guarded.read(b"hang")
        assert alive(child_of(guarded))
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_mistake_of_ours_is_no_bad_clip(guarded):
    with pytest.raises(RuntimeError, match="(?s)not because of a clip.*a mistake of ours"):
        guarded.read(b"bug")
    absent = GuardedReader(reader=Absent(), seconds=1, memory_gb=1, restart_after=1)
    with pytest.raises(RuntimeError, match="(?s)did not start.*no backend of that name"):
        absent.read(b"fine")


def test_the_child_is_replaced_after_its_number_of_reads(tmp_path):
    guarded = GuardedReader(reader=Misbehaving(), seconds=5, memory_gb=1, restart_after=3)
    children = [child_of(guarded) for _ in range(7)]
    assert [children.count(child) for child in dict.fromkeys(children)] == [3, 3, 1]
    assert not alive(children[0])
    guarded.close()
    assert not alive(children[-1])


def test_every_process_has_a_child_of_its_own_and_leaves_those_of_others_alone(guarded):
    ours = child_of(guarded)
    listen, tell = os.pipe()
    pid = os.fork()
    if not pid:  # the forked process, as a loader's worker
        os.write(tell, child_of(guarded).to_bytes(8, "big"))
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = int.from_bytes(os.read(listen, 8), "big")
    assert theirs != ours
    assert child_of(guarded) == ours
    copy = pickle.loads(pickle.dumps(guarded))
    assert child_of(copy) != ours
    copy.close()


@pytest.mark.parametrize("does", ["fine", "hang"])
def test_no_child_outlives_its_process(does, tmp_path):
    code = f"""
import os, sys, threading, time
from sora.video.decoding.guarded import GuardedReader
from tests.video.decoding.misbehaving import Misbehaving
reader = GuardedReader(reader=Misbehaving(), seconds=1.0, memory_gb=1, restart_after=10)
print(int.from_bytes(reader.read(b"fine").frames.tobytes(), "big"), flush=True)
threading.Thread(target=lambda: (time.sleep(0.3), os.kill(os.getpid(), {int(signal.SIGKILL)}))).start()
reader.read({does.encode()!r})
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    child, deadline = int(done.stdout), time.perf_counter() + 10
    while alive(child) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_the_child_sees_no_secret_and_shares_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", "canary-5316")
    with open(tmp_path / "held", "w"):
        guarded = GuardedReader(reader=Misbehaving(), seconds=5, memory_gb=1, restart_after=10)
        child = child_of(guarded)
        held = [os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir() if path.is_symlink()]
        assert not [name for name in held if "held" in name]
    assert b"canary-5316" not in Path(f"/proc/{child}/environ").read_bytes()
    guarded.close()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter of system calls is written for these")
@pytest.mark.parametrize("does", ["connect", "start", "write"])
def test_a_decoder_opens_no_connection_starts_no_program_and_writes_no_file(guarded, does):
    with pytest.raises(RuntimeError, match="(?s)not because of a clip.*PermissionError"):
        guarded.read(does.encode())
    assert alive(child_of(guarded))


def test_garbage_is_closed_once_in_whatever_order_it_is_collected(guarded):
    """The number of a file that was closed twice is another file's by then."""
    child_of(guarded)
    line = guarded._child._said
    number = line.fileno()
    line.__del__()
    other = os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
    assert other != number
    guarded.close()
    assert line.closed and os.fstat(other)
    os.close(other)


def test_numbers_that_make_no_guard_are_refused():
    for wrong in ({"seconds": 0}, {"memory_gb": -1.0}, {"restart_after": 0}):
        with pytest.raises(ValueError, match="give numbers above 0"):
            GuardedReader(reader=PYAV, **({"seconds": 1.0, "memory_gb": 1.0, "restart_after": 1} | wrong))
