"""`sora data check` finds exactly what was damaged, and `sora data show` counts what is there."""

import json
import os
import re
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sora import cli
from sora.data.index import latents, rows
from sora.data.index import writer as writing
from sora.data.index.index import Caption, ClipFacts, DatasetWriter, Index
from sora.data.index.set_writers import CaptionSetWriter
from sora.ingest import check as checking
from sora.ingest.check import check
from sora.ingest.statistics import binned, describe
from sora.system.files import file_hash
from sora.video.files import encode
from tests.data.making import dataset, flip, telling

SHAPES = [(5, 16, 16), (1, 16, 24), (9, 18, 20), (5, 16, 16), (3, 8, 8)]


@pytest.fixture
def folder(tmp_path):
    dataset(tmp_path / "set", SHAPES, heldout=(1,), max_bytes=15_000)
    return tmp_path / "set"


def faults(folder, *, decode=1.0, workers=0, seconds=30):
    found = check(Index.open(folder), decode=decode, workers=workers, seconds=seconds, memory_gb=64)
    return [(fault.kind, fault.where.rpartition(": ")[2]) for fault in found.faults]


def test_a_whole_dataset_has_no_faults_and_says_what_was_compared(folder):
    checked = check(Index.open(folder), decode=0.4, workers=2, seconds=30, memory_gb=64)
    assert not checked.faults
    wanted = {"parquet files": 4, "columns": 11, "shards": 4, "videos without a row": 0, "clips": 5, "clips decoded": 2}
    assert dict(checked.counts) == wanted
    assert checked.lines()[0].endswith("all as the index says")


def test_flipped_bytes_of_clips_are_named_and_nothing_else(folder):
    index = Index.open(folder)
    for number in (0, 3):
        member = index.member(number)
        flip(folder / member.shard, member.offset + member.size // 2)
    assert faults(folder) == [("bytes", "clip-000"), ("bytes", "clip-003")]


def rewritten(folder, change):
    """Change the rows of all shards, and make dataset.json agree in everything but what `change` is about."""
    path = folder / "dataset.json"
    described = json.loads(path.read_text())
    for number, entry in enumerate(described["shards"]):
        table = pq.read_table(folder / entry["meta"])
        found = [rows.clip_row_of(values) for values in table.to_pylist()]
        rows.write_rows(folder / entry["meta"], [change(row, number) for row in found])
        entry["meta_sha256"] = file_hash(folder / entry["meta"])
    described.pop("columns")
    path.write_text(json.dumps(described))
    for column in (folder / "columns").iterdir():
        column.unlink()
    (folder / "columns").rmdir()


def other(row, **changes):
    return row.__class__(**{**vars(row), **changes})


def test_rows_that_say_another_shape_rate_or_place_than_the_video_are_faults(folder):
    def change(row, number):
        wrong = {"clip-000": {"frames": 6}, "clip-001": {"height": 18}, "clip-003": {"fps": 9.0}, "clip-004": {"offset": row.offset + 1}}
        return other(row, **wrong.get(row.key, {}))

    rewritten(folder, change)
    found = faults(folder)
    assert [fault for fault in found if fault[1] != "dataset.json"] == [
        ("offset", "clip-004"), ("shape", "clip-000"), ("shape", "clip-001"), ("rate", "clip-003"), ("bytes", "clip-004"),
    ]  # fmt: skip
    assert ("count", "dataset.json") in found and ("fingerprint", "dataset.json") in found


def test_keys_that_come_twice_are_a_fault(folder):
    rewritten(folder, lambda row, number: other(row, key="same") if row.key in ("clip-000", "clip-004") else row)
    assert ("duplicate", "dataset.json") in faults(folder, decode=0)


def test_a_shard_with_a_video_that_has_no_row_is_counted(folder):
    rewritten(folder, lambda row, number: row)
    described = json.loads((folder / "dataset.json").read_text())
    entry = described["shards"][0]
    table = pq.read_table(folder / entry["meta"])
    rows.write_rows(folder / entry["meta"], [rows.clip_row_of(table.to_pylist()[0])])
    gone = table.num_rows - 1
    entry |= {"clips": 1, "meta_sha256": file_hash(folder / entry["meta"])}
    described["totals"]["clips"] -= gone
    (folder / "dataset.json").write_text(json.dumps(described))
    assert check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64).counts["videos without a row"] == gone


def test_clips_that_do_not_decode_or_kill_their_process_are_named(folder, monkeypatch):
    def killing(media, *, name, read=checking.read, **asked):
        if name.startswith("clip-002"):
            os._exit(139)
        return read(media, name=name, **asked)

    monkeypatch.setattr(checking, "read", killing)
    checking._compare.cache_clear()
    assert faults(folder, workers=1, seconds=20) == [("decode", "clip-002")]


