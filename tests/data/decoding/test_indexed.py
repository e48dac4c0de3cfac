import numpy as np
import pytest

from sora.data.decoding.groups import closed
from sora.data.decoding.indexed import chosen


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_frame_is_the_nearest_in_time_and_the_earlier_of_two(seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 4, size=30)) / 8.0  # eighths: half-way is exactly half-way
    start, fps = float(rng.integers(8)) / 8, float(rng.choice([1.0, 2.0, 4.0]))
    numbers, _ = chosen(times, start=start, frames=12, fps=fps, step=0.25)
    targets = [start + number / fps for number in range(12) if start + number / fps <= times[-1] + 0.51 * 0.25]
    assert numbers.tolist() == [int(np.abs(times - target).argmin()) for target in targets]  # argmin: the first of equals


def test_frames_far_from_their_time_are_counted():
    times = np.array([0.0, 0.1, 0.2, 2.0, 2.1])
    numbers, late = chosen(times, start=0.0, frames=5, fps=2.0, step=0.1)
    assert numbers.tolist() == [0, 2, 2, 3, 3]
    assert late == 2  # those for 1.0 and 1.5 seconds; 0.5 is within what a file of variable rate leaves out


def test_without_a_rate_all_frames_from_the_start_on_are_chosen():
    assert chosen(np.arange(10) / 5, start=0.75, frames=None, fps=None, step=0.2)[0].tolist() == [4, 5, 6, 7, 8, 9]
    assert chosen(np.arange(10) / 5, start=0.75, frames=2, fps=None, step=0.2)[0].tolist() == [4, 5]


AVC, HEVC = b"\x01" + bytes(3) + b"\xff" + bytes(20), b"\x01" + bytes(20) + b"\xff"


@pytest.mark.parametrize(
    ("codec", "extradata", "packet", "is_closed"),
    [
        ("h264", AVC, b"\0\0\0\2\x06\0" + b"\0\0\0\2\x65\0", True),  # a message, then an IDR picture
        ("h264", AVC, b"\0\0\0\2\x06\0" + b"\0\0\0\2\x41\0", False),  # a picture from which decoding recovers
        ("h264", b"", b"\0\0\0\1\x67\0" + b"\0\0\1\x65\0", True),
        ("h264", b"", b"\0\0\0\1\x67\0" + b"\0\0\1\x41\0", False),
        ("hevc", HEVC, b"\0\0\0\2\x40\0" + b"\0\0\0\2\x26\0", True),  # IDR_W_RADL
        ("hevc", HEVC, b"\0\0\0\2\x40\0" + b"\0\0\0\2\x2a\0", False),  # CRA
        ("h264", AVC, b"", False),
        ("h264", AVC, b"\xff\xff\xff\xff\x65", True),
        ("vp9", b"", b"", True),
    ],
)
def test_a_group_is_closed_if_its_first_picture_is(codec, extradata, packet, is_closed):
    assert closed(packet, codec, extradata) is is_closed
