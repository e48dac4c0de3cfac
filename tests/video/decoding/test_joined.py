"""Streams that were put one behind another, whose times begin anew: frames by number are those of the whole file in order."""

import av
import numpy as np
import pytest

from sora.video.files import read


def stream(path, *, frames, shade, codec, container, between):
    """Frames that tell their numbers in bars, over a shade that tells the stream."""
    with av.open(str(path), "w", format=container) as file:
        video = file.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt, video.gop_size = 64, 48, "yuv420p", 12
        video.codec_context.max_b_frames = between
        for number in range(frames):
            picture = np.full((48, 64, 3), shade, np.uint8)
            for bit in range(8):
                if number >> bit & 1:
                    picture[8:40, bit * 8 : bit * 8 + 8] = 255
            for packet in video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                file.mux(packet)
        for packet in video.encode():
            file.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(("codec", "container", "between"), [("libx264", "mpegts", 0), ("libx264", "mpegts", 2), ("mpeg2video", "mpeg", 0)])
def test_frames_by_number_go_on_where_times_begin_anew(tmp_path, codec, container, between):
    kind = {"codec": codec, "container": container, "between": between}
    parts = [stream(tmp_path / f"{shade}.part", frames=count, shade=shade, **kind) for count, shade in ((100, 90), (40, 10))]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    with av.open(str(path)) as file:
        whole = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    assert len(whole) == 140
    for first in (0, 81, 90, 99, 108, 126, 135):
        found = read(path, first=first, frames=4).frames
        assert len(found) == 4
        assert all(abs(mine - theirs).mean() < 4 for mine, theirs in zip(found, whole[first : first + 4], strict=True)), first
