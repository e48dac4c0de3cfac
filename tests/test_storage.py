"""JSON that others wrote is read or refused by its file's name; what killed processes left is cleared, and nothing else."""

import os
import time

import pytest

from sora.storage import STAGING, read_json, sweep
from tests.training.groups import forked


def test_only_what_processes_left_that_are_gone_is_swept(tmp_path):
    dead = 1 << 30  # above any process's number
    names = [f"{STAGING}{owner}-a.mp4" for owner in (dead, 10**40, os.getpid(), os.getppid(), "word")] + ["a.mp4", f".{dead}-a.mp4"]
    for folder in (tmp_path / "one/deep", tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).touch()
            os.utime(folder / name, (time.time() - 7200,) * 2)
    (tmp_path / f"{STAGING}{dead}-young.mp4").touch()  # of another machine, maybe
    assert forked(2, lambda rank: sweep(tmp_path) > 4) == [0, 0] and sweep(tmp_path) == 0
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert left == sorted([*names[2:], f"{STAGING}{dead}-young.mp4"])
    assert sorted(path.name for path in (tmp_path / "one/deep").iterdir()) == sorted(names[2:])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"{} {}"],
    ids=["empty", "cut", "not JSON", "not UTF-8", "deep lists", "deep objects", "very many digits", "two values"],
)
def test_what_is_no_json_is_refused_by_the_name_of_its_file(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="state.json is damaged"):
        read_json(path)
