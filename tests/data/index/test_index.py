import json
import pickle
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from sora.data.index import rows, units
from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.data.index.unfinished import INDEXING
from sora.system import files as storage
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
    assert sorted([*train.keys, *heldout.keys]) == whole.keys
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
    for strange in ([], {"version": 2}, {**told, "shards": [7]}, {**told, "splits": {"train": -4}}, {**told, "totals": {"clips": 3}}):
        described.write_text(json.dumps(strange))
        with pytest.raises(ValueError, match=r"dataset\.json (is damaged|has version None)"):
            Index.open(tmp_path / "set")
    described.write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        Index.open(tmp_path / "set")


def test_scores_and_consent_come_back_and_change_no_fingerprint(tmp_path):
    given = facts(scores={"aesthetic": 5.25, "motion": 0.0}, consent="signed")
    with DatasetWriter(tmp_path / "set", licence="", max_bytes=1) as writer:
        row = writer.write(given, b"bytes")
        writer.finish({})
    index = Index.open(tmp_path / "set")
    assert index.row(0) == row
    assert dict(index.row(0).scores) == {"aesthetic": 5.25, "motion": 0.0}
    assert index.fingerprint == fingerprints(tmp_path / "other", facts())[0]


def test_keys_and_captions_keep_their_fingerprints_under_another_sharding(tmp_path):
    dataset(tmp_path / "one", SHAPES)
    dataset(tmp_path / "many", SHAPES, max_bytes=1)
    one, many = Index.open(tmp_path / "one", "train"), Index.open(tmp_path / "many", "train")
    assert len(one.described["shards"]) == 1
    assert len(many.described["shards"]) == len(SHAPES)
    assert one.keys == many.keys
    assert (one.fingerprint, one.captions_fingerprint) == (many.fingerprint, many.captions_fingerprint)
    assert [one.read_member(n) for n in range(len(one))] == [many.read_member(n) for n in range(len(many))]


def test_keys_behave_as_the_list_they_stand_for(tmp_path):
    dataset(tmp_path / "set", SHAPES, heldout=(0, 2))
    for split in (None, "train", "heldout"):
        keys = Index.open(tmp_path / "set", split).keys
        plain = list(keys)
        assert keys == plain
        assert (keys[-1], keys[1:], len(keys), keys.index(plain[1])) == (plain[-1], plain[1:], len(plain), 1)
        assert keys != [*plain, "more"]
        with pytest.raises(IndexError):
            keys[len(plain)]


def first_version(folder):
    """Make a dataset what the program's first version wrote: no columns, no scores, no consent, one group of rows."""
    described = json.loads((folder / "dataset.json").read_text()) | {"version": 1}
    for name in ("captions", "columns"):
        described.pop(name)
    shutil.rmtree(folder / "columns")
    for entry in described["shards"]:
        entry.pop("meta_bytes")
        meta = folder / entry["meta"]
        pq.write_table(pq.read_table(meta).drop_columns(["scores", "consent"]), meta, compression="zstd")
        entry["meta_sha256"] = storage.file_hash(meta)
    (folder / "dataset.json").write_text(json.dumps(described))


def test_the_first_versions_datasets_are_read_as_before(tmp_path):
    for folder in ("old", "new"):
        dataset(tmp_path / folder, SHAPES, heldout=(1,), max_bytes=1)
    first_version(tmp_path / "old")
    for split in (None, "train", "heldout"):
        old, new = (Index.open(tmp_path / folder, split) for folder in ("old", "new"))
        assert (old.fingerprint, old.captions_fingerprint) == (new.fingerprint, new.captions_fingerprint)
        for name in ("frames", "heights", "widths", "fps", "sizes"):
            assert np.array_equal(getattr(old, name), getattr(new, name))
        assert [(old.row(n), old.member(n), old.captions(n)) for n in range(len(old))] == [
            (new.row(n), new.member(n), new.captions(n)) for n in range(len(new))
        ]


def test_columns_are_made_anew_where_they_are_missing_and_refused_where_they_changed(tmp_path):
    dataset(tmp_path / "set", SHAPES, heldout=(1,))
    whole = Index.open(tmp_path / "set", "train")
    frames, members = whole.frames.tolist(), [whole.member(n) for n in range(len(whole))]
    flip(tmp_path / "set/columns/frames.bin", 5)
    with pytest.raises(ValueError, match=r"columns/frames\.bin has changed.*delete the folder"):
        Index.open(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/columns")
    again = Index.open(tmp_path / "set", "train")
    assert again.frames.tolist() == frames
    assert [again.member(n) for n in range(len(again))] == members


def test_a_group_of_rows_is_read_where_one_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "GROUP_ROWS", 3)
    with DatasetWriter(tmp_path / "set", licence="", max_bytes=1 << 20) as writer:
        for number in range(10):
            writer.write(facts(f"k{number}", captions=(Caption("short", f"{number}", "me"),)), bytes([number]))
        writer.finish({})
    index = Index.open(tmp_path / "set")
    assert [index.captions(n)[0].text for n in (9, 0, 3, 2, 5, 8)] == ["9", "0", "3", "2", "5", "8"]
    assert index.captions(-1)[0].text == "9"
    assert all(table.num_rows <= 3 for table in index.files._kept.values())


def test_metadata_that_changes_while_it_is_large_is_refused_when_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr("sora.data.index.index._CHECKED_AT_ONCE", 0)
    dataset(tmp_path / "set", SHAPES, max_bytes=1)
    index = Index.open(tmp_path / "set")
    meta = tmp_path / "set/meta-000002.parquet"
    flip(meta, meta.stat().st_size // 2)
    assert index.captions(1)
    with pytest.raises(ValueError, match=r"meta-000002\.parquet has changed"):
        index.captions(2)


def test_what_is_no_dataset_is_told_with_the_command_that_leads_on(tmp_path):
    """Each is said of what lies there: the command for videos, given for shards or for work that was stopped, would lose an hour."""
    home = tmp_path / "2026_11_29 ü"
    for place, file, told in (
        ("none", None, f"is no folder; make one with: sora prepare input=FOLDER 'output={home}/none'"),
        ("films", "a.mp4", f"videos and images become one with: sora prepare 'input={home}/films' output=FOLDER"),
        ("flat", "0.tar", f"its shards are indexed with: sora data 'index={home}/flat'"),
        ("deep", "a/0.tar", f"its shards are indexed with: sora data 'index={home}/deep' 'shards=*/*.tar'"),
        ("half", f"{units.FOLDER}/ab/x.unit", "the sora prepare that began it goes on when the same line is given again"),
        ("begun", f"{INDEXING}/settings.json", "the sora data index that began it goes on when the same line is given again"),
    ):
        if file is not None:
            (home / place / file).parent.mkdir(parents=True)
            (home / place / file).touch()
        with pytest.raises(ValueError) as found:
            Index.open(home / place)
        assert str(found.value).endswith(told)
