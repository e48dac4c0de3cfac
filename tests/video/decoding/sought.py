"""Files of the wild in which a seek goes wrong: what stands in the middle of them needs what lies before, or is not where they say."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from functools import cache

import av
import numpy as np

from tests.video.decoding.clips import RATE, X265, file_of, piped

FRAMES = 64
TS = Fraction(1, 90000)
GROUPS = "keyint=12:min-keyint=12:scenecut=0"
WALKING = {"g": "12", "bf": "2", "qmin": "1", "qmax": "2"}


def moving(count: int = FRAMES, height: int = 64, width: int = 96, *, flickers: bool = True) -> np.ndarray:
    """Frames of blocks that move, and of a ground that shines differently in each: no two are alike, and each takes much from others."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(60, 200, (height // 8, width // 8, 3)), np.ones((8, 8, 1)))
    frames = []
    for number in range(count):
        picture = ground * (0.6 + 0.4 * (number * 37 % count) / count if flickers else 1.0)
        for block in range(4):
            left = (number * 3 + block * 20) % (width - 16)
            picture[8 + block * 12 : 18 + block * 12, left : left + 14] = rng.integers(0, 255, 3)
        frames.append(np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8))
    return np.array(frames)


def copied(content: bytes, container: str, *, without: int = 0) -> bytes:
    """The packets in another container; without: so many at the beginning."""
    file = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(file, "w", format=container) as output:
        video = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and number >= without:
                packet.stream = video
                output.mux(packet)
    return file.getvalue()


def by_an_encoder_of(version: bytes, content: bytes) -> bytes:
    """H.264 that says, in the message in its first packet alone, which x264 wrote it: decoders mend the mistakes of old ones."""
    (found,) = re.finditer(rb"x264 - core (\d+)", content)
    return content[: found.start(1)] + version.rjust(found.end(1) - found.start(1), b"0") + content[found.end(1) :]


def _h264(more: str = "", container: str = "mp4", pixels: str = "yuv420p", **how) -> bytes:
    options = {"x264-params": GROUPS + more, "bf": how.pop("bf", "2")}
    base = TS if container == "mpegts" else Fraction(1, 1000)
    return file_of(moving(), container=container, pixels=pixels, options=options, base=base, **how)


def _plain(codec: str, container: str, base: Fraction = Fraction(1, RATE), **options: str) -> bytes:
    return file_of(moving(), codec=codec, container=container, base=base, options=WALKING | options)


OLD = {"x264-params": "keyint=20:min-keyint=20:scenecut=0:b-pyramid=strict:b-adapt=0:direct=spatial:weightb=0:bframes=3", "crf": "24"}
INTRA = ":intra-refresh=1"
OPEN = ":open-gop=1"
UNEVEN = [number / 50 for number in range(30)] + [0.6 + number / 8 for number in range(FRAMES - 30)]

BROWSER = np.cumsum([0, *np.tile((0.031, 0.053, 0.037), 21)]).round(3).tolist()  # seconds, of no rate in common

FILES = {
    "ts": lambda: _h264(container="mpegts"),
    "ts of b-frames that starts late": lambda: _h264(container="mpegts", times=[3000 + number / RATE for number in range(FRAMES)]),
    "ts of h265": lambda: file_of(moving(), codec="libx265", container="mpegts", base=TS, options=X265),
    "ts of mpeg2": lambda: _plain("mpeg2video", "mpegts"),
    "ts that begins within a group": lambda: copied(_h264(), "mpegts", without=5),
    "mpg of mpeg2": lambda: _plain("mpeg2video", "mpeg"),
    "mpg of h264, which tells few times": lambda: file_of(
        moving(), container="mpeg", base=TS, options={"x264-params": GROUPS, "bf": "2", "crf": "20"}
    ),
    "mpg of mpeg1": lambda: _plain("mpeg1video", "mpeg"),
    "mkv": lambda: _h264(container="matroska"),
    "mkv of mpeg2": lambda: _plain("mpeg2video", "matroska"),
    "mkv through a pipe": lambda: piped(_h264(), "matroska"),
    "mkv of mpeg4 that begins within a group": lambda: copied(_plain("mpeg4", "matroska"), "matroska", without=5),
    "webm through a pipe": lambda: piped(_plain("libvpx-vp9", "webm", Fraction(1, 1000), qmin="0", qmax="30"), "webm"),
    "flv": lambda: _h264(container="flv"),
    "flv of its own codec": lambda: _plain("flv", "flv", Fraction(1, 1000), bf="0"),
    "avi of h264 with b-frames": lambda: _h264(container="avi"),
    "avi of mpeg4 with b-frames": lambda: _plain("mpeg4", "avi"),
    "gif": lambda: file_of(moving(), codec="gif", container="gif", pixels="rgb8", base=Fraction(1, 100), options={}),
    "intra refresh": lambda: _h264(INTRA, bf="0"),
    "intra refresh in mkv": lambda: _h264(INTRA, container="matroska", bf="0"),
    "intra refresh in ts": lambda: _h264(INTRA, container="mpegts", bf="0"),
    "open groups": lambda: _h264(OPEN, bf="3"),
    "open groups in mkv": lambda: _h264(OPEN, container="matroska", bf="3"),
    "open groups in ts": lambda: _h264(OPEN, container="mpegts", bf="3"),
    "open groups of h265": lambda: file_of(moving(), codec="libx265", options=X265),
    "open groups that a copy begins with": lambda: copied(file_of(moving(), codec="libx265", options=X265), "matroska", without=12),
    "open groups of mpeg2": lambda: _plain("mpeg2video", "mp4"),
    "an old encoder": lambda: by_an_encoder_of(b"33", file_of(moving(flickers=False), options=OLD)),
    "an old encoder in mkv": lambda: copied(by_an_encoder_of(b"33", file_of(moving(flickers=False), options=OLD)), "matroska"),
    "an old encoder in ts": lambda: copied(by_an_encoder_of(b"33", file_of(moving(flickers=False), options=OLD)), "mpegts"),
    "an old encoder of 4:4:4": lambda: by_an_encoder_of(b"142", _h264(pixels="yuv444p")),
    "edit list": lambda: file_of(
        moving(), times=[(number - 10) / RATE for number in range(FRAMES)], options={"bf": "2", "g": "40"}, muxer={"use_editlist": "1"}
    ),
    "fragmented": lambda: _h264(muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "one keyframe": lambda: file_of(moving(), options={"x264-params": "keyint=infinite:scenecut=0"}),
    "uneven times": lambda: _h264(times=UNEVEN),
    "uneven times in mkv": lambda: _h264(container="matroska", times=UNEVEN),
    "uneven times in ts": lambda: _h264(container="mpegts", times=BROWSER),
    "uneven times in mkv through a pipe": lambda: piped(_h264(times=BROWSER), "matroska"),
    "two frames at a time": lambda: _h264(container="matroska", times=[number // 2 / 12 for number in range(FRAMES)], bf="0"),
}
FILES = {kind: cache(make) for kind, make in FILES.items()}  # once for all modules of tests
