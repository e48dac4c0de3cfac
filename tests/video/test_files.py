import io
import time
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from sora.video.decoding.pyav import PyAVReader
from sora.video.files import LIMITS, covering, encode, probe, read, stream, write
from tests.data.making import counting, muxed, numbers, sound, telling

X264 = {"g": "12", "crf": "10"}


@pytest.mark.parametrize("shape", [(17, 32, 32), (1, 32, 32), (5, 31, 29), (3, 2, 2), (3, 3, 3), (2, 16, 64)])
def test_lossless_gives_back_every_pixel(shape):
    frames = telling(*shape)
    got = read(encode(frames, 29.97, lossless=True))
    assert np.array_equal(got.frames, frames)
    assert got.fps == pytest.approx(29.97)
    assert got.report.clean


def test_lossy_keeps_colours_and_says_how_they_were_made():
    colours = [(222, 40, 40), (40, 180, 60), (45, 85, 230), (255, 255, 255), (0, 0, 0), (245, 222, 40), (128, 128, 128)]
    frames = np.array(colours, dtype=np.uint8)[:, None, None].repeat(48, 1).repeat(64, 2)
    content = encode(frames, 8, lossless=False)
    assert np.abs(read(content).frames.astype(int) - frames).max() <= 4
    with av.open(io.BytesIO(content)) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)


def test_the_same_frames_make_the_same_bytes(tmp_path):
    frames = telling(5, 16, 16)
    for lossless in (True, False):
        assert encode(frames, 8, lossless=lossless) == encode(frames, 8, lossless=lossless)
    write(tmp_path / "a.mp4", frames, 8, lossless=True)
    assert (tmp_path / "a.mp4").read_bytes() == encode(frames, 8, lossless=True)


def test_what_no_video_can_hold_is_refused():
    with pytest.raises(ValueError, match="32x31 do not fit 4:2:0.*even sizes"):
        encode(telling(2, 31, 32), 8, lossless=False)
    for frames, fps in ((telling(2, 4, 4), 0), (telling(2, 4, 4)[:0], 8)):
        with pytest.raises(ValueError, match="frame"):
            encode(frames, fps, lossless=True)


def moving(seconds, speed, times):
    """A white bar that moves `speed` pixels a second, seen at `times`."""
    frames = np.zeros((len(times), 16, 128, 3), np.uint8)
    for picture, when in zip(frames, times, strict=True):
        left = round(8 + speed * when)
        picture[:, left : left + 8] = 255
    return frames


def centres(frames):
    bright = frames[..., 1].astype(float).mean(1)
    return (bright * np.arange(bright.shape[1])).sum(1) / bright.sum(1)


@pytest.mark.parametrize("rate", [12, 24, 25, 30, 60, "variable"])
def test_frames_are_taken_by_time_at_any_rate(rate):
    """A bar at 40 pixels a second, read at 12 frames a second, stands within what half a source frame moves it."""
    if rate == "variable":
        times = np.cumsum(np.tile([1 / 60, 1 / 15, 1 / 30], 18))
    else:
        times = np.arange(int(1.5 * rate)) / rate
    content = muxed(moving(1.5, 40, times), times=times, options=X264)
    got = read(content, fps=12, frames=14)
    expected = 11.5 + 40 * (np.arange(14) / 12 + (times[0] if rate == "variable" else 0))
    slack = 40 * (1 / 30 if rate == "variable" else 0.5 / rate) + 1
    assert np.abs(centres(got.frames) - expected).max() <= slack
    assert got.report.clean


@pytest.mark.parametrize(
    "codec,container", [("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm"), ("libx264", "matroska"), ("mpeg4", "avi")]
)
def test_a_start_anywhere_gives_the_frame_of_that_time(codec, container):
    options = {"g": "30"} | ({"bf": "2"} if codec == "libx264" else {}) | ({"x265-params": "log-level=none"} if codec == "libx265" else {})
    options |= {"qmin": "1", "qmax": "1"} if codec == "mpeg4" else {}
    base = Fraction(1, 25) if container == "avi" else Fraction(1, 1000)
    content = muxed(counting(100, 48, 64), codec=codec, container=container, options=options, base=base)
    assert probe(content).frames == 100
    for first in (0, 1, 29, 30, 31, 64, 95):
        got = read(content, start=first / 25, frames=3)
        assert numbers(got.frames) == [first, first + 1, first + 2]
        assert numbers(read(content, start=first / 25, frames=2, fps=12.5).frames) == [first, first + 2]


