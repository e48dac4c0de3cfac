"""A read from the middle of a file gives what a read from its first packet gives there, frame by frame, or it says that it may not."""

import re
import struct
from fractions import Fraction

import numpy as np
import pytest

from sora.video.decoding import pyav
from sora.video.decoding.decord import DecordReader
from sora.video.decoding.guarded import GuardedReader
from sora.video.demuxing.seeking import WAYS, Way, Ways
from sora.video.files import LIMITS, PYAV
from tests.data.making import counting, numbers
from tests.video.decoding.clips import GOOD, file_of, index_first
from tests.video.decoding.sought import BROWSER, FILES, FRAMES, UNEVEN, moving

UNHEALTHY = ("an old encoder of 4:4:4",)  # no such encoder wrote it: decoded as if, it has faults wherever it is read from
KINDS = [*FILES, *GOOD]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(WAYS, "_found", type(WAYS._found)())


def content(kind: str) -> bytes:
    return FILES[kind]() if kind in FILES else GOOD[kind]().content


def from_the_start(source: bytes, **asked):
    """The read without any seek, or its refusal."""
    WAYS.note(source, Way.DECODE)
    try:
        return PYAV.read(source, **asked)
    except ValueError as error:
        return str(error)
    finally:
        WAYS.note(source, Way.INDEX)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_read_from_the_middle_is_a_read_from_the_start(kind):
    source = content(kind)
    whole, info = PYAV.read(source), PYAV.probe(source, timeline=True)
    assert whole.report.clean or kind in UNHEALTHY
    assert len(info.timeline.times) == len(whole.frames)
    for first in range(1, len(whole.frames), 7):
        got, wanted = PYAV.read(source, first=first, frames=3), whole.frames[first : first + 3]
        assert np.array_equal(got.frames, wanted), first
        assert kind in UNHEALTHY or (got.report.faults == (0, 0, 0) and got.report.missing == 3 - len(wanted)), first
    for start in np.random.default_rng(len(kind)).uniform(1.05, max(info.duration, 1.1), 4).tolist():
        for fps in (None, info.fps / 2.3, info.fps / 5):
            wanted = from_the_start(source, start=start, frames=3, fps=fps)
            if isinstance(wanted, str):
                with pytest.raises(ValueError, match="no frame that decodes"):
                    PYAV.read(source, start=start, frames=3, fps=fps)
                continue
            got = PYAV.read(source, start=start, frames=3, fps=fps)
            assert np.array_equal(got.frames, wanted.frames) or not got.report.clean, (start, fps)
            assert kind in UNHEALTHY or got.report == wanted.report or got.report.faults == (0, 0, 0), (start, fps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in UNHEALTHY])
def test_decord_reads_from_the_middle_as_from_the_start_or_refuses(kind, decord):
    """Against its own frames from the start: it turns colours with less care than PyAV. They are in PyAV's order."""
    source = content(kind)
    try:
        whole = decord.read(source, name="clip 7")
    except ValueError as error:
        assert "clip 7" in str(error) and "decord" in str(error)
        return
    for number, picture in enumerate(PYAV.read(source).frames[::9]):
        assert np.abs(whole.frames.astype(int) - picture).mean((1, 2, 3)).argmin() == number * 9
    for first in range(1, len(whole.frames), 7):
        assert np.array_equal(decord.read(source, first=first, frames=3).frames, whole.frames[first : first + 3])


@pytest.fixture(scope="module")
def decord():
    reader = GuardedReader(reader=DecordReader(limits=LIMITS), seconds=60, memory_gb=2, restart_after=1000)
    yield reader
    reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["an old encoder", "an old encoder in ts"])
def test_what_the_first_packet_alone_holds_is_what_these_files_need(kind, monkeypatch):
    """Else the law would hold of them whatever the reader does."""
    source, firsts = content(kind), range(30, FRAMES - 4)
    right = [PYAV.read(source, first=first, frames=4).frames for first in firsts]
    monkeypatch.setattr(pyav, "head", lambda packets, video: None)
    monkeypatch.setattr(pyav.stream, "doubtful", False)  # nor is a read that the decoder complains of made again from the start
    wrong = [PYAV.read(source, first=first, frames=4).frames for first in firsts]
    assert not all(np.array_equal(one, other) for one, other in zip(right, wrong, strict=True))


def test_an_ordinary_file_is_opened_once_and_no_group_but_the_one_that_is_read_is_decoded(monkeypatch):
    source = file_of(counting(100), options={"g": "10", "bf": "2"})
    opens, opened = [], pyav.opened
    monkeypatch.setattr(pyav, "opened", lambda *given: opens.append(given) or opened(*given))
    got = PYAV.read(source, start=75 / 25, frames=5)
    assert numbers(got.frames) == [75, 76, 77, 78, 79]
    assert got.report.decoded <= 12  # from the keyframe at 70 on, and at most as many more as are shown in another order
    assert len(opens) == 1
    assert not len(WAYS)


