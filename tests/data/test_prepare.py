"""A folder of videos and images becomes a dataset: windows, sizes, captions, splits, and a name for all that gives no clip."""

import faulthandler
import importlib
import io
import json
import os
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from sora import cli
from sora.data.loading.loader import read_clip
from sora.ingest.sources import WorldSource, clip_key, fitted
from sora.system.guarded_pool import in_order
from sora.video.files import PYAV
from tests.data.making import counting, muxed, numbers, tar, telling
from tests.data.preparing import QUIET, prepared, source


def test_windows_follow_one_another_and_lose_only_tails(tmp_path, videos):
    index, report, _ = prepared(tmp_path / "out", folder=videos)
    rows = [index.row(number) for number in range(len(index))]
    assert [(row.source, row.frames, round(row.start * 25)) for row in rows] == [
        *(("a.mp4", 9, first) for first in (0, 9, 18, 27)),
        ("below/b.MKV", 9, 0),
        ("below/b.MKV", 5, 9),
        *(("c.webm", 9, first) for first in (0, 9, 18)),
    ]
    assert [row.key for row in rows[:4]] == [clip_key("a.mp4", number) for number in range(4)]
    for number, row in enumerate(rows):
        first = round(row.start * 25)
        assert numbers(read_clip(index, number, reader=PYAV)) == list(range(first, first + row.frames))
    assert report["refused"] == []


def test_a_lower_rate_takes_frames_by_time_and_slower_videos_keep_theirs(tmp_path, videos):
    (videos / "slow.mp4").write_bytes(muxed(counting(10), times=[n / 5 for n in range(10)], **QUIET))
    index, _, _ = prepared(tmp_path / "out", source(fps=12.5, frames=5), folder=videos)
    by_source = {row.source: number for number in reversed(range(len(index))) for row in [index.row(number)]}
    assert numbers(read_clip(index, by_source["a.mp4"], reader=PYAV)) == [0, 2, 4, 6, 8]
    assert numbers(read_clip(index, by_source["slow.mp4"], reader=PYAV)) == [0, 1, 2, 3, 4]
    assert (index.fps[by_source["a.mp4"]], index.fps[by_source["slow.mp4"]]) == (12.5, 5.0)


def test_videos_shrink_to_the_short_side_and_lose_only_what_multiples_need():
    assert fitted(720, 1280, 256, 16) == (256, 448)
    assert fitted(1280, 720, 256, 16) == (448, 256)
    assert fitted(100, 130, 256, 2) == (100, 130)
    assert fitted(100, 130, None, 32) == (96, 128)
    with pytest.raises(ValueError, match="100x8 pixels are too few"):
        fitted(8, 100, None, 16)


