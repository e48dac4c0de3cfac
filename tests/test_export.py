"""`sora export` and `sora train init=`: published networks out of runs and into them."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from einops import rearrange
from omegaconf import OmegaConf

from sora.assembly import first_weights
from sora.assembly.job import Job
from sora.assembly.load import load_diffusion
from sora.assembly.resume import enter
from sora.config.build import build
from tests.trained import diffusion_run, option, vae_artefact

pytestmark = pytest.mark.slow
cli = importlib.import_module("sora.cli")
SMALL = {"width": 48, "depth": 2, "heads": 2, "rope": {"width": 48, "heads": 2, "scales": [1.0, 64.0, 64.0]}, "patch": [1, 2, 2]}


def laid_over(changes: dict) -> dict:
    return OmegaConf.to_container(OmegaConf.merge(option("dit", "ltx_video"), SMALL, changes))


def small() -> dict:
    return laid_over({})


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("export")
    vae = vae_artefact(root / "vae")
    published = diffusion_run(root / "run", vae=vae, data=root, dit=small(), text="classes")
    assert cli.run("export", [f"checkpoint={published}", f"output={root / 'out'}"]) == 0
    diffusion_run(root / "own", vae=vae, data=root)
    return root, published


def channels_first(dit):
    """The first layer, with its patches as diffusers' pipelines lay them out."""
    return rearrange(dit.embed.weight, "d (h w c) -> d (c h w)", h=2, w=2)


def test_a_run_is_exported_as_diffusers_loads_it_with_averaged_weights_or_the_last(places, capsys):
    root, run = places
    ours = load_diffusion(run).dit
    theirs = diffusers.LTXVideoTransformer3DModel.from_pretrained(root / "out")
    assert torch.equal(channels_first(ours), theirs.proj_in.weight)
    words = ["ema=last", "step=5", "precision=bfloat16", "shard_gb=0.0001", f"output={root / 'last'}"]
    assert cli.run("export", [f"checkpoint={run}", *words]) == 0
    assert "step 5 as LTXVideoTransformer3DModel" in capsys.readouterr().out
    last = diffusers.LTXVideoTransformer3DModel.from_pretrained(root / "last")
    assert torch.equal(last.proj_in.weight, channels_first(load_diffusion(run, 5, ema=False).dit).bfloat16().float())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["checkpoint={own}", "ema=raw"], "ema='raw' names no weights: choose own, last"),
        (["checkpoint={own}", "ema=0.07"], "holds no profiles to make an average of relative width 0.07 of"),
        (["checkpoint={run}", "precision=float8"], "precision=float8 is none of float32, bfloat16, float16"),
        (["checkpoint={run}", "shard_gb=0"], "shard_gb=0 must be above 0"),
        (["checkpoint={run}", "format=onnx"], "format=onnx is none of diffusers, run"),
        (["checkpoint={own}", "format=diffusers"], "is no published network"),
    ],
)
def test_what_cannot_be_exported_is_refused(places, words, said, capsys):
    root, run = places
    given = [word.format(own=root / "own", run=run) for word in words]
    assert cli.run("export", [*given, f"output={root / 'never'}"]) != 0
    assert said in capsys.readouterr().err and not (root / "never").exists()


