"""Every reader, on one clip of every kind: it gives the frames that are there, or refuses by name. None dies, and none makes frames up."""

import itertools
import json
import re
import subprocess
import sys
import time
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sora.video.decoding.decord import DecordReader
from sora.video.decoding.guarded import GuardedReader
from sora.video.decoding.torchcodec import TorchcodecReader
from sora.video.files import LIMITS, PYAV
from sora.video.reader import VideoReader
from tests.data.making import counting, numbers
from tests.video.decoding import clips

pytestmark = pytest.mark.slow  # clips of two dozen kinds are made first

ROOT = Path(__file__).resolve().parents[3]
READERS = ("pyav", "decord", "torchcodec") if find_spec("torchcodec") else ("pyav", "decord")  # torchcodec is an extra
# What decord gets wrong, and how it says so.
REFUSED = {
    ("decord", "av1"): "is coded in av1",
    ("decord", "edit list"): "edit list that hides 10 frames",
    ("decord", "h265"): "open groups",
    ("decord", "h264 with open groups"): "open groups",
    ("decord", "ten bits"): "open groups",
    ("decord", "transport stream"): "of kind mpegts",
    ("decord", "avi"): "of kind avi",
    ("decord", "variable rate in ts"): "of kind mpegts",
    ("decord", "variable rate in flv"): "of kind flv",
    ("decord", "variable rate in mkv through a pipe"): "broken metadata",
}


@pytest.fixture(scope="module")
def readers():
    """Those that may crash in a process of their own, as training runs them."""
    made: dict[str, VideoReader] = {"pyav": PYAV}
    made["decord"] = GuardedReader(reader=DecordReader(limits=LIMITS), seconds=60, memory_gb=2, restart_after=1000)
    if "torchcodec" in READERS:
        made["torchcodec"] = GuardedReader(reader=TorchcodecReader(limits=LIMITS), seconds=60, memory_gb=4, restart_after=1000)
    yield made
    for reader in made.values():
        if isinstance(reader, GuardedReader):
            reader.close()


@pytest.fixture(params=READERS)
def named(request, readers):
    return request.param, readers[request.param]


def made(kind: str) -> clips.Made:
    return clips.GOOD[kind]()


def refuses(name: str, kind: str, reader: VideoReader, content: bytes) -> bool:
    why = REFUSED.get((name, kind))
    if why:
        with pytest.raises(ValueError, match=f"clip 7 .*{why}.*choose reader=pyav"):
            reader.read(content, name="clip 7")
    return why is not None


@pytest.mark.parametrize("kind", clips.GOOD)
def test_all_frames_come_in_their_order_and_size(named, kind):
    name, reader = named
    clip = made(kind)
    if refuses(name, kind, reader, clip.content):
        return
    got = reader.read(clip.content)
    assert numbers(got.frames) == clip.numbers
    assert got.frames.shape == (len(clip.numbers), clip.height, clip.width, 3)
    assert got.report.clean


@pytest.mark.parametrize("kind", clips.GOOD)
def test_the_frame_of_a_time_is_the_nearest_one(named, kind):
    """Starts all over the clip, so that every reader has to seek; three thousandths of a second off, so that none is half-way."""
    name, reader = named
    clip = made(kind)
    if refuses(name, kind, reader, clip.content):
        return
    times = np.array(clip.times)
    rate = reader.probe(clip.content).fps
    for start in np.linspace(0, times[-1] * 0.9, 7) + 0.003:
        for fps in (rate / 2, rate / 5):
            targets = start + np.arange(5) / fps
            targets = targets[targets <= times[-1] + 0.5 / rate]
            if not len(targets):
                continue
            got = reader.read(clip.content, start=float(start), frames=5, fps=float(fps))
            assert numbers(got.frames) == [clip.numbers[np.abs(times - target).argmin()] for target in targets], (start, fps)
            assert got.report.missing == 5 - len(targets)