def test_the_number_of_processes_changes_no_byte(tmp_path, videos):
    (videos / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom")
    alone, report, _ = prepared(tmp_path / "one", folder=videos)
    many, report2, _ = prepared(tmp_path / "two", folder=videos, run=partial(in_order, workers=2, seconds=60, memory_gb=64))
    assert alone.fingerprint == many.fingerprint
    assert report == report2
    shards = [(tmp_path / name / "video-000000.tar").read_bytes() for name in ("one", "two")]
    assert shards[0] == shards[1]


def test_unreadable_videos_are_named_and_the_rest_is_kept(tmp_path, videos):
    (videos / "broken.mp4").write_bytes(muxed(counting(20))[:300])
    (videos / "page.mp4").write_text("<html>")
    (videos / "short.mp4").write_bytes(muxed(counting(3)))
    index, report, line = prepared(tmp_path / "out", folder=videos)
    assert len(index) == 9
    assert {entry["source"] for entry in report["refused"]} == {"broken.mp4", "page.mp4", "short.mp4"}
    assert "fewer than source.min_frames=5" in next(entry["reason"] for entry in report["refused"] if entry["source"] == "short.mp4")
    assert "9 clips (9 train)" in line
    assert "3 could not be used" in line


@pytest.mark.slow
def test_a_damaged_stretch_gives_no_clip(tmp_path):
    (tmp_path / "in").mkdir()
    good = muxed(telling(60, 64, 64), container="matroska", options={"g": "10", "bf": "0"})
    bad = bytearray(good)
    bad[len(bad) // 2 : len(bad) // 2 + 3000] = bytes(3000)
    (tmp_path / "in/a.mkv").write_bytes(good)
    clean, _, _ = prepared(tmp_path / "clean", folder=tmp_path / "in")
    (tmp_path / "in/a.mkv").write_bytes(bytes(bad))
    index, report, _ = prepared(tmp_path / "out", folder=tmp_path / "in")
    assert report["refused"]
    assert 2 < len(index) < len(clean)
    for number in range(len(index)):
        whole = clean.keys.index(index.keys[number])
        assert np.array_equal(read_clip(index, number, reader=PYAV), read_clip(clean, whole, reader=PYAV))


def test_when_nothing_can_be_read_there_is_no_dataset(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="holds no video and no image: it is empty"):
        prepared(tmp_path / "out", folder=tmp_path / "in")
    (tmp_path / "in/a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no video and no image; a\.mp4 is empty"):
        prepared(tmp_path / "out", folder=tmp_path / "in")
    (tmp_path / "in/b.mp4").write_bytes(muxed(counting(9))[:200])
    with pytest.raises(ValueError, match=r"not one clip could be made of 2 files: .*b\.mp4 does not decode"):
        prepared(tmp_path / "out", folder=tmp_path / "in")
    with pytest.raises(ValueError, match="is no folder"):
        prepared(tmp_path / "out", folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs input=FOLDER"):
        prepared(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"fps": 0}, r"source\.fps=0 is out of range: give a number above 0"),
        ({"fps": -1.0}, r"source\.fps=-1"),
        ({"frames": 0}, r"source\.frames=0 is out of range: give a number of at least 1"),
        ({"min_frames": 0}, r"source\.min_frames=0"),
        ({"stride_time": 0}, r"source\.stride_time=0"),
        ({"size": 0}, r"source\.size=0"),
        ({"multiple": 0}, r"source\.multiple=0"),
        ({"windows_per_video": 0}, r"source\.windows_per_video=0"),
        ({"windows_per_video": -1}, r"source\.windows_per_video=-1"),
        ({"frames": 10}, r"source\.frames=10 is not 1 \+ k x source\.stride_time=4; use 9"),
        ({"size": 15}, r"48x32 pixels, scaled down to source\.size=15, are too few for sides that are multiples of source\.multiple=16"),
    ],
)
def test_numbers_that_nothing_can_be_made_with_are_refused_by_their_key(tmp_path, videos, said, told):
    """None stands for another value, such as all windows or no scaling, and none is told as another key's."""
    with pytest.raises(ValueError, match=told):
        prepared(tmp_path / "out", source(**said), folder=videos)


