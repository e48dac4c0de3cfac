"""Indexing shards that others made: what becomes a row, and that whatever does not is told by name."""

import importlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sora.data.index.index import Index
from sora.data.loading.loader import read_clip
from sora.data.shards.stores import store_of
from sora.ingest import survey as foreign
from sora.ingest.check import check
from sora.ingest.index_shards import index_shards
from sora.ingest.survey import Choices, key_of
from sora.video.files import PYAV
from tests.data.making import counting, dataset, muxed, numbers, sound, tar, telling
from tests.data.sharded import FRAMES, QUICK, indexed, samples, write


def test_our_own_shards_come_back_as_they_were(tmp_path):
    dataset(tmp_path / "set", [(5, 16, 16), (1, 16, 24), (9, 17, 19)], heldout=(1,), max_bytes=6000)
    before = Index.open(tmp_path / "set")
    rows, captions = [before.row(n) for n in range(len(before))], before.captions_fingerprint
    for path in tmp_path.glob("set/*"):
        if path.suffix != ".tar":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    index, refused, _ = indexed(tmp_path / "set")
    assert not refused
    assert index.dataset_fingerprint == before.dataset_fingerprint
    assert index.captions_fingerprint == captions
    assert [index.row(n) for n in range(len(index))] == [row.__class__(**{**vars(row), "licence": "unknown"}) for row in rows]


def test_a_webdataset_of_others_is_indexed_and_decodes(tmp_path, media):
    about = {"caption": "a card", "license": "CC-BY-4.0", "url": "https://x/y", "aesthetic_score": 5.5, "scores": {"m": 1}, "shot": 3}
    members = [("00/a.mp4", media[0]), ("00/a.json", json.dumps(about).encode()), ("00/a.txt", b"a card"), ("00/a.npy", b"?")]
    write(tmp_path / "train-0000.tar", [*members, ("00/b.long.mp4", media[1]), ("00/b.txt", "é, a caption\n".encode())])
    write(tmp_path / "below/train-0001.tar", samples(media[2:]))
    index, refused, told = indexed(tmp_path, shards="**/*.tar")
    assert not refused
    assert [(len(read_clip(index, n, reader=PYAV)), int(index.frames[n])) for n in range(4)] == [(1, 1), (4, 4), (3, 3), (5, 5)]
    assert numbers(read_clip(index, 3, reader=PYAV)) == list(range(5))
    first, second = index.row(2), index.row(3)
    assert [(said.kind, said.text) for said in first.captions] == [("original", "a card")]
    assert (first.licence, first.source, dict(first.scores)) == ("CC-BY-4.0", "https://x/y", {"aesthetic_score": 5.5, "m": 1.0})
    assert first.extra == {"shot": 3, "name": "00/a"}
    assert (second.suffix, second.captions[0].text, second.licence) == ("long.mp4", "é, a caption", "unknown")
    assert told["notes"] == {"members that are not read (.npy)": 1}
    webdataset = importlib.import_module("webdataset")
    theirs = {one["__key__"]: one for one in webdataset.WebDataset([str(tmp_path / "train-0000.tar")], shardshuffle=False)}
    assert {name: one["mp4"] for name, one in theirs.items() if "mp4" in one} == {"00/a": index.read_member(2)}


def test_keys_follow_from_names_alone(tmp_path, media):
    write(tmp_path / "one/a.tar", samples(media, prefix="x/k"))
    write(tmp_path / "two/b.tar", samples(media[2:], prefix="x/k", start=2))
    write(tmp_path / "two/c.tar", samples(media[:2], prefix="x/k"))
    one, _, _ = indexed(tmp_path / "one")
    two, _, _ = indexed(tmp_path / "two")
    assert sorted(one.keys) == sorted(two.keys)
    assert one.keys[0].endswith("-k0")
    assert key_of("plain-key_1") == "plain-key_1"
    assert len({key_of(name) for name in ("a/x", "b/x", "é", "è", "a.b/x", "x" * 91, "x" * 92)}) == 7


