"""A file that is one whole window keeps its stream: the same packets and pictures for every reader, and nothing else of the file."""

import io

import av
import numpy as np
import pytest

from sora.video.decoding.decord import DecordReader
from sora.video.files import LIMITS, probe, read
from sora.video.stream_copy import stream_copy
from tests.data.making import counting, numbers
from tests.data.preparing import prepared, source
from tests.video.decoding import clips

COPIED = {
    "h264", "h264 with b-frames", "h265 with closed groups", "vp9", "late start", "fragmented", "index at the front", "one frame",
    "transport stream",
}  # fmt: skip
# who is no codec of every reader, shows other pictures than it stores, comes at no even rate, or needs what a copy does not hold
ENCODED = {
    "h265", "h264 with open groups", "av1", "odd sizes", "variable rate", "variable rate in ts", "variable rate in flv",
    "variable rate in mkv through a pipe", "edit list", "ten bits", "avi",
}  # fmt: skip


def packets(content: bytes) -> list[bytes]:
    with av.open(io.BytesIO(content)) as file:
        return [bytes(packet) for packet in file.demux(video=0) if packet.size]


def prepared_alone(tmp_path, content: bytes, **settings):
    (folder := tmp_path / "videos ü").mkdir()
    (folder / "one").write_bytes(content)
    whole = {"min_frames": 1, "stride_time": 1, "multiple": 2, "lossless": False}
    return prepared(tmp_path / "out", source(**(whole | settings)), folder=folder)


def test_every_kind_is_said_to_be_copied_or_not():
    assert set(clips.GOOD) == COPIED | ENCODED and not COPIED & ENCODED


@pytest.mark.parametrize("kind", sorted(COPIED))
def test_a_copy_shows_the_same_pictures_to_every_reader(tmp_path, kind):
    made = clips.GOOD[kind]()
    index, report, line = prepared_alone(tmp_path, made.content, frames=len(made.numbers))
    row, copy = index.row(0), index.read_member(0)
    assert row.extra == {"stream": "copied"} and report["copied"] == 1 and "1 clip keeps the stream of their file" in line
    assert np.array_equal(read(copy).frames, read(made.content).frames)
    assert (row.frames, row.fps) == (len(made.numbers), probe(made.content, timeline=True).fps)
    assert np.allclose(probe(copy, timeline=True).timeline.times, np.arange(row.frames) / row.fps, atol=1e-3)
    assert numbers(DecordReader(limits=LIMITS).read(copy).frames) == made.numbers
    if kind != "transport stream":  # whose packets carry start codes in place of lengths
        assert packets(copy) == packets(made.content)


@pytest.mark.parametrize("kind", sorted(ENCODED - {"odd sizes"}))
def test_what_cannot_be_copied_is_encoded_and_says_so(tmp_path, kind):
    made = clips.GOOD[kind]()
    index, report, line = prepared_alone(tmp_path, made.content, frames=len(made.numbers))
    assert index.row(0).extra == {"stream": "encoded"} and report["copied"] == 0 and "keeps the stream" not in line
    assert numbers(read(index.read_member(0)).frames) == made.numbers[: index.row(0).frames]


@pytest.mark.parametrize(
    "settings", [{"frames": 25}, {"size": 32}, {"multiple": 64}, {"fps": 12.5}, {"frames": 49, "min_frames": 49}], ids=str
)
def test_what_is_cut_or_scaled_is_encoded(tmp_path, settings):
    made = clips.GOOD["h264"]()  # 50 frames of 64x96, 25 a second
    index, _, _ = prepared_alone(tmp_path, made.content, **({"frames": 50} | settings))
    assert len(index) and all(index.row(number).extra == {"stream": "encoded"} for number in range(len(index)))


def test_a_copy_holds_no_sound_no_title_and_no_place():
    """Who gives away a video gives away what is seen in it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        output.metadata.update(title="secret", location="+48.1+11.5/")
        video, sound = output.add_stream("libx264", rate=25), output.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.metadata["handler_name"] = "secret"
        for picture in counting(10, 64, 96):
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        silent = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silent.sample_rate = 16000
        output.mux([*sound.encode(silent), *sound.encode(None), *video.encode(None)])
    assert b"secret" in file.getvalue()
    copy = stream_copy(file.getvalue(), read(file.getvalue()).frames, limits=LIMITS)
    assert copy is not None and b"secret" not in copy and b"+48.1" not in copy
    with av.open(io.BytesIO(copy)) as found:
        assert [stream.type for stream in found.streams] == ["video"]


def test_a_copy_that_would_show_something_else_is_none():
    content = clips.GOOD["h264"]().content
    frames = read(content).frames
    assert stream_copy(content, frames, limits=LIMITS) == stream_copy(content, frames, limits=LIMITS)
    assert stream_copy(content, frames[:-1], limits=LIMITS) is None
    assert stream_copy(content, frames ^ 1, limits=LIMITS) is None
    assert stream_copy(content[: len(content) // 2], frames, limits=LIMITS) is None
