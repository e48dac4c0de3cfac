import json
import pickle

import pytest

from sora.data.index import Caption, ClipFacts, DatasetWriter, Index
from tests.data.making import dataset, flip

SHAPES = [(5, 16, 16), (1, 16, 24), (9, 17, 19), (5, 16, 16)]


def facts(key="a", **more):
    return ClipFacts(**({"key": key, "frames": 5, "fps": 8.0, "height": 4, "width": 6} | more))


def fingerprints(folder, given, media=b"bytes"):
    with DatasetWriter(folder, licence="", max_bytes=1 << 20) as writer:
        writer.write(given, media)
        writer.finish({})
    index = Index.open(folder)
    return index.fingerprint, index.captions_fingerprint


def test_a_row_comes_back_as_it_was_written(tmp_path):
    said = (Caption("short", 'a "quoted"\nball, é', "me"), Caption("dense", "", "you"))
    given = facts(fps=30000 / 1001, captions=said, source="a/b.mp4", start=1.5, licence="BSD", extra={"n": [1, {"x": 0.25}]})
    with DatasetWriter(tmp_path / "set", licence="CC0", max_bytes=1 << 20) as writer:
        row = writer.write(given, b"media")
        writer.write(facts("b"), b"more")
        writer.finish({})
    index = Index.open(tmp_path / "set")
    assert index.row(0) == row
    assert index.captions(0) == said
    assert index.row(1).licence == "CC0"
    assert index.read_member(row) == index.read_member(0) == b"media"


def test_shapes_are_told_apart_by_the_fingerprint_and_captions_are_not(tmp_path):
    first, said = fingerprints(tmp_path / "0", facts())
    changes = [facts("b"), facts(frames=6), facts(fps=9.0), facts(height=5), facts(width=5), facts(split="heldout")]
    others = [fingerprints(tmp_path / str(n + 1), change)[0] for n, change in enumerate(changes)]
    others.append(fingerprints(tmp_path / "media", facts(), b"other")[0])
    assert len({first, *others}) == len(others) + 1
    recaptioned = fingerprints(tmp_path / "again", facts(captions=(Caption("short", "a", "b"),)))
    assert recaptioned[0] == first
    assert recaptioned[1] != said


def test_splits_share_nothing_and_miss_nothing(tmp_path):
    dataset(tmp_path / "set", SHAPES, heldout=(1, 3), max_bytes=1)
    whole, train, heldout = (Index.open(tmp_path / "set", split) for split in (None, "train", "heldout"))
    assert train.keys == ["clip-000", "clip-002"]
    assert heldout.keys == ["clip-001", "clip-003"]
    assert sorted(train.keys + heldout.keys) == whole.keys
    assert len({index.fingerprint for index in (whole, train, heldout)}) == 3
    assert {index.dataset_fingerprint for index in (whole, train, heldout)} == {whole.dataset_fingerprint}
    with pytest.raises(ValueError, match=r"no clips of split 'test'.*heldout"):
        Index.open(tmp_path / "set", "test")


def test_an_index_travels_to_another_process(tmp_path):
    dataset(tmp_path / "set", SHAPES, heldout=(1,))
    index = Index.open(tmp_path / "set", "train")
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.row(n) for n in range(len(copy))] == [index.row(n) for n in range(len(index))]
    assert copy.read_member(1) == index.read_member(1)


def test_without_the_last_word_there_is_no_dataset(tmp_path):
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path / "set", licence="", max_bytes=1) as writer:
        for number in range(3):
            writer.write(facts(f"k{number}"), b"x")
        raise RuntimeError
    with pytest.raises(ValueError, match=r"holds no dataset\.json"):
        Index.open(tmp_path / "set")
    with pytest.raises(ValueError, match="is no folder"):
        Index.open(tmp_path / "nowhere")


def test_a_dataset_of_nothing_is_refused(tmp_path):
    with DatasetWriter(tmp_path / "set", licence="", max_bytes=1) as writer, pytest.raises(ValueError, match="no clip was written"):
        writer.finish({})


def test_damaged_metadata_is_refused_by_name(tmp_path):
    dataset(tmp_path / "set", SHAPES)
    meta, described = tmp_path / "set/meta-000000.parquet", tmp_path / "set/dataset.json"
    content = meta.read_bytes()
    flip(meta, len(content) // 2)
    with pytest.raises(ValueError, match=r"meta-000000\.parquet has changed"):
        Index.open(tmp_path / "set")
    meta.unlink()
    with pytest.raises(ValueError, match=r"meta-000000\.parquet is missing"):
        Index.open(tmp_path / "set")
    meta.write_bytes(content)
    told = json.loads(described.read_text())
    described.write_text(json.dumps(told | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        Index.open(tmp_path / "set")
    described.write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        Index.open(tmp_path / "set")
