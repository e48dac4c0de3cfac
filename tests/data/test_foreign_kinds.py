"""What shards of others may hold beside videos: captions in every spelling, images, tables; each is read or told by name."""

import json
import shutil

import numpy as np
import pytest

from sora.config.compose import compose
from sora.data.index.decoded import decoded_by, refuse_others
from sora.data.index.index import Index
from sora.data.loading.loader import read_clip
from sora.data.shards.stores import store_of
from sora.gate import trust
from sora.ingest import survey as foreign
from sora.ingest.check import check
from sora.ingest.clip_texts import CaptionWords
from sora.ingest.index_shards import passed_over
from sora.video.decoding import pictures
from sora.video.decoding.decord import DecordReader
from sora.video.decoding.guarded import GuardedReader
from sora.video.files import LIMITS, PYAV
from tests.data.making import dataset, telling
from tests.data.sharded import indexed, samples, still, write


def test_members_with_captions_are_read_in_every_spelling_and_others_are_counted(tmp_path, media):
    told = {
        "a.TXT": "upper", "b.mp4.txt": "appended", "c.caption": "caption", "d.cap": "cap", "e.dense.txt": "dense",
        "f.json": '{"prompt": "prompt"}', "g.json": '{"caption": ["one", "two"]}', "h.JSON": '{"kind": "vlog", "caption": "kind"}',
        "i.json": '{"Caption": "capital", "caption_id": "7"}', "j.txt": " ", "k.license.txt": "CC0",
    }  # fmt: skip
    members = [pair for name, text in told.items() for pair in ((name, text.encode()), (f"{name[0]}.mp4", media[0]))]
    write(tmp_path / "a.tar", members)
    index, refused, described = indexed(tmp_path)
    found = {index.key(row): [(one.kind, one.text) for one in index.captions(row)] for row in range(len(index))}
    plain = {"a": "upper", "b": "appended", "c": "caption", "d": "cap", "f": "prompt", "h": "kind", "i": "capital"}
    assert found == {key: [("original", text)] for key, text in plain.items()} | {
        "e": [("dense", "dense")], "g": [("original", "one"), ("original", "two")], "j": [], "k": [],
    }  # fmt: skip
    assert not refused and described["notes"] == {
        "captions that are empty": 1,
        "clips without a caption": 2,
        "keys that are not read as captions (caption_id); captions.keys names them": 1,
        "members that are not read (.license.txt)": 1,
    }
    assert described["captioned"] == {"train": {"clips": 11, "without": 2, "kinds": {"dense": 1, "original": 8}}}


def test_own_names_of_keys_and_suffixes_are_read_in_shards_too(tmp_path, media):
    write(tmp_path / "a.tar", [("a.mp4", media[0]), ("a.vtt", b"said"), ("a.txt", b"not asked for"), ("a.json", b'{"long text": "x"}')])
    index, _, described = indexed(tmp_path, words=CaptionWords(suffixes=["vtt", "json"], keys={"dense": "long text"}))
    assert [(one.kind, one.text) for one in index.captions(0)] == [("dense", "x"), ("original", "said")]
    assert described["notes"] == {"members that are not read (.txt)": 1}