def test_damaged_captions_and_latents_are_named(folder):
    index = Index.open(folder)
    writer = CaptionSetWriter(folder, "more", dataset=index.dataset_fingerprint)
    writer.write(0, {"clip-000": (Caption("dense", "x", "y"),), "stranger": (Caption("dense", "x", "y"),)})
    writer.finish({})
    vae = "ab" * 32
    parts = latents.shard_rows(index)
    for number, part in enumerate(parts):
        made = [torch.full((2, 1, 2, 2), float(row)) for row in part]
        latents.write_shard(index, part, lambda _, made=made: made, number=number, vae_hash=vae, settings={})
    latents.finish(index, shards=len(parts), vae_hash=vae, about={"stride": [4, 8, 8]})
    assert faults(folder, decode=0) == [("captions", "captions-more-000000.parquet")]
    member = latents.LatentIndex(index, vae).member(2)
    flip(folder / member.shard, member.offset + member.size - 1)
    assert faults(folder, decode=0) == [("captions", "captions-more-000000.parquet"), ("latents", "clip-002")]


@pytest.mark.slow
def test_the_command_takes_words_and_leaves_a_list_of_faults(folder, capsys):
    member = Index.open(folder).member(4)
    flip(folder / member.shard, member.offset)
    assert cli.main(["data", "check", str(folder), "workers=0", f"output={folder.parent / 'faults.json'}"]) == 1
    assert "1 fault (1 bytes)" in capsys.readouterr().out
    (fault,) = json.loads((folder.parent / "faults.json").read_text())["faults"]
    assert (fault["kind"], fault["where"]) == ("bytes", f"{member.shard}: clip-004")
    assert cli.main(["data", "check"]) == 2
    assert cli.main(["data", f"check={folder}", f"show={folder}"]) == 2
    assert "sora data check FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_the_index_command_indexes_beside_and_elsewhere_and_refuses_a_second_time(folder, capsys):
    before = Index.open(folder).fingerprint
    near = folder.parent / "near"
    assert cli.main(["data", "index", str(folder), f"output={near}", "workers=0"]) == 0
    assert Index.open(near).fingerprint == before
    (folder / "dataset.json").unlink()
    assert cli.main(["data", "index", str(folder), "workers=0"]) == 0
    assert Index.open(folder).fingerprint == before
    assert "5 clips (4 train, 1 heldout) in 4 shards" in capsys.readouterr().out
    assert cli.main(["data", "index", str(folder)]) == 2
    assert "is indexed" in capsys.readouterr().err
    assert cli.main(["data", "index=http://127.0.0.1:1/x"]) == 2
    assert "output=FOLDER" in capsys.readouterr().err


def test_a_description_counts_every_clip_once(folder):
    told = describe(Index.open(folder), sample=3)
    assert all(sum(histogram.counts.values()) == 5 for histogram in told.histograms if "words" not in histogram.about)
    assert told.histograms[0].counts == {"16x16": 2, "24x16": 1, "20x18": 1, "8x8": 1}
    assert (told.totals["clips"], told.totals["frames"], told.sampled) == (5, 23, 3)
    assert told.counted["licence"] == {"CC0-1.0": 3}


def test_where_all_clips_are_held_out_no_training_is_named_next(folder, capsys):
    (folder / "dataset.json").unlink()
    assert cli.main(["data", "index", str(folder), "held_out=1", "workers=0"]) == 0
    told = capsys.readouterr().out
    assert "5 clips (5 heldout) in 4 shards" in told and told.splitlines()[-1] == f"next: sora data show {folder}"


def test_an_image_lasts_for_no_time_whatever_its_rate(tmp_path):
    dataset(tmp_path, [(1, 16, 16), (8, 16, 16), (1, 16, 24)], fps=4.0)
    told = describe(Index.open(tmp_path), sample=3)
    assert told.totals["seconds"] == 2.0 == Index.open(tmp_path).described["totals"]["seconds"]
    assert next(one for one in told.histograms if one.about == "duration in seconds").counts == {"0": 2, "2": 1}


FEW = [[1], [1, 2, 2], [0.5] * 3, [*range(13)], [-3.5, *range(30)], [100, *range(17, 60)]]
WIDE = [[*range(100)], [1, 10, 100, 1000] * 5, [0, 1e6, *range(20)], [*range(1, 40)], [2**n for n in range(40)]]
STRANGE = [[1e-9 * n for n in range(1, 50)], [1e-300 * 10**n for n in range(60)]]


@pytest.mark.parametrize("values", [*FEW, *WIDE, *STRANGE])
def test_bins_hold_every_value_once(values):
    for kind in (np.int64, np.float64):
        array = np.array(values).astype(kind)
        counts = binned(array)
        assert sum(counts.values()) == len(values)
        assert len(counts) <= 13
    assert binned(np.array([])) == {}