def lossy(media):
    """Damage by name: (bytes of a shard of four samples, clips left, what is refused)."""
    whole = tar(samples(media))
    with tarfile.open(fileobj=io.BytesIO(whole)) as found:
        places = {member.name: (member.offset, member.offset_data, member.size) for member in found}
    third = places["k2.mp4"]
    garbled = bytearray(whole)
    garbled[third[0] : third[0] + 512] = b"\xee" * 512
    return {
        "at a member's boundary": (whole[: third[0]], [0, 1], [("", "end")]),
        "inside a header": (whole[: third[0] + 200], [0, 1], [("", "cut")]),
        "inside a video": (whole[: third[1] + 100], [0, 1], [("k2.mp4", "cut")]),
        "after the mp4": (whole[: places["k2.json"][0]], [0, 1], [("", "end"), ("k2", "incomplete")]),
        "a garbage header": (bytes(garbled), [0, 1, 3], [("", "garbage"), ("k2", "incomplete")]),
    }


@pytest.mark.parametrize("damage", ["at a member's boundary", "inside a header", "inside a video", "after the mp4", "a garbage header"])
def test_a_damaged_shard_gives_what_is_whole_and_names_the_rest(tmp_path, media, damage):
    content, left, lost = lossy(media)[damage]
    (tmp_path / "b.tar").write_bytes(content)
    write(tmp_path / "a.tar", samples(media, prefix="good"))
    index, refused, _ = indexed(tmp_path)
    assert list(index.keys) == [f"good{n}" for n in range(4)] + [f"k{n}" for n in left]
    assert {shard for shard, _, _ in refused} == {"b.tar"}
    assert len(refused) == len(lost)
    for (_, key, kind), (wanted_key, wanted_kind) in zip(refused, lost, strict=True):
        assert (wanted_key in key, kind) == (True, wanted_kind)
    assert [read_clip(index, n, reader=PYAV).shape[0] for n in range(4, len(index))] == [FRAMES[n] for n in left]


def test_every_sample_that_gives_no_clip_is_named_and_the_others_are_kept(tmp_path, media):
    link = tarfile.TarInfo("link.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    ok = (b"{}", media[0])
    bad = {
        "no-video": [("no-video.txt", b"a caption without a clip")],
        "two": [("two.left.mp4", ok[1]), ("two.right.mp4", ok[1])],
        "html": [("html.mp4", b"<html>404</html>"), ("html.json", b"{}")],
        "nothing": [("nothing.mp4", b""), ("nothing.json", b"{}")],
        "cut": [("cut.mp4", media[1][:200]), ("cut.json", b"{}")],
        "deep": [("deep.mp4", ok[1]), ("deep.json", b"[" * 100_000)],
        "digits": [("digits.mp4", ok[1]), ("digits.json", b'{"a": ' + b"9" * 5000 + b"}")],
        "half": [("half.mp4", ok[1]), ("half.json", b'{"caption": "\\ud800"}')],
        "latin": [("latin.mp4", ok[1]), ("latin.txt", b"\xff\xfe\xff")],
        "huge": [("huge.mp4", ok[1]), ("huge.txt", b"x" * (1 << 21))],
        "link.mp4": [(link, b"")],
        "../out.mp4": [("../out.mp4", ok[1])],
        "/abs.mp4": [("/abs.mp4", ok[1])],
    }
    good = [("good.mp4", media[2]), ("good.json", b"{}")]
    write(tmp_path / "a.tar", [*(member for members in bad.values() for member in members), *good])
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    index, refused, _ = indexed(tmp_path)
    assert list(index.keys) == ["good"]
    assert {key for _, key, _ in refused} == set(bad)
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.parent.rglob("*") if path.is_file() and path not in before}
    assert made == {"columns", "dataset.json", "meta-000000.parquet", "refused.jsonl", "report.json"}


def test_duplicate_and_interleaved_keys_lose_nothing_in_silence(tmp_path, media):
    a, b, c = samples(media[:1]), samples(media[1:2], start=1), samples(media[2:3])
    write(tmp_path / "a.tar", [a[0], b[0], a[1], b[1], *c])
    index, refused, told = indexed(tmp_path)
    assert list(index.keys) == ["k0", "k1"]
    assert index.read_member(0) == media[0]
    assert refused == [("a.tar", "k0", "duplicate")]
    assert told["notes"]["samples whose members do not lie together"] == 2


