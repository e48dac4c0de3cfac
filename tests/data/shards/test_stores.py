"""Shards that lie elsewhere: by range, through a bounded cache, and what happens when the place fails."""

import fcntl
import json
import shutil
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sora.data.index.index import Index
from sora.data.loading.loader import read_clip
from sora.data.shards import stores
from sora.data.shards.stores import LocalStore, RemoteStore, open_store, store_of, write_remote
from sora.ingest.index_shards import index_shards, mirror, names_of
from sora.ingest.survey import Choices
from sora.system.guarded_pool import in_order
from sora.video.files import PYAV
from tests.data.making import dataset

SHAPES = [(3, 16, 16)] * 6
INDEXING = {"licence": "", "workers": 0, "seconds": 20, "memory_gb": 64, "about": {}, "max_bad_share": 0.0}


class Server:
    """Serves a folder over http on loopback. ranges: whether it answers them; failures: how many requests it refuses first."""

    def __init__(self, folder, *, ranges=True):
        self.folder, self.ranges, self.failures, self.asked = folder, ranges, 0, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET(body=False)

            def do_GET(self, body=True):
                outer.asked.append((self.command, self.path, self.headers.get("Range")))
                path = outer.folder / self.path.lstrip("/")
                if outer.failures > 0:
                    outer.failures -= 1
                    self.send_error(503)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                content, part = path.read_bytes(), self.headers.get("Range")
                if part and outer.ranges:
                    first, last = (int(number) for number in part.removeprefix("bytes=").split("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                    content = content[first : last + 1]
                else:
                    self.send_response(200)
                if outer.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_PAUSE", 0.01)
    dataset(tmp_path / "far", SHAPES, max_bytes=8_000)
    served = Server(tmp_path / "far")
    yield served
    served.close()


def here(server, folder, *, cache=None, mb=0.0, after: int | None = 0) -> Index:
    """The served dataset's metadata in a folder, its shards left where they are."""
    write_remote(folder, server.url, cache=str(cache) if cache else None, cache_mb=mb, fetch_after=after)
    mirror(store_of(server.url), folder)
    return Index.open(folder)


def test_clips_read_by_range_are_those_read_here_and_nothing_else_is_asked_for(server, tmp_path):
    index, there = here(server, tmp_path / "near"), Index.open(tmp_path / "far")
    assert (index.fingerprint, index.captions_fingerprint) == (there.fingerprint, there.captions_fingerprint)
    server.asked.clear()
    for number in (4, 0, 5):
        assert index.read_member(number) == there.read_member(number)
        assert np.array_equal(read_clip(index, number, reader=PYAV), read_clip(there, number, reader=PYAV))
    assert all(method == "GET" and part for method, _, part in server.asked)
    assert not list((tmp_path / "near").glob("*.tar"))


def test_workers_that_are_forked_later_read_too(server, tmp_path):
    index, there = here(server, tmp_path / "near"), Index.open(tmp_path / "far")
    index.read_member(0)
    done = list(in_order(partial(_hash, index), range(6), workers=2, seconds=30, memory_gb=64, apart=False))
    assert [one.result for one in done] == [hash_of(there.read_member(number)) for number in range(6)], done[0].reason


def shard_sizes(folder):
    return [path.stat().st_size for path in folder.glob("*.tar")]


def hash_of(content):
    return len(content), content[-40:]


def _hash(index, number):
    return hash_of(index.read_member(number))


def test_the_cache_holds_whole_shards_up_to_its_size_and_gives_up_the_oldest(server, tmp_path):
    room = 2.5 * max(shard_sizes(tmp_path / "far")) / 2**20
    index, there = here(server, tmp_path / "near", cache=tmp_path / "cache", mb=room), Index.open(tmp_path / "far")
    kept = []
    for number in (0, 0, 2, 0, 4, 0, 5, 0, 2):
        server.asked.clear()
        assert index.read_member(number) == there.read_member(number)
        kept.append(not server.asked)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*")) <= room * 2**20
        for path in (tmp_path / "cache").glob("*.tar"):
            path.touch() if not kept[-1] else None
    assert kept[:2] == [False, True]
    assert kept.count(False) >= 4


def test_a_cache_gives_up_no_files_but_its_own(server, tmp_path):
    """A dataset's remote.json names the folder; whoever made it may have meant the shards of somebody else."""
    mine = [tmp_path / "mine" / name for name in ("video-000000.tar", ".staging-1-model", f".staging-{'f' * 31}g.tar")]
    mine[0].parent.mkdir()
    for path in mine:
        path.write_bytes(b"x" * 40_000)
    index = here(server, tmp_path / "near", cache=mine[0].parent, mb=1.2 * max(shard_sizes(tmp_path / "far")) / 2**20)
    for number in (0, 2, 4):
        index.read_member(number)
    assert all(path.stat().st_size == 40_000 for path in mine)
    assert len(list(mine[0].parent.glob(f"{'?' * 32}.tar"))) == 1  # of three that came, the others gave way


def test_nothing_is_fetched_where_it_is_never_to_be(server, tmp_path):
    index = here(server, tmp_path / "near", cache=tmp_path / "cache", mb=99, after=None)
    assert len({index.read_member(0) for _ in range(9)}) == 1 and not list(tmp_path.glob("cache/*.tar"))


def test_a_shard_is_fetched_whole_only_after_some_clips_were_read_of_it(server, tmp_path):
    index = here(server, tmp_path / "near", cache=tmp_path / "cache", mb=10, after=2)
    for reads, there in ((1, 0), (2, 0), (3, 1), (4, 1)):
        index.read_member(0)
        assert len(list((tmp_path / "cache").glob("*.tar"))) == there, reads


def test_a_shard_that_another_process_fetches_is_read_by_range_meanwhile(server, tmp_path):
    index, there = here(server, tmp_path / "near", cache=tmp_path / "cache", mb=10), Index.open(tmp_path / "far")
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache/lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert index.read_member(3) == there.read_member(3)
        assert not list((tmp_path / "cache").glob("*.tar"))
    (tmp_path / f"cache/.staging-{'0' * 32}.tar").write_bytes(bytes(100))
    assert index.read_member(3) == there.read_member(3)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the lock, the shard; what was left behind is gone


def test_a_cached_shard_that_is_not_what_the_index_says_is_fetched_again(server, tmp_path):
    index, there = here(server, tmp_path / "near", cache=tmp_path / "cache", mb=10), Index.open(tmp_path / "far")
    index.read_member(0)
    (cached,) = (tmp_path / "cache").glob("*.tar")
    for damage in (b"\xff" * cached.stat().st_size, b"short"):
        cached.write_bytes(damage)
        assert index.read_member(0) == there.read_member(0)


def test_a_place_that_fails_for_a_while_is_asked_again_and_one_that_is_gone_stops_the_run(server, tmp_path):
    index, there = here(server, tmp_path / "near"), Index.open(tmp_path / "far")
    server.failures = 3
    assert index.read_member(1) == there.read_member(1)
    server.failures = 100
    with pytest.raises(ConnectionError, match=r"video-000001\.tar could not be read in 4 tries"):
        index.read_member(1)
    server.failures = 0
    for path in (tmp_path / "far").glob("*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"clip clip-001: http://.*video-000001\.tar does not exist"):
        index.read_member(1)


def test_a_place_without_ranges_is_refused_by_name_and_no_clip_is_blamed(server, tmp_path):
    index = here(server, tmp_path / "near")
    server.ranges = False
    with pytest.raises(ConnectionError, match="does not answer ranges"):
        index.read_member(1)


@pytest.mark.slow
def test_shards_are_not_blamed_for_a_server_that_fails_or_is_not_there(server, tmp_path):
    """Else an index without them would be written, and what is there would be kept as refused when it is made again."""
    for path in (tmp_path / "far").iterdir():
        if path.suffix != ".tar":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = names_of(store_of(server.url), "video-{000000..000001}.tar")
    write_remote(tmp_path / "near", server.url, cache=None, cache_mb=0, fetch_after=0)

    def index(url):
        return index_shards(store_of(url), names, tmp_path / "near", Choices(), **INDEXING)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    for url, failures, ranges, told in ((server.url, 10**6, True, "503"), (server.url, 0, False, "ranges"), (nowhere, 0, True, "4 tries")):
        server.failures, server.ranges = failures, ranges
        with pytest.raises(ConnectionError, match=told):  # of the place, not of a clip
            index(url)
        assert not (tmp_path / "near/dataset.json").exists()
    server.failures, server.ranges = 0, True
    assert index(server.url)["refused"] == {}


def test_shards_of_others_are_indexed_where_they_lie(server, tmp_path):
    for path in (tmp_path / "far").iterdir():
        if path.suffix != ".tar":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    count = len(list((tmp_path / "far").glob("*.tar")))
    store = store_of(server.url)
    names = names_of(store, f"video-{{000000..{count - 1:06d}}}.tar")
    write_remote(tmp_path / "near", server.url, cache=None, cache_mb=0, fetch_after=0)
    told = index_shards(store, names, tmp_path / "near", Choices(), **INDEXING)
    index = Index.open(tmp_path / "near")
    assert (len(index), told["refused"]) == (6, {})
    assert read_clip(index, 5, reader=PYAV).shape == (3, 16, 16, 3)


def test_fsspecs_memory_stands_for_any_object_store(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    dataset(tmp_path / "set", SHAPES, max_bytes=8_000)
    for path in (tmp_path / "set").glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    store = store_of("memory://bucket")
    assert names_of(store, "*.tar") == sorted(path.name for path in (tmp_path / "set").glob("*.tar"))
    write_remote(tmp_path / "near", "memory://bucket", cache=None, cache_mb=0, fetch_after=4)
    index_shards(store, names_of(store, "*.tar"), tmp_path / "near", Choices(), **INDEXING)
    assert [Index.open(tmp_path / "near").read_member(n) for n in range(6)] == [
        Index.open(tmp_path / "set").read_member(n) for n in range(6)
    ]


@pytest.mark.parametrize("url", ["ftp://x/y", "simplecache::http://x/y", "http://x/a::zip://b", "pipe://cat /etc/passwd", "file:///etc"])
def test_only_plain_urls_of_known_kinds_are_read(url):
    with pytest.raises(ValueError, match="is no URL that is read from"):
        store_of(url)


def test_shards_in_another_folder_and_a_damaged_note_of_where(tmp_path):
    dataset(tmp_path / "far", SHAPES)
    write_remote(tmp_path / "near", str(tmp_path / "far"), cache=None, cache_mb=0, fetch_after=0)
    mirror(LocalStore(tmp_path / "far"), tmp_path / "near")
    index = Index.open(tmp_path / "near")
    assert index.read_member(2) == Index.open(tmp_path / "far").read_member(2)
    shard = tmp_path / "far/video-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"far/video-000000\.tar has \d+ bytes instead of"):
        Index.open(tmp_path / "near")
    for said in ({"run": "rm"}, {"url": ["/y"]}, {"cache": 3}, {"cache_mb": "all"}, {"cache_mb": float("inf")}, {"fetch_after": -1}):
        (tmp_path / "near/remote.json").write_text(json.dumps({"url": "/x"} | said))
        with pytest.raises(ValueError, match=r"remote\.json is damaged"):
            open_store(tmp_path / "near")
    (tmp_path / "near/remote.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"remote\.json is damaged"):
        open_store(tmp_path / "near")


def test_a_dataset_cannot_name_files_outside_its_folder(tmp_path):
    dataset(tmp_path / "set", SHAPES)
    path = tmp_path / "set/dataset.json"
    for name in ("../../etc/passwd", "/etc/passwd"):
        text = path.read_text()
        path.write_text(text.replace("video-000000.tar", name))
        with pytest.raises(ValueError, match="shards.0.(shard|meta) is .*, and the path of a file in its folder fits"):
            Index.open(tmp_path / "set")
        with pytest.raises(ValueError, match="path of a file in its folder"):
            path.write_text(text.replace("meta-000000.parquet", name))
            mirror(LocalStore(tmp_path / "set"), tmp_path / "copy")
        path.write_text(text)
    assert RemoteStore("memory://x", cache=None, fetch_after=0).known_size("y") is None
