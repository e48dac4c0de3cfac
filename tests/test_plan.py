"""`sora plan` on a small encoded dataset: what it tells is what training does."""

import json

import numpy as np
import pytest
import torch

from sora import cli
from sora.assembly.training import diffusion_job
from sora.config.build import build
from sora.config.compose import compose
from sora.cost.calibration import seconds_per_token
from tests.trained import option, vae_artefact, world_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    vae_artefact(folder / "vae")
    world_dataset(folder / "world", clips=20)
    assert cli.run("encode", [f"vae={folder}/vae", f"data={folder}/world", "text=byte", "threads=1"]) == 0
    return folder


def told(made, capsys, *words, code=0):
    capsys.readouterr()
    assert cli.run("plan", ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", *words]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_the_figures_are_those_of_the_clips(made, capsys, tmp_path):
    text = told(made, capsys, "plan.budget=400", "plan.packs=2", f"figures={tmp_path}/figures.json")
    assert "clips            10 of 10\n" in text
    assert "frames kept      100%" in text
    (found,) = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert (found["clips"], found["whole"], found["skipped"]) == (10, True, {})
    assert found["fill"] == pytest.approx(found["tokens_per_step"][1] / (2 * 400))
    assert set(found["useful"]) == {"1", "2"} and found["useful"]["2"] <= found["useful"]["1"] <= 1
    assert found["balance"]["1"] == pytest.approx(1)


@pytest.mark.parametrize("option_", ["bucketed", "padded"])
def test_every_planner_is_one_word(made, capsys, option_):
    assert "steps an epoch" in told(made, capsys, f"plan={option_}", "plan.packs=2", "ranks=[1,2]")


def test_stages_left_out_clips_and_mistakes_are_told(made, capsys):
    text = told(made, capsys, "plan.curriculum=[{until: 20, frames: 1}]", "plan.budget=500")
    assert "stage 0, until 20 clips" in text and "stage 1, from there on" in text
    assert "cut              10 clips to 1 frame;" in text
    assert "an epoch would be empty: of 10 clips none can be used (10 longer" in told(made, capsys, "plan.budget=10", code=2)
    assert "needs data.folders=… vae=…" in told(made, capsys, "data.folders=null", "vae=null", code=2)


def test_cost_is_measured_and_told_as_keys(made, capsys):
    text = told(made, capsys, "calibrate=true", "repeats=1", "plan.budget=256")
    keys = dict(word.split("=") for word in text.splitlines()[-1].split())
    assert set(keys) == {"plan.cost.linear", "plan.cost.quadratic"}
    assert "steps an epoch" in told(made, capsys, *(f"{key}={value}" for key, value in keys.items()))


def test_crops_are_told_too(made, capsys):
    words = ["experiment=toy_vae", f"data.folders=[{made}/world]", "plan.shapes=[[5,16,16]]"]
    assert cli.run("plan", words) == 0
    assert "crops of 5x16x16: 10 of 10 clips of world" in capsys.readouterr().out


@pytest.mark.long
def test_a_price_is_of_the_plans_own_clips(made, capsys, tmp_path):
    """The operations that are told are those of the very packs, with the captions that they will show."""
    words = ["plan.budget=400", "plan.packs=2", "priced=4"]
    text = told(made, capsys, *words, "cluster=h100x2", "trainer=fsdp", f"figures={tmp_path}/figures.json")
    price = json.loads((tmp_path / "figures.json").read_text())["price"]
    config = compose("plan", ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", *words]).config
    (tmp_path / "run").mkdir()
    job = diffusion_job(config, tmp_path / "run")
    packs = [pack for step in range(2) for pack in job.steps[step]]
    assert price["flops_per_step"] == sum(map(job.task._flops, packs)) / 2
    assert price["tokens_per_step"] == sum(pack.tokens.real for pack in packs) / 2
    assert price["parameters"] == sum(value.numel() for value in job.task.parameters())
    assert "2 x NVIDIA H100" in text and "trainer.devices=2 trainer.nodes=1: shard 2" in text and "WARNING" not in text


def test_longer_clips_cost_more_a_token():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dit = build(option("dit", "toy"), patch_channels=8, text_width=8)
    short, long = seconds_per_token(dit, lengths=[64, 2048], budget=2048, repeats=3)
    assert long > short > 0
    assert not any(np.any(value.grad) for value in dit.parameters() if value.grad is not None)
    with pytest.raises(ValueError, match=r"plan\.budget=32"):
        seconds_per_token(dit, lengths=[64], budget=32, repeats=1)
