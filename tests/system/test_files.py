"""JSON that others wrote is read or refused by its file's name; what killed processes left is cleared, and nothing else."""

import errno
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from sora import cli
from sora.system import files as storage
from sora.system.files import STAGING, read_json, sweep, whole_file, whole_folder
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


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_weights_are_as_readable_as_every_other_file(tmp_path, monkeypatch, umask):
    """safetensors makes its files for their user alone, so that colleagues could read a run's configuration and not its VAE."""
    monkeypatch.setattr(storage, "_UMASK", umask)
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "a.safetensors") as staging:
            save_file({"x": torch.zeros(2)}, staging)
        with whole_folder(tmp_path / "vae") as folder:
            (folder / "deep").mkdir()
            save_file({"x": torch.zeros(2)}, folder / "deep/b.safetensors")
            (folder / "c.sh").touch(mode=0o700)
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    plain = (tmp_path / "plain").stat().st_mode
    assert [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "vae/deep/b.safetensors")] == [plain] * 2
    assert (tmp_path / "vae/c.sh").stat().st_mode & 0o777 == 0o700 & ~umask


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


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "link to a device"])
def test_a_file_takes_the_place_of_a_file_alone(tmp_path, kind):
    """As root, `output=/dev/null` had put a table in the place of the device, for all programs of the machine."""
    path = tmp_path / "a.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    else:
        path.symlink_to("/dev/null")
    before = path.lstat().st_mode
    for write in (lambda: storage.write_json(path, {}), lambda: storage.refuse_no_file(path, "output=a.json")):
        with pytest.raises(ValueError, match=r"a\.json is (a folder|a pipe, a socket or a device), and no file can be put in its place"):
            write()
    if kind != "folder":
        with pytest.raises(ValueError, match=r"^output=.*a\.json is a pipe, a socket or a device"):
            storage.refuse_blocked({"output": str(path)})
    assert path.lstat().st_mode == before and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_is_told_with_its_place_whoever_writes(tmp_path):
    """safetensors makes an error of its own of it, and a write does not say where."""
    lines = f"""
import resource, torch
from pathlib import Path
from sora.system import files as storage
from sora.gate.tensors import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
place = Path({str(tmp_path)!r})
def tensors():
    with storage.whole_file(place / "a.safetensors") as staging:
        write_tensors({{"a": torch.zeros(10_000)}}, staging)
def folder():
    with storage.whole_folder(place / "b") as staging:
        write_tensors({{"a": torch.zeros(10_000)}}, staging / "c.safetensors")
for write in (tensors, folder, lambda: storage.write_text(place / "d.txt", "x" * 10_000)):
    try:
        write()
    except OSError as error:
        print(error.errno, error.filename)
"""
    found = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout.split()
    assert found == [
        str(errno.EFBIG),
        str(tmp_path / "a.safetensors"),
        str(errno.EFBIG),
        str(tmp_path / "b"),
        str(errno.EFBIG),
        str(tmp_path / "d.txt"),
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mark", "what"), [("dataset.json", "a dataset"), ("run.json", "a run")])
@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_a_run_or_a_dataset_is_made_in_no_other(tmp_path, capsys, verb, mark, what):
    """Also deep in it, and by a link that leads there; beside it, or where a name only begins alike, is another place."""
    whole = tmp_path / "2026_11_29 ü"
    (whole / "deep").mkdir(parents=True)
    (whole / mark).write_text("{}")
    (tmp_path / "link").symlink_to(whole / "deep")
    words = ["source=world", "count=1"] if verb == "prepare" else ["task=vae", "vae=toy", f"data.folders=[{tmp_path / 'none'}]"]
    for inside in (whole / "new", whole / "deep/new", tmp_path / "link/new"):
        assert cli.run(verb, [*words, f"output={inside}"]) == 2
        told = capsys.readouterr().err
        assert "lies within" in told and f"which is {what}" in told and len(told.splitlines()) == 1
        assert not inside.exists()
    for beside in (tmp_path / "new", tmp_path / f"{whole.name}2"):
        storage.refuse_within(beside)
