"""Media, captions and prompts of strangers, by every verb that opens some."""

import io
import json
import os
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.attacks.harness import DEEP, assert_bounded, assert_refused, content, elsewhere, fifo, huge, in_turn, zeros


def png(width, height, data=None):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = zlib.compress(b"\0" * 1000) if data is None else data
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def gif(frames, width=4000, height=4000):
    """Frames of nothing that are said to be large: a few bytes each."""
    from PIL import Image

    first = Image.new("P", (width, height))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=[Image.new("P", (width, height), number % 200 + 1) for number in range(3)])
    whole = file.getvalue()
    start = whole.index(b"\x21\xf9")
    body = whole[start:-1]
    return whole[:start] + body * (frames // 4) + b";"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n(/tmp/written) (w) file closefile\nshowpage\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
PLAYLIST = b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"
MEDIA = {
    "eps.png": EPS,
    "eps.jpg": EPS,
    "svg.png": SVG,
    "playlist.mp4": PLAYLIST,
    "concat.mp4": CONCAT,
    "bomb.png": png(60_000, 60_000, zlib.compress(b"\0" * 50_000_000, 9)),
    "wide.png": png(2**31 - 1, 1),
    "claims.png": png(20_000, 20_000),
    "frames.gif": None,
    "empty.mp4": b"",
    "text.mp4": b"hello",
    "zip.webp": b"PK\x03\x04" + b"\0" * 100,
    "pickle.png": b"\x80\x04" + b"x" * 100,
    "cut.mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41",
    "boxes.mp4": b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + b"\0\0\0\x01moov\xff\xff\xff\xff\xff\xff\xff\xff",
}
VERBS = {
    "prepare": ("source=folder", "input={videos}", "output={out}"),
    "evaluate": ("checkpoint={videos}", "data={data}", "n=3", "output={out}"),
}


@pytest.fixture(scope="session")
def long_gif():
    return gif(4000)


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_is_no_medium_or_too_much_of_one_harms_nobody(sora, material, made, tmp_path, long_gif, verb, name):
    videos = material.copy("videos")
    (videos / name).write_bytes(MEDIA[name] if MEDIA[name] is not None else long_gif)
    ended = sora(verb, *(word.format(videos=videos, data=made / "videos", out=tmp_path / "out") for word in VERBS[verb]))
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told
    assert not [whom for what, whom in ended.seen if what == "subprocess.Popen" and "gs" in os.path.basename(str(whom))], ended.told


def hole(path):
    """A quarter of a gigabyte of nothing: of media all bytes are hashed."""
    with open(path, "ab") as file:
        file.truncate(256 << 20)


@pytest.mark.parametrize("how", [fifo, zeros, hole])
@pytest.mark.parametrize("verb", VERBS)
def test_a_pipe_a_device_and_a_hole_among_videos_are_no_videos(sora, material, made, tmp_path, verb, how):
    videos = material.copy("videos")
    for name in ("clip1.mp4", "clip2.txt"):
        how(videos / name)
    ended = sora(verb, *(word.format(videos=videos, data=made / "videos", out=tmp_path / "out") for word in VERBS[verb]))
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told


@pytest.mark.parametrize("name", [name for name in MEDIA if name.endswith((".png", ".jpg", ".webp", ".gif", ".mp4"))])
def test_what_a_sample_begins_with_is_confined(sora, material, tmp_path, long_gif, name):
    run, place = material.copy("live"), tmp_path / name
    place.write_bytes(MEDIA[name] if MEDIA[name] is not None else long_gif)
    ended = sora("sample", f"checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", f"input={place}", f"output={tmp_path / 'out'}")
    assert_bounded(ended)
    if name == "frames.gif":
        return
    assert_refused(ended, "input=")


@pytest.mark.parametrize("how", [fifo, zeros, huge])
def test_nor_is_a_pipe_waited_for_as_an_input(sora, material, tmp_path, how):
    run, place = material.copy("live"), tmp_path / "a.png"
    place.touch()
    how(place)
    assert_refused(sora("sample", f"checkpoint={run}", "prompt=x", f"input={place}", f"output={tmp_path / 'out'}"), "a.png")


def parquet(table, **how):
    file = io.BytesIO()
    pq.write_table(pa.table(table), file, **how)
    return file.getvalue()


LONG = os.urandom(150_000).hex()
TABLES = {
    "fifo.jsonl": fifo,
    "fifo.parquet": fifo,
    "fifo.txt": fifo,
    "zeros.csv": zeros,
    "zeros.txt": zeros,
    "huge.json": huge,
    "huge.csv": huge,
    "deep.json": content(DEEP),
    "deeper.json": content("[" * 3_000_000),
    "deep.jsonl": content(f'{{"prompt": {DEEP}}}\n'),
    "numbers.jsonl": content('{"prompt": 3}\n'),
    "null.jsonl": content('{"prompt": null}\n'),
    "lists.json": content('[{"prompt": ["a"]}]'),
    "digits.json": content('[{"prompt": "x", "seed": ' + "9" * 10_000 + "}]"),
    "infinite.json": content('[{"prompt": "x", "seconds": 1e999}]'),
    "nan.json": content('[{"prompt": "x", "seconds": NaN}]'),
    "size.json": content('[{"prompt": "x", "size": "100000x100000"}]'),
    "long.json": content('[{"prompt": "x", "seconds": 1e300}]'),
    "ratio.json": content('[{"prompt": "x", "size": "' + "9" * 400 + ':1"}]'),
    "twice.json": content("[{" + ",".join(f'"k{n % 9000}": 1' for n in range(18_000)) + "}]"),
    "quote.csv": content('prompt\n"' + "x" * 2_000_000),
    "fields.csv": content("prompt\n" + "a," * 500_000),
    "columns.csv": content(",".join(f"c{number}" for number in range(200_000)) + "\n"),
    "binary.txt": content(bytes(range(256)) * 100),
    "bomb.parquet": content(b""),
    "claims.parquet": content(b"PAR1" + b"\xff\xff\xff\x7fPAR1"),
    "empty.parquet": content(b""),
}
BOMB = {"prompt": [LONG] * 9000}


@pytest.fixture(scope="session")
def bomb():
    return parquet(BOMB, compression="zstd", dictionary_pagesize_limit=1 << 30)


@pytest.mark.parametrize("name", TABLES)
def test_prompts_are_read_within_limits(sora, material, tmp_path, bomb, name):
    path = tmp_path / name
    path.touch()
    TABLES[name](path)
    if name == "bomb.parquet":
        path.write_bytes(bomb)
        assert len(bomb) < 400_000
    ended = sora("sample", f"checkpoint={material.folder / 'live'}", f"prompts={path}", "steps=1", f"output={tmp_path / 'out'}")
    assert_refused(ended)


@pytest.mark.parametrize(
    "name", [name for name in TABLES if not name.endswith(".txt") and name not in ("size.json", "long.json", "ratio.json")]
)
def test_tables_of_captions_are_read_within_limits(sora, material, tmp_path, bomb, name):
    path = tmp_path / name
    path.touch()
    TABLES[name](path)
    if name == "bomb.parquet":
        path.write_bytes(bomb)
    ended = sora("prepare", "source=folder", f"input={material.folder / 'videos'}", f"captions={path}", f"output={tmp_path / 'out'}")
    assert_refused(ended)


BESIDE = {
    "fifo": fifo,
    "zeros": zeros,
    "elsewhere": elsewhere,
    "huge": huge,
    "deep": content(DEEP),
    "binary": content(bytes(range(256))),
    "number": content("3"),
    "list": content("[1, [2]]"),
    "object": content(json.dumps({"caption": {"a": DEEP}})),
}


@pytest.mark.parametrize(("how", "suffix"), in_turn([*BESIDE], ["txt", "json"]))
def test_captions_beside_videos_are_read_within_limits(sora, material, tmp_path, how, suffix):
    videos = material.copy("videos")
    path = videos / f"clip0.{suffix}"
    path.touch()
    BESIDE[how](path)
    ended = sora("prepare", "source=folder", f"input={videos}", f"output={tmp_path / 'out'}")
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told


SHARDS = {
    "fifo": fifo,
    "zeros": zeros,
    "empty": content(b""),
    "text": content("hello " * 500),
    "binary": content(os.urandom(5000)),
    "hole": hole,
    "sizes": content(b"a.mp4".ljust(100, b"\0") + b"0000644\0" + b"0" * 16 + b"77777777777\0" + b"\0" * 376),
}


@pytest.mark.parametrize("how", SHARDS)
def test_shards_of_others_are_read_within_limits(sora, material, tmp_path, how):
    tars = material.copy("tars")
    (tars / "bad.tar").touch()
    SHARDS[how](tars / "bad.tar")
    ended = sora("data", "index", str(tars), f"output={tmp_path / 'out'}")
    assert_bounded(ended)
    assert ended.code in (0, 2), ended.told
