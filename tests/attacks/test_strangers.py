"""Runs and datasets of strangers: what they name outside their folder is not read, no host is asked, no program of theirs runs.

The run that the program made itself is a stranger's to a user with another key; `STRANGER` is the environment of that user.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.attacks.harness import assert_bounded, assert_refused

METADATA = "http://169.254.169.254/latest"
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_" + "c" * 34}


@pytest.fixture
def stranger(tmp_path):
    return {"XDG_STATE_HOME": str(tmp_path / "state-of-another")}


def changed(run: Path, **values: object) -> Path:
    """The run with other values in its configuration, as a stranger may have written them; a dot in a key is written as two underscores."""
    return with_values(run, {tuple(key.split("__")): value for key, value in values.items()})


def with_values(run: Path, values: dict[tuple[str, ...], object]) -> Path:
    config = yaml.safe_load((run / "config.yaml").read_text())
    for (*above, last), value in values.items():
        node = config
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def pretrained(source: str) -> dict[str, object]:
    folders = {"model_folder": "", "tokenizer_folder": "", "max_tokens": 8, "batch": 1, "precision": "float32"}
    return {"_target_": "sora.text.PretrainedEncoder", "source": source, "revision": "main", **folders}


def test_a_strangers_run_is_sampled_without_a_word_more(sora, material, stranger):
    run = material.copy("dit")
    ended = sora("sample", f"checkpoint={run}", "prompt=x", "size=24x24", "fps=8", "seconds=0.5", "steps=1", env=stranger)
    assert_bounded(ended)
    assert ended.code == 0, ended.told


@pytest.mark.parametrize("verb", ["sample", "evaluate", "export"])
def test_a_model_of_the_hub_is_not_asked_for(sora, material, verb):
    run = changed(material.copy("dit"), text=pretrained("nobody/nothing"))
    words = {"sample": ["prompt=x"], "evaluate": [f"data={material.folder / 'data'}"], "export": [f"output={run.parent / 'out'}"]}
    ended = sora(verb, f"checkpoint={run}", *words[verb], env=ONLINE)
    assert_refused(ended, "text.source=nobody/nothing", "hf download nobody/nothing", "--allow hf://nobody/nothing")
    assert not [what for what, _ in ended.seen if what.startswith("socket")]


@pytest.mark.parametrize("place", ["absolute", "climbing"])
def test_a_model_outside_of_the_run_is_not_read(sora, material, tmp_path, place):
    outside, run = tmp_path / "elsewhere/model", material.copy("dit")
    outside.mkdir(parents=True)
    (outside / "config.json").write_text('{"hidden_size": 16, "canary": 1}')
    changed(run, text=pretrained(str(outside) if place == "absolute" else "climb/../elsewhere/model"))
    words = ["sample", f"checkpoint={run}", "prompt=x"]
    assert_refused(sora(*words), "text.source", "lies outside the run", f"--allow {run}")
    allowed = sora(*words, "--allow", str(outside))
    assert "lies outside" not in allowed.err and allowed.code == 2, allowed.told  # it is looked at, and holds no model
    assert "lies outside" not in sora(*words, f"--allow={run}").err


def test_a_strangers_run_goes_on_with_the_data_that_are_named_and_no_others(sora, material, stranger):
    run = material.copy("live")
    words = ["train", f"resume={run}", "steps=3", "resume_allow=[steps]"]
    refused = sora(*words, env=stranger)
    assert_refused(refused, "data.folders", "lies outside the run", "say where it lies: data.folders=[")
    ended = sora(*words, f"data.folders=[{material.folder / 'data'}]", env=stranger, seconds=120)
    assert ended.code == 0, ended.told
    assert sora("report", str(run), env=stranger).code == 0
    own = material.copy("live") if not run.exists() else run
    assert sora("train", f"resume={own}", "steps=4", "resume_allow=[steps]", seconds=120).code == 2  # another user has written it since


def test_ones_own_run_goes_on_with_no_option(sora, material):
    run = material.copy("live")
    ended = sora("train", f"resume={run}", "steps=3", "resume_allow=[steps]", seconds=120)
    assert ended.code == 0, ended.told
    again = sora("train", f"resume={run}", "steps=4", "resume_allow=[steps]", seconds=120)
    assert again.code == 0, again.told


@pytest.mark.parametrize("own", [True, False])
def test_a_torchscript_file_is_a_program_and_no_stored_configuration_runs_it(sora, material, stranger, own):
    import torch

    run = material.copy("live")
    torch.jit.script(torch.nn.ReLU()).save(str(run / "evil.pt"))
    videos = yaml.safe_load((Path(__file__).parents[2] / "conf/evaluation/videos.yaml").read_text())
    i3d = {
        "_target_": "sora.metrics.I3DScript",
        "path": str(run / "evil.pt"),
        "kernel": "none",
        "crop": False,
        "batch": 1,
    }
    videos["videos"] |= {"extractor": i3d, "metrics": ["frechet"]}
    changed(run, evaluation=videos)
    words = ["train", f"resume={run}", "steps=3", "resume_allow=[steps]", f"data.folders=[{material.folder / 'data'}]"]
    env = {} if own else stranger
    refused = sora(*words, env=env)
    assert_refused(refused, "evaluation.videos.extractor.path", "is a program", "say it now: ")
    said = shlex.split(refused.err.partition("say it now: ")[2])  # what is offered is taken
    refused = sora(*words, *said, env=env)
    assert_refused(refused, "evaluation.videos.extractor.path", "say which file you mean: ")
    said = shlex.split(refused.err.partition("say which file you mean: ")[2])
    assert "which is a program" not in sora(*words, *said, env=env, seconds=120).err


def test_a_torchscript_file_in_a_folder_of_options_is_not_run_either(sora, material, tmp_path):
    import torch

    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "evil.pt"))
    (tmp_path / "conf/extractor").mkdir(parents=True)
    option = f"_target_: sora.metrics.I3DScript\npath: {tmp_path / 'evil.pt'}\nkernel: none\ncrop: false\nbatch: 1\n"
    (tmp_path / "conf/extractor/mine.yaml").write_text(option)
    words = ["evaluate", f"checkpoint={material.folder / 'videos'}", f"data={material.folder / 'videos'}", "metrics=[frechet]"]
    ended = sora(*words, "extractor=mine", f"--config-dir={tmp_path / 'conf'}", f"output={tmp_path / 'out'}")
    assert_refused(ended, "extractor.path", "is a program")
    ended = sora(*words, "extractor=i3d", f"extractor.path={tmp_path / 'evil.pt'}", f"output={tmp_path / 'out'}")
    assert_refused(ended, "extractor.sha256=")


@pytest.mark.parametrize("value", ["${oc.env:CANARY}", "${${steps}:CANARY}", "a ${oc.env:CANARY} b"])
@pytest.mark.parametrize("key", ["kind", "vae", "text__source", "data__folders"])
def test_a_stored_configuration_reads_nothing_of_the_environment(sora, material, key, value):
    run = changed(material.copy("dit"), steps="oc.env", **{key: value})
    for words in (["sample", f"checkpoint={run}", "prompt=x"], ["train", f"resume={run}"], ["report", str(run)]):
        ended = sora(*words, env={"CANARY": "leaked-canary"})
        assert_refused(ended, "config.yaml")
        assert "leaked-canary" not in ended.err + ended.out


WANDB = {"_target_": "sora.training.Wandb", "project": "p", "entity": None, "mode": "online", "tags": [], "timeout": 1.0}
LOOSE = {
    "unguarded": (["reader"], None),
    "memory": (["reader", "memory_gb"], 1000),
    "for ever": (["reader", "seconds"], 1e9),
    "large": (["reader", "reader", "limits", "pixels"], 1 << 40),
    "decord": (["reader", "reader", "_target_"], "sora.video.DecordReader"),
    "server": (["logger"], WANDB),
}


@pytest.mark.parametrize("what", LOOSE)
def test_a_strangers_run_neither_loosens_the_confinement_of_decoders_nor_reaches_a_server(sora, material, stranger, what):
    run, (keys, value) = material.copy("live"), LOOSE[what]
    if what == "unguarded":
        value = yaml.safe_load((run / "config.yaml").read_text())["reader"]["reader"]  # the reader within, without its guard
    with_values(run, {tuple(keys): value})
    ended = sora("train", f"resume={run}", f"data.folders=[{material.folder / 'data'}]", env=stranger)
    assert_refused(ended, "config.yaml", "no command of yours wrote that configuration", keys[0])


@pytest.mark.parametrize("verb", ["check", "show", "train", "plan", "encode", "evaluate", "prepared"])
def test_a_strangers_remote_json_makes_no_connection_and_no_folder(sora, material, tmp_path, verb):
    data, run = material.copy("data"), material.folder / "dit"
    cache = tmp_path / "made/by/a/stranger"
    (data / "remote.json").write_text(json.dumps({"url": METADATA, "cache": str(cache), "cache_mb": 100.0, "fetch_after": 0}))
    train = [f"data.folders=[{data}]", f"vae={material.folder / 'vae'}", "experiment=toy"]
    words = {
        "check": ["data", "check", str(data)],
        "show": ["data", "show", str(data), f"output={tmp_path / 'page.html'}"],
        "train": ["train", *train, "steps=1", "trainer=cpu", f"output={tmp_path / 'out'}"],
        "plan": ["plan", *train],
        "encode": ["encode", f"data={data}", f"vae={material.folder / 'vae'}", "text=byte"],
        "evaluate": ["evaluate", f"checkpoint={run}", f"data={data}", "n=1", f"output={tmp_path / 'out'}"],
        "prepared": ["evaluate", f"checkpoint={data}", f"data={data}", f"output={tmp_path / 'out'}"],
    }[verb]
    ended = sora(*words)
    assert_refused(ended, METADATA, "you have not indexed this dataset", f"output={data}", f"--allow {METADATA} --allow {cache}")
    assert not cache.exists()


def test_a_dataset_of_ones_own_is_read_with_no_option_and_by_another_user_once_he_says_so(sora, material, stranger):
    tars, index = material.copy("tars"), material.copy("indexed")
    (index / "remote.json").unlink()
    assert sora("data", "index", str(tars), f"output={index}").code == 2  # it is indexed, and lay beside its shards
    for path in index.iterdir():
        path.unlink() if path.is_file() else None
    index = index.with_name("new")
    assert sora("data", "index", str(tars), f"output={index}", seconds=120).code == 0
    check = ["data", "check", str(index), "workers=0"]
    assert sora(*check).code == 0
    assert_refused(sora(*check, env=stranger), str(tars), f"data index={tars}", f"--allow {tars}")
    assert sora(*check, "--allow", str(tars), env=stranger).code == 0
    said = sora("data", "index", str(tars), f"output={index}", env=stranger)
    assert said.code == 0 and "by your word from now on" in said.out, said.told
    assert sora(*check, env=stranger).code == 0
    assert_refused(sora(*check), "its seal is not one of")


@pytest.mark.parametrize("name", ["remote.json", "columns/../remote.json", "/tmp/x.parquet", "meta-000000.parquet/x", "new/folder.parquet"])
def test_a_mirror_takes_metadata_along_and_nothing_else(sora, material, tmp_path, name):
    far = material.copy("data")
    described = json.loads((far / "dataset.json").read_text())
    described["shards"][0]["meta"] = name
    (far / "dataset.json").write_text(json.dumps(described))
    here = tmp_path / "here"
    ended = sora("data", "index", str(far), f"output={here}")
    assert ended.code == 2 and "Traceback" not in ended.err, ended.told
    assert json.loads((here / "remote.json").read_text())["url"] == str(far.resolve())
    assert sorted(path.name for path in here.iterdir()) in (["dataset.json.partial", "remote.json"], ["remote.json"])


@pytest.mark.parametrize("entry", ["../../outside/x@_here_", "/../outside/x@_here_", "///{}/outside/x@_here_", "file://{}/outside/x"])
def test_defaults_of_a_config_folder_read_nothing_outside(sora, tmp_path, entry):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.yaml").write_text("canary: leaked\n")
    (tmp_path / "conf/text").mkdir(parents=True)
    (tmp_path / "conf/text/evil.yaml").write_text(f"defaults:\n  - {entry.format(tmp_path)}\n  - _self_\n")
    ended = sora("train", "text=evil", f"--config-dir={tmp_path / 'conf'}", "--cfg", "job")
    assert_refused(ended, "evil.yaml", "leads out")