def test_bins_lie_between_round_numbers_and_name_the_whole_ones_in_them():
    assert list(binned(np.array([*range(1, 26)]))) == ["0–4", "5–9", "10–14", "15–19", "20–24", "25–29"]
    assert list(binned(np.array([1, 2, 3, 4, 6, 7, 12, 13, 20, 33, 40, 41, 49]))) == [
        "1", "2", "3–4", "5–6", "7–9", "10–14", "15–19", "20–29", "30–49"]  # fmt: skip
    assert list(binned(np.linspace(0.31, 2.6, 20)))[:3] == ["0.25–0.5", "0.5–0.75", "0.75–1"]
    assert next(iter(binned(np.geomspace(0.002, 9, 20)))) == "0.002–0.005"


@pytest.mark.slow
def test_the_page_shows_clips_and_lets_no_text_of_a_stranger_in(tmp_path, capsys):
    said = (Caption("<b>kind", "<script>alert(1)</script> a $x$ 猫", "<i>model"),)
    with DatasetWriter(tmp_path / "set", licence="<u>none", max_bytes=1 << 20) as writer:
        for number in range(3):
            facts = ClipFacts(f"k{number}", 3, 8.0, 32, 48, said, scores={"<s>core": number + 0.5}, consent="<c>")
            writer.write(facts, encode(telling(3, 32, 48, number), 8.0, lossless=True))
        writer.finish({})
    member = Index.open(tmp_path / "set").member(1)
    flip(tmp_path / "set" / member.shard, member.offset + 9)
    assert cli.main(["data", "show", str(tmp_path / "set"), "workers=0"]) == 0
    out = capsys.readouterr().out
    assert "48x32" in out and "could not be shown: clip k1" in out
    page = (tmp_path / "set/show.html").read_text()
    assert page.count("data:image/jpeg") == 2
    assert not re.findall(r"<(?:script|b>kind|i>model|u>none|s>core|c>)", page)
    assert "Could not be shown" in page
    assert writing.VERSION == 2


def test_no_more_than_a_shards_rows_are_held_at_a_time(folder, monkeypatch):
    """Tables of all shards, kept until the end, are what would not fit."""
    made, most, whole = [], 0, rows.RowFiles.whole

    def counted(self, number, columns=None):
        nonlocal most
        table = whole(self, number, columns)
        made.append(weakref.ref(table))
        most = max(most, sum(one() is not None for one in made))
        return table

    monkeypatch.setattr(rows.RowFiles, "whole", counted)
    checked = check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64)
    assert (checked.counts["parquet files"], checked.faults) == (4, [])
    assert most <= 2  # the last one, and the next one that is being read


def test_columns_that_say_something_else_than_the_rows_are_named(folder):
    """Though dataset.json agrees with them: who writes both wrong is found by the rows."""
    described = json.loads((folder / "dataset.json").read_text())
    for name in ("frames", "keys", "sha256"):
        flip(folder / f"columns/{name}.bin", 4)
        described["columns"]["sha256"][name] = file_hash(folder / f"columns/{name}.bin")
    described["columns"]["suffixes"] = ["mkv"]
    (folder / "dataset.json").write_text(json.dumps(described))
    found = check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64).faults
    assert [fault.where for fault in found] == [f"columns/{name}.bin" for name in ("frames", "keys", "sha256", "suffix")]


def test_faults_without_number_are_counted_and_not_kept(folder, monkeypatch):
    monkeypatch.setattr(checking, "_MOST_FAULTS", 2)
    index = Index.open(folder)
    for number in range(5):
        flip(folder / index.member(number).shard, index.member(number).offset)
    checked = check(Index.open(folder), decode=0, workers=0, seconds=9, memory_gb=64)
    assert (len(checked.faults), dict(checked.kinds)) == (2, {"bytes": 5})
    assert checked.lines(1)[0].endswith("5 faults (5 bytes)") and "  … and 4 more" in checked.lines(1)


def test_only_what_was_decoded_is_counted_as_decoded(folder):
    """Neither clips of a shard that cannot be read, nor those whose bytes are others, or whose frames cannot be had at all."""
    index = Index.open(folder)
    lost = index.member(0).shard
    gone = sum(index.member(row).shard == lost for row in range(len(index)))
    other = next(index.member(row) for row in range(len(index)) if index.member(row).shard != lost)
    os.remove(folder / lost)
    flip(folder / other.shard, other.offset + other.size // 2)
    checked = check(index, decode=1.0, workers=0, seconds=30, memory_gb=64)
    assert checked.counts["clips"] == len(index) and checked.counts["clips decoded"] == len(index) - gone - 1
    assert checked.kinds["bytes"] == gone + 1
