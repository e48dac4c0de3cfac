"""Captions reach their videos however their files and keys are spelt; what reaches none is counted by name."""

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from sora.config.compose import compose
from sora.data.index.rows import Caption
from sora.ingest.clip_texts import WORDS, CaptionWords, captions_of, joined
from sora.ingest.sidecars import Sidecars

VIDEOS = ("a.mp4", "b.MP4", "sub/a.mov", "sub/c.mp4")


def said(folder, files, *, videos=VIDEOS, table=None, words=WORDS):
    """({video: [(kind, text)]}, what was not used), of a folder with these files beside its videos."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name in videos:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    found = Sidecars(folder, videos, words, table=None if table is None else folder / table)
    return {name: [(one.kind, one.text) for one in found.of(name)] for name in videos}, found.unused


def texts(entry, words=WORDS):
    return [(one.kind, one.text) for one in captions_of(entry, words).captions]


def test_the_names_are_as_conf_has_them():
    """What a class says by itself and what the two files say is one."""
    prepare, data = (OmegaConf.to_container(compose(verb, []).config.captions) for verb in ("prepare", "data"))
    assert prepare == {"file": None, "suffixes": list(WORDS.suffixes), "tables": list(WORDS.tables), "keys": {}}
    assert data == {"suffixes": list(WORDS.suffixes), "keys": {}}
    for word in ("captions.keys={dense: long text}", "captions.keys.dense=long text"):
        asked = OmegaConf.to_container(compose("prepare", ["captions=x.csv", word]).config.captions)
        assert (asked["file"], asked["keys"]) == ("x.csv", {"dense": "long text"})


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.mp4.txt", "a.caption", "a.Cap", "a.mp4.CAPTION"])
def test_a_file_beside_a_video_is_its_caption_in_every_spelling(tmp_path, name):
    found, unused = said(tmp_path, {name: "\ufeff A cat.\r\nIt sits.\n"})
    assert found == {"a.mp4": [("original", "A cat.\r\nIt sits.")], "b.MP4": [], "sub/a.mov": [], "sub/c.mp4": []}
    assert unused.lines() == []


def test_the_letters_between_name_and_suffix_may_be_a_kind_and_nothing_else(tmp_path):
    files = {"a.dense.txt": "all of it", "a.short.json": '["one", "two"]', "b.mp4.camera_caption.txt": "pan", "a.license.txt": "CC0"}
    found, unused = said(tmp_path, files)
    assert found["a.mp4"] == [("short", "one"), ("short", "two"), ("dense", "all of it")]
    assert found["b.MP4"] == []  # b.mp4 is another file
    assert sorted(unused.files) == ["a.license.txt", "b.mp4.camera_caption.txt"]


@pytest.mark.parametrize("first", ["NFC", "NFD"])
def test_letters_may_be_composed_or_not(tmp_path, first):
    second = {"NFC": "NFD", "NFD": "NFC"}[first]
    video, other = unicodedata.normalize(first, "é/café.mp4"), unicodedata.normalize(second, "é/café.mp4")
    (tmp_path / video).parent.mkdir(parents=True)
    name = str(tmp_path / video).removesuffix(".mp4").removeprefix(f"{tmp_path}/")
    found, unused = said(tmp_path, {f"{name[: name.index('/')]}/{unicodedata.normalize(second, 'café')}.txt": "x"}, videos=(video,))
    assert found == {video: [("original", "x")]} and unused.lines() == []
    table = {"t.csv": f"file,caption\n{other},y\n"}
    assert said(tmp_path, table, videos=(video,), table="t.csv")[0][video] == [("original", "y"), ("original", "x")]
    # where both are there, each has its own
    both = said(tmp_path / "two", {other.replace(".mp4", ".txt"): "other", video.replace(".mp4", ".txt"): "own"}, videos=(video, other))[0]
    assert both == {video: [("original", "own")], other: [("original", "other")]}
    # also by a table that leaves the suffix away
    table = {"t.csv": f"file,caption\n{other.removesuffix('.mp4')},other\n{video.removesuffix('.mp4')},own\n"}
    found, unused = said(tmp_path / "three", table, videos=(video, other), table="t.csv")
    assert found == both and unused.lines() == []


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"prompt": "x"}, [("original", "x")]),
        ({"Caption": "x", "duration": 3}, [("original", "x")]),
        ({"caption": ["one", "two", "  "]}, [("original", "one"), ("original", "two")]),
        ({"kind": "vlog", "caption": "x"}, [("original", "x")]),
        ({"kind": "vlog", "text": "x"}, [("original", "x")]),
        ({"Dense Caption": "d", "short-caption": "s", "caption_camera": "c"}, [("dense", "d"), ("short", "s"), ("camera", "c")]),
        ({"captions": [{"kind": "k", "text": "t", "captioner": "m"}, "plain"]}, [("k", "t"), ("original", "plain")]),
        ({"captions": {"short": "s", "dense": ["d", "e"]}}, [("short", "s"), ("dense", "d"), ("dense", "e")]),
        ({"caption": 7}, [("original", "7")]),
        ({"caption": None}, []),
        ("x", [("original", "x")]),
        (["x", {"short": "s"}], [("original", "x"), ("short", "s")]),
        ({"caption_id": "7781", "caption_file": "foo.txt", "n_captions": 3}, []),
    ],
)
def test_captions_are_found_by_their_keys(entry, wanted):
    assert texts(entry) == wanted


def test_keys_that_might_hold_captions_are_told_and_empty_texts_counted():
    found = captions_of({"caption_id": "7", "video_description": "d", "caption": " ", "url": "u", "file": "f"}, WORDS)
    assert (found.captions, found.unread, found.empty) == ([], ["caption_id", "video_description"], 1)
    inside = captions_of({"caption": {"short": "s", "shot": "close", "n": 3}, "shot": "close"}, WORDS)
    assert ([one.text for one in inside.captions], inside.unread) == (["s"], ["shot"])


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"caption": "a dog \ud83d"}, "half a character"),
        ({"caption": 1.5}, "its caption is 1.5, which is no text"),
        ({"caption": [True]}, "its caption is true, which is no text"),
        ({"captions": [{"kind": "k", "text": 3}]}, "are texts"),
        ({"caption": "x" * 200_000}, "too long"),
    ],
)
def test_what_is_no_text_is_refused(entry, why):
    with pytest.raises(ValueError, match=why):
        captions_of(entry, WORDS)


def test_names_of_ones_own_stand_in_for_the_usual_ones_of_their_kind():
    words = CaptionWords(keys={"dense": "Long Text", "tags": ["t1", "t2"], "original": None})
    entry = {"long_text": "l", "t1": "1", "t2": "2", "caption": "not wanted", "short": "s", "dense": "not read"}
    assert texts(entry, words) == [("dense", "l"), ("tags", "1"), ("tags", "2"), ("short", "s")]
    for wrong in ({"keys": {"dense": [""]}}, {"suffixes": "txt"}, {"tables": [""]}, {"keys": {" ": "x"}}):
        with pytest.raises(ValueError, match=r"captions\.(keys|suffixes|tables)"):
            CaptionWords(**wrong)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet", "METADATA.JSONL"])
def test_a_folders_own_table_names_the_videos_below_it(tmp_path, name):
    """As Hugging Face has it: file_name counts from the table's folder, so the same name in another folder is another video."""
    rows = [{"file_name": "a.mov", "text": "in sub"}, {"file_name": "c.mp4", "text": "c"}, {"file_name": "lost.mp4", "text": "l"}]
    (tmp_path / "sub").mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sub" / name)
    elif name.endswith("csv"):
        (tmp_path / "sub" / name).write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    else:
        (tmp_path / "sub" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, unused = said(tmp_path, {})
    assert found == {"a.mp4": [], "b.MP4": [], "sub/a.mov": [("original", "in sub")], "sub/c.mp4": [("original", "c")]}
    assert unused.lines() == [f"1 of 3 rows of sub/{name} fits no video (lost.mp4)"]
    assert said(tmp_path, {}, words=CaptionWords(tables=[]))[0]["sub/c.mp4"] == []


def test_a_folders_own_table_that_is_damaged_is_refused_with_its_line_and_the_key_that_leaves_it_out(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.csv line 2 has 3 fields.*captions\.tables=\[\]"):
        said(tmp_path, {"metadata.csv": "file_name,text\na.mp4,A cat, sitting\n"})
    found, unused = said(tmp_path, {"metadata.csv": "file_name,label\na.mp4,3\n,4\n"})
    assert found["a.mp4"] == []
    assert unused.silent == {"metadata.csv": "no column with captions, only file_name, label"}


def test_what_fits_nothing_is_counted_and_named(tmp_path):
    files = {"a.txt": " \n", "lost.txt": "x", "sub/c.json": '{"caption_id": "7"}', "b.json": '{"duration": 3}', "notes.md": "no caption"}
    table = "File,Caption,caption_id\na.mp4,fits,1\n/abs/b.MP4,x,2\nsub\\c.mp4,x,3\n c.mp4,,4\nc.mp4,,5\n"
    found, unused = said(tmp_path, files | {"all.csv": table}, table="all.csv")
    assert found == {"a.mp4": [("original", "fits")], "b.MP4": [], "sub/a.mov": [], "sub/c.mp4": []}
    told = unused.report()
    assert told["tables"] == {"all.csv": {"rows": 5, "without_video": 3, "names": ["/abs/b.MP4", "sub\\c.mp4", " c.mp4"]}}
    assert told["files_without_video"] == ["lost.txt"]
    assert told["files_without_caption"] == {
        "a.txt": "it is empty",
        "b.json": "it has no caption",
        "sub/c.json": "its keys are no captions: caption_id",
    }
    assert told["keys_not_read"] == {"caption_id": 3} and told["empty_texts"] == 1
    for part in ("3 of 5 rows of all.csv fit no video (/abs/b.MP4", "fit no video: 1 (lost.txt)", "without a caption: 3", "caption_id (3)"):
        assert part in "; ".join(unused.lines())


def test_a_caption_that_cannot_be_written_is_the_fault_of_its_video_alone(tmp_path):
    table = '{"file": "a.mp4", "caption": "a dog \\ud83d"}\n{"file": "b", "caption": "fine"}\n'
    found = Sidecars(tmp_path, ("a.mp4", "b.mp4"), WORDS, table=(tmp_path / "in.jsonl").write_text(table) and tmp_path / "in.jsonl")
    assert [one.text for one in found.of("b.mp4")] == ["fine"]
    with pytest.raises(ValueError, match=r"in\.jsonl line 1: a caption holds half a character"):
        found.of("a.mp4")
    for name, content in {"a.json": b'{"caption": "a dog \\ud83d"}', "a.txt": b"caf\xe9", "a.caption": b"x" * (1 << 21)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.(json|txt|caption)"):
            Sidecars(tmp_path, ("a.mp4", "b.mp4"), WORDS).of("a.mp4")
        (tmp_path / name).unlink()
    (tmp_path / "a.txt").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"a\.txt does not exist"):
        Sidecars(tmp_path, ("a.mp4", "b.mp4"), WORDS).of("a.mp4")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("t.csv", "file,label\na.mp4,x\n", r"no column with captions, only file, label; captions\.keys="),
        ("t.csv", "clip,caption\na.mp4,x\n", r"line 2 names no video: it has clip, caption; captions\.keys=\{file: NAME\}"),
        ("t.csv", "file;caption\na.mp4;x\n", "line 1 names one column"),
        (
            "t.jsonl",
            '{"file": "x.mp4", "caption": "a"}\n{"file": "y.mp4", "caption": "b"}\n',
            r"matches none of 4 videos: it names x\.mp4, y\.mp4",
        ),
        ("t.csv", "file,caption\n", "matches none of 4 videos: it names nothing"),
        ("t.xlsx", "", "no table of a kind that is read"),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path, name, text, why):
    with pytest.raises(ValueError, match=why):
        said(tmp_path, {name: text}, table=name)


def test_a_name_that_two_videos_bear_says_neither(tmp_path):
    table = '{"file": "a", "caption": "which?"}\n{"file": "sub/a", "text": "this"}\n{"clip": "x"}\n'
    with pytest.raises(ValueError, match="line 3 names no video"):
        said(tmp_path, {"t.jsonl": table}, table="t.jsonl")
    found, unused = said(tmp_path, {"t.jsonl": table.rpartition('{"clip')[0]}, table="t.jsonl")
    assert (found["sub/a.mov"], found["a.mp4"], dict(unused.rows)) == ([("original", "this")], [], {"t.jsonl": ["a"]})


def test_one_file_that_is_the_table_by_two_ways_is_read_once(tmp_path):
    found, unused = said(tmp_path, {"metadata.csv": "file,caption\na.mp4,x\n"}, table="metadata.csv")
    assert found["a.mp4"] == [("original", "x")] and unused.of == {"metadata.csv": 1}
    assert joined([[Caption("a", "x", "m")], [Caption("b", "x", "m"), Caption("b", "y", "m")]]) == (
        Caption("a", "x", "m"),
        Caption("b", "y", "m"),
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            {"keys": {"dense": "lnog text"}},
            r"captions\.keys=\{dense: lnog text\}: no file or table has such a key or column; there are caption, file, long_text, short",
        ),
        ({"keys": {"dense": ["x", "y"]}}, r"captions\.keys=\{dense: x\}.*there are caption, file, long_text, short"),
        ({"keys": {"file": "clipp"}}, r"captions\.keys=\{file: clipp\}: no table has such a column; there are caption, file"),
        (
            {"suffixes": ["txt", "txxt"]},
            r"captions\.suffixes=\[txxt\]: no file beside the videos ends so; others end with json, jsonl, txt",
        ),
        ({"tables": ["metadata.jsn"]}, r"captions\.tables=\[metadata\.jsn\]: no file beside the videos or above them is called so"),
        ({"keys": {"dense": "long-text", "motion": ["gone", "short"], "style": None}}, None),
        ({"suffixes": ["TXT", "cap"]}, None),
        ({"tables": ["Metadata.JSONL", "metadata.csv"]}, None),
        ({"keys": {"file": "FILE", "dense": "caption"}}, None),
    ],
)
def test_a_chosen_name_that_nothing_has_is_refused_with_what_there_is(tmp_path, words, told):
    """Who mistypes a key would get clips without captions, and no word."""
    files = {"a.json": '{"caption": "x", "Long Text": "y"}', "b.short.txt": "z", "metadata.jsonl": '{"file": "sub/a.mov", "caption": "t"}'}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for name in VIDEOS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = Sidecars(tmp_path, VIDEOS, CaptionWords(**words))
    said = [found.of(name) for name in VIDEOS]
    if told is None:
        found.refuse_unmet()
        assert any(said)
    else:
        with pytest.raises(ValueError, match=told):
            found.refuse_unmet()


@pytest.mark.parametrize(
    ("name", "line"), [("t.csv", "file;caption"), ("t.csv", "file\tcaption"), ("t.tsv", "file,caption"), ("t.tsv", "file;caption")]
)
def test_a_table_with_other_separators_is_refused_as_such(tmp_path, name, line):
    """As spreadsheets save it where 1,5 is a number: each row would be one text."""
    with pytest.raises(ValueError, match=rf"captions={tmp_path}/{name} line 1 names one column, .*: (commas|tabs) stand between columns"):
        said(tmp_path, {name: f"{line}\n{line.replace('file', 'a.mp4')}\n"}, table=name)
    assert said(tmp_path, {"one.csv": "file\na.mp4\n", "metadata.csv": "caption\nx\n"})[0]["a.mp4"] == []  # of one column indeed