def test_a_stream_without_an_index_is_gone_through_and_not_decoded():
    source = file_of(counting(100), container="mpegts", options={"g": "10", "bf": "2"}, base=Fraction(1, 90000))
    got = PYAV.read(source, start=75 / 25, frames=5)
    assert numbers(got.frames) == [75, 76, 77, 78, 79]
    assert got.report.decoded <= 12


def misled(monkeypatch):
    """An index that leads behind its keyframes, believed; how often it was asked is the length of the list."""
    asked, led = [], pyav.led

    def behind(*given):
        asked.append(given)
        packets = led(*given)
        next(packets)
        return packets

    monkeypatch.setattr(pyav, "led", behind)
    return asked


def test_faults_after_a_seek_send_the_read_back_to_the_start_and_are_remembered_for_the_file(monkeypatch, tmp_path):
    (tmp_path / "a.mp4").write_bytes(file_of(counting(60), options={"g": "10", "bf": "0"}))
    asked = misled(monkeypatch)
    for source in (tmp_path / "a.mp4", (tmp_path / "a.mp4").read_bytes()):
        for first in (47, 33, 35):
            got = PYAV.read(source, first=first, frames=4)
            assert numbers(got.frames) == list(range(first, first + 4))
            assert got.report.clean
        assert WAYS.of(source) is Way.DECODE
    assert len(asked) == 2  # one for each way in which the file was given
    (tmp_path / "a.mp4").write_bytes(file_of(counting(61), options={"g": "10", "bf": "0"}))
    assert WAYS.of(tmp_path / "a.mp4") is Way.INDEX  # it is another file now


def test_damage_of_the_file_is_told_and_not_taken_for_a_fault_of_the_seek():
    source = bytearray(file_of(moving(60), options={"g": "10", "bf": "0"}, container="matroska"))
    source[len(source) // 2 : len(source) // 2 + 200] = bytes(200)
    reports = [PYAV.read(bytes(source), first=first, frames=5).report for first in range(30, 55, 5)]
    assert not all(report.clean for report in reports)
    assert reports[-1].clean  # what lies before its own keyframe is nothing to it
    assert WAYS.of(bytes(source)) is Way.INDEX


def test_a_window_that_refers_to_a_damaged_frame_is_not_good_though_the_frame_is_not_in_it():
    how = {"options": {"bf": "0", "x264-params": "keyint=infinite:scenecut=0"}, "container": "mpegts", "base": Fraction(1, 90000)}
    source = bytearray(file_of(moving(60), **how))
    source[len(source) // 3 : len(source) // 3 + 3000] = bytes(3000)
    shown = list(pyav.stream(bytes(source), start=0.5, limits=LIMITS))
    faulty = [number for number, picture in enumerate(shown) if not picture.good]
    assert faulty and faulty == list(range(faulty[0], len(shown)))
    assert not PYAV.read(bytes(source), start=2.0, frames=5).report.clean


def test_what_is_remembered_is_bounded_and_the_oldest_is_forgotten():
    ways = Ways(3)
    for number in range(5):
        ways.note(bytes([number]), Way.WALK)
    assert len(ways) == 3
    assert [ways.of(bytes([number])) for number in range(5)] == [Way.INDEX] * 2 + [Way.WALK] * 3
    ways.note(bytes([4]), Way.INDEX)
    assert len(ways) == 2


def test_the_child_of_a_guarded_reader_counts_frames_as_its_parent_does():
    source, reader = content("uneven times"), GuardedReader(reader=PYAV, seconds=60, memory_gb=2, restart_after=100)
    assert np.array_equal(reader.read(source, first=40, frames=3).frames, PYAV.read(source, first=40, frames=3).frames)
    with pytest.raises(ValueError, match="first=3 counts the file's own frames"):
        reader.read(source, first=3, fps=2.0)
    with pytest.raises(ValueError, match="no frame that decodes from frame 99 on: it has 64 frames"):
        reader.read(source, first=99)
    reader.close()


def lasting(source: bytes, share: float) -> bytes:
    """An mp4 with another duration in the header of its medium (ISO/IEC 14496-12, 8.4.2, version 0)."""
    at = source.index(b"mdhd") + 20
    (said,) = struct.unpack(">I", source[at : at + 4])
    return source[:at] + struct.pack(">I", int(said * share)) + source[at + 4 :]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 2.0, 50.0])
