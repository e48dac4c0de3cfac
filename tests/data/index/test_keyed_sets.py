"""Laws of sets of captions, of scores and of selections, which share their files."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index, open_indexes
from sora.data.index.keyed_sets import CAPTION_SETS, SCORE_SETS, SELECTIONS
from sora.data.index.set_writers import CaptionSetWriter, ScoreSetWriter, SelectionWriter
from sora.data.loading.frames import frame_clips
from sora.data.loading.loader import FrameData
from sora.data.plan.crops import CropPlan
from sora.ingest.check import check
from sora.patches.geometry import Geometry
from sora.system.files import file_hash
from sora.tokens import Grid
from sora.video.files import PYAV, encode
from tests.data.making import dataset, flip, telling
from tests.data.plan.making import plan

CLIPS = 6
KINDS = (CAPTION_SETS, SCORE_SETS, SELECTIONS)


@pytest.fixture
def folder(tmp_path):
    dataset(tmp_path / "set", [(5, 8, 8)] * CLIPS, max_bytes=1, heldout=(4,))  # a clip a shard
    return tmp_path / "set"


def value(kind, shard, more=""):
    return {
        CAPTION_SETS: [Caption("dense", f"text {shard}{more}", "me")],
        SCORE_SETS: {"motion": shard + 0.1, f"sharp{more}": -1.0},
        SELECTIONS: ("too dark" if shard % 2 else "") + more if shard else "",
    }[kind]


def writer(kind, folder, *, settings=None, name="some"):
    if kind is SELECTIONS:
        return SelectionWriter(Index.open(folder), name, settings=settings)
    made = CaptionSetWriter if kind is CAPTION_SETS else ScoreSetWriter
    return made(folder, name, dataset=Index.open(folder).dataset_fingerprint, settings=settings)


def write(made, kind, shards, more=""):
    for shard in shards:
        made.write(shard, {f"clip-{shard:03d}": value(kind, shard, more)})


def bytes_of(folder, kind):
    return {path.name: path.read_bytes() for path in folder.glob(f"{kind.prefix}-*")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix)
def test_a_writer_that_was_killed_and_several_at_once_write_what_one_writes(folder, kind):
    settings, about = {"prompt": "what is seen?", "most": 3}, {"who": "a model"}
    whole = writer(kind, folder, settings=settings)
    write(whole, kind, range(CLIPS))
    whole.finish(about)
    expected = bytes_of(folder, kind)
    for path in folder.glob(f"{kind.prefix}-*"):
        path.unlink()
    first, second = writer(kind, folder, settings=settings), writer(kind, folder, settings=settings)  # parts of the work
    write(first, kind, (4, 0))
    write(second, kind, (1,), more=" of before a change of mind")
    write(second, kind, (1, 3))
    third = writer(kind, folder, settings=dict(reversed(settings.items())))  # in the place of one that was killed
    assert set(third.written()) == {0, 1, 3, 4}
    write(third, kind, set(range(CLIPS)) - set(third.written()))
    first.finish(about)  # whoever ends last, whatever it has written itself
    assert bytes_of(folder, kind) == expected
    second.finish(about)  # at the same moment
    assert bytes_of(folder, kind) == expected
    with pytest.raises(ValueError, match="exists already"):
        writer(kind, folder, settings=settings)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix)
def test_what_belongs_to_another_unfinished_set_is_neither_taken_over_nor_written_over(folder, tmp_path, kind):
    write(writer(kind, folder, settings={"prompt": "a"}), kind, (0, 1))
    before = bytes_of(folder, kind)
    with pytest.raises(ValueError, match=rf"{kind.prefix}-some-000000\.parquet belongs to an unfinished .* of other settings"):
        writer(kind, folder, settings={"prompt": "b"})
    (folder / f"{kind.prefix}-some-000002.parquet").write_bytes((folder / "meta-000002.parquet").read_bytes())  # of no set
    with pytest.raises(ValueError, match=rf"{kind.prefix}-some-000002\.parquet belongs to an unfinished .* of an older version"):
        writer(kind, folder, settings={"prompt": "a"})
    (folder / f"{kind.prefix}-some-000002.parquet").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match=rf"{kind.prefix}-some-000002\.parquet is damaged"):
        writer(kind, folder, settings={"prompt": "a"})
    (folder / f"{kind.prefix}-some-000002.parquet").unlink()
    assert bytes_of(folder, kind) == before
    writer(kind, folder, settings={"prompt": "b"}, name="other")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix)
def test_a_content_hash_changes_with_the_content_alone(folder, kind):
    def hashes(name, more="", **said):
        made = writer(kind, folder, name=name, settings=said)
        write(made, kind, range(CLIPS), more)
        return [entry[kind.column] for entry in json.loads(made.finish({"at": name}).read_text())["files"]]

    same = hashes("a")
    assert hashes("b", note="other settings") == same
    others = hashes("c", more="!")
    assert [one != other for one, other in zip(same, others, strict=True)][1:] == [True] * (CLIPS - 1)
    assert (same[0] == others[0]) == (kind is SELECTIONS)  # which keeps that clip in both


NULLS = {CAPTION_SETS: [{"kind": "dense", "text": None, "captioner": "me"}], SCORE_SETS: [("motion", None)], SELECTIONS: None}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix)
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_of_a_stranger_that_lacks_a_value_or_a_part_of_one_is_damaged(tmp_path, kind, whole):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"key": ["a"], kind.column: [None if whole else NULLS[kind]]}, schema=kind.schema), path)
    with pytest.raises(ValueError, match=r"x\.parquet is damaged: a key or a value is missing"):
        kind.read(path, file_hash(path))


def test_scores_of_sets_stand_over_those_of_the_rows(tmp_path):
    with DatasetWriter(tmp_path, licence="", max_bytes=1 << 30) as made:
        media = encode(telling(2, 16, 16), 8.0, lossless=True)
        made.write(ClipFacts("a", 2, 8.0, 16, 16, scores={"motion": 1.0, "own": 2.0}), media)
        made.write(ClipFacts("b", 2, 8.0, 16, 16), media)
        made.finish({})
    for name, motion in (("a_first", 3.0), ("b_later", 4.0)):
        scores = ScoreSetWriter(tmp_path, name, dataset=Index.open(tmp_path).dataset_fingerprint)
        with pytest.raises(ValueError, match="clip a: its score dark is nan"):
            scores.write(0, {"a": {"dark": float("nan")}})
        scores.write(0, {"a": {"motion": motion, name: 0.5}})
        scores.finish({})
    index = Index.open(tmp_path)
    assert index.scores(0) == {"motion": 4.0, "own": 2.0, "a_first": 0.5, "b_later": 0.5} and index.scores(1) == {}
    flip(tmp_path / "scores-a_first-000000.parquet", 50)
    with pytest.raises(ValueError, match=r"scores-a_first-000000\.parquet is missing or has changed"):
        Index.open(tmp_path).scores(0)


def selected(folder, left, *, name="good"):
    index = Index.open(folder)
    made = SelectionWriter(index, name)
    for shard in range(len(index.described["shards"])):
        made.write(shard, {key: left.get(key, "") for key in index.shard_keys(shard)})
    return made.finish({"rules": "of a test"})


def of_two(tmp_path, shapes, kept):
    """A dataset with a selection, and one of the kept clips alone."""
    dataset(tmp_path / "all", shapes, heldout=(1, 4), max_bytes=3000)
    selected(tmp_path / "all", {f"clip-{number:03d}": "small" for number in range(len(shapes)) if number not in kept})
    with DatasetWriter(tmp_path / "few", licence="CC0-1.0", max_bytes=1 << 30) as writer:
        for number in kept:
            row, whole = Index.open(tmp_path / "all").row(number), Index.open(tmp_path / "all")
            facts = {name: getattr(row, name) for name in ClipFacts.__dataclass_fields__}
            writer.write(ClipFacts(**facts), whole.read_member(row))
        writer.finish({})
    return tmp_path / "all", tmp_path / "few"


def test_a_selection_is_the_dataset_of_its_clips_alone_to_whoever_plans(tmp_path):
    shapes = [(9, 24 + 8 * (number % 3), 32) for number in range(12)]
    whole, few = of_two(tmp_path, shapes, kept=(0, 2, 3, 4, 8, 9, 11))
    for split in (None, "train", "heldout"):
        one, other = Index.open(whole, split, selection="good"), Index.open(few, split)
        assert (one.fingerprint, one.captions_fingerprint) == (other.fingerprint, other.captions_fingerprint)
        assert list(one.keys) == list(other.keys) and one.heights.tolist() == other.heights.tolist()
        assert [one.read_member(row) for row in range(len(one))] == [other.read_member(row) for row in range(len(other))]
        assert sum(len(one.rows_of_shard(shard)) for shard in range(len(one.described["shards"]))) == len(one)
    crops = [
        CropPlan([index], shapes=[[5, 16, 16], [9, 32, 32]], batch=4, packs=2, weights=None, seed=3)
        for index in (Index.open(whole, "train", selection="good"), Index.open(few, "train"))
    ]
    assert [crops[0].at(step) for step in range(9)] == [crops[1].at(step) for step in range(9)]
    geometry = Geometry((4, 8, 8), Grid(1, 1, 1))
    packs = [
        plan(frame_clips([index], areas=[256, 1024], rate=None, geometry=geometry), packs=2, budget=64, max_clips=4)
        for index in (Index.open(whole, "train", selection="good"), Index.open(few, "train"))
    ]
    assert [packs[0].at(step) for step in range(9)] == [packs[1].at(step) for step in range(9)]


def test_the_numbers_of_a_selection_are_told_and_what_it_keeps_is_its_identity(folder):
    left = {"clip-000": "too dark", "clip-003": "too dark", "clip-005": "a cut within"}
    selected(folder, left)
    selected(folder, dict.fromkeys(left, "another reason"), name="again")
    selected(folder, {}, name="every")
    train = Index.open(folder, "train", selection="good")
    assert train.selected == ["selection good keeps 2 of 5 clips (2 too dark, 1 a cut within)"]
    assert Index.open(folder, "heldout", selection="good").selected == ["selection good keeps 1 of 1 clip"]
    assert train.fingerprint == Index.open(folder, "train", selection="again").fingerprint != Index.open(folder, "train").fingerprint
    assert Index.open(folder, "train", selection="every").fingerprint == Index.open(folder, "train").fingerprint
    data = {"folders": [str(folder)], "split": "train", "weights": None, "max_bad_share": 0.0, "cache_mb": 0, "reader": PYAV}
    depends = [FrameData(**data, selection=name).depends for name in ("good", "again", "every", None)]
    assert depends[0] == depends[1] and len({found["data"] for found in depends}) == 2
    assert [len(found.get("selection", "")) for found in depends] == [12, 12, 0, 0]
    assert not check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64).faults
    notes = check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64).notes
    assert "selection good keeps 3 of 6 clips (2 too dark, 1 a cut within)" in notes


def test_selections_that_cannot_be_meant_are_refused(folder, tmp_path):
    path = selected(folder, {"clip-004": "dark"})
    with pytest.raises(ValueError, match=r"data\.selection: .* has no selection 'best'; it has good"):
        Index.open(folder, selection="best")
    with pytest.raises(ValueError, match=r"split heldout: selection good keeps 0 of 1 clip \(1 dark\); choose another"):
        Index.open(folder, "heldout", selection="good")
    with pytest.raises(ValueError, match=r"selection none would keep no clip .* \(6 dark\)"):
        selected(folder, {f"clip-{number:03d}": "dark" for number in range(CLIPS)}, name="none")
    half = SelectionWriter(Index.open(folder), "half")
    with pytest.raises(ValueError, match="clip-001 is neither kept nor has a reason"):
        half.write(1, {})
    with pytest.raises(ValueError, match="stranger is not a clip of it"):
        half.write(1, {"clip-001": "", "stranger": ""})
    half.write(1, {"clip-001": ""})
    with pytest.raises(ValueError, match="nothing is written of shard 0"):
        half.finish({})
    with pytest.raises(ValueError, match="open the index without a split"):
        SelectionWriter(Index.open(folder, "train"), "x")
    dataset(tmp_path / "other", [(3, 8, 8)] * 2)
    for file in folder.glob("selection-good*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"selection-good\.json is of another dataset"):
        Index.open(tmp_path / "other", selection="good")
    Index.open(folder, "train", selection="good")
    flip(folder / "selection-good-000002.parquet", 60)
    with pytest.raises(ValueError, match=r"selection-good-000002\.parquet is missing or has changed"):
        Index.open(folder, selection="good")
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"files": described["files"][:-1], "sha256": None}))
    with pytest.raises(ValueError, match="its files are not of each shard"):
        Index.open(folder, selection="good")


def test_a_selection_that_says_other_fingerprints_than_its_clips_is_a_fault(folder):
    path = selected(folder, {"clip-004": "dark"})
    described = json.loads(path.read_text())
    path.write_text(json.dumps(described | {"clips": "f" * 64}))
    (fault,) = check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64).faults
    assert (fault.kind, fault.where) == ("selection", "selection-good.json") and "fingerprints" in fault.reason
    path.write_text(json.dumps(described))
    scores = ScoreSetWriter(folder, "s", dataset=Index.open(folder).dataset_fingerprint)
    scores.write(2, {"clip-001": {"x": 1.0}})
    scores.finish({})
    (fault,) = check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64).faults
    assert (fault.kind, fault.where) == ("scores", "scores-s-000002.parquet") and "clip-001" in fault.reason


def captioned(folder, name, text):
    made = CaptionSetWriter(folder, name, dataset=Index.open(folder).dataset_fingerprint)
    made.write(0, {"clip-000": [Caption("short", text, "test")]})
    return made.finish({})


def test_an_index_keeps_the_sets_that_it_was_opened_with(folder):
    captioned(folder, "a", "first")
    index, none = Index.open(folder), Index.open(folder, sets=[])
    captioned(folder, "b", "second")
    again = pickle.loads(pickle.dumps(index))  # as a worker that is not forked gets it
    assert [found.captions(0)[0].text for found in (none, index, again, Index.open(folder))] == ["clip 0", "first", "first", "second"]
    assert again.captions_fingerprint == index.captions_fingerprint == Index.open(folder, sets=["a"]).captions_fingerprint
    prints = {Index.open(folder, sets=names).captions_fingerprint for names in ([], ["a"], ["b"], ["a", "b"], None)}
    assert len(prints) == 4 and none.captions_fingerprint in prints


def test_sets_of_several_datasets_are_named_for_all_or_for_each(tmp_path):
    folders = []
    for name, sets in (("one", ("a", "b")), ("two", ("b",)), ("three", ())):
        dataset(tmp_path / name, [(2, 8, 8)], prefix=name)
        for each in sets:
            made = CaptionSetWriter(tmp_path / name, each, dataset=Index.open(tmp_path / name).dataset_fingerprint)
            made.write(0, {})
            made.finish({})
        folders.append(str(tmp_path / name))

    def opened(sets):
        return [index.sets.names for index in open_indexes(folders, "train", sets=sets)]

    assert opened(None) == opened(["b", "a"]) == [("a", "b"), ("b",), ()]
    assert opened(["a"]) == [("a",), (), ()] and opened([]) == [(), (), ()] and opened([["b"], [], []]) == [("b",), (), ()]
    for sets, said in (
        (["a", "c"], "no dataset of data.folders has a set of captions 'c'; they have a, b"),
        ([["a"], ["a"], []], "two has no set of captions 'a'; it has b"),
        ([["a"], []], "one list for each of the 3"),
        ([["a"], "b", []], "one list for each of the 3"),
        ("a", "a list of names"),
    ):
        with pytest.raises(ValueError, match=said):
            opened(sets)
    with pytest.raises(ValueError, match="one for each of the 3"):
        open_indexes(folders, "train", selection=["a"])


def test_kept_rows_are_few_bytes_a_clip(folder):
    selected(folder, {"clip-004": "dark"})
    index = Index.open(folder, selection="good")
    assert index.selection.codes.dtype == np.int16 and index.of_rows(np.arange(CLIPS)).tolist() == [0, 1, 2, 3, 5]