def test_shards_of_images_with_texts_are_indexed_as_clips_of_one_frame(tmp_path):
    """As img2dataset lays them out, with its own files beside the shards."""
    pictures = {"000000000": still(0), "000000001": still(1, size=(32, 64)), "000000003": still(3, "PNG"), "000000004": still(4)}
    members = []
    for key, content in pictures.items():
        about = {"caption": f"no {key}", "url": f"https://x/{key}", "key": key, "status": "success", "width": 1, "height": 1, "sha256": "0"}
        members += [(f"{key}.jpg", content), (f"{key}.txt", f"no {key}".encode()), (f"{key}.json", json.dumps(about).encode())]
    members += [("000000005.jpg", pictures["000000000"][:200]), ("000000005.txt", b"cut")]
    write(tmp_path / "00000.tar", members)
    (tmp_path / "00000_stats.json").write_text("{}")
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    index, refused, _ = indexed(tmp_path)
    assert refused == [("00000.tar", "000000005", "media")]
    shapes = [(int(index.frames[n]), int(index.heights[n]), int(index.widths[n])) for n in range(4)]
    assert shapes == [(1, 32, 48), (1, 64, 32), (1, 32, 48), (1, 32, 48)]
    assert [[said.text for said in index.captions(n)] for n in range(4)] == [[f"no {key}"] for key in pictures]
    assert (index.row(1).source, index.row(1).duration) == ("https://x/000000001", 0.0)
    assert np.array_equal(read_clip(index, 2, reader=PYAV)[0], telling(1, 32, 48, seed=3)[0])  # a PNG, though it is called .jpg
    assert not check(index, decode=1.0, workers=0, seconds=20, memory_gb=64).faults
    beside = passed_over(store_of(str(tmp_path)), "*.tar", ["00000.tar"], tmp_path)
    assert [(one.source, one.reason) for one in beside] == [
        ("00000.parquet", "does not fit shards=*.tar"),
        ("00000_stats.json", "does not fit shards=*.tar"),
        ("gone.tar", "is a link to nowhere (No such file or directory)"),
    ]


def test_a_table_beside_shards_is_named_with_the_way_that_reads_it(tmp_path, media):
    write(tmp_path / "x.tar", samples(media[:1], prefix="a"))
    (tmp_path / "captions.CSV").write_text("key,caption\n")
    (beside,) = passed_over(store_of(str(tmp_path)), "*.tar", ["x.tar"], tmp_path)
    assert beside.reason.startswith("does not fit shards=*.tar, and no captions are read from a table beside shards")
    assert "sora prepare captions=FILE" in beside.reason
    with pytest.raises(ValueError, match="it takes its own keys, captions.suffixes=, captions.keys="):
        compose("data", ["index=shards", "captions=x.csv"])


def test_what_reads_images_is_named_only_where_a_dataset_may_hold_some(tmp_path, media):
    """So that latents and runs of videos alone go on with another Pillow, or from before images were read."""
    for name, second in {"films": ("b.view.MOV", media[1]), "mixed": ("b.jpg", still(1))}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "x.tar", [("a.mp4", media[0]), second])
    films, mixed = indexed(tmp_path / "films")[0], indexed(tmp_path / "mixed")[0]
    assert len(films) == len(mixed) == 2
    assert decoded_by(PYAV, films) == PYAV.identity()
    assert "pillow" not in PYAV.identity()
    assert decoded_by(PYAV, mixed) == decoded_by(PYAV, films, mixed) == f"{PYAV.identity()} {pictures.identity()}"


def test_names_with_dots_find_their_captions_and_keys_that_no_sample_has_are_noted(tmp_path, media):
    """WebDataset cuts a name at its first dot, so that a video called 0.5.mp4 is the 5.mp4 of 0, and 0.5.txt is beside it."""
    members = [
        ("a.b.c.mp4", media[0]),
        ("a.b.c.txt", b"dots"),
        ("a.b.c.dense.txt", b"dense"),
        ("d.0.5.mp4", media[1]),
        ("d.0.5.json", b'{"Long": "x"}'),
    ]
    more = [("e.x.jpg", still(1)), ("e.x.jpg.txt", b"jpg"), ("f.mp4", media[0]), ("f.y.txt", b"of no video")]
    write(tmp_path / "a.tar", members + more)
    index, _, told = indexed(tmp_path, words=CaptionWords(keys={"style": "lnog", "motion": "long"}))
    found = {index.key(row): {(one.kind, one.text) for one in index.captions(row)} for row in range(len(index))}
    assert found == {"a": {("original", "dots"), ("dense", "dense")}, "d": {("motion", "x")}, "e": {("original", "jpg")}, "f": set()}
    assert told["notes"]["members that are not read (.y.txt)"] == 1
    assert told["notes"]["clips, and none has a caption of kind style, whose keys captions.keys names"] == 4
    assert not any("kind motion" in note for note in told["notes"])


