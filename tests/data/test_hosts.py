"""Hosts that answer otherwise than they were asked: too much, too slowly, packed, from elsewhere. Each ends in one line, soon."""

import gzip
import json
import resource
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sora.data.shards import stores
from sora.data.shards.shard_cache import ShardCache
from sora.data.shards.stores import RemoteStore
from sora.gate import answers, hosts
from sora.gate.hosts import UnfitAnswer
from sora.ingest.index_shards import mirror, names_of
from tests.data.making import dataset


class Host:
    """A server on loopback whose every answer is `answer(handler, path)`."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with suppress(OSError):  # who asked has gone
                    answer(self, self.path)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host(monkeypatch):
    """Makes hosts; what they are waited for is a matter of moments."""
    monkeypatch.setattr(stores, "_PAUSE", 0.01)
    monkeypatch.setattr(hosts, "PATIENCE", 0.5)
    monkeypatch.setattr(answers, "SILENT", 0.5)
    made = []

    def make(answer):
        made.append(Host(answer))
        return made[-1].url

    yield make
    for one in made:
        one.close()


def head(handler, code=200, **headers):
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def store(url, **settings):
    return RemoteStore(url, **{"cache": None, "fetch_after": None} | settings)


def refused(ask, match, *, kind=Exception, seconds=8.0, mb=200):
    """It ends with such an error, in time and memory."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=match):
        ask()
    assert time.monotonic() - began < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mb << 10
    return True


def endless(handler, _):
    head(handler, 206, Content_Range="bytes 0-9/10")
    while True:
        handler.wfile.write(b"x" * (1 << 20))


def trickle(handler, _):
    head(handler, 206, Content_Length=1 << 20, Content_Range=f"bytes 0-{(1 << 20) - 1}/{1 << 20}")
    while handler.command == "GET":
        handler.wfile.write(b"x")
        time.sleep(0.02)


def slow_headers(handler, _):
    while True:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-a: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)


def silent(handler, _):
    time.sleep(20)


PACKED = gzip.compress(b"\0" * (8 << 20)) * 40  # of 320 MB