@pytest.mark.slow
def test_the_commands_own_numbers_are_refused_by_their_key_before_any_work(tmp_path, videos, capsys):
    words = ["count=0", "count=-1", "workers=-1", "workers=5000", "shard_mb=0", "unit_seconds=0", "worker_memory_gb=-1"]
    for word in words:
        assert cli.run("prepare", [f"input={videos}", f"output={tmp_path / 'out'}", word]) == 2
        assert f"{word} is out of range" in capsys.readouterr().err
    assert cli.run("prepare", [f"input={videos}", f"output={tmp_path / 'out'}", "source=world", "count=2", "captions.keys={dense: x}"]) == 2
    for place, told in (("s3://b/x", "s3://b/x is a URL"), (videos / "a.mp4", "a.mp4 is a file, and no folder")):
        assert cli.run("prepare", [f"input={place}", f"output={tmp_path / 'out'}"]) == 2 and told in capsys.readouterr().err
    prepared(tmp_path / "set", folder=videos)
    assert cli.run("prepare", [f"input={tmp_path / 'set'}", f"output={tmp_path / 'out'}"]) == 2
    assert "is a dataset already" in capsys.readouterr().err
    for word in ("decode=2", "workers=-1", "clip_seconds=0", "worker_memory_gb=0"):
        assert cli.run("data", ["check", str(tmp_path / "set"), word]) == 2 and f"{word} is out of range" in capsys.readouterr().err
    for word in ("max_bad_share=-1", "held_out=2", "most_mb=0", "fetch_after=0"):
        assert cli.run("data", ["index", str(tmp_path / "none"), word]) == 2 and f"{word} is out of range" in capsys.readouterr().err
    for word in ("batch=0", "captions_per_file=0", "max_bad_share=2", "threads=0"):
        assert cli.run("encode", ["vae=x", f"data={tmp_path / 'set'}", word]) == 2 and f"{word} is out of range" in capsys.readouterr().err
    assert cli.run("encode", ["vae=x", f"data={tmp_path / 'set'}", "multiple=[1,2]"]) == 2 and "multiple=[1, 2]" in capsys.readouterr().err
    assert cli.run("data", ["check", str(tmp_path / "set/dataset.json")]) == 2
    assert f"is a file, and a dataset is a folder: name {tmp_path / 'set'}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _children(item):
    time.sleep(0.2)
    parent = os.getppid()
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return len(file.read().split())