def test_a_network_of_ours_is_exported_as_a_run_to_sample_from(places, capsys):
    root, _ = places
    for word, precision in (("own", "float32"), ("last", "bfloat16")):
        output = root / f"alone-{word}"
        words = [f"checkpoint={root / 'own'}", f"ema={word}", f"precision={precision}", f"output={output}"]
        assert cli.run("export", words) == 0
        assert f"checkpoint={output}" in capsys.readouterr().out
        found, wanted = load_diffusion(output), load_diffusion(root / "own", ema=word)
        assert found.step == wanted.step == 10
        for name, value in wanted.dit.state_dict().items():
            rounded = value.bfloat16().float() if precision == "bfloat16" and value.is_floating_point() else value
            assert torch.equal(found.dit.state_dict()[name], rounded), name
        assert {path.name for path in (output / "checkpoints/step-00000010").glob("*.safetensors")} == {"model.safetensors"}
        with pytest.raises(ValueError, match="was exported to sample from: it holds no optimiser"):
            enter(OmegaConf.create({"resume_allow": []}), output, going_on=True, job=Job(None, None, {}, "tokens"))
        assert cli.run("export", words) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "text", "said"),
    [
        ({"rope": {"theta": 100.0}}, "classes", r"LTXVideoTransformer3DModel has no key to say dit.rope.theta=100.0 (it has 10000.0)"),
        ({"text": {"fill": 7}}, "classes", "dit.text.fill=7 (it has 0)"),
        ({"qk_norm": {"eps": 1e-3}}, "classes", "dit.qk_norm.eps=0.001 (it has 1e-05)"),
        ({}, "byte", "text=byte trains a module beside the network (text.embed.weight)"),
    ],
)
def test_what_no_class_can_say_is_refused_by_its_key_and_goes_out_as_a_run(places, changes, text, said, capsys, tmp_path):
    root, _ = places
    run = diffusion_run(tmp_path / "run", vae=root / "vae", data=root, dit=laid_over(changes), text=text)
    assert cli.run("export", [f"checkpoint={run}", f"output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "format=run" in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert cli.run("export", [f"checkpoint={run}", f"output={tmp_path / 'out'}", "format=run"]) == 0
    found, wanted = load_diffusion(tmp_path / "out"), load_diffusion(run)
    for part in ("dit", "text"):
        for name, value in getattr(wanted, part).state_dict().items():
            assert torch.equal(getattr(found, part).state_dict()[name], value), name


def test_what_a_run_began_with_is_noted_and_goes_out_again(places, tmp_path):
    """A key without effect on what is predicted, which no option of ours holds."""
    _, run = places
    out = tmp_path / "out"
    assert cli.run("export", [f"checkpoint={run}", f"output={out}"]) == 0
    noted = {"weights": "x", "bytes": 1, "config": None}
    for text, said in ((json.dumps(noted), 0), ("[]", 2), ("{", 2)):
        (run / "init.json").write_text(text)
        assert cli.run("export", [f"checkpoint={run}", f"output={tmp_path / f'again{said}{len(text)}'}"]) == said
    (run / "init.json").unlink()


def test_an_export_of_averages_gives_no_weights_of_the_last_step(places, tmp_path):
    root, _ = places
    for name, ema in (("averages", "own"), ("last", "last")):
        assert cli.run("export", [f"checkpoint={root / 'own'}", f"ema={ema}", f"output={tmp_path / name}"]) == 0
    assert cli.run("export", [f"checkpoint={tmp_path / 'averages'}", f"output={tmp_path / 'again'}"]) == 0
    for name in ("averages", "again"):
        for ema in ("last", False, 0.07):
            with pytest.raises(ValueError, match=rf"{name} was exported with ema=own and holds those weights alone, not ema={ema}"):
                load_diffusion(tmp_path / name, ema=ema)
    wanted = load_diffusion(root / "own", ema="last").dit.state_dict()
    for ema in ("own", "last", False):
        found = load_diffusion(tmp_path / "last", ema=ema).dit.state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], "is of another network"),
        (["patches.size=[2,2,2]"], r"patches of \[1, 1, 1\], and patches\.size=\[2, 2, 2\]"),
        (["dit=toy"], "is for published networks"),
        (["init=nowhere"], "init=nowhere does not exist"),
        (["init=null", "init_allow=[dit.rope.theta]"], "has no effect without init="),
    ],
)
def test_weights_of_another_network_are_refused_before_the_data_are_looked_at(places, changes, said, capsys, tmp_path):
    root, _ = places
    given = [f"vae={root / 'vae'}", "data.folders=[no_data]", "dit=ltx_video", "patches.size=[1,1,1]", "text=classes"]
    keys = {word.partition("=")[0] for word in changes}
    words = [word for word in [f"init={root / 'out'}", *given] if word.partition("=")[0] not in keys]
    assert cli.run("train", [*words, *changes, f"output={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and "no_data" not in error and len(error.splitlines()) == 1


def test_an_output_that_is_there_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert cli.run("export", ["checkpoint=nowhere", f"output={tmp_path / 'there'}"]) == 2
    assert f"{tmp_path / 'there'} exists already" in capsys.readouterr().err


def test_training_begins_with_published_weights_of_the_same_patches_only(places):
    root, run = places
    given = {"init": str(root / "out"), "init_allow": [], "patches": {"size": [1, 2, 2]}}
    config = OmegaConf.create({"kind": "diffusion", **given})
    expected = load_diffusion(run).dit
    dit = build(small(), patch_channels=expected.patch_channels, text_width=expected.text_width)
    job = Job(task=SimpleNamespace(dit=dit), steps=None, depends={}, unit="tokens")
    first_weights.begin(config, job)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in dit.state_dict().items())
    with pytest.raises(ValueError, match=r"has patches of \[1, 2, 2\], and patches\.size=\[2, 2, 2\]"):
        first_weights.begin(OmegaConf.merge(config, {"patches": {"size": [2, 2, 2]}}), job)
    with pytest.raises(ValueError, match="init=.* is for published networks"):
        first_weights.begin(config, replace(job, task=SimpleNamespace(dit=load_diffusion(root / "own").dit)))
