import errno
import importlib
import pickle
import tarfile

import pytest

from sora.data.index.index import Index
from sora.data.shards.shards import ShardReader, ShardWriter, read_at
from sora.system import files as storage
from tests.data.making import dataset, flip

SHAPES = [(5, 16, 16), (1, 16, 24), (9, 17, 19), (5, 16, 16), (3, 8, 8)]


def written(folder, samples, **settings):
    settings = {"prefix": "video", "suffixes": ("mp4", "json"), "max_bytes": 1 << 20} | settings
    with ShardWriter(folder, **settings) as writer:
        return [writer.write(key, {"mp4": media, "json": b"{}"}) for key, media in samples]


def test_webdataset_reads_every_sample_of_our_shards(tmp_path):
    webdataset = importlib.import_module("webdataset")
    samples = [(f"a-{n}", bytes([n]) * (700 * n)) for n in range(9)]
    written(tmp_path, samples, max_bytes=6000)
    shards = sorted(map(str, tmp_path.glob("video-*.tar")))
    assert len(shards) > 2
    read = [(sample["__key__"], sample["mp4"]) for sample in webdataset.WebDataset(shards, shardshuffle=False)]
    assert read == samples


def test_offsets_lead_to_the_bytes_that_tar_finds(tmp_path):
    members = [member for pair in written(tmp_path, [("x", b"1" * 511), ("y", b"2" * 512), ("z", b"")]) for member in pair]
    with tarfile.open(tmp_path / "video-000000.tar") as tar:
        for member in members:
            assert tar.extractfile(f"{member.key}.{member.suffix}").read() == read_at(tmp_path / member.shard, member.offset, member.size)
    assert ShardReader(tmp_path).read(members[2]) == b"2" * 512


def test_the_same_samples_make_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        written(tmp_path / folder, [("x", b"1" * 700), ("y", b"2")])
    assert storage.file_hash(tmp_path / "one/video-000000.tar") == storage.file_hash(tmp_path / "two/video-000000.tar")


@pytest.mark.parametrize("key", ["a.b", "../x", "/x", "a/b", "", "x" * 91, "é", "a b", "-x"])
def test_a_key_that_would_break_out_of_the_layout_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match="does not fit a shard"):
        written(tmp_path, [(key, b"")])
    assert not list(tmp_path.iterdir())


def test_a_key_comes_once(tmp_path):
    with pytest.raises(ValueError, match="'x' came twice"):
        written(tmp_path, [("x", b""), ("x", b"")], max_bytes=1)


def test_an_error_leaves_only_whole_shards(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, prefix="video", suffixes=("mp4",), max_bytes=3000) as writer:
        for number in range(5):
            writer.write(f"k{number}", {"mp4": bytes(1000)})
        raise KeyboardInterrupt
    whole = sorted(path.name for path in tmp_path.iterdir())
    assert whole == ["video-000000.tar", "video-000001.tar", "video-000002.tar", "video-000003.tar"]


def test_a_full_disk_leaves_no_shard(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, [("x", b"1")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 600, 5000, 20000, "tail"])
def test_a_shard_cut_in_the_middle_is_refused_by_shard_and_clip(tmp_path, cut):
    dataset(tmp_path / "set", SHAPES)
    shard = tmp_path / "set/video-000000.tar"
    rows = [Index.open(tmp_path / "set").row(number) for number in range(len(SHAPES))]
    size = shard.stat().st_size - 1024 if cut == "tail" else cut
    shard.write_bytes(shard.read_bytes()[:size])
    lost = [row.key for row in rows if row.offset + row.size > size]
    with pytest.raises(ValueError, match=rf"video-000000\.tar has {size} bytes.*{lost[0] if lost else 'prepare'}"):
        Index.open(tmp_path / "set")


def test_a_shard_cut_while_open_is_refused_by_shard_and_clip(tmp_path):
    dataset(tmp_path / "set", SHAPES)
    index = Index.open(tmp_path / "set")
    shard = tmp_path / "set/video-000000.tar"
    with open(shard, "r+b") as file:
        file.truncate(index.row(2).offset + 10)
    assert index.read_member(1)
    with pytest.raises(ValueError, match=r"clip-002.*video-000000\.tar is cut short"):
        index.read_member(2)


def test_a_flipped_byte_is_refused_by_shard_and_clip(tmp_path):
    dataset(tmp_path / "set", SHAPES)
    index = Index.open(tmp_path / "set")
    flip(tmp_path / "set/video-000000.tar", index.row(3).offset + 100)
    for number in (0, 1, 2, 4):
        assert index.read_member(number)
    with pytest.raises(ValueError, match=r"clip-003.*video-000000\.tar have changed"):
        index.read_member(3)


@pytest.mark.parametrize(("offset", "size"), [(0, 1 << 50), (1 << 62, 1), (-5, 10), (100, -1)])
def test_places_that_cannot_be_take_no_memory(tmp_path, offset, size):
    written(tmp_path, [("x", b"1" * 700)])
    with pytest.raises(ValueError, match=r"video-000000\.tar is cut short"):
        read_at(tmp_path / "video-000000.tar", offset, size)


def test_many_shards_do_not_keep_many_files_open(tmp_path):
    members = [pair[0] for pair in written(tmp_path, [(f"k{n}", bytes([n])) for n in range(80)], max_bytes=1)]
    reader = ShardReader(tmp_path)
    assert [reader.read(member) for member in members * 2] == [bytes([n]) for n in range(80)] * 2
    assert len(reader.store._handles) <= 64


def test_a_clip_is_hashed_when_a_process_reads_it_first_and_at_every_read_where_that_is_wanted(tmp_path):
    dataset(tmp_path / "set", SHAPES)
    once, always = Index.open(tmp_path / "set"), Index.open(tmp_path / "set", hash_every_read=True)
    whole = [once.read_member(number) for number in range(3)]
    assert [always.read_member(number) for number in range(3)] == whole
    for number in range(len(SHAPES)):
        flip(tmp_path / "set/video-000000.tar", once.row(number).offset + 100)
    assert once.read_member(2) != whole[2]
    for number in (3, 4):  # neighbours of those that were read, in the same byte of the marks
        with pytest.raises(ValueError, match=f"clip-00{number}.*have changed"):
            once.read_member(number)
        with pytest.raises(ValueError, match=f"clip-00{number}.*have changed"):
            once.read_member(number)
    for number in range(len(SHAPES)):
        for index in (always, pickle.loads(pickle.dumps(always)), pickle.loads(pickle.dumps(once))):
            with pytest.raises(ValueError, match=f"clip-00{number}.*have changed"):
                index.read_member(number)
