"""Reading shards front to back: what comes, and what is told when it cannot."""

import io

import pytest

from sora.ingest.streaming import ShardStream
from tests.data.making import dataset, tar
from tests.data.shards.test_stores import Server


class Pipe(io.BytesIO):
    """Gives what is asked for in small pieces and cannot be sought in."""

    def read(self, size=-1):
        return super().read(min(size, 700) if size >= 0 else 700)

    def seek(self, *_):
        raise io.UnsupportedOperation


def streamed(*contents, most_mb=1.0):
    shards = {f"s{number}": content for number, content in enumerate(contents)}
    stream = ShardStream(list(shards), most_mb=most_mb, open_file=lambda url: Pipe(shards[url]))
    return [(one.name, one.media, [said.text for said in one.captions]) for one in stream], [(one.key, one.kind) for one in stream.refused]


GOOD = [("a.mp4", b"1" * 900), ("a.txt", b"one"), ("b.webm", b"2" * 900), ("b.json", b'{"caption": "two"}')]
TOLD = [("a", b"1" * 900, ["one"]), ("b", b"2" * 900, ["two"])]


def test_clips_come_in_the_order_of_their_shards():
    assert streamed(tar(GOOD[2:]), tar(GOOD[:2])) == ([TOLD[1], TOLD[0]], [])
    assert streamed(tar(GOOD)) == (TOLD, [])


def test_a_cut_loses_the_last_clip_and_is_told_and_the_next_shard_goes_on():
    whole = tar(GOOD)
    for cut in (700, 1600, 1800, 2560, 2700, 4096, 4400, 4700):
        found, refused = streamed(whole[:cut], whole)
        assert len(found) == (2 if cut < 4096 else 3), cut
        assert found[-2:] == TOLD, cut
        assert found[:-2] == TOLD[: len(found) - 2], cut
        assert refused, cut


def test_samples_that_a_stream_cannot_give_are_named():
    members = [
        ("a.mp4", b"1"),
        ("b.mp4", b"2"),
        ("a.txt", b"late"),
        ("c.txt", b"no clip"),
        ("d.mp4", b"x" * 2000),
        ("e.mp4", b"3"),
        ("e.json", b"{"),
    ]
    found, refused = streamed(tar(members), most_mb=1000 / 2**20)
    assert [name for name, _, _ in found] == ["a", "b"]
    assert refused == [("a", "apart"), ("a", "video"), ("c", "video"), ("d.mp4", "size"), ("d", "video"), ("e", "text")]


def test_what_is_no_shard_is_named_and_the_others_are_read():
    found, refused = streamed(b"\x1f\x8b" + bytes(700), tar(GOOD), b"")
    assert (found, [kind for _, kind in refused]) == (TOLD, ["shard", "shard"])


def test_a_server_without_ranges_can_be_streamed(tmp_path):
    clips = dataset(tmp_path / "set", [(2, 16, 16)] * 3)
    server = Server(tmp_path / "set", ranges=False)
    try:
        stream = ShardStream([f"{server.url}/video-000000.tar", f"{server.url}/gone.tar"], most_mb=1)
        assert [one.name for one in stream] == list(clips)
        assert [(refusal.shard.rpartition("/")[2], refusal.kind) for refusal in stream.refused] == [("gone.tar", "shard")]
    finally:
        server.close()


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "pipe://cat", "ftp://x/y.tar", "simplecache::http://x/y.tar"])
def test_no_pipes_and_no_chains(url):
    stream = ShardStream([url], most_mb=1)
    assert list(stream) == []
    assert [refusal.kind for refusal in stream.refused] == ["shard"]
