"""A file whose end was cut off says so, wherever it was cut within a piece of its container, and a whole one never does."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from sora.video.demuxing.endings import cut_off
from sora.video.files import PYAV
from tests.video.decoding.clips import GOOD, file_of, index_first, piped
from tests.video.decoding.sought import moving

pytestmark = pytest.mark.slow

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
H264 = {"codec": "libx264", "options": {"bf": "2", "g": "8"}}
MADE = {
    "mov of fragments": lambda: file_of(moving(40), muxer=FRAGMENTS, **H264),
    "mov with its index first": lambda: index_first(file_of(moving(40), **H264)),
    "matroska": lambda: file_of(moving(40), container="matroska", **H264),
    "matroska through a pipe": lambda: piped(file_of(moving(40), **H264), "matroska"),
    "matroska of clusters that do not say how long they are": lambda: file_of(
        moving(40), container="matroska", muxer={"live": "1"}, **H264
    ),
    "flv": lambda: file_of(moving(40), container="flv", **H264),
    "mpegts": lambda: file_of(moving(40), container="mpegts", base=Fraction(1, 90000), **H264),
    "mpegts of packets of 192 bytes": lambda: file_of(
        moving(40), container="mpegts", base=Fraction(1, 90000), muxer={"mpegts_m2ts_mode": "1"}, **H264
    ),
}


def first_frame(content):
    try:
        return len(PYAV.read(content, frames=1).frames)
    except ValueError:
        return 0


@pytest.mark.parametrize("kind", MADE)
def test_a_cut_within_a_piece_of_the_container_is_told_and_a_whole_file_tells_none(kind):
    content, name = MADE[kind](), kind.split()[0]
    assert cut_off(content, name) == ""
    assert PYAV.probe(content, timeline=True).lacks == ""
    silent = [size for size in range(len(content) // 3, len(content), 11) if not cut_off(content[:size], name)]
    pieces = len(content) / (192 if "192" in kind else 188) if name == "mpegts" else 60
    assert len(silent) <= pieces * (5 if name == "flv" else 1) / 5  # behind a tag of FLV stand four bytes of which nothing is shown
    for size in np.linspace(0.7, 0.98, 5) * len(content):
        half = content[: int(size)]
        if cut_off(half, name) and first_frame(half):
            assert PYAV.probe(half, timeline=True).lacks.startswith("it breaks off after")


@pytest.mark.parametrize("kind", ["matroska through a pipe", "flv", "mpegts", "mov of fragments"])
def test_a_file_on_disk_tells_what_its_bytes_tell_and_junk_behind_it_is_no_cut(kind, tmp_path):
    content = MADE[kind]()
    half = content[: len(content) * 2 // 3 + 1]
    (tmp_path / "a").write_bytes(half)
    assert PYAV.probe(tmp_path / "a", timeline=True).lacks == PYAV.probe(half, timeline=True).lacks != ""
    if kind != "mpegts":
        assert cut_off(content + bytes(1000), kind.split()[0]) == ""


def test_no_clip_that_is_whole_is_told_to_be_cut():
    for kind in GOOD:
        content = GOOD[kind]().content
        with av.open(io.BytesIO(content)) as opened:
            name = opened.format.name
        assert cut_off(content, name) == "", kind


@pytest.mark.parametrize("container", ["mov", "matroska", "flv", "mpegts"])
def test_bytes_of_nothing_end_the_look_and_say_no_nonsense(container):
    rng = np.random.default_rng(0)
    for content in (b"", b"\0", b"\0" * 64, b"\xff" * 64, *(rng.bytes(64) for _ in range(50))):
        assert isinstance(cut_off(content, container), str)
