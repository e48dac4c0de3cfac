import pytest

from sora.data.index.index import Caption, Index
from sora.data.index.set_writers import CaptionSetWriter
from sora.system.files import file_hash
from tests.data.making import dataset, flip

SHAPES = [(1, 8, 8)] * 4


def added(folder, name, captions, *, dataset=None):
    writer = CaptionSetWriter(folder, name, dataset=dataset or Index.open(folder).dataset_fingerprint)
    for shard, said in captions.items():
        writer.write(shard, said)
    return writer.finish({"captioner": name})


@pytest.fixture
def folder(tmp_path):
    dataset(tmp_path / "set", SHAPES, max_bytes=1)
    return tmp_path / "set"


def said(folder, number):
    return [(caption.kind, caption.text, caption.captioner) for caption in Index.open(folder).captions(number)]


def test_recaptioning_writes_no_other_file_again_and_is_told_by_the_fingerprint(folder):
    before = {path.name: file_hash(path) for path in folder.rglob("*") if path.is_file()}
    prints = {Index.open(folder).captions_fingerprint}
    clips = Index.open(folder).fingerprint
    added(folder, "dense", {1: {"clip-001": (Caption("dense", "a long text", "model"),)}})
    prints.add(Index.open(folder).captions_fingerprint)
    added(folder, "more", {1: {"clip-001": (Caption("dense", "another", "model"),)}})
    prints.add(Index.open(folder).captions_fingerprint)
    assert len(prints) == 3
    assert Index.open(folder).fingerprint == clips
    assert {name: file_hash(next(folder.rglob(name))) for name in before} == before
    assert said(folder, 1) == [("short", "clip 1", "test"), ("dense", "another", "model")]
    assert said(folder, 0) == [("short", "clip 0", "test")]


def test_a_caption_replaces_that_of_its_kind_and_captioner_and_no_other(folder):
    mine, theirs = Caption("short", "mine", "me"), Caption("short", "theirs, better", "test")
    added(folder, "a", {2: {"clip-002": (mine, theirs)}, 3: {"clip-003": (mine, mine)}})
    assert said(folder, 2) == [("short", "mine", "me"), ("short", "theirs, better", "test")]
    assert said(folder, 3) == [("short", "clip 3", "test"), ("short", "mine", "me"), ("short", "mine", "me")]


def test_a_set_is_in_force_only_when_it_is_finished(folder):
    writer = CaptionSetWriter(folder, "half", dataset=Index.open(folder).dataset_fingerprint)
    with pytest.raises(ValueError, match="no file was written"):
        writer.finish({})
    writer.write(0, {"clip-000": (Caption("dense", "x", "y"),)})
    assert said(folder, 0) == [("short", "clip 0", "test")]


def test_captions_of_another_dataset_and_damaged_ones_are_refused_by_name(folder):
    path = added(folder, "dense", {0: {"clip-000": (Caption("dense", "x", "y"),)}}, dataset="f" * 64)
    with pytest.raises(ValueError, match=r"captions-dense\.json is of another dataset"):
        Index.open(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"captions-dense-000000\.parquet belongs to an unfinished set of captions of another dataset"):
        added(folder, "dense", {0: {"clip-000": (Caption("dense", "x", "y"),)}})
    (folder / "captions-dense-000000.parquet").unlink()
    added(folder, "dense", {0: {"clip-000": (Caption("dense", "x", "y"),)}})
    with pytest.raises(ValueError, match="exists already"):
        added(folder, "dense", {0: {}})
    flip(folder / "captions-dense-000000.parquet", 100)
    with pytest.raises(ValueError, match=r"captions-dense-000000\.parquet is missing or has changed"):
        Index.open(folder).captions(0)
    assert said(folder, 1) == [("short", "clip 1", "test")]
    with pytest.raises(ValueError, match=r"'\.\./x' is no name"):
        CaptionSetWriter(folder, "../x", dataset="")
