"""`sora train` itself: a VAE run on a tiny world, cut, resumed, refused."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system import files as storage
from tests.data.making import flip
from tests.faults import terminated
from tests.training.test_resume import TIMINGS

cli = importlib.import_module("sora.cli")
artefact = importlib.import_module("sora.vae.artefact")
pytestmark = pytest.mark.slow
STEPS = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "world"
    settings = ["source=world", f"output={folder}", "count=12", "workers=0", "source.world.sizes=[[32,32]]", "source.world.seconds=[1.5]"]
    assert cli.run("prepare", settings) == 0
    return folder


def words(world: Path, *more: str) -> list[str]:
    plan = ["plan.shapes=[[9,32,32],[1,32,32]]", "plan.batch=2"]
    return [
        "experiment=toy_vae",
        f"data.folders=[{world}]",
        f"steps={STEPS}",
        "log_every=1",
        "checkpoint.every=3",
        "trainer.threads=1",
        *plan,
        *more,
    ]


@pytest.fixture(scope="module")
def whole(world) -> Path:
    folder = world.parent / "whole"
    assert cli.run("train", words(world, f"output={folder}")) == 0
    return folder


def lines(folder: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in read(folder / "metrics.jsonl")]


def cut(world: Path, folder: Path, *more: str) -> int:
    """Train, with a SIGTERM in the middle of step 4."""
    from sora.vae.losses import VaeObjective

    with terminated(VaeObjective, "__call__", at=4):
        return cli.run("train", words(world, f"output={folder}", *more))


def test_a_run_whose_loader_worker_is_killed_saves_says_so_and_asks_for_another_turn(world, whole, tmp_path, capfd, monkeypatch):
    from sora.data.loading.loader import FrameBatches

    main, plain = os.getpid(), FrameBatches.share

    def dying(self, step, **whose):
        if os.getpid() != main and step == 4:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        return plain(self, step, **whose)

    monkeypatch.setattr(FrameBatches, "share", dying)
    folder = tmp_path / "killed"
    assert cli.run("train", words(world, f"output={folder}", "workers=1")) == 137
    step = checkpoint.step_of(checkpoint.newest(folder / "checkpoints"))
    assert step in (4, 5)  # what a worker has made may die with it on its way
    told = capfd.readouterr()
    assert "rank 0: loader worker 0 (process " in told.err and "was killed by SIGKILL: " in told.err and "Traceback" not in told.err
    assert f"stopped and saved at step {step} of {STEPS}; go on with: sora train resume={folder}" in told.out
    (event,) = [row for row in read(folder / "events.jsonl") if row["event"] == "worker lost"]
    assert event["rank"] == 0 and "memory" in event["reason"]
    monkeypatch.undo()
    assert cli.run("train", [f"resume={folder}", "workers=1"]) == 0
    assert lines(folder) == lines(whole)
    assert artefact.artefact_hash(folder / "vae") == artefact.artefact_hash(whole / "vae")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_run_that_is_stopped_and_resumed_is_bit_identical_down_to_its_artefact(world, whole, tmp_path, workers):
    folder = tmp_path / "cut"
    assert cut(world, folder, f"workers={workers}") == 128 + signal.SIGTERM
    assert checkpoint.step_of(checkpoint.newest(folder / "checkpoints")) == 4
    assert not (folder / "vae").exists()
    assert cli.run("train", words(world, f"output={folder}", "resume=auto", f"workers={2 - workers}")) == 0
    assert lines(folder) == lines(whole)
    assert artefact.artefact_hash(folder / "vae") == artefact.artefact_hash(whole / "vae")
    ends = [checkpoint.folder_of(run / "checkpoints", STEPS) for run in (folder, whole)]
    for name in ("model", "ema", "optimizer"):
        assert storage.file_hash(ends[0] / f"{name}.safetensors") == storage.file_hash(ends[1] / f"{name}.safetensors")


def test_the_artefact_holds_the_averaged_weights_and_a_whitening(whole):
    vae = artefact.load(whole / "vae")
    state = checkpoint.load(checkpoint.newest(whole / "checkpoints"))
    weights = vae.state_dict()
    averaged = {name.removeprefix("vae."): value for name, value in state.tensors["ema"].items()}
    assert averaged
    assert all((weights[name] == value).all() for name, value in averaged.items())
    assert not (weights["scale"] == 1).all()


def test_a_run_is_not_trained_over_and_resuming_a_complete_one_does_nothing(world, whole, capsys):
    before = {path: path.read_bytes() for path in whole.rglob("*.safetensors")}
    assert cli.run("train", words(world, f"output={whole}")) == 2
    assert f"continue it with resume={whole}" in capsys.readouterr().err
    assert cli.run("train", words(world, f"output={whole}", "resume=auto")) == 0
    assert {path: path.read_bytes() for path in whole.rglob("*.safetensors")} == before


PROTECTED = {
    "seed": 1,
    "steps": 9,
    "max_grad_norm": 2.0,
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.5,
    "schedule.warmup": 7,
    "ema.rate": None,
    "vae.latent_channels": 6,
    "objective.kl": 2e-3,
    "plan.batch": 4,
    "plan.shapes": [[9, 32, 32]],
    "data.split": "heldout",
    "trainer.precision": "bf16-mixed",
    "trainer.deterministic": False,
    "whitening_steps": 5,
}


def test_keys_that_make_it_another_run_are_refused_by_name(world, whole):
    from omegaconf import OmegaConf

    from sora.assembly.resume import settle
    from sora.config.compose import compose

    config = compose("train", words(world, f"output={whole}", "resume=auto")).config
    assert settle(config)[2] == {}
    for key, value in PROTECTED.items():
        changed = OmegaConf.create(OmegaConf.to_container(config))
        OmegaConf.update(changed, key, value)
        with pytest.raises(ValueError, match=rf"  {key}[^\n]* in the run, [\s\S]*resume_allow=\["):
            settle(changed)
        changed.resume_allow = [key]
        assert settle(changed)[2]
    for key, value in {"workers": 3, "checkpoint.every": 1, "trainer.threads": 2, "log_every": 7}.items():
        changed = OmegaConf.create(OmegaConf.to_container(config))
        OmegaConf.update(changed, key, value)
        assert settle(changed)[2] == {}


def test_the_command_refuses_a_changed_key_and_changes_nothing(world, whole, capsys):
    before = (whole / "config.yaml").read_bytes()
    assert cli.run("train", [*words(world, f"output={whole}", "resume=auto"), "seed=1"]) == 2
    assert "  seed: 0 in the run, 1 now" in capsys.readouterr().err
    assert (whole / "config.yaml").read_bytes() == before


def test_what_a_resume_says_is_laid_over_the_stored_configuration(world, whole):

    settled, folder, changed = settled_by(f"resume={whole}", "workers=3")
    assert (folder, changed, settled.workers, settled.steps) == (whole, {}, 3, STEPS)
    assert settled.kind == "vae" and settled.data.folders == [str(world)]
    with pytest.raises(ValueError, match="vae.latent_channels: 4 in the run, 5 now"):
        settled_by("task=vae", f"resume={whole}", "vae.latent_channels=5")


def settled_by(*words: str):
    from sora.assembly.resume import settle
    from sora.config.compose import compose

    composed = compose("train", words)
    return settle(composed.config, composed.said)


@pytest.mark.parametrize("said", ["steps=100000", "max_grad_norm=1.0", "log_every=10", "optimizer.lr=2.0e-4"])
def test_a_key_that_is_said_with_its_default_value_counts(whole, said):
    """The toy run differs in all but one of these from what conf/train.yaml says."""
    from omegaconf import OmegaConf

    key, _, value = said.partition("=")
    words = ("task=vae", f"resume={whole}", said, f"resume_allow=[{key}]")
    assert OmegaConf.select(settled_by(*words)[0], key) == float(value)
    if key in ("steps", "optimizer.lr"):
        with pytest.raises(ValueError, match=rf"  {key}: "):
            settled_by(*words[:-1])


def test_a_group_that_is_said_replaces_the_whole_of_the_other_option(whole):
    with pytest.raises(ValueError, match=r"  optimizer\._target_: "):
        settled_by("task=vae", f"resume={whole}", "optimizer=muon")
    settled = settled_by("task=vae", f"resume={whole}", "optimizer=muon", "logger=csv", "resume_allow=[optimizer]")[0]
    assert "weight_decay" in settled.optimizer and "other_lr" in settled.optimizer
    back = settled_by("task=vae", f"resume={whole}", "optimizer=adamw", "resume_allow=[optimizer]")[0]
    assert set(back.optimizer) == {"_target_", "lr", "betas", "eps", "weight_decay"}
    assert settled.logger._target_.endswith("Csv")


def test_what_is_missing_is_listed(capsys):
    assert cli.run("train", []) == 2
    assert "needs data.folders=… vae=…" in capsys.readouterr().err


def test_a_flipped_byte_is_passed_over_by_name_and_a_run_with_none_whole_does_not_start_again(world, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "vae")
    for path in folder.glob("checkpoints/*/model.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert cli.run("train", words(world, f"output={folder}", "resume=auto")) == 2
    told = capsys.readouterr().err
    assert "is whole" in told and "model.safetensors is damaged" in told


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_as_if_it_had_never_been(world, whole, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "vae")
    flip(folder / "checkpoints" / "step-00000008" / "ema.safetensors", 999)
    monkeypatch.setattr("sora.runs.run.code_version", lambda: {"sora": "another"})
    assert cli.run("train", words(world, f"output={folder}", "resume=auto")) == 0
    said = capsys.readouterr().out
    assert "passed over a damaged checkpoint" in said and "step-00000008/ema.safetensors is damaged" in said
    assert "goes on with {'sora': 'another'}" in said
    assert lines(folder) == lines(whole)
    for name in ("model", "ema", "optimizer"):
        ends = [storage.file_hash(run / "checkpoints" / "step-00000008" / f"{name}.safetensors") for run in (folder, whole)]
        assert ends[0] == ends[1]
    events = {row["event"]: row for row in read(folder / "events.jsonl")}
    assert events["set aside"]["damaged"] == [str(folder / "checkpoints" / "damaged-step-00000008")]
    assert events["resumed"]["code"] == {"sora": "another"}


def test_other_data_is_refused(world, whole, tmp_path, capsys):
    other = tmp_path / "other"
    settings = ["source=world", f"output={other}", "count=9", "workers=0", "source.world.sizes=[[32,32]]", "source.world.seconds=[1.5]"]
    assert cli.run("prepare", settings) == 0
    assert cli.run("train", [*words(other, f"output={whole}", "resume=auto"), "resume_allow=[data.folders]"]) == 2
    assert "data is not what" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["emptied", "not mounted", "damaged and set aside"])
def test_a_run_that_has_saved_and_finds_no_checkpoint_does_not_start_again(world, whole, tmp_path, capsys, gone):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "vae")
    for path in (folder / "checkpoints").iterdir():
        shutil.rmtree(path) if gone == "emptied" else path.rename(path.with_name(f"damaged-{path.name}"))
    if gone == "not mounted":
        shutil.rmtree(folder / "checkpoints")
    before = (folder / "metrics.jsonl").read_bytes()
    for more in (words(world, f"output={folder}", "resume=auto"), [f"resume={folder}"]):
        assert cli.run("train", more) == 2
        assert "this run has saved some, the first at step 3: mount it or put them back" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_checkpoint_under_another_steps_name_is_passed_over(world, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "vae")
    shutil.copytree(folder / "checkpoints" / "step-00000006", folder / "checkpoints" / "step-00000007")
    (folder / "checkpoints" / "step-00000008").rename(folder / "checkpoints" / "step-00000009")
    assert cli.run("train", [f"resume={folder}"]) == 0
    said = capsys.readouterr().out
    assert "step-00000009 is the checkpoint of step 8 under another's name" in said and "step-00000007 is the checkpoint of step 6" in said
    assert lines(folder) == lines(whole)


def test_a_name_that_nothing_has_is_not_allowed_to_change(whole, capsys):
    for name, meant in (("objektive.kl", "objective.kl"), ("depends.dta", "depends.data"), ("dit", None)):
        assert cli.run("train", [f"resume={whole}", f"resume_allow=[{name}]"]) == 2
        told = capsys.readouterr().err
        assert f"resume_allow names {name}, which this run has not" in told and (meant is None or f"did you mean '{meant}'" in told)


def test_what_was_allowed_once_is_known_afterwards_and_allowed_no_more(world, whole, tmp_path, capsys):
    other, folder = tmp_path / "other", tmp_path / "run"
    settings = ["source=world", f"output={other}", "count=9", "workers=0", "source.world.sizes=[[32,32]]", "source.world.seconds=[1.5]"]
    assert cli.run("prepare", settings) == 0
    assert cut(world, folder) == 128 + signal.SIGTERM
    before = json.loads((folder / "run.json").read_text())
    to = [f"resume={folder}", f"data.folders=[{other}]"]
    assert cli.run("train", to) == 2
    assert cli.run("train", [*to, "resume_allow=[depends.data]"]) == 0
    after = json.loads((folder / "run.json").read_text())
    changed = [row for row in read(folder / "events.jsonl") if row["event"] == "resumed"][-1]["changed"]
    assert changed == {
        "data.folders": [str([str(world)]), str([str(other)])],
        "depends.data": [before["depends"]["data"], after["depends"]["data"]],
    }
    capsys.readouterr()
    assert cli.run("train", [f"resume={folder}"]) == 0  # what it depends on now needs no more words
    assert cli.run("train", [f"resume={folder}", f"data.folders=[{world}]"]) == 2
    assert f"(data.folders=[{world}]): it is" in (told := capsys.readouterr().err) and "resume_allow=[depends.data]" in told


def test_the_run_says_what_it_is(whole, world):
    info = json.loads((whole / "run.json").read_text())
    assert info["kind"] == "vae"
    assert len(info["depends"]["data"]) == 64
    assert info["code"]["sora"]