def test_keys_that_come_again_in_another_shard_are_refused_or_told_apart(tmp_path, media):
    for name in ("a.tar", "b.tar"):
        write(tmp_path / name, samples(media[:2]))
    index, refused, _ = indexed(tmp_path, output=tmp_path / "one")
    assert (list(index.keys), [kind for _, _, kind in refused]) == (["k0", "k1"], ["duplicate", "duplicate"])
    both, refused, _ = indexed(tmp_path, output=tmp_path / "two", key_with_shard=True)
    assert (list(both.keys), refused) == (["a-k0", "a-k1", "b-k0", "b-k1"], [])


class Trap:
    def __reduce__(self):
        return os.system, ("touch /tmp/sora-was-here",)


def test_nothing_in_a_shard_is_run_or_unpickled(tmp_path, media):
    trap = pickle.dumps(Trap())
    write(tmp_path / "a.tar", [*samples(media[:1]), ("k0.pyd", trap), ("k0.pkl", trap), ("k0.pth", trap), ("k0.py", b"raise SystemExit")])
    index, refused, told = indexed(tmp_path)
    assert (len(index), refused, len(told["notes"])) == (1, [], 4)
    assert not Path("/tmp/sora-was-here").exists()


def test_compressed_and_strange_shards_are_refused_whole_and_the_others_kept(tmp_path, media):
    import gzip

    write(tmp_path / "b.tar", samples(media[:2]))
    (tmp_path / "a.tar").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "d.tar").write_bytes(b"<html>" * 300)
    index, refused, _ = indexed(tmp_path)
    assert list(index.keys) == ["k0", "k1"]
    assert [(shard, kind) for shard, _, kind in refused] == [("a.tar", "shard"), ("c.tar", "shard"), ("d.tar", "shard")]
    assert [entry["shard"] for entry in index.described["shards"]] == ["b.tar"]