def test_a_file_that_starts_late_starts_at_zero():
    content = muxed(counting(20), container="matroska", times=[5 + n / 25 for n in range(20)])
    assert numbers(read(content, start=4 / 25, frames=3).frames) == [4, 5, 6]


def test_a_transport_stream_without_an_index_is_read_from_its_beginning():
    content = muxed(counting(100), container="mpegts", base=Fraction(1, 90000), options={"g": "50", "bf": "0"})
    assert numbers(read(content, start=70 / 25, frames=3).frames) == [70, 71, 72]


def test_reading_past_the_end_tells_what_is_missing():
    content = muxed(counting(20))
    got = read(content, start=15 / 25, frames=9)
    assert (len(got.frames), got.report.missing, got.report.clean) == (5, 4, False)
    with pytest.raises(ValueError, match="no frame that decodes from 9 s"):
        read(content, start=9, frames=1)


def test_more_frames_than_the_file_has_are_not_made_up():
    with pytest.raises(ValueError, match="has 25 frames a second, 50 were asked for; lower fps"):
        read(muxed(counting(20)), fps=50)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_the_rotation_in_the_metadata_is_applied(rotation):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :16, :16] = (255, 0, 0)  # top left
    content = muxed(frames, rotation=rotation)
    turned = np.rot90(frames, rotation // 90, axes=(1, 2))  # PyAV's angle is counterclockwise, as numpy's
    got = read(content)
    assert got.frames.shape == turned.shape
    assert np.abs(got.frames.astype(int) - turned).mean() < 6
    info = probe(content)
    assert (info.height, info.width, info.rotation) == (*turned.shape[1:3], -rotation % 360)
    assert read(content, size=(24, 24)).frames.shape == (3, 24, 24, 3)


def test_pixels_are_square():
    content = muxed(counting(3, 48, 64), aspect=Fraction(3, 2))
    assert (probe(content).height, probe(content).width) == (48, 96)
    assert read(content).frames.shape == (3, 48, 96, 3)


def test_resizing_fills_without_distorting():
    y, x = np.mgrid[:96, :192]
    frames = np.repeat((np.hypot(y - 48, x - 96) < 30)[None, ..., None] * np.uint8(255), 3, -1).repeat(2, 0)
    got = read(encode(frames, 8, lossless=True), size=(48, 48)).frames[0, ..., 0] > 127
    assert abs(got.any(0).sum() - 30) <= 1  # as wide as high: a circle of half the radius in the middle
    assert abs(got.any(1).sum() - 30) <= 1
    assert abs(np.argwhere(got).mean(0) - 23.5).max() < 0.6
    assert covering(100, 200, (64, 64)) == (64, 128)
    assert covering(101, 64, (64, 64)) == (101, 64)


def test_shrinking_averages_and_does_not_alias():
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 200
    got = read(encode(stripes, 8, lossless=True), size=(16, 16)).frames
    assert np.abs(got.astype(int) - 100).max() <= 3


def hostile(name):
    good = muxed(counting(40), options=X264)
    return {
        "empty": b"",
        "html": b"<!doctype html><html><body>404</body></html>",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/hostname\n",
        "random": np.random.default_rng(0).bytes(5000),
        "random with a head": b"\x00\x00\x00\x18ftypisom" + np.random.default_rng(0).bytes(5000),
        "without its header": good[: len(good) // 2],
        "only its head": good[:100],
        "audio": sound(1024),
        "zeroed": good[:600] + bytes(len(good) - 600),
        "matroska of nothing": b"\x1a\x45\xdf\xa3" + bytes(200),
        "avi of nothing": b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(200),
        "ogg of nothing": b"OggS" + bytes(200),
    }[name]


HOSTILE = ["empty", "html", "playlist", "concat", "random", "random with a head", "without its header", "only its head", "audio", "zeroed"]
HOSTILE += ["matroska of nothing", "avi of nothing", "ogg of nothing"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_a_value_error_that_names_it(name, tmp_path):
    path = tmp_path / "strange.mp4"
    path.write_bytes(hostile(name))
    for attempt in (probe, read):
        with pytest.raises(ValueError, match=r"strange\.mp4"):
            attempt(path)
    with pytest.raises(ValueError, match="clip seven"):
        read(hostile(name), name="clip seven")


def test_a_missing_file_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.mp4 cannot be read: No such file"):
        probe(tmp_path / "nothing.mp4")


def test_flipped_bytes_never_crash_or_change_the_shape():
    """What they do to the picture is for the hash in the index to notice: H.264 hides its errors well."""
    frames = telling(12, 32, 32)
    good = encode(frames, 8, lossless=True)
    rng, noticed = np.random.default_rng(1), 0
    for _ in range(40):
        bad = bytearray(good)
        for place in rng.integers(0, len(good), size=20):
            bad[place] ^= int(rng.integers(1, 256))
        try:
            got = read(bytes(bad), frames=12)
        except ValueError:
            noticed += 1
            continue
        noticed += not got.report.clean
        assert got.report.missing == 12 - len(got.frames)
    assert noticed


def test_a_truncated_stream_gives_its_whole_frames_and_says_so():
    good = muxed(counting(40), container="matroska", options={"g": "10", "bf": "0", "crf": "10"})
    got = read(good[: int(len(good) * 0.6)], frames=40)
    assert numbers(got.frames) == list(range(len(got.frames)))
    assert 5 < len(got.frames) < 40
    assert not got.report.clean


def test_headers_beyond_the_limits_are_refused_before_decoding():
    content = muxed(counting(6, 64, 96))
    begin = time.process_time()  # of this process: others may hold it up
    for limit, why in (
        ({"pixels": 1000}, "6144 pixels a frame"),
        ({"frames": 5}, "6 frames by its header"),
        ({"seconds": 0.1}, "seconds by its header"),
        ({"rate": 9}, "25 frames a second"),
    ):
        with pytest.raises(ValueError, match=why):
            PyAVReader(limits=replace(LIMITS, **limit)).probe(content)
    assert time.process_time() - begin < 1
    with pytest.raises(ValueError, match="110,592 bytes, 6 frames of 96x64, 20,000 are the most"):
        PyAVReader(limits=replace(LIMITS, bytes=20000)).read(content)


def test_a_stream_lets_go_of_its_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(muxed(counting(10)))
    shown = stream(tmp_path / "a.mp4", limits=LIMITS)
    assert numbers(np.stack([next(shown).pixels, next(shown).pixels])) == [0, 1]
    shown.close()
    shown.close()


@pytest.mark.slow
def test_the_bytes_of_a_clip_do_not_depend_on_what_was_decoded_before(tmp_path):
    """With x264's mbtree every second clip came out otherwise once in so many, since it read what the decoder had left in memory."""
    film = muxed(counting(100, 64, 96), options=X264)
    frames = [picture.pixels for picture in stream(film, size=(64, 96), limits=LIMITS)]
    clips = [np.stack(frames[first : first + 17]) for first in range(0, 85, 17)]
    made = [set() for _ in clips]
    for turn in range(20):
        for clip, found in zip(clips, made, strict=True):
            shown = stream(film, start=2.0 + 0.04 * turn, size=(64, 96), limits=LIMITS)
            next(shown)
            shown.close()
            found.add(encode(clip, 16.0, lossless=False))
    assert [len(found) for found in made] == [1] * len(clips)


def test_pixels_are_square_where_the_pictures_alone_tell_that_they_are_not():
    """Those of H.263 are 12:11 (ITU-T H.263, 4.1), and a 3gp has no word of it: 176 across are shown as 192."""
    content = muxed(counting(4, 144, 176), codec="h263", container="3gp", base=Fraction(1, 25), options={"qmin": "1", "qmax": "3"})
    info = probe(content)
    assert (info.height, info.width, info.pixel_aspect) == (144, 192, pytest.approx(12 / 11))
    with av.open(io.BytesIO(content)) as opened:
        wide = [frame.reformat(192, 144, "rgb24", interpolation="BICUBIC").to_ndarray() for frame in opened.decode(video=0)]
    assert np.abs(read(content).frames.astype(int) - np.stack(wide)).mean() < 2
