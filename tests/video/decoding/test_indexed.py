import numpy as np
import pytest

from sora.video.decoding.indexed import chosen
from sora.video.demuxing.groups import GopType, entry
from sora.video.demuxing.timeline import PacketScan
from sora.video.reader import Timeline


def walk(times, *losses):
    keys = np.ones(len(times), bool)
    return PacketScan(Timeline(times, keys), hidden=0, open=0, losses=losses, dropped=0, packets=len(times), ends=0.0, broken=False, run=1)


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_frame_is_the_nearest_in_time_and_the_earlier_of_two(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 4, size=30)) / 8.0  # eighths: half-way is exactly half-way
    start, fps = float(rng.integers(8)) / 8, float(rng.choice([1.0, 2.0, 4.0]))
    numbers, _ = chosen(walk(times), start=start, frames=12, fps=fps, step=0.25)
    targets = [start + number / fps for number in range(12) if start + number / fps <= times[-1] + 0.51 * 0.25]
    assert numbers.tolist() == [int(np.abs(times - target).argmin()) for target in targets]  # argmin: the first of equals


def test_frames_far_from_their_time_are_counted_where_the_file_lost_some_and_not_where_it_stands_still():
    times = np.array([0.0, 0.1, 0.2, 2.0, 2.1])
    for losses, expected in (((), 0), (((0.2, 2.0),), 2), (((0.0, 0.1),), 0)):
        numbers, late = chosen(walk(times, *losses), start=0.0, frames=5, fps=2.0, step=0.1)
        assert numbers.tolist() == [0, 2, 2, 3, 3]
        assert late == expected  # those for 1.0 and 1.5 seconds; 0.5 is near enough


def test_without_a_rate_all_frames_from_the_start_on_are_chosen():
    assert chosen(walk(np.arange(10) / 5), start=0.75, frames=None, fps=None, step=0.2)[0].tolist() == [4, 5, 6, 7, 8, 9]
    assert chosen(walk(np.arange(10) / 5), start=0.75, frames=2, fps=None, step=0.2)[0].tolist() == [4, 5]


AVC, HEVC = b"\x01" + bytes(3) + b"\xff" + bytes(20), b"\x01" + bytes(20) + b"\xff"
RECOVERS, LATER, PICTURE = b"\0\0\0\4\x06\6\1\xc0", b"\0\0\0\4\x06\6\1\x40", b"\0\0\0\2\x41\0"
GROUP, CLOSED_GROUP = b"\0\0\1\xb8" + bytes(4), b"\0\0\1\xb8" + bytes(3) + b"\x40"
SEQUENCE = b"\x0a\1\0"  # of AV1


@pytest.mark.parametrize(
    ("codec", "extradata", "packet", "expected"),
    [
        ("h264", AVC, b"\0\0\0\2\x06\0" + b"\0\0\0\2\x65\0", GopType.CLOSED),  # a message, then an IDR picture
        ("h264", AVC, b"\0\0\0\2\x06\0" + PICTURE, GopType.NONE),
        ("h264", AVC, RECOVERS + PICTURE, GopType.OPEN),  # exact from this picture on
        ("h264", AVC, LATER + PICTURE, GopType.NONE),  # or a few pictures later, as where they are refreshed bit by bit
        ("h264", AVC, b"\0\0\0\7\x06\5\1\0\6\1\xc0" + PICTURE, GopType.OPEN),  # the second message of a unit
        ("h264", b"", b"\0\0\0\1\x67\0" + b"\0\0\1\x65", GopType.CLOSED),
        ("h264", b"", b"\0\0\0\1\x67\0" + b"\0\0\1\x41\0", GopType.NONE),
        ("h264", b"", b"\0\0\1\x06\6\1\xc0\x80" + b"\0\0\1\x41\0", GopType.OPEN),
        ("hevc", HEVC, b"\0\0\0\2\x40\0" + b"\0\0\0\2\x26\0", GopType.CLOSED),  # IDR_W_RADL
        ("hevc", HEVC, b"\0\0\0\2\x40\0" + b"\0\0\0\2\x2a\0", GopType.OPEN),  # CRA
        ("hevc", HEVC, b"\0\0\0\2\x02\0", GopType.NONE),
        ("h264", AVC, b"", GopType.NONE),
        ("h264", AVC, b"\xff\xff\xff\xff\x65", GopType.CLOSED),
        ("mpeg2video", b"", GROUP + b"\0\0\1\0\0\x08\0", GopType.OPEN),
        ("mpeg2video", b"", CLOSED_GROUP + b"\0\0\1\0\0\x08\0", GopType.CLOSED),
        ("mpeg1video", b"", GROUP + b"\0\0\1\0\0\x10\0", GopType.NONE),  # a P picture
        ("mpeg4", b"", b"\0\0\1\xb6\x10", GopType.OPEN),
        ("mpeg4", b"", b"\0\0\1\xb6\x50", GopType.NONE),
        ("vp8", b"", b"\x10", GopType.CLOSED),
        ("vp8", b"", b"\x11", GopType.NONE),
        ("vp9", b"", b"\x82", GopType.CLOSED),
        ("vp9", b"", b"\x86", GopType.NONE),
        ("vp9", b"", b"\x80", GopType.NONE),  # a key frame that is shown later
        ("av1", b"", b"\x12\0" + SEQUENCE + b"\x32\1\x10", GopType.CLOSED),
        ("av1", b"", b"\x12\0" + b"\x32\1\x10", GopType.NONE),  # without its sequence header
        ("av1", b"", b"\x12\0" + SEQUENCE + b"\x32\1\x30", GopType.NONE),
        ("mjpeg", b"", b"\xff", GopType.CLOSED),
        ("strange", b"", b"\xff", GopType.NONE),
    ],
)
def test_where_decoding_may_begin_is_read_from_the_packet(codec, extradata, packet, expected):
    assert entry(packet, codec, extradata) is expected
