"""Indexing that is stopped, and goes on: nothing is read twice that was whole, and the result is that of one go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sora.data.index import unique_keys as duplicates
from sora.data.index.index import Index
from sora.data.index.unfinished import INDEXING
from sora.data.index.unique_keys import KeyFile, KeySet
from sora.data.shards.stores import store_of, write_remote
from sora.ingest import survey as foreign
from sora.ingest.index_shards import index_shards
from sora.ingest.survey import Choices
from tests.data.making import counting, muxed
from tests.data.sharded import QUICK, samples, write

SHARDS = ["a.tar", "b.tar", "c.tar", "d.tar"]
SETTINGS = {"licence": "?", "workers": 0, "seconds": 20, "memory_gb": 64, "about": {}, "max_bad_share": 1.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three shards with clips, one of them with a bad one and one whose keys came before, and one without any clip."""
    folder = tmp_path_factory.mktemp("shards")
    media = [muxed(counting(frames), **QUICK) for frames in (1, 2)]
    write(folder / "a.tar", samples(media, prefix="a/k"))
    write(folder / "b.tar", [*samples(media, prefix="b"), ("bad.mp4", b"no video"), ("bad.txt", b"x")])
    write(folder / "c.tar", [("note.txt", b"no video here")])
    write(folder / "d.tar", [*samples(media[:1], prefix="a/k"), *samples(media, prefix="d")])
    return folder


def index(shards, output, *, names=SHARDS, choices=None, **changes):
    return index_shards(store_of(str(shards)), names, output, choices or Choices(), **SETTINGS | changes)


def made(folder) -> dict[str, bytes]:
    """Every file by name; the report's order of counting is no result."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    told = index(shards, folder)
    assert told["refused"] == {"media": 1, "video": 1, "duplicate": 1}
    assert told["kept"] == 0
    return made(folder)


def reads(monkeypatch):
    """The samples that were opened since, by shard."""
    opened, row = [], foreign.VideoSurvey._row

    def counted(self, sample):
        opened.append(sample.shard)
        return row(self, sample)

    monkeypatch.setattr(foreign.VideoSurvey, "_row", counted)
    return opened


@pytest.mark.slow
def test_stopped_at_any_write_it_goes_on_to_the_same_files_and_reads_no_whole_shard_again(shards, whole, tmp_path, monkeypatch):
    opened = reads(monkeypatch)

    def failing(path):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    for module in ("sora.system.files", "sora.data.index.mapped_arrays"):
        monkeypatch.setattr(f"{module}.sync", failing)
    for count in range(1, 100, 5):
        folder, left = tmp_path / str(count), count
        try:
            index(shards, folder)
        except KeyboardInterrupt:
            pass
        else:
            break
        if (folder / "dataset.json").exists():  # the last word was said
            assert {name: content for name, content in made(folder).items() if not name.startswith("indexing")} == whole
            continue
        finished = {json.loads(path.read_text())["shard"] for path in (folder / "indexing").glob("*.json") if "settings" not in path.name}
        opened.clear()
        told = index(shards, folder)
        assert not finished & set(opened)
        assert told["kept"] == len(finished)
        assert made(folder) == whole
    assert count > 30, "the writes of four shards, of their columns and of the index"


KILLED = """
import os, signal, sys
from pathlib import Path
from sora.ingest.survey import Choices
from sora.ingest.index_shards import index_shards
from sora.data.shards.stores import store_of, write_remote
def report(shards, clips):
    if shards == 2:
        os.kill(os.getpid(), signal.SIGKILL)
index_shards(store_of(sys.argv[1]), ["a.tar", "b.tar", "c.tar", "d.tar"], Path(sys.argv[2]), Choices(), licence="?", max_bad_share=1.0,
             workers=2, seconds=20, memory_gb=64, about={}, report=report)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_files_and_leaves_no_process(shards, whole, tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "-c", KILLED, str(shards), str(tmp_path)], capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".staging-1-meta-000000.parquet").write_bytes(b"half")
    assert not (tmp_path / "dataset.json").exists()
    for _ in range(100):
        alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive
    opened = reads(monkeypatch)
    assert index(shards, tmp_path)["kept"] == 2
    assert set(opened) == {"d.tar"}
    assert made(tmp_path) == whole


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def stopped(shards, folder, *, after, **changes):
    """An indexing that ends when so many shards are done."""

    def report(done, clips):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(shards, folder, report=report, **changes)


