"""One process writes a place at a time; a dead one holds nothing, and nothing is left of the lock."""

import errno
import fcntl
import os
import signal
import time

import pytest

from sora.system import locks
from sora.system.files import STAGING, whole_folder
from sora.system.locks import alone_in, alone_making
from tests.faults import in_child

PLACES = pytest.mark.parametrize("take", [lambda place: alone_in(place, "writing"), alone_making], ids=["in a folder", "beside it"])


@PLACES
def test_a_second_process_is_refused_by_who_is_first_and_a_dead_one_holds_nothing(tmp_path, take):
    place = tmp_path / "results ü"

    def other(code: int) -> None:
        try:
            with take(place):
                os._exit(code)  # as a killed one: nothing of it is cleared
        except ValueError as error:
            assert f"({os.getppid()} on " in str(error) and str(place) in str(error)
            os._exit(7)

    with take(place):
        assert in_child(lambda: other(3)) == 7
        with pytest.raises(ValueError, match="another process"), take(place):
            pass
    for _ in range(2):
        assert in_child(lambda: other(3)) == 3
    with take(place) as held:
        assert held
    assert not list(tmp_path.rglob(".lock*"))


@PLACES
def test_a_process_forked_meanwhile_does_not_keep_the_lock(tmp_path, take):
    """Loader processes may live for a moment longer than the one that was killed."""
    place = tmp_path / "run"
    read, write = os.pipe()

    def first() -> None:
        with take(place):
            if worker := os.fork():
                os.write(write, str(worker).encode())
                os._exit(0)
            time.sleep(60)

    assert in_child(first) == 0
    worker = int(os.read(read, 20))
    try:
        with take(place) as held:
            assert held
    finally:
        os.kill(worker, signal.SIGKILL)


@PLACES
def test_a_lock_that_was_cleared_while_it_was_waited_for_is_not_taken_for_the_place(tmp_path, take, monkeypatch):
    """Between opening the file and locking it, its holder ends and the next one begins: the file is another then."""
    place = tmp_path / "run"
    place.mkdir()
    plain, opened = fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        if not opened:
            opened.append(handle)
            for file in tmp_path.rglob(".lock*"):
                file.unlink()
        plain(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with take(place):
        assert list(tmp_path.rglob(".lock*"))
        with pytest.raises(ValueError, match="another process"), take(place):
            pass


def test_where_there_are_no_locks_it_is_said_and_nothing_of_others_is_cleared(tmp_path, monkeypatch, capsys):
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    other = tmp_path / f"{STAGING}1-aaaaaaaa-set"
    other.mkdir()
    with whole_folder(tmp_path / "set") as staging:
        (staging / "a").touch()
    assert other.is_dir() and (tmp_path / "set/a").is_file()
    assert "cannot be locked (No locks available); make sure that no other process is making" in capsys.readouterr().out


def test_of_two_that_make_one_folder_the_second_is_refused_at_the_start_and_dead_ones_are_cleared(tmp_path):
    for name in ("set [1]", "n" * 255, "ü" * 127):
        place = tmp_path / name
        (tmp_path / f"{STAGING}1-aaaaaaaa-{locks.short(name)}").mkdir()
        with whole_folder(place) as staging:
            assert [path.name for path in tmp_path.glob(f"{STAGING}*")] == [staging.name]
            with pytest.raises(ValueError, match="is making"), whole_folder(place):
                pass
        assert place.is_dir()
        with pytest.raises(ValueError, match="exists already"), whole_folder(place):
            pass
        place.rmdir()
    assert not list(tmp_path.iterdir())


def test_anothers_lock_in_a_shared_folder_is_seen(tmp_path, monkeypatch):
    """A colleague's lock file may not be written, but it can be locked."""
    plain = os.open

    def opened(path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, flags, mode)

    (tmp_path / ".lock").write_text("4711 on node7, since noon")
    monkeypatch.setattr(os, "open", opened)
    with alone_in(tmp_path, "writing"):
        with pytest.raises(ValueError, match="another process \\(4711 on node7, since noon\\) is writing"), alone_in(tmp_path, "writing"):
            pass
    (tmp_path / ".lock").unlink(missing_ok=True)
    with pytest.raises(PermissionError), alone_in(tmp_path, "writing"):
        pass


def test_a_place_may_be_shared_against_one_who_wants_it_alone(tmp_path):
    share = {"doing": "encoding into", "name": ".lock-encode", "shared": True}
    with alone_in(tmp_path, **share):
        with (
            alone_in(tmp_path, **share),
            pytest.raises(ValueError, match="another process"),
            alone_in(tmp_path, "encoding", name=".lock-encode"),
        ):
            pass
        with pytest.raises(ValueError, match="another process"), alone_in(tmp_path, "encoding", name=".lock-encode"):  # one is left
            pass
    with (
        alone_in(tmp_path, "encoding", name=".lock-encode"),
        pytest.raises(ValueError, match="another process"),
        alone_in(tmp_path, **share),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_made_for_nothing_is_gone(tmp_path):
    with pytest.raises(ValueError, match="mistake"), alone_in(tmp_path / "a", "writing"):
        raise ValueError("mistake")
    with alone_in(tmp_path / "b", "writing"):
        (tmp_path / "b/file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
