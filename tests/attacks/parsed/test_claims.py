"""Sound media of every form that is read, whose headers claim a million pixels a side or 10^9 frames: read as they are, or refused."""

import io
import struct
import time
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from sora.video.demuxing.kinds import kind_of
from sora.video.files import CONFINED

SIDE, FRAMES = 1_000_000, 1_000_000_000
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8))


def muxed(container: str, codec: str, pixels: str = "yuv420p") -> bytearray:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 320, pixels
        for _ in range(4):
            out.mux(stream.encode(av.VideoFrame.from_image(PICTURE).reformat(format=pixels)))
        out.mux(stream.encode())
    return bytearray(file.getvalue())


def saved(kind: str, **how) -> bytearray:
    file = io.BytesIO()
    PICTURE.save(file, kind, **how)
    return bytearray(file.getvalue())


def put(whole: bytearray, mark: bytes, beyond: int, form: str, *values: float) -> bytes:
    """Other numbers at each place that lies so many bytes behind the beginning of a mark."""
    at = whole.find(mark)
    assert at >= 0, mark
    while at >= 0:
        if at + beyond + struct.calcsize(form) <= len(whole):
            struct.pack_into(form, whole, at + beyond, *values)
        at = whole.find(mark, at + 1)
    return bytes(whole)


def chunked(whole: bytearray, kind: bytes, body: bytes) -> bytes:
    """A PNG with another chunk of a kind in place of its first, or before its pixels, with the right sum."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    if (at := whole.find(kind)) >= 0:
        return bytes(whole[: at - 4] + chunk + whole[at + 8 + struct.unpack_from(">I", whole, at - 4)[0] :])
    at = whole.find(b"IDAT") - 4
    return bytes(whole[:at] + chunk + whole[at:])


CLAIMS = {
    "mp4, a track's sides": lambda: put(muxed("mp4", "libx264"), b"tkhd", 80, ">II", 0xFFFF0000, 0xFFFF0000),
    "mp4, a sample's sides": lambda: put(muxed("mp4", "libx264"), b"avc1", 28, ">HH", 0xFFFF, 0xFFFF),
    "mp4, its duration": lambda: put(muxed("mp4", "libx264"), b"mdhd", 16, ">II", 1, FRAMES),
    "mp4, its frames": lambda: put(muxed("mp4", "libx264"), b"stts", 12, ">II", FRAMES, 1),
    "mov, a sample's sides": lambda: put(muxed("mov", "mjpeg", "yuvj420p"), b"jpeg", 28, ">HH", 0xFFFF, 0xFFFF),
    "mkv, its sides": lambda: put(muxed("matroska", "libx264"), b"\xb0\x82\x01\x40\xba\x82\x01\x40", 0, ">Q", 0xB082FFFFBA82FFFF),
    "mkv, its duration": lambda: put(muxed("matroska", "libx264"), b"\x44\x89\x88", 3, ">d", 1e15),
    "webm, its sides": lambda: put(muxed("webm", "libvpx"), b"\x9d\x01\x2a", 3, "<HH", 0x3FFF, 0x3FFF),
    "avi, its sides": lambda: put(muxed("avi", "mjpeg", "yuvj420p"), b"strf", 12, "<ii", SIDE, SIDE),
    "avi, sides below zero": lambda: put(muxed("avi", "mjpeg", "yuvj420p"), b"strf", 12, "<ii", -SIDE, -SIDE),
    "avi, its frames": lambda: put(muxed("avi", "mjpeg", "yuvj420p"), b"avih", 24, "<I", FRAMES),
    "avi, a stream's frames": lambda: put(muxed("avi", "mjpeg", "yuvj420p"), b"strh", 40, "<I", FRAMES),
    "ts, its sides": lambda: put(muxed("mpegts", "mpeg2video"), b"\0\0\1\xb3", 4, ">BBB", 0xFF, 0xFF, 0xFF),
    "mpg, its sides": lambda: put(muxed("mpeg", "mpeg1video"), b"\0\0\1\xb3", 4, ">BBB", 0xFF, 0xFF, 0xFF),
    "png, its sides": lambda: chunked(saved("PNG"), b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)),
    "png, sides of no room": lambda: chunked(saved("PNG"), b"IHDR", struct.pack(">IIBBBBB", 0, SIDE, 8, 2, 0, 0, 0)),
    "png, its frames": lambda: chunked(saved("PNG"), b"acTL", struct.pack(">II", FRAMES, FRAMES)),
    "jpeg, its sides": lambda: put(saved("JPEG"), b"\xff\xc0\x00\x11", 5, ">HH", 0xFFFF, 0xFFFF),
    "webp, its canvas": lambda: put(
        saved("WEBP", save_all=True, append_images=[PICTURE.rotate(9)]), b"VP8X", 12, "<HBHB", *[0xFFFF, 0xFF] * 2
    ),
    "webp, a frame's sides": lambda: put(saved("WEBP"), b"\x9d\x01\x2a", 3, "<HH", 0x3FFF, 0x3FFF),
    "gif, its canvas": lambda: put(saved("GIF"), b"GIF8", 6, "<HH", 0xFFFF, 0xFFFF),
    "avif, its sides": lambda: put(saved("AVIF"), b"ispe", 8, ">II", SIDE, SIDE),
}


@pytest.mark.parametrize("what", CLAIMS)
def test_what_a_header_claims_takes_neither_time_nor_memory(tmp_path, what):
    path = tmp_path / f"a.{what.partition(',')[0]}"
    path.write_bytes(CLAIMS[what]())
    assert kind_of(path.read_bytes()[:512]).read
    began = time.monotonic()
    try:
        found = CONFINED.read(str(path), frames=3).frames
        assert found.shape[0] <= 4 and found.nbytes < 1 << 30
    except ValueError as error:
        assert path.name in str(error) and len(str(error)) < 1000
    assert time.monotonic() - began < 30
