"""`init=`: a new run begins with the weights of another run or VAE, whole, or with what of them fits where a difference is on purpose."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora.cli import run
from tests.trained import stored_artefacts

pytestmark = pytest.mark.slow
NETWORK = (
    "data=latents dit=toy dit.width=16 dit.heads=1 dit.depth=2 dit.rope.axes=[4,6,6] text=byte text.width=16 text.depth=1 "
    "plan.budget=512 plan.max_clips=8 workers=0 log_every=1 steps=1 optimizer.lr=0"  # one step that changes nothing
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return stored_artefacts(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def train(stored, tmp_path):
    """Begin a run with some words, and give the weights after its one step."""

    def train(*words, name="new ü", code=0):
        output = tmp_path / name
        given = [*NETWORK.split(), f"data.folders=[{stored / 'data'}]", f"vae={stored / 'vae_run/vae'}", f"output={output}", *words]
        assert run("train", given) == code
        return load_file(output / "checkpoints/step-00000001/model.safetensors") if code == 0 else {}

    return train


def weights(folder: Path, step: int, kind: str = "model"):
    return load_file(folder / f"checkpoints/step-{step:08d}/{kind}.safetensors")


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("words", "step", "kind"),
    [
        (["init={run}"], 20, "ema"),
        (["init={run}", "init_ema=last"], 20, "model"),
        (["init={run}", "init_step=10"], 10, "ema"),
        (["init={run}/checkpoints/step-00000010", "init_ema=last"], 10, "model"),
        (["init={run}", "dit.attention._target_=sora.dit.dense_attention"], 20, "ema"),  # computes the same
    ],
)
def test_a_run_begins_with_the_weights_of_another(stored, train, tmp_path, words, step, kind):
    source = stored / "run"
    found = train(*(word.format(run=source) for word in words))
    expected = weights(source, step) | weights(source, step, kind)
    assert equal(found, expected)
    assert not equal(found, weights(source, 30 - step) | weights(source, 30 - step, kind))  # it would differ
    noted = json.loads((tmp_path / "new ü/init.json").read_text())
    assert (noted["step"], noted["new"], noted["left"]) == (step, [], [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dit.depth=3"], "dit.depth is 2 there and 3 here; make them equal, .*init_allow=[dit.depth]"),
        (["dit.rope.theta=99"], "dit.rope.theta is 100.0 there and 99 here"),  # all its tensors would fit
        (["objective=noise"], "objective.prediction._target_ is sora.diffusion.velocity_prediction there and"),
        (["text.depth=2"], "text.depth is 1 there and 2 here"),
        (["text.max_tokens=9"], "text is 9c4281d8cb44 there and"),
        (["dit.depth=3", "init_allow=[dit.rope]"], "init_allow names dit.rope, in which this run and"),
        (["init_step=15"], "has no checkpoint of step=15; it has 10, 20"),
        (["init_ema=0.1"], "ema=post_hoc"),
        (["init={stored}/vae_run"], "is of task=vae, and this run is of task=diffusion"),
        (["init={stored}/data"], "init="),
        (["init={run}/checkpoints/step-00000010", "init_step=20"], "is the checkpoint of step 10, and step=20 asks for another"),
        (["init=null", "init_step=10"], "init_step=10 has no effect without init="),
        (["init=null", "init_ema=last"], "init_ema=last has no effect without init="),
    ],
)
def test_weights_of_something_else_are_refused_by_name(stored, train, tmp_path, capsys, words, said):
    import re

    train(f"init={stored / 'run'}", *(word.format(run=stored / "run", stored=stored) for word in words), code=2)
    pattern = re.escape(said).replace(r"\.\*", ".*")
    assert re.search(pattern, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "new ü/run.json").exists()


def test_a_difference_on_purpose_begins_anew_and_the_rest_does_not(stored, train, tmp_path, capsys):
    """A third block, as it is in a network without init=; the other tensors are the run's."""
    fresh = train("dit.depth=3", name="fresh")
    found = train("dit.depth=3", f"init={stored / 'run'}", "init_allow=[dit.depth]")
    source = weights(stored / "run", 20) | weights(stored / "run", 20, "ema")
    new = {name for name in fresh if name.startswith("dit.blocks.2.")}
    assert new and found.keys() == fresh.keys() == source.keys() | new
    assert all(torch.equal(found[name], (fresh if name in new else source)[name]) for name in found)
    assert f"dit.depth differs on purpose: {len(new)} tensors begin as in a new network" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "new ü/init.json").read_text())["new"]) == new


