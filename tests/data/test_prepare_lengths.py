"""How much there is in a folder's videos is told by their packets, and what no clip holds is told by name and number."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sora.data.loading.loader import read_clip
from sora.ingest import sources
from sora.video.files import PYAV
from tests.data.making import counting, numbers
from tests.data.preparing import prepared, source
from tests.video.decoding.clips import file_of
from tests.video.decoding.sought import FILES, FRAMES, by_an_encoder_of, moving, piped
from tests.video.decoding.test_seeking import lasting


def made(tmp_path, content: bytes, **settings):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(content)
    index, report, line = prepared(tmp_path / "out", source(**settings), folder=tmp_path / "in")
    return [numbers(read_clip(index, row, reader=PYAV)) for row in range(len(index))], report, line


@pytest.mark.parametrize(
    "content",
    [
        lambda: piped(file_of(counting(40)), "matroska"),
        lambda: lasting(file_of(counting(40)), 0.5),
        lambda: lasting(file_of(counting(40)), 10),
    ],
)
def test_headers_that_say_nothing_or_too_little_cost_no_window(tmp_path, content):
    clips, report, line = made(tmp_path, content(), fps=12.5, frames=5)
    assert clips == [list(range(first, first + 10, 2)) for first in (0, 10, 20, 30)]
    assert (report["refused"], report["noted"]) == ([], [])
    assert "could not be used" not in line


def test_frames_that_no_window_takes_are_counted_with_a_reason(tmp_path):
    clips, report, line = made(tmp_path, file_of(counting(40)), frames=9, min_frames=5, windows_per_video=3)
    assert [clip[0] for clip in clips] == [0, 9, 18]
    assert [(one["what"], one["frames"]) for one in report["noted"]] == [
        ("frames beyond source.windows_per_video", 9),
        ("frames at the end, too few for a window (source.min_frames, source.stride_time)", 4),
    ]
    assert "9 frames beyond source.windows_per_video" in line and "4 frames at the end" in line


def test_still_seconds_of_a_recording_are_clips_as_any_others(tmp_path):
    times = [number / 25 for number in range(20)] + [2.4 + number / 25 for number in range(20)]
    clips, report, _ = made(tmp_path, file_of(counting(40), times=times), fps=10, frames=5)
    assert [clip for clip in clips if clip == [19] * 5]
    assert report["refused"] == []


def test_a_healthy_file_of_an_old_encoder_gives_all_its_windows_and_the_pixels_of_a_read_from_its_start(tmp_path):
    content = FILES["an old encoder"]()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(content)
    index, report, _ = prepared(tmp_path / "out", source(frames=5), folder=tmp_path / "in")
    assert (len(index), report["refused"]) == (FRAMES // 5, [])
    whole = PYAV.read(content, size=(64, 96)).frames
    for row in range(len(index)):
        assert np.array_equal(read_clip(index, row, reader=PYAV), whole[5 * row : 5 * row + 5])


def test_garbage_is_in_no_clip(tmp_path):
    """4:4:4 as if of an encoder whose mistakes the decoder mends where there are none: windows that refer to them are named."""
    content = by_an_encoder_of(b"142", file_of(moving(), pixels="yuv444p", options={"x264-params": "keyint=8:min-keyint=8:scenecut=0"}))
    faulty = {number for number, shown in enumerate(_shown(content)) if not shown}
    assert faulty
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(content)
    index, report, _ = prepared(tmp_path / "out", source(frames=1, min_frames=1), folder=tmp_path / "in")
    assert {round(index.row(row).start * 25) for row in range(len(index))} == set(range(FRAMES)) - faulty
    assert len(report["refused"]) == len(faulty)


def _shown(content: bytes) -> list[bool]:
    from sora.video.files import LIMITS, stream

    return [picture.good for picture in stream(content, limits=LIMITS)]


def test_interlaced_and_hdr_videos_are_named(tmp_path):
    combed = file_of(counting(9, 64, 96), options={"flags": "+ildct+ilme", "x264-params": "tff=1"})
    _, report, line = made(tmp_path, combed)
    assert [(one["source"], one["what"]) for one in report["noted"]] == [("a.mp4", "interlaced")]
    assert "interlaced: 1 file, the first a.mp4" in line


def test_a_video_that_is_cut_short_gives_its_windows_and_is_named(tmp_path):
    whole = file_of(moving(60), container="matroska", options={"g": "5", "bf": "0"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mkv").write_bytes(whole[: len(whole) // 2])
    index, report, _ = prepared(tmp_path / "out", source(frames=5), folder=tmp_path / "in")
    assert len(index) > 2
    assert "breaks off after" in report["refused"][0]["reason"]


@pytest.mark.parametrize("fps", [None, 24.0])
def test_a_recording_of_variable_rate_gives_all_its_windows_at_its_own_rate(tmp_path, fps):
    """Its header, which counts how long the last frame stands, says fewer frames a second than its packets."""
    steps = np.random.default_rng(5).choice([0.005, 0.01, 0.04, 0.08, 0.2, 0.5], 99, p=[0.1, 0.1, 0.5, 0.2, 0.05, 0.05])
    content = file_of(counting(100), times=np.cumsum([0, *steps]).round(3).tolist(), options={"bf": "2", "g": "12"})
    assert PYAV.probe(content, timeline=True).fps > PYAV.probe(content).fps * 1.001
    clips, report, _ = made(tmp_path, content, fps=fps, frames=9)
    assert (len(clips), report["refused"]) == (11, [])


def test_a_file_without_a_place_to_begin_at_is_decoded_once_and_not_once_for_each_stretch(monkeypatch):
    (film := source(frames=1))._folder = Path()
    monkeypatch.setattr(sources, "probe", lambda path, timeline: info)
    for run, steps in ((12, 10), (120, 1)):
        info = replace(PYAV.probe(file_of(counting(120, 32, 32)), timeline=True), run=run)
        assert len(film._steps("a.mpg")) == steps
    assert PYAV.probe(FILES["mpg of mpeg2"](), timeline=True).run == FRAMES
    assert PYAV.probe(FILES["ts"](), timeline=True).run == 12