@pytest.mark.parametrize("damage", ["half a table", "no table", "another state", "no json", "strange json"])
def test_what_is_not_whole_of_a_shard_that_was_done_is_made_again(shards, whole, tmp_path, monkeypatch, damage):
    stopped(shards, tmp_path, after=3)
    (path,) = [one for one in (tmp_path / "indexing").glob("*.json") if '"b.tar"' in one.read_text()]
    table = path.with_suffix(".parquet")
    if damage == "half a table":
        table.write_bytes(table.read_bytes()[:-50])
    elif damage == "no table":
        table.unlink()
    elif damage == "another state":
        path.write_text(json.dumps({**json.loads(path.read_text()), "stamp": "1 2"}))
    elif damage == "no json":
        path.unlink()
    else:
        path.write_text('{"shard": "b.tar", "refused": 7}')
    opened = reads(monkeypatch)
    assert index(shards, tmp_path)["kept"] == 2
    assert set(opened) == {"b.tar", "d.tar"}
    assert made(tmp_path) == whole


@pytest.mark.slow
def test_a_shard_that_changed_and_other_choices_are_read_again_and_more_shards_may_come(shards, whole, tmp_path, monkeypatch):
    mine = tmp_path / "shards"
    mine.mkdir()
    for name in SHARDS:
        (mine / name).write_bytes((shards / name).read_bytes())
    out = tmp_path / "out"
    stopped(mine, out, after=2)
    os.utime(mine / "a.tar", ns=(1, 1))
    opened = reads(monkeypatch)
    told = index(mine, out)
    assert (told["kept"], set(opened)) == (1, {"a.tar", "d.tar"})
    assert made(out) == whole
    (out / "dataset.json").unlink()
    stopped(mine, out, after=2, choices=Choices(key_with_shard=True))
    assert index(mine, out)["kept"] == 0, "the choices are others"
    (out / "dataset.json").unlink()
    with pytest.raises(ValueError, match="over max_bad_share=0"):
        index(mine, out, names=SHARDS[:2], max_bad_share=0.0)
    opened.clear()
    assert index(mine, out)["kept"] == 2, "two more shards, and more bad samples allowed"
    assert set(opened) == {"d.tar"}
    assert made(out) == whole


@pytest.mark.slow
def test_two_processes_do_not_index_into_one_folder(shards, tmp_path):
    then = "print('in', flush=True); sys.stdin.read()"
    script = f"import sys; from sora.ingest.index_progress import IndexProgress; p = IndexProgress(sys.argv[1], {{}}); {then}"
    asked = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match=r"another process \(\d+ on .*\) is indexing into"):
            index(shards, tmp_path)
        other.kill()
    assert len(index(shards, tmp_path)["shards"]) == 3


def test_units_keep_the_order_and_hold_few_clips_or_bytes(monkeypatch):
    monkeypatch.setattr(foreign, "_UNIT", 3)
    monkeypatch.setattr(foreign, "_UNIT_BYTES", 100)
    sizes = [10, 10, 10, 10, 60, 50, 200, 1, 1, 1, 1]
    some = [foreign.Sample("s", str(number), str(number), "mp4", 0, size, {}) for number, size in enumerate(sizes)]
    units = list(foreign._units(some))
    assert [sample for unit in units for sample in unit] == some
    assert [len(unit) for unit in units] == [3, 2, 1, 1, 3, 1]


@pytest.mark.parametrize("at_once", [1, 3, 1 << 21])
def test_repeated_keys_are_those_that_a_set_finds(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    monkeypatch.setattr(duplicates, "_CHUNK", 7)
    drawn = [f"k{number}" for number in np.random.default_rng(0).integers(0, 40, 60)]
    keys, seen, wanted = KeyFile(tmp_path), set(), []
    for number, key in enumerate(drawn):
        if key in seen:
            wanted.append(number)
        seen.add(key)
    keys.add(drawn[:10])
    keys.add([])
    keys.add(drawn[10:])
    assert keys.repeated().tolist() == wanted
    assert wanted and not list(tmp_path.iterdir())
    assert KeyFile().repeated().tolist() == []


@pytest.mark.parametrize("new", [1, 2, 7, 1 << 16])
def test_a_set_of_keys_says_what_a_set_of_python_says(monkeypatch, new):
    """Also of digests that end in zeros, which an array of bytes leaves out."""
    monkeypatch.setattr(duplicates, "_NEW", new)
    monkeypatch.setattr(duplicates, "_digest", lambda key: int(key[1:]).to_bytes(16, "little"))
    keys, seen = KeySet(), set()
    for number in np.random.default_rng(new).integers(0, 300, 400).tolist():
        assert keys.add(f"k{number}") == (number not in seen)
        seen.add(number)
    assert len(keys._sorted) < 10


def test_the_folder_of_parts_goes_when_the_index_is_whole(shards, tmp_path):
    write_remote(tmp_path, str(shards), cache=None, cache_mb=0, fetch_after=0)
    stopped(shards, tmp_path, after=1)
    assert (tmp_path / INDEXING).is_dir()
    index(shards, tmp_path)
    assert not (tmp_path / INDEXING).exists()
    whole = Index.open(tmp_path)
    assert list(whole.keys)[2:] == ["b0", "b1", "d0", "d1"]
    assert len(whole) == 6