def test_another_text_encoder_on_purpose_keeps_what_does_not_read_words(stored, train):
    found = train("text.width=24", f"init={stored / 'run'}", "init_allow=[text]")
    source = weights(stored / "run", 20) | weights(stored / "run", 20, "ema")
    same = {name for name in found if name in source and found[name].shape == source[name].shape}
    assert all(torch.equal(found[name], source[name]) for name in same)
    assert {name.split(".")[0] for name in found.keys() - same} == {"text", "dit"}
    assert all("text" in name or "pooled" in name for name in found.keys() - same)


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_with_the_same_weights(stored, train, tmp_path):
    """Although the run that it began with has trained on."""
    source = shutil.copytree(stored / "run", tmp_path / "source")
    shutil.move(source / "checkpoints/step-00000020", tmp_path / "later")
    first = train(f"init={source}")
    made = tmp_path / "new ü"
    shutil.rmtree(made / "checkpoints")
    (made / "checkpoints").mkdir()
    info = json.loads((made / "run.json").read_text())
    (made / "run.json").write_text(json.dumps({key: value for key, value in info.items() if key != "saved"}))
    shutil.move(tmp_path / "later", source / "checkpoints/step-00000020")
    assert run("train", [f"resume={made}"]) == 0
    assert equal(weights(made, 1), first)
    assert equal(first, weights(source, 10) | weights(source, 10, "ema"))


@pytest.mark.parametrize("source", ["vae_run", "vae_run/vae"])
def test_a_vae_begins_with_another(stored, tmp_path, source):
    words = ["task=vae", "vae=toy", "plan.shapes=[[9,32,32],[1,32,32]]", "steps=1", "optimizer.lr=0", "workers=0", "whitening_steps=1"]
    assert run("train", [*words, f"data.folders=[{stored / 'data'}]", f"init={stored / source}", f"output={tmp_path / 'new'}"]) == 0
    found, expected = (load_file(folder / "vae/vae.safetensors") for folder in (tmp_path / "new", stored / "vae_run"))
    measured = {"shift", "scale"}
    assert all(torch.equal(found[name], expected[name]) for name in expected.keys() - measured)
    assert not any(torch.equal(found[name], expected[name]) for name in measured)  # of other crops


def test_a_checkpoint_names_its_run_and_its_step(stored, tmp_path, monkeypatch):
    """What is sampled of RUN/checkpoints/step-00000010 is what is sampled of RUN at step=10, also by who stands in it."""
    words = ["prompt=a red circle", "seed=3", "steps=2"]
    outputs = {name: tmp_path / name for name in ("run", "path", "inside")}
    assert run("sample", [f"checkpoint={stored / 'run'}", "step=10", *words, f"output={outputs['run']}"]) == 0
    assert run("sample", [f"checkpoint={stored / 'run/checkpoints/step-00000010'}/", *words, f"output={outputs['path']}"]) == 0
    monkeypatch.chdir(stored / "run/checkpoints/step-00000010")
    assert run("sample", ["checkpoint=.", *words, f"output={outputs['inside']}"]) == 0
    first, *others = (next(folder.glob("*.mp4")).read_bytes() for folder in outputs.values())
    assert others == [first, first]


def test_a_folder_within_a_run_is_told_whose_it_is(stored, capsys):
    assert run("sample", [f"checkpoint={stored / 'run/checkpoints'}", "prompt=a"]) == 2
    assert f"did you mean {stored / 'run'}?" in capsys.readouterr().err