def test_too_many_bad_samples_leave_no_index_but_their_names(tmp_path, media):
    write(tmp_path / "a.tar", [*samples(media[:3]), ("bad.mp4", b"no video")])
    with pytest.raises(
        ValueError,
        match=r"1 of 4 samples cannot be used \(1 media\), over max_bad_share=0\.1; see .*: bad of a\.tar: .*is text by its first bytes",
    ):
        indexed(tmp_path, max_bad_share=0.1)
    assert '"bad"' in (tmp_path / "refused.jsonl").read_text()
    with pytest.raises(ValueError, match="holds no dataset"):
        Index.open(tmp_path)
    assert len(indexed(tmp_path, max_bad_share=0.25)[0]) == 3
    write(tmp_path / "none/a.tar", [("bad.mp4", b"no video")])
    with pytest.raises(ValueError, match=r"not one clip can be used \(1 media\).*bad of a\.tar: .*is text by its first bytes"):
        indexed(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no shard that fits shards=\*\.tgz"):
        indexed(tmp_path, shards="*.tgz")


@pytest.mark.slow
def test_a_clip_that_kills_or_hangs_its_process_is_named_and_takes_no_other_along(tmp_path, media, monkeypatch):
    def probed(content, *, name, timeline, probe=foreign.probe):
        if name.startswith("k1."):
            os._exit(139)
        if name.startswith("k2."):
            import time

            time.sleep(60)
        return probe(content, name=name, timeline=timeline)

    monkeypatch.setattr(foreign, "probe", probed)
    write(tmp_path / "a.tar", samples(media))
    store = store_of(str(tmp_path))
    settings = {"licence": "", "workers": 2, "seconds": 1.5, "memory_gb": 64, "about": {}, "max_bad_share": 1.0}
    index_shards(store, ["a.tar"], tmp_path, Choices(), **settings)
    assert list(Index.open(tmp_path).keys) == ["k0", "k3"]
    assert [json.loads(line)["key"] for line in (tmp_path / "refused.jsonl").read_text().splitlines()] == ["k1", "k2"]


def test_the_frames_of_the_index_are_those_that_decode(tmp_path):
    times = [0, 0.04, 0.08, 0.5, 0.54, 1.2]
    edited = muxed(counting(30), container="mov", options={"bf": "2", "g": "10"})
    webm = muxed(counting(9), codec="libvpx-vp9", container="webm")
    strange = {"vfr": muxed(counting(6), times=times, **QUICK), "edited": edited, "webm": webm}
    write(tmp_path / "a.tar", [(f"{name}.{'webm' if name == 'webm' else 'mp4'}", content) for name, content in strange.items()])
    index, refused, told = indexed(tmp_path)
    assert (refused, told["notes"]) == ([], {"clips without a caption": 3})
    assert [len(read_clip(index, n, reader=PYAV)) for n in range(3)] == index.frames.tolist() == [6, 30, 9]


def test_held_out_clips_follow_their_source(tmp_path, media):
    members = [
        member
        for number in range(30)
        for member in ((f"c{number}.mp4", media[2]), (f"c{number}.json", json.dumps({"source": f"film {number // 3}"}).encode()))
    ]
    write(tmp_path / "a.tar", members)
    index, _, _ = indexed(tmp_path, held_out=0.4)
    splits = {}
    for number in range(30):
        splits.setdefault(index.row(number).source, set()).add(index.row(number).split)
    assert all(len(found) == 1 for found in splits.values())
    assert {next(iter(found)) for found in splits.values()} == {"train", "heldout"}
    needed, refused, _ = indexed(tmp_path, output=tmp_path / "x", need_captions=False)
    assert (len(needed), refused) == (30, [])
    with pytest.raises(ValueError, match="30 caption"):
        indexed(tmp_path, output=tmp_path / "y", need_captions=True)


def spoilt() -> dict[str, bytes]:
    """Ways for a clip to be bad."""
    whole = muxed(telling(24, 64, 64), **QUICK)
    middle, draw = bytearray(whole), np.random.default_rng(0)
    first, last = whole.index(b"mdat") + 64, whole.index(b"moov") - 64
    for place in draw.integers(first, last, 60):
        middle[place] ^= 0xFF
    zeroed = whole[: (first + last) // 2] + bytes(4096) + whole[(first + last) // 2 + 4096 :]
    return {
        "empty": b"",
        "text": b"hello, world\n" * 40,
        "page": b"<!DOCTYPE html><html>" + b"x" * 2000,
        "half": whole[: len(whole) // 2],
        "tail": whole[: len(whole) * 9 // 10],
        "flips": bytes(middle),
        "zeroed": zeroed,
        "noindex": whole.replace(b"moov", b"zzzz"),
        "codec": whole.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"),
        "sound": sound(16000),
        "noise": draw.bytes(5000),
    }


@pytest.mark.slow
def test_bad_clips_of_every_kind_are_named_by_the_index_or_by_the_check_and_no_others(tmp_path):
    """What the header tells, the index refuses; what only decoding tells, the check of every frame, and training, which decodes."""
    good, bad = muxed(telling(24, 64, 64, 1), **QUICK), spoilt()
    names = list(bad)
    members = []
    for number in range(5 * len(bad)):
        name = names[number // 5] if number % 5 == 2 else f"good{number:02d}"
        members += [(f"{name}.mp4", bad.get(name, good)), (f"{name}.txt", b"a clip")]
    write(tmp_path / "a.tar", members)
    index, refused, _ = indexed(tmp_path)
    found = check(index, decode=1.0, workers=0, seconds=60, memory_gb=64)
    undecodable = {fault.where.rpartition(": ")[2] for fault in found.faults if fault.kind == "decode"}
    assert {fault.where.rpartition(": ")[2] for fault in found.faults} == undecodable, "what else is wrong with them follows from that"
    assert undecodable == {"flips", "zeroed"}
    assert {key for _, key, _ in refused} | undecodable == set(bad)
    assert len(refused) + len(undecodable) == len(bad)
    assert len(index) == 4 * len(bad) + len(undecodable)