@pytest.mark.parametrize("kind", clips.GOOD)
def test_what_a_file_is_told_to_be(named, kind):
    _, reader = named
    clip = made(kind)
    info = reader.probe(clip.content, timeline=True)
    assert (info.frames, info.height, info.width, info.rotation) == (len(clip.times), clip.height, clip.width, 0)
    assert np.abs(info.timeline.times - clip.times).max() < 2e-3
    assert info.timeline.keyframes[0] or kind == "edit list"  # a copy begins in the middle of a group
    assert len(info.timeline.keyframes) == len(clip.times)
    assert info.duration == pytest.approx(clip.times[-1] + 1 / clips.RATE, abs=0.09)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_frames_are_upright(named, rotation):
    name, reader = named
    content = clips.file_of(clips.corners(64, 96), rotation=rotation)
    turned = np.rot90(clips.corners(64, 96), rotation // 90, axes=(1, 2))
    info = reader.probe(content)
    assert (info.height, info.width, info.rotation) == (*turned.shape[1:3], -rotation % 360)
    if name == "decord":
        with pytest.raises(ValueError, match="rotated.*choose reader=pyav"):
            reader.read(content)
        return
    assert np.abs(reader.read(content).frames.astype(int) - turned).mean() < 3
    height, width = turned.shape[1] // 2, turned.shape[2] // 2
    small = turned.reshape(3, height, 2, width, 2, 3).mean((2, 4))
    assert np.abs(reader.read(content, size=(height, width)).frames - small).mean() < 3


@pytest.mark.parametrize("matrix", list(itertools.product((False, True), (1, -1), (1, -1))), ids=str)
def test_all_eight_orientations_are_upright_or_refused(named, matrix):
    """By the definition: the matrix (a, b; c, d) takes a stored pixel (x, y) to (a x + c y, b x + d y), moved to the corner."""
    name, reader = named
    transposed, one, two = matrix
    stored = clips.corners(128, 160)
    a, b, c, d = (0, one, two, 0) if transposed else (one, 0, 0, two)
    y, x = np.indices(stored.shape[1:3])
    across, down = a * x + c * y, b * x + d * y
    shown = np.empty((3, *(stored.shape[2:0:-1] if transposed else stored.shape[1:3]), 3), np.uint8)
    shown[:, down - down.min(), across - across.min()] = stored
    content = clips.displayed(clips.file_of(stored), (a, b, c, d))
    info = reader.probe(content)
    assert (info.height, info.width, info.mirrored) == (*shown.shape[1:3], a * d - b * c < 0)
    if name == "decord" and (info.mirrored or info.rotation):
        with pytest.raises(ValueError, match="mirrored.*choose reader=pyav|rotated.*choose reader=pyav"):
            reader.read(content)
        return
    assert np.abs(reader.read(content).frames.astype(int) - shown).mean() < 3
    small = shown.reshape(3, shown.shape[1] // 2, 2, shown.shape[2] // 2, 2, 3).mean((2, 4))
    assert np.abs(reader.read(content, size=small.shape[1:3]).frames - small).mean() < 3


def test_pixels_are_square(named):
    _, reader = named
    content = clips.file_of(counting(3, 48, 64), aspect=Fraction(3, 2))
    info = reader.probe(content)
    assert (info.height, info.width, info.pixel_aspect) == (48, 96, 1.5)
    assert reader.read(content).frames.shape == (3, 48, 96, 3)
    assert reader.read(content, size=(24, 64)).frames.shape == (3, 24, 64, 3)


@pytest.mark.parametrize(("matrix", "whole", "told"), [(1, False, "bt709 limited"), (5, False, "bt601 limited"), (5, True, "bt601 full")])
def test_colours_are_those_that_were_filmed(named, matrix, whole, told):
    _, reader = named
    colours = np.array([(222, 40, 40), (40, 180, 60), (45, 85, 230), (255, 255, 255), (0, 0, 0), (245, 222, 40)], np.uint8)
    frames = colours[:, None, None].repeat(64, 1).repeat(64, 2)
    content = clips.file_of(frames, matrix=matrix, whole_range=whole, options={"g": "1", "bf": "0", "crf": "1"})
    info = reader.probe(content)
    assert f"{info.colour_matrix} {info.colour_range}" == told
    assert np.abs(reader.read(content).frames.astype(int) - frames).max() <= 5


def test_a_size_is_filled_without_distortion(named):
    _, reader = named
    y, x = np.mgrid[:96, :192]
    frames = np.repeat((np.hypot(y - 47.5, x - 95.5) < 30)[None, ..., None] * np.uint8(255), 3, -1).repeat(2, 0)
    content = clips.file_of(frames)
    for size in ((48, 72), (64, 64), (150, 150)):
        got = reader.read(content, size=size).frames[0, ..., 0] > 127
        wide = 60 * max(size[0] / 96, size[1] / 192)  # as wide as high, in the middle
        assert abs(got.any(0).sum() - wide) <= 2
        assert abs(got.any(1).sum() - wide) <= 2
        assert abs(np.argwhere(got).mean(0) - (np.array(size) - 1) / 2).max() < 0.8


@pytest.mark.parametrize("kind", clips.HOPELESS)
def test_what_holds_no_video_is_refused_by_name(named, kind):
    _, reader = named
    content = clips.HOPELESS[kind]()
    for attempt in (reader.probe, reader.read):
        with pytest.raises(ValueError, match="clip 7"):
            attempt(content, name="clip 7")


@pytest.mark.parametrize("kind", clips.DAMAGED)
def test_damage_is_noticed(named, kind):
    """A `ValueError`, or the frames that are good with a report of the rest; never fifty frames and a clean report."""
    name, reader = named
    content = clips.DAMAGED[kind]()
    try:
        got = reader.read(content, frames=50, name="clip 7")
    except ValueError as error:
        assert "clip 7" in str(error)
        assert name != "pyav"  # it saves what can be saved
        return
    assert not got.report.clean
    assert got.report.missing == 50 - len(got.frames)
    if "cut short" in kind:
        assert numbers(got.frames) == list(range(len(got.frames)))


def test_more_than_the_file_has_is_not_made_up(named):
    _, reader = named
    clip = made("h264")
    got = reader.read(clip.content, start=45 / 25, frames=9)
    assert (len(got.frames), got.report.missing, got.report.clean) == (5, 4, False)
    with pytest.raises(ValueError, match="25 frames a second, 50 were asked for; lower fps"):
        reader.read(clip.content, fps=50)
    with pytest.raises(ValueError, match="no frame that decodes from 9 s"):
        reader.read(clip.content, start=9, frames=1)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pyav.PyAVReader", "decord.DecordReader"])
@pytest.mark.parametrize(
    ("bomb", "why"), [("of_8192_by_4320", r"3.53894e\+07 pixels a frame"), ("of_20000_frames", "20000 frames by its header")]
)
def test_bombs_are_refused_at_once_and_in_little_memory(bomb, why, target, tmp_path):
    """Under the limits of conf/reader: in 200 MB, the interpreter included, and under a clock of the kernel's that ends the process."""
    from omegaconf import OmegaConf

    bombs = {"of_8192_by_4320": clips.of_8192_by_4320, "of_20000_frames": clips.of_20000_frames}
    (tmp_path / "bomb.mp4").write_bytes(bombs[bomb]())
    module, _, name = target.partition(".")
    limits = {key: value for key, value in OmegaConf.load(ROOT / "conf/reader/pyav.yaml").reader.limits.items() if key != "_target_"}
    code = f"""
import json, resource, time
from sora.video.reader import Limits
from sora.video.decoding.{module} import {name}
reader = {name}(limits=Limits(**{limits!r}))
resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1,) * 2)  # whole seconds: less than one is left
try:
    reader.read({str(tmp_path / "bomb.mp4")!r}, frames=2)
except ValueError as error:
    status = open("/proc/self/status").read()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps([str(error), peak]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    said, peak = json.loads(done.stdout)
    assert re.search(why, said), said
    assert peak < 200


@pytest.mark.parametrize(("package", "reader"), [("decord", DecordReader(limits=LIMITS)), ("torchcodec", TorchcodecReader(limits=LIMITS))])
def test_a_backend_that_is_missing_is_told_before_the_first_clip(package, reader, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"reader={package} needs the package {package}.*or choose reader=pyav.*importing it fails"):
        reader.identity()


@pytest.mark.slow
def test_a_size_that_only_the_pictures_tell_is_refused_before_they_are_decoded():
    content = clips.of_8192_by_4320_that_says_64()
    begin = time.process_time()
    with pytest.raises(ValueError, match="clip 7 has no frame that decodes"):
        PYAV.read(content, name="clip 7")
    assert time.process_time() - begin < 0.3  # FFmpeg is told how many pixels it may take on
