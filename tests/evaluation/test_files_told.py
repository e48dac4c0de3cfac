"""What `sora evaluate` says of two folders: what copies, few clips, both sides' clips and rates keep figures from telling, and no more."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sora.cli import run
from sora.video.files import write

pytestmark = pytest.mark.slow
FRAMES, SIDE = 6, 16


def video(seed, frames=FRAMES):
    draw = np.random.default_rng(seed)
    still = draw.integers(0, 256, (SIDE, SIDE, 3))
    return np.stack([np.roll(still, step * (1 + seed % 3), axis=1) for step in range(frames)]).astype(np.uint8)


def folder(place, seeds, *, fps=8.0, frames=FRAMES):
    for number, seed in enumerate(seeds):
        write(place / f"2026_11_29 ü {number}.mp4", video(seed, frames), fps, lossless=True)
    return place


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("2026_11_29 ü")
    folder(home / "real", range(10))
    folder(home / "made", range(20, 30))
    return home


def scored(capsys, *words, code=0):
    assert run("evaluate", [*words, "bootstrap=0", "page=false"]) == code
    said = capsys.readouterr()
    return said.out + said.err


def cautions(output):
    return json.loads((output / "scores.json").read_text())["cautions"]


def test_the_first_score_of_a_folder_passes_nothing_of_its_own_over(home, tmp_path, capsys):
    shutil.copytree(home / "made", tmp_path / "made")
    for _ in range(2):
        told = scored(capsys, f"checkpoint={tmp_path / 'made'}", f"data={home / 'real'}", "metrics=[kvd]")
        assert "passed over" not in told
    (tmp_path / "none").mkdir()
    told = scored(capsys, f"checkpoint={tmp_path / 'none'}", f"data={home / 'real'}", "metrics=[kvd]", code=2)
    assert "nor a video or an image" in told and not list((tmp_path / "none").iterdir())


@pytest.mark.parametrize("words", ["motion", "fvmd_lite", "kvd", "kvd,motion"])
def test_copies_few_clips_and_those_of_both_sides_are_said_whatever_the_distance(home, tmp_path, capsys, words):
    folder(tmp_path / "copied", [40] * 9)
    folder(tmp_path / "few", range(5))
    for name, told in (
        ("copied", ["what is scored is one clip among 9"]),
        ("few", ["10 real and 5 scored clips", "5 of the 5 different clips that are scored are real ones"]),
    ):
        scored(capsys, f"checkpoint={tmp_path / name}", f"data={home / 'real'}", f"output={tmp_path / 'o'}", f"metrics=[{words}]")
        found = cautions(tmp_path / "o")
        for line in told:
            assert sum(line in one for one in found) == 1, (line, found)
    scored(capsys, f"checkpoint={home / 'made'}", f"data={home / 'real'}", f"output={tmp_path / 'o'}", f"metrics=[{words}]")
    assert cautions(tmp_path / "o") == []


def test_copies_are_said_of_what_is_scored_against_a_file_of_statistics(home, tmp_path, capsys):
    real, output = f"statistics={tmp_path / 'real.safetensors'}", f"output={tmp_path / 'o'}"
    told = scored(capsys, f"checkpoint={home / 'made'}", real, output, "metrics=[motion]", code=2)
    assert "is not there yet; needs data=…, the real videos" in told
    scored(capsys, f"checkpoint={home / 'made'}", f"data={home / 'real'}", real, output, "metrics=[frechet,motion]")
    folder(tmp_path / "copied", [40] * 9)
    scored(capsys, f"checkpoint={tmp_path / 'copied'}", real, output, "metrics=[motion]")
    assert sum("one clip among 9" in line for line in cautions(tmp_path / "o")) == 1
    scored(capsys, f"checkpoint={home / 'real'}", real, output, "metrics=[motion]")
    assert cautions(tmp_path / "o") == []  # which clips the file is of, it does not know


def test_different_clips_that_stand_still_are_no_copies(tmp_path, capsys):
    """Nothing moves in any of them, so their features of motion are the same."""
    for number in range(9):
        write(tmp_path / "still" / f"{number}.mp4", np.repeat(video(number, 1), FRAMES, axis=0), 8.0, lossless=True)
    folder(tmp_path / "real", range(50, 60))
    scored(capsys, f"checkpoint={tmp_path / 'still'}", f"data={tmp_path / 'real'}", f"output={tmp_path / 'o'}", "metrics=[motion]")
    assert cautions(tmp_path / "o") == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["real.stride=2", "real.frames=3", "generated.frames=3"], "real clips show 8 frames a second, what is scored 16"),
        (["generated.stride=2", "real.frames=3", "generated.frames=3"], "real clips show 16 frames a second, what is scored 8"),
        (["real.stride=2", "generated.stride=2", "real.frames=3", "generated.frames=3"], ""),
    ],
)
def test_the_rates_that_are_told_are_those_of_clips_at_their_strides(tmp_path, capsys, words, told):
    real, made = folder(tmp_path / "real", range(10), fps=16.0), folder(tmp_path / "made", range(20, 30), fps=16.0)
    scored(capsys, f"checkpoint={made}", f"data={real}", f"output={tmp_path / 'o'}", "rates=any", "metrics=[kvd]", *words)
    found = cautions(tmp_path / "o")
    assert len(found) == bool(told) and all(told in line for line in found), found


def test_one_stride_brings_two_rates_together(tmp_path, capsys):
    """24 frames a second at stride 3 and 8 are one rate: nothing is refused, and nothing to beware of."""
    real, made = folder(tmp_path / "real", range(10), fps=24.0, frames=7), folder(tmp_path / "made", range(20, 30), fps=8.0, frames=3)
    scored(capsys, f"checkpoint={made}", f"data={real}", f"output={tmp_path / 'o'}", "real.stride=3", "metrics=[kvd]")
    assert cautions(tmp_path / "o") == []


def test_single_frames_have_no_rate_whatever_files_they_come_from(tmp_path, capsys):
    """Stills in mp4 at 8 frames a second, and images: PNG keeps all digits, JPEG does not."""
    stills, frames = folder(tmp_path / "stills", range(10), frames=1), {}
    for kind in ("png", "jpg"):
        frames[kind] = tmp_path / kind
        frames[kind].mkdir()
        for number in range(10):
            Image.fromarray(video(30 + number, 1)[0]).save(frames[kind] / f"ü {number}.{kind}")
    for one, two in ((stills, frames["png"]), (frames["png"], stills), (frames["jpg"], frames["png"])):
        told = scored(capsys, f"checkpoint={one}", f"data={two}", f"output={tmp_path / 'o'}", "metrics=[kvd]")
        assert cautions(tmp_path / "o") == [] and ("compressed with loss" in told) == (one == frames["jpg"])
    words = [f"statistics={tmp_path / 'real.safetensors'}", f"output={tmp_path / 'o'}", "metrics=[kvd]"]
    scored(capsys, f"checkpoint={stills}", f"data={frames['png']}", *words)
    scored(capsys, f"checkpoint={stills}", *words)