def test_a_header_that_lies_about_the_duration_is_not_asked(share):
    source = lasting(file_of(counting(60)), share)
    info = PYAV.probe(source, timeline=True)
    assert (info.frames, info.fps, round(info.duration, 2)) == (60, 25.0, 2.4)
    assert numbers(PYAV.read(source, start=1.2, frames=5, fps=5).frames) == [30, 35, 40, 45, 50]


@pytest.mark.parametrize("kind", ["mkv through a pipe", "webm through a pipe"])
def test_a_file_that_says_nothing_of_its_length_is_measured(kind):
    info = PYAV.probe(content(kind), timeline=True)
    assert (info.frames, round(info.fps, 2), info.lacks) == (FRAMES, 25.0, "")
    assert info.duration == pytest.approx(FRAMES / 25, abs=0.01)


@pytest.mark.parametrize("kind", ["uneven times", "uneven times in mkv"])
def test_the_rate_of_a_file_of_variable_rate_is_its_average(kind):
    info = PYAV.probe(content(kind), timeline=True)
    assert info.fps == pytest.approx((FRAMES - 1) / UNEVEN[-1], rel=1e-3)


@pytest.mark.parametrize("kind", ["uneven times in ts", "uneven times in mkv through a pipe"])
def test_where_no_header_tells_the_rate_it_is_counted_before_anything_is_read(kind):
    """FFmpeg guesses 90,000 and 1,000 frames a second of these."""
    rate = (FRAMES - 1) / BROWSER[-1]
    assert PYAV.probe(content(kind)).fps == pytest.approx(rate, rel=1e-3)
    assert PYAV.read(content(kind), start=1.0, frames=3).fps == pytest.approx(rate, rel=1e-3)
    with pytest.raises(ValueError, match="were asked for; lower fps"):
        PYAV.read(content(kind), fps=60.0)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_seconds_in_which_a_recording_stands_still_are_no_loss(container):
    times = [number / 25 for number in range(20)] + [4 + number / 25 for number in range(20)]
    base = Fraction(1, 90000 if container == "mpegts" else 1000)
    got = PYAV.read(file_of(counting(40), times=times, container=container, base=base), fps=5)
    assert numbers(got.frames)[3:8] == [15, 19, 19, 19, 19]
    assert got.report.clean


def test_seconds_that_a_file_has_lost_are_a_loss():
    source = file_of(moving(100), container="matroska", options={"g": "5", "bf": "0", "crf": "1"})
    lost = bytearray(source)
    lost[len(source) // 3 : len(source) // 3 * 2] = bytes(len(source) // 3)
    assert not PYAV.read(bytes(lost), fps=5).report.clean
    assert "is lost" in PYAV.probe(bytes(lost), timeline=True).lacks


@pytest.mark.parametrize(
    ("kind", "told"),
    [("ts that begins within a group", "its first 7 frames need others"), ("open groups that a copy begins with", "frames need others")],
)
def test_what_a_copy_begins_with_and_cannot_show_is_told_and_not_shown(kind, told):
    info = PYAV.probe(content(kind), timeline=True)
    assert told in info.lacks
    assert info.timeline.times[0] == 0


@pytest.mark.parametrize(
    ("container", "told"), [("mp4", r"breaks off after \d+ of 100 frames"), ("matroska", r"after \d\.\d of 4\.0 seconds")]
)
def test_a_file_that_is_cut_short_says_so(container, told):
    source = file_of(moving(100), container=container, options={"bf": "0"})
    source = index_first(source) if container == "mp4" else source
    assert re.search(told, PYAV.probe(source[: len(source) // 2], timeline=True).lacks)
    assert PYAV.probe(source, timeline=True).lacks == ""


HDR = "log-level=none:colorprim=bt2020:colormatrix=bt2020nc:transfer="


@pytest.mark.parametrize(
    ("how", "odd"),
    [
        ({}, ()),
        ({"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}}, ("interlaced",)),
        ({"codec": "libx265", "pixels": "yuv420p10le", "options": {"x265-params": HDR + "smpte2084"}}, ("HDR (PQ)",)),
        ({"codec": "libx265", "pixels": "yuv420p10le", "options": {"x265-params": HDR + "arib-std-b67"}}, ("HDR (HLG)",)),
        ({"codec": "libx265", "pixels": "yuv420p10le", "options": {"x265-params": HDR + "bt709"}}, ("BT.2020 colours",)),
    ],
)
def test_pictures_that_are_not_shown_as_they_were_meant_are_named(how, odd):
    assert PYAV.probe(file_of(counting(3, 64, 96), **how)).odd == odd