def test_no_more_processes_are_started_than_there_is_work():
    """A pool that forks starts all of its processes at the first item: a thousand of them for three files."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        before = len(file.read().split())
    done = list(in_order(_children, range(3), workers=200, seconds=60, memory_gb=64))
    assert [one.item for one in done] == [0, 1, 2] and max(one.result for one in done) <= before + 3
    assert list(in_order(_children, [], workers=200, seconds=60, memory_gb=64)) == []


def test_an_existing_folder_is_not_overwritten(tmp_path, videos):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        prepared(tmp_path / "out", folder=videos)


def test_captions_come_from_beside_the_video_and_from_a_table(tmp_path, videos):
    (videos / "a.txt").write_text(" A grey card.\n")
    (videos / "c.json").write_text(json.dumps({"short": "grey", "dense": "A card turns white.", "fps": "30"}))
    captions = tmp_path / "all.csv"
    captions.write_text('file,caption,duration\nbelow/b.MKV,"from the table, quoted",9\na,more,1\nlost.mp4,none,2\n')
    index, report, _ = prepared(tmp_path / "out", folder=videos, captions=str(captions))
    told = {index.row(number).source: [(said.kind, said.text) for said in index.captions(number)] for number in range(len(index))}
    assert told == {
        "a.mp4": [("original", "more"), ("original", "A grey card.")],
        "below/b.MKV": [("original", "from the table, quoted")],
        "c.webm": [("short", "grey"), ("dense", "A card turns white.")],
    }
    assert report["captions"]["tables"] == {"all.csv": {"rows": 3, "without_video": 1, "names": ["lost.mp4"]}}


def test_a_table_that_matches_nothing_is_refused(tmp_path, videos):
    path = tmp_path / "all.jsonl"
    path.write_text('{"file": "x.mp4", "caption": "a"}\n{"file": "y.mp4", "caption": "b"}\n')
    with pytest.raises(ValueError, match=r"matches none of 3 videos: it names x\.mp4, y\.mp4, the videos are a\.mp4"):
        prepared(tmp_path / "out", folder=videos, captions=str(path))
    path.write_text('{"file": "x.mp4"')
    with pytest.raises(ValueError, match=r"all\.jsonl line 1 is no JSON"):
        prepared(tmp_path / "out", folder=videos, captions=str(path))
    path.write_bytes(b'{"file": "\xff"}')
    with pytest.raises(ValueError, match="no text in UTF-8"):
        prepared(tmp_path / "out", folder=videos, captions=str(path))


def test_splits_follow_from_names_so_that_more_videos_move_none(tmp_path, videos):
    made = partial(source, held_out=0.3, held_out_by="window")
    index, _, _ = prepared(tmp_path / "one", made(), folder=videos)
    (videos / "new.mp4").write_bytes(muxed(counting(40), **QUIET))
    more, _, _ = prepared(tmp_path / "two", made(), folder=videos)
    before, after = ({row.key: row.split for row in map(one.row, range(len(one)))} for one in (index, more))
    assert set(before.values()) == {"train", "heldout"}
    assert before.items() <= after.items()


def test_windows_of_one_video_stay_in_one_split(tmp_path, videos):
    index, _, _ = prepared(tmp_path / "out", source(held_out=0.01), folder=videos)
    splits = {}
    for number in range(len(index)):
        row = index.row(number)
        splits.setdefault(row.source, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert sorted(*zip(*splits.values(), strict=True)) == ["heldout", "train", "train"]


def test_videos_that_are_left_out_give_no_clip_and_a_pattern_of_nothing_is_refused(tmp_path, videos):
    index, report, _ = prepared(tmp_path / "out", source(leave_out=["below/*"]), folder=videos)
    assert {index.row(number).source for number in range(len(index))} == {"a.mp4", "c.webm"}
    assert report["files"] == 2
    assert {"source": "below/b.MKV", "reason": "source.leave_out names it"} in report["passed_over"]
    with pytest.raises(ValueError, match=r"source\.leave_out: no file is called drafts/\*; there are"):
        prepared(tmp_path / "none", source(leave_out=["drafts/*"]), folder=videos)


def test_count_is_the_most_clips(tmp_path, videos):
    index, _, _ = prepared(tmp_path / "out", folder=videos, count=2)
    assert len(index) == 2


def test_the_worlds_clips_arrive_whole(tmp_path):
    world = importlib.import_module("sora.world.world").World(
        seed=3, sizes=((32, 32), (24, 40)), seconds=(1.0,), rates=(8.0,), motions=("linear",)
    )
    made = WorldSource(world=world, heldout=1, lossless=True, licence="CC0-1.0")
    index, _, _ = prepared(tmp_path / "out", made, count=2)
    rows = [index.row(number) for number in range(len(index))]
    assert [row.split for row in rows] == ["train"] * 2 + ["heldout"]
    for number, (row, place) in enumerate(zip(rows, [*range(2), 0], strict=True)):
        clip = world.clip(place, split=row.split)
        assert np.array_equal(read_clip(index, number, reader=PYAV), clip.frames)
        assert {said.kind: said.text for said in row.captions} == clip.captions
        assert row.extra["truth"] == json.loads(json.dumps(clip.truth))
    with pytest.raises(ValueError, match="set count"):
        prepared(tmp_path / "none", made)
    with pytest.raises(ValueError, match="source=folder for videos"):
        prepared(tmp_path / "none", made, count=3, folder=tmp_path)


def strange(item):
    if item == "segfault":
        faulthandler.disable()  # pytest's would tell of it at length
        os.kill(os.getpid(), 11)
    if item == "hang":
        time.sleep(60)
    if item == "memory":
        bytearray(8 << 30)
    if item == "bad":
        raise ValueError("bad it is")
    return item.upper()


@pytest.mark.slow
def test_a_crash_a_hang_and_a_bad_item_take_nothing_else_along():
    items = ["a", "segfault", "b", "hang", "bad", "c", "d"]
    done = list(in_order(strange, items, workers=2, seconds=3.0, memory_gb=64))
    assert [one.item for one in done] == items
    assert [one.result for one in done] == ["A", None, "B", None, None, "C", "D"]
    assert [bool(one.reason) for one in done] == [False, True, False, True, True, False, False]
    assert "bad it is" in done[4].reason


def test_memory_has_a_limit_and_our_own_errors_are_raised():
    done = list(in_order(strange, ["a", "memory", "b"], workers=1, seconds=10, memory_gb=6))
    assert [(one.result, one.reason, one.died) for one in done] == [
        ("A", "", False),
        (None, "it needs more memory than a process may take", True),
        ("B", "", False),
    ]
    with pytest.raises(AttributeError):
        list(in_order(strange, [7], workers=1, seconds=10, memory_gb=64))


def folder_of_everything(folder, elsewhere):
    """A folder with something of every kind; what gives clips."""
    film, still = muxed(counting(9), **QUIET), io.BytesIO()
    Image.fromarray(telling(1, 32, 48)[0]).save(still, "PNG")
    good = {"a.bin": film, "b": film, "C.MP4": film, "n" * 251 + ".mp4": film, "ü/d.qt": film, "photo.jpg": still.getvalue()}
    bad = {"page.mp4": b"<html>", "half.mp4": film[:300], "empty.webm": b"", "cut.png": still.getvalue()[:100], "eps.jpg": b"%!PS-Adobe"}
    rest = {
        "README.md": b"# a",
        "lost.txt": b"of nothing",
        "set.tar": tar([("x", b"y")]),
        ".hidden/x.mp4": film,
        ".DS_Store": b"x",
        "a.jpg": still.getvalue(),
    }
    for name, content in {**good, **bad, **rest, "C.txt": b"a caption"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(film)
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"of it")
    elsewhere.mkdir()
    (elsewhere / "linked.mp4").write_bytes(film)
    (folder / "link").symlink_to(elsewhere)
    (folder / "round").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    (folder / "itself.mp4").symlink_to(folder / "itself.mp4")
    (folder / "linked file").symlink_to(elsewhere / "linked.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return {*good, "linked file"}, set(bad)


def test_all_that_a_folder_holds_is_made_or_named_or_says_something_of_what_is_made(tmp_path):
    good, bad = folder_of_everything(tmp_path / "in", tmp_path / "elsewhere")
    index, report, line = prepared(tmp_path / "out", folder=tmp_path / "in")
    assert {index.row(number).source for number in range(len(index))} == good
    assert {one["source"] for one in report["refused"]} == bad
    passed = {one["source"]: one["reason"] for one in report["passed_over"]}
    left = {
        "README.md",
        "set.tar",
        ".hidden",
        ".DS_Store",
        "a.jpg",
        "caf\\xe9.mp4",
        "caf\\xe9.txt",
        "link",
        "round",
        "gone.mp4",
        "itself.mp4",
    }
    assert set(passed) == {*left, "pipe.mp4"}
    assert (passed["README.md"], passed["set.tar"], passed["a.jpg"]) == (
        "is text",
        "is a tar archive",
        "is an image beside a video of its name: its cover",
    )
    assert report["captions"]["files_without_video"] == ["lost.txt"]
    assert "5 could not be used, 12 passed over: " in line
    assert "(lost.txt)" in line
    every = {os.fsencode(path.relative_to(tmp_path / "in")).decode(errors="backslashreplace") for path in (tmp_path / "in").rglob("*")}
    named = {*good, *bad, *passed, "C.txt", "lost.txt", "ü", ".hidden/x.mp4"}
    assert every == named
    followed, _, _ = prepared(tmp_path / "followed", source(follow_links=True, images=False), folder=tmp_path / "in")
    sources = {followed.row(number).source for number in range(len(followed))}
    assert sources == good - {"photo.jpg"} | {"link/linked.mp4"}


def test_an_image_is_a_clip_of_one_frame_and_of_no_time(tmp_path):
    (tmp_path / "in").mkdir()
    pictures = {f"{number}.png": telling(1, 32 + 16 * number, 48, seed=number)[0] for number in range(3)}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in/1.txt").write_text("a caption")
    index, report, line = prepared(tmp_path / "out", source(min_frames=9), folder=tmp_path / "in")
    assert [(row.source, row.frames, row.duration) for row in map(index.row, range(3))] == [(name, 1, 0.0) for name in pictures]
    for number, pixels in enumerate(pictures.values()):
        assert np.array_equal(read_clip(index, number, reader=PYAV)[0], pixels)
    assert [[said.text for said in index.captions(number)] for number in range(3)] == [[], ["a caption"], []]
    assert "3 clips (3 train), 3 frames, 0 seconds" in line
    assert not report["refused"] + report["passed_over"]