def test_decord_reads_what_this_user_wrote_and_nothing_that_others_made(tmp_path, media, monkeypatch):
    """Indexed shards never; what another user prepared where the command line allows it; a borrowed seal is of other clips."""
    theirs, ours, old = tmp_path / "theirs", tmp_path / "ours", tmp_path / "old"
    theirs.mkdir()
    write(theirs / "x.tar", samples(media[:2], prefix="a"))
    indexed(theirs)
    dataset(ours, [(5, 32, 48)])
    decord = DecordReader(limits=LIMITS)
    guarded = GuardedReader(reader=decord, seconds=1, memory_gb=1, restart_after=1)
    refuse_others(decord, Index.open(ours))
    for reader in (decord, guarded):
        for places in ([theirs], [ours, theirs]):
            with pytest.raises(ValueError, match=r"theirs holds clips as others made them; choose reader=pyav"):
                decoded_by(reader, *map(Index.open, places))  # before decord is imported
    with trust.allowing([str(theirs)]), pytest.raises(ValueError, match="as others made them"):
        refuse_others(guarded, Index.open(theirs))
    refuse_others(PYAV, Index.open(theirs))
    seal = json.loads((ours / "dataset.json").read_text())["seal"]
    for made, more in (("prepare", {}), ("prepare", {"seal": seal}), ("data index", {"seal": seal}), ("prepare", {"seal": None})):
        shutil.rmtree(old, ignore_errors=True)
        dataset(old, [(5, 32, 48), (5, 32, 32)])
        said = json.loads((old / "dataset.json").read_text())
        del said["seal"]
        (old / "dataset.json").write_text(json.dumps(said | {"about": {"command": made}} | more))
        with pytest.raises(ValueError, match="old bears no seal of yours.*--allow"):
            refuse_others(guarded, Index.open(old))
        with trust.allowing([str(old)]):
            refuse_others(guarded, Index.open(old))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(ValueError, match="ours bears no seal of yours"):
        refuse_others(guarded, Index.open(ours))


def test_an_image_beside_a_video_is_its_cover_and_bytes_tell_where_names_do_not(tmp_path, media):
    members = [("a.jpg", still(0)), ("a.mp4", media[0]), ("b.bin", media[1]), ("b.txt", b"b"), ("c.mp4", still(1)), ("d.dat", b"\0\1\2")]
    write(tmp_path / "x.tar", [*members, ("e.jpg", b"<html>"), ("f.mp4", b"a text")])
    index, refused, told = indexed(tmp_path)
    found = {index.keys[n]: (index.row(n).suffix, int(index.frames[n])) for n in range(len(index))}
    assert found == {"a": ("mp4", 3), "b": ("bin", 5), "c": ("mp4", 1)}
    assert sorted(refused) == [("x.tar", "d", "video"), ("x.tar", "e", "media"), ("x.tar", "f", "media")]
    assert told["notes"]["members that are not read (.jpg)"] == 1
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert any("e.jpg of x.tar is a web page by its first bytes" in reason for reason in reasons)
    assert any("f.mp4 of x.tar is text by its first bytes" in reason for reason in reasons)
    chosen, _, _ = indexed(tmp_path, output=tmp_path / "out", video="jpg")
    assert [*chosen.keys] == ["a"]
    assert chosen.row(0).suffix == "jpg"


def test_a_shard_that_fails_while_it_is_read_is_named_and_the_others_are_indexed(tmp_path, media, monkeypatch):
    write(tmp_path / "a.tar", samples(media[:1], prefix="a"))
    write(tmp_path / "b.tar", samples(media[:1], prefix="b"))
    whole = foreign.survey_file

    def failing(file, size, shard, choices):
        if shard == "a.tar":
            raise OSError(5, "Input/output error")
        return whole(file, size, shard, choices)

    monkeypatch.setattr(foreign, "survey_file", failing)
    index, refused, _ = indexed(tmp_path)
    assert ([*index.keys], refused) == (["b0"], [("a.tar", "", "shard")])
