"""Work that is kept: whole or not there, taken by content and settings, shared by jobs and by no two at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sora.data.index.units import FOLDER, WHOLE, JobPart, Units, identity_of, is_kept
from sora.system.locks import NAME


def units(output, part=WHOLE):
    return Units(output, part=part, mark="whole.json", doing="making")


def kept(opened, name, *pieces, again=False):
    identity = identity_of(name)
    with opened.writing(identity) as unit:
        for number, media in enumerate(pieces):
            unit.add({"number": number}, media)
        unit.again = again
    return identity


def path(opened, identity):
    return opened.folder / identity[:2] / f"{identity}.unit"


def test_what_is_kept_comes_back_and_half_of_it_is_as_good_as_none(tmp_path):
    with units(tmp_path / "out") as opened:
        identity = kept(opened, "a", b"one", b"", b"three" * 1000)
        assert [*opened.read(identity)] == [({"number": 0}, b"one"), ({"number": 1}, b""), ({"number": 2}, b"three" * 1000)]
        assert opened.records(identity) == [{"number": 0}, {"number": 1}, {"number": 2}]
        whole = path(opened, identity).read_bytes()
        for size in (0, 1, 39, 40, len(whole) // 2, len(whole) - 1):
            path(opened, identity).write_bytes(whole[:size])
            assert not is_kept(opened.folder, identity)
        path(opened, identity).write_bytes(b"\0" + whole[1:])
        assert is_kept(opened.folder, identity)  # its bytes are not read until they are joined
        with pytest.raises(ValueError, match="was damaged and is removed; give the same command again"):
            [*opened.read(identity)]
        assert not is_kept(opened.folder, identity)


def test_an_error_keeps_nothing_and_what_may_not_have_been_its_fault_is_made_again(tmp_path):
    with units(tmp_path / "out") as opened:
        with pytest.raises(KeyError), opened.writing(identity_of("a")) as unit:
            unit.add({}, b"half")
            raise KeyError
        assert not is_kept(opened.folder, identity_of("a"))
        assert [*opened.folder.glob("*/*")] == []
        assert not is_kept(opened.folder, kept(opened, "b", b"x", again=True))
        assert opened.records(identity_of("b")) == [{"number": 0}]


def test_other_settings_are_another_unit_and_their_order_is_none():
    assert identity_of("a", fps=1, size=2) == identity_of("a", size=2, fps=1)
    assert len({identity_of("a"), identity_of("b"), identity_of("a", fps=1), identity_of("a", fps=2), identity_of("a", size=1)}) == 5


def test_one_job_at_a_time_and_parts_beside_one_another(tmp_path):
    with units(tmp_path / "out"):
        for other in (WHOLE, JobPart(0, 2)):
            with pytest.raises(ValueError, match=r"another process .* is making .*out"), units(tmp_path / "out", other):
                pass
    with units(tmp_path / "out", JobPart(0, 2)), units(tmp_path / "out", JobPart(1, 2)):
        for other in (JobPart(0, 3), JobPart(2, 3)):
            with pytest.raises(ValueError, match="is making part 0 of 2 of .*: give all jobs one N"), units(tmp_path / "out", other):
                pass
        with pytest.raises(ValueError, match="is making part 1 of 2 of"), units(tmp_path / "out", JobPart(1, 2)):
            pass
        with pytest.raises(ValueError, match="is making a part of"), units(tmp_path / "out"):
            pass
    (tmp_path / "out" / f"{NAME}-0-of-2").touch()  # of a process that died
    with units(tmp_path / "out", JobPart(0, 3)) as opened:
        kept(opened, "b", b"x")
    with units(tmp_path / "out") as opened:
        kept(opened, "a", b"x")


def test_a_job_that_leaves_nothing_to_go_on_with_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), units(tmp_path / "out"):
        raise KeyError
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyError), units(tmp_path / "out") as opened:
        kept(opened, "a", b"x")
        raise KeyError
    assert [one.name for one in (tmp_path / "out").iterdir()] == [FOLDER]


def test_what_is_whole_or_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/a.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "done").mkdir()
    (tmp_path / "done/whole.json").touch()
    for name in ("theirs", "file", "empty", "link", "done"):
        with pytest.raises(ValueError, match=f"{name} exists already; remove it or name another folder"), units(tmp_path / name):
            pass
    assert (tmp_path / "theirs/a.txt").exists()


def test_what_a_job_left_that_was_stopped_at_its_very_end_is_cleared_and_what_it_made_stays(tmp_path):
    with pytest.raises(KeyError), units(tmp_path / "out") as opened:
        kept(opened, "a", b"x")
        (tmp_path / "out/whole.json").touch()
        raise KeyError  # before `remove`
    with pytest.raises(ValueError, match="out is whole already, and what was left of making it is removed"), units(tmp_path / "out"):
        pass
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["whole.json"]
    with pytest.raises(ValueError, match="out exists already"), units(tmp_path / "out"):
        pass


@pytest.mark.slow
def test_death_releases_the_lock_and_what_was_kept_is_there(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from sora.data.index.units import *\n"
        f"with Units(Path({str(tmp_path / 'out')!r}), part=WHOLE, mark='whole.json', doing='making') as opened:\n"
        "    with opened.writing(identity_of('a')) as unit: unit.add({'number': 0}, b'x')\n"
        "    with opened.writing(identity_of('b')) as unit:\n"
        "        print('now', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    with pytest.raises(ValueError, match=f"another process \\({process.pid} on "), units(tmp_path / "out"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "out" / NAME).exists()
    time.sleep(0.01)
    with units(tmp_path / "out") as opened:
        assert is_kept(opened.folder, identity_of("a"))
        assert not is_kept(opened.folder, identity_of("b"))
