"""Folders and files that tests of several subjects begin with."""

import pytest

from tests.data.making import counting, muxed
from tests.data.preparing import QUIET
from tests.data.sharded import FRAMES, QUICK


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(muxed(counting(40), **QUIET))
    (folder / "below/b.MKV").write_bytes(muxed(counting(14), container="matroska", **QUIET))
    (folder / "c.webm").write_bytes(muxed(counting(30), codec="libvpx-vp9", container="webm"))
    (folder / "notes.md").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def media():
    """A video of each of FRAMES."""
    return [muxed(counting(frames), **QUICK) for frames in FRAMES]
