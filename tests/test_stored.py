"""What earlier code made is read, resumed, sampled and scored alike: see tests/stored/README.md."""

import json
import shutil

import numpy as np
import pytest

from sora.cli import run
from sora.video.files import read
from tests.trained import stored_artefacts

pytestmark = pytest.mark.slow

# other processors order their sums otherwise; ten steps of training amplify that
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return stored_artefacts(tmp_path_factory.mktemp("stored"))


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {str(row["step"]): row["loss"] for row in rows if "loss" in row}


@pytest.mark.parametrize(("name", "later"), [("run", 10), ("vae_run", 2)])
def test_a_stored_run_resumes_with_the_same_losses(stored, tmp_path, name, later):
    expected = json.loads((stored / "expected.json").read_text())["losses"][name]
    work = shutil.copytree(stored, tmp_path / "moved ü")
    folder = work / name
    shutil.rmtree(folder / "checkpoints/step-00000020", ignore_errors=True)
    (folder / "metrics.jsonl").unlink()
    assert run("train", [f"resume={folder}", f"data.folders=[{work / 'data'}]"]) == 0
    found = losses(folder)
    assert len(found) == later and found == pytest.approx({step: expected[step] for step in found}, rel=ROUNDING)


def test_a_stored_run_samples_the_same_frames(stored, tmp_path):
    work = shutil.copytree(stored / "run", tmp_path / "run")
    words = [f"checkpoint={work}", "prompt=a red circle moves left", "seed=3", "sampler=euler", f"output={tmp_path / 'out'}"]
    assert run("sample", words) == 0
    frames = read(next((tmp_path / "out").glob("*.mp4"))).frames[:, ::4, ::4]
    assert np.abs(frames.astype(int) - np.load(stored / "frames.npy").astype(int)).max() <= 1  # a level of 256 may round the other way


def test_a_stored_run_scores_the_same(stored, tmp_path):
    work = shutil.copytree(stored, tmp_path / "work")
    assert run("evaluate", [f"checkpoint={work / 'run'}", f"data={work / 'data'}", f"output={tmp_path / 'scores'}", "metrics=[loss]"]) == 0
    found = json.loads((tmp_path / "scores/scores.json").read_text())
    expected = json.loads((stored / "expected.json").read_text())["heldout"]
    assert found["figures"]["loss"] == pytest.approx(expected["loss"], rel=ROUNDING)
    assert found["heldout"]["clips"] == pytest.approx(expected["clips"], rel=ROUNDING)
