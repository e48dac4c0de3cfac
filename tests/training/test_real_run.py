"""The real thing at toy size: the built-in world, a trained VAE, encoded latents, a DiT that learns to read bytes; cut, resumed and pinned.

After a change of the numbers that is meant: SORA_PIN=1 pytest tests/training/test_real_run.py, and say in the commit why they moved.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from sora import cli
from sora.config.compose import config_dir
from sora.data.loading import latents as latent_batches
from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system import files as storage
from tests.faults import terminated
from tests.training.test_resume import lines

pytestmark = pytest.mark.slow
GOLDEN = Path(__file__).parent.parent / "golden" / "real_toy.json"
STEPS = 7
RUN = (f"steps={STEPS}", "log_every=1", "checkpoint.every=100", "trainer.threads=1")


@pytest.fixture(scope="module", autouse=True)
def one_plan():
    """A plan is drawn with the VAE's hash, and the last bits of what was trained are the CPU's own; what is pinned has one plan on all."""
    plain = latent_batches.LatentClips
    with mock.patch.object(latent_batches, "LatentClips", lambda shapes, **told: plain(shapes, **{**told, "fingerprint": "pinned"})):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `world` (clips of two sizes, and images), `vae` (a run) and `whole` (a diffusion run that nothing cut)."""
    folder = tmp_path_factory.mktemp("real")
    sizes = ["source.world.sizes=[[32,32],[24,40]]", "source.world.seconds=[1.0]", "source.heldout=1"]
    assert cli.run("prepare", ["source=world", f"output={folder}/world", "count=14", "workers=0", *sizes]) == 0
    crops = "plan.shapes=[[9,24,32],[1,24,32]]"
    assert cli.run("train", ["experiment=toy_vae", f"data.folders=[{folder}/world]", f"output={folder}/vae", crops, *RUN]) == 0
    assert cli.run("encode", [f"vae={folder}/vae", f"data={folder}/world", "text=byte", "threads=1"]) == 0
    assert cli.run("train", words(folder, f"output={folder}/whole")) == 0
    return folder


def words(made: Path, *more: str) -> list[str]:
    """Few tokens a pack, so that an epoch ends, and a caption is dropped, inside the run."""
    data = [f"data.folders=[{made}/world]", f"vae={made}/vae", "data.drop=0.3", "data.first_frame=0.3", "plan.budget=400"]
    return ["experiment=toy", *data, *RUN, *more]


def interrupted(made: Path, folder: Path, cut: int, *more: str) -> int:
    """Train, with a SIGTERM in the middle of step `cut`."""
    from sora.diffusion.objective import Objective

    with terminated(Objective, "losses", at=cut):
        return cli.run("train", words(made, f"output={folder}", *more))


def assert_goes_on(made: Path, whole: Path, folder: Path, cut: int, *more: str) -> None:
    """Cut in a step and resumed, a run ends as `whole` did: losses, weights, averages and optimiser, to the last bit."""
    assert interrupted(made, folder, cut, *more) == 128 + signal.SIGTERM
    assert checkpoint.step_of(checkpoint.newest(folder / "checkpoints")) == cut
    assert cli.run("train", [f"resume={folder}"]) == 0
    assert lines(folder) == lines(whole)
    ends = [checkpoint.folder_of(run / "checkpoints", STEPS) for run in (folder, whole)]
    for name in ("model", "ema", "optimizer"):
        assert storage.file_hash(ends[0] / f"{name}.safetensors") == storage.file_hash(ends[1] / f"{name}.safetensors"), name


@pytest.mark.parametrize("cut", [2, 5])
def test_a_diffusion_run_that_is_cut_and_resumed_is_bit_identical(made, tmp_path, cut):
    """Whatever the workers."""
    assert_goes_on(made, made / "whole", tmp_path / "cut", cut, f"workers={cut % 2}")
    assert (tmp_path / "cut" / "run.json").is_file()


def test_so_is_one_whose_objective_is_a_users_own_and_whose_losses_lie_below_zero(made, tmp_path):
    """A weight below zero, from a folder of options of the user's: the guards take no sign for a fault, nor does a resume."""
    (tmp_path / "conf/objective").mkdir(parents=True)
    plain = (config_dir() / "objective/velocity.yaml").read_text()
    weight = "weighting:\n  _target_: sora.diffusion.velocity_weight\n  most: -1.0\n"
    (tmp_path / "conf/objective/mine.yaml").write_text(plain.replace("weighting:\n  _target_: sora.diffusion.constant_weight\n", weight))
    own = ["objective=mine", f"--config-dir={tmp_path / 'conf'}", "optimizer.lr=1e-4"]
    assert cli.run("train", words(made, f"output={tmp_path / 'whole'}", *own)) == 0
    losses = [row["loss"] for row in read(tmp_path / "whole" / "metrics.jsonl")]
    assert len(losses) == STEPS and max(losses) < 0
    assert_goes_on(made, tmp_path / "whole", tmp_path / "cut", 4, *own)


def test_the_run_reaches_into_its_second_epoch(made):
    """Else the cuts above would say nothing of where one epoch goes over into the next."""
    seen = read(made / "whole" / "metrics.jsonl")[-1]["samples"]
    assert seen > 14


@pytest.mark.parametrize("name", ["vae", "whole"])
def test_losses_and_averages_of_the_real_toy_runs(made, name):
    rows = read(made / name / "metrics.jsonl")
    state = checkpoint.load(checkpoint.newest(made / name / "checkpoints"))
    found = {
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "averages": {key: value.double().norm().item() for key, value in sorted(state.tensors["ema"].items())},
    }
    if os.environ.get("SORA_PIN"):
        pinned = storage.read_json(GOLDEN) if GOLDEN.exists() else {}
        storage.write_json(GOLDEN, {**pinned, name: found})
    golden = storage.read_json(GOLDEN)[name]
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3)):
        assert found[key] == pytest.approx(golden[key], rel=tolerance), key
    assert found["averages"] == pytest.approx(golden["averages"], rel=1e-4, abs=1e-6)
