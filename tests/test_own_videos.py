"""The README's way for own videos, as it stands there: each command runs, and ends with the one that follows."""

import os
import re
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


PLACES = {
    "prepare": ("README.md", "### Train on your own videos"),
    "curate": ("docs/curation.md", "## From a folder of phone videos to a training run"),
}


def block(first: str) -> list[str]:
    """The commands of the block for own videos that begins with `sora prepare` or `sora curate`."""
    page, title = PLACES[first]
    section = (ROOT / page).read_text(encoding="utf-8").split(title, 1)[1]
    lines = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert lines is not None
    return [line for line in lines[1].splitlines() if line.strip()]


def phone_video(path: Path, colour: tuple[int, int, int], *, size: tuple[int, int]) -> None:
    """Three seconds of H.264 at an uneven rate, as phones record: a square that moves to the right."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        shown = 0
        for number in range(90):
            picture = np.stack([columns * 90 // width + 40, rows * 90 // height + 40, np.full_like(rows, 80)], axis=-1).astype(np.uint8)
            left = (width - 120) * number // 90
            picture[height // 2 - 60 : height // 2 + 60, left : left + 120] = colour
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = shown, Fraction(1, 600)
            shown += 20 if number % 7 else 23
            for packet in stream.encode(frame):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)


def shortened(folder: Path, steps: int) -> None:
    """A `sora` in FOLDER that gives each training `steps`, and is the real one otherwise."""
    folder.mkdir()
    (folder / "sora").write_text(f'#!/bin/sh\n[ "$1" = train ] && set -- "$@" steps={steps}\nexec {shlex.quote(str(BIN / "sora"))} "$@"\n')
    (folder / "sora").chmod(0o755)


@pytest.mark.parametrize(
    ("first", "steps"),
    [
        pytest.param("prepare", 24, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        pytest.param("curate", 24, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        pytest.param("prepare", None, marks=[pytest.mark.long, pytest.mark.timeout(900)], id="whole"),  # two minutes of a processor
    ],
)
def test_the_way_for_own_videos_leads_from_a_folder_to_samples_as_it_stands(tmp_path, first, steps):
    """The block word for word; its trainings take the experiments' own steps in `make test-long` alone."""
    (tmp_path / "videos" / "2026_11_29 ü").mkdir(parents=True)
    for number, (name, colour) in enumerate({"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}.items()):
        path = tmp_path / "videos" / "2026_11_29 ü" / f"IMG {number} ({name}).MP4"
        phone_video(path, colour, size=(640, 360) if number % 2 else (360, 640))
        path.with_suffix(".txt").write_text(f"a {name} square moves to the right", encoding="utf-8")
    if steps is not None:
        shortened(tmp_path / "bin", steps)
    paths = [str(tmp_path / "bin"), str(BIN), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    commands = block(first)
    assert [shlex.split(line, comments=True)[1] for line in commands] == [first, "train", "encode", "train", "sample"]
    for line, following in zip(commands, [*commands[1:], None], strict=True):
        ran = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800, check=False)
        assert ran.returncode == 0, f"{line}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
        told = [text.removeprefix("next: ") for text in ran.stdout.splitlines() if text.startswith("next: ")]
        if following is not None:
            assert [shlex.split(text) for text in told] == [shlex.split(following, comments=True)], ran.stdout[-2000:]
    (made,) = (tmp_path / "outputs" / "mine" / "samples").rglob("*.mp4")
    with av.open(str(made)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert frames.std() > 5 and frames.shape[0] > 8  # a picture, not one colour