def packed(handler, _):
    content = PACKED
    head(handler, 206, Content_Encoding="gzip", Content_Length=len(content), Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
    handler.wfile.write(content)


LOOSE = {
    "endless": (endless, "more than the 1000 bytes"),
    "trickle": (trickle, "too few to wait for"),
    "slow headers": (slow_headers, "could not be read in 4 tries"),
    "silent": (silent, "could not be read in 4 tries"),
    "packed": (packed, "more than the 1000 bytes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LOOSE)
def test_a_range_is_waited_for_as_long_and_read_as_far_as_it_was_asked_for(host, how):
    answer, match = LOOSE[how]
    assert refused(lambda: store(host(answer)).read("a.tar", 0, 1000), match, kind=ConnectionError)


@pytest.mark.slow
@pytest.mark.parametrize("how", LOOSE)
def test_an_index_that_is_mirrored_ends_in_time_and_memory(host, how, tmp_path):
    assert refused(lambda: mirror(store(host(LOOSE[how][0])), tmp_path / "near"), None, kind=(ConnectionError, ValueError), seconds=20)
    assert not (tmp_path / "near/dataset.json").exists()


def test_a_list_of_files_without_an_end_is_not_read_to_it(host):
    def page(handler, _):
        head(handler, 200, Content_Type="text/html")
        while True:
            handler.wfile.write(b'<a href="x">' * 50_000)

    assert refused(lambda: names_of(store(host(page)), "*.tar"), "a list of files may have", kind=UnfitAnswer)


def test_a_shard_longer_than_it_says_is_not_written_to_the_cache(host, tmp_path):
    def answer(handler, _):
        if handler.command == "HEAD":
            head(handler, 200, Content_Length=1000, Accept_Ranges="bytes")
            return
        head(handler, 200)
        while True:
            handler.wfile.write(b"x" * (1 << 20))

    kept = ShardCache(tmp_path / "cache", max_bytes=1 << 30)
    assert refused(
        lambda: store(host(answer), cache=kept, fetch_after=0).read("a.tar", 0, 10), "more than the 1000 bytes", kind=UnfitAnswer
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def served(folder, change):
    """The files of a folder, each as `change` gives it; by range."""

    def answer(handler, path):
        content = change(path.lstrip("/"), (folder / path.lstrip("/")))
        if content is None:
            return head(handler, 404)
        said = handler.headers.get("Range")
        first, last = (int(part) for part in said.removeprefix("bytes=").split("-")) if said else (0, len(content) - 1)
        part = content[first : last + 1]
        head(handler, 206 if said else 200, Content_Length=len(part), Content_Range=f"bytes {first}-{last}/{len(content)}")
        if handler.command == "GET":
            handler.wfile.write(part)
        return None

    return answer


def test_a_mirror_takes_as_much_as_it_may_and_nothing_that_is_no_metadata(host, tmp_path):
    dataset(tmp_path / "far", [(3, 16, 16)] * 4, max_bytes=8_000)

    def plain(name, path):
        return path.read_bytes() if path.is_file() else None

    sizes = sum(path.stat().st_size for path in (tmp_path / "far").rglob("*") if path.suffix in (".json", ".parquet", ".bin"))
    url = host(served(tmp_path / "far", plain))
    mirror(store(url), tmp_path / "whole", most=sizes)
    assert (tmp_path / "whole/dataset.json").is_file()
    assert refused(lambda: mirror(store(url), tmp_path / "less", most=sizes - 1), "raise metadata_mb", kind=ValueError)

    def long(name, path):
        content = plain(name, path)
        return content if content is None or name == "dataset.json" else content + b"x" * (8 << 20)

    assert refused(
        lambda: mirror(store(host(served(tmp_path / "far", long))), tmp_path / "long", most=1 << 20), "metadata_mb", kind=ValueError
    )

    for name in ("remote.json", "../x.parquet", "/x", "columns/../../x.bin", "video-000000.tar", "meta-000000.parquet\n"):

        def strange(asked, path, name=name):
            if asked != "dataset.json":
                return plain(asked, path)
            said = json.loads(path.read_text())
            said["shards"][-1]["meta"] = name
            return json.dumps(said).encode()

        near = tmp_path / f"strange-{len(name)}"
        assert refused(
            lambda near=near, strange=strange: mirror(store(host(served(tmp_path / "far", strange))), near), None, kind=ValueError
        )
        assert sorted(path.name for path in near.iterdir()) == ["dataset.json.partial"]


REDIRECTS = {
    "http://169.254.169.254/latest/meta-data/": "lies in this machine's own network",
    "http://[fd00:ec2::254]/": "lies in this machine's own network",
    "http://localhost:1/x": "lies in this machine's own network",
    "http://0.0.0.0:1/x": "lies in this machine's own network",
    "http://[::1]/": "lies in this machine's own network",
    "http://[::ffff:169.254.169.254]/": "lies in this machine's own network",
    "http://2852039166/": "lies in this machine's own network",
    "http://0x7f000001/": "lies in this machine's own network",
    "http://10.0.0.1/": "lies in this machine's own network",
    "file:///etc/passwd": "redirects from http to file|could not be read",
    "ftp://127.0.0.1/x": "redirects from http to ftp|could not be read",
    "gopher://127.0.0.1:6379/_x": "redirects from http to gopher|could not be read",
    "http://no-such-host.invalid/": "is no host",
}


@pytest.mark.parametrize("place", REDIRECTS)
def test_a_redirect_leads_to_no_place_of_this_machines_own_network(host, place, monkeypatch):
    reached = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, where: (reached.append(where), connect(self, where)))
    url = host(lambda handler, _: head(handler, 302, Location=place))
    assert refused(lambda: store(url).read("a.tar", 0, 10), REDIRECTS[place], kind=ConnectionError)
    assert {where[1] for where in reached if isinstance(where, tuple) and where[1] not in (0, 53, 80)} <= {int(url.rpartition(":")[2])}


def test_a_redirect_within_the_host_is_followed_and_not_for_ever(host):
    def moved(handler, path):
        if path == "/a.tar":
            return head(handler, 302, Location="/b.tar")
        head(handler, 206, Content_Length=10, Content_Range="bytes 0-9/10")
        handler.wfile.write(b"0123456789")
        return None

    assert store(host(moved)).read("a.tar", 0, 10) == b"0123456789"
    around = host(lambda handler, path: head(handler, 302, Location=path))
    assert refused(lambda: store(around).read("a.tar", 0, 10), "could not be read", kind=ConnectionError)
