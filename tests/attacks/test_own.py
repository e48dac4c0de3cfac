"""Code of others: no run, sweep or folder of options has a module imported, wherever that lies and whatever they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.attacks.harness import assert_bounded, assert_refused
from tests.attacks.test_strangers import with_values

MARKING = "import pathlib\npathlib.Path({mark!r}).write_text('imported')\ndef part(*args, **rest):\n    raise SystemExit(99)\n"
PARTS = {
    "block": ("dit", "block"),
    "text": ("text",),
    "weighting": ("objective", "weighting"),
    "density": ("density",),
    "patches": ("patches",),
}


@pytest.fixture
def evil(tmp_path):
    """A folder to stand in, with a package and a file that leave a mark when they are imported; and the mark."""
    here, mark = tmp_path / "here", tmp_path / "mark"
    (here / "evil").mkdir(parents=True)
    for name in ("evil/__init__", "evil/parts", "evil_file"):
        (here / f"{name}.py").write_text(MARKING.format(mark=str(mark)))
    return here, mark


def words_of(verb: str, run: Path, data: Path) -> list[str]:
    return {
        "sample": ["sample", f"checkpoint={run}", "prompt=x", "steps=1"],
        "evaluate": ["evaluate", f"checkpoint={run}", f"data={data}", "n=1"],
        "export": ["export", f"checkpoint={run}", f"output={run.parent / 'out'}"],
        "train": ["train", f"resume={run}", f"data.folders=[{data}]"],
    }[verb]


def recorded(run: Path, own: object) -> Path:
    info = json.loads((run / "run.json").read_text()) | {"own": own}
    (run / "run.json").write_text(json.dumps(info))
    return run


@pytest.mark.parametrize("verb", ["sample", "evaluate", "export", "train"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("target", ["evil.parts.part", "evil_file.part"])
def test_a_run_that_names_a_module_has_it_imported_by_nobody(sora, material, evil, verb, part, target):
    here, mark = evil
    run = with_values(material.copy("live"), {("own",): ["evil.parts", "evil_file.py"], (*PARTS[part], "_target_"): target})
    recorded(run, {target.rpartition(".")[0]: {"files": {}, "file": str(here / "evil_file.py")}})
    ended = sora(*words_of(verb, run, material.folder / "data"), cwd=here, env={"PYTHONPATH": str(here)})
    assert_refused(ended, "no command of yours wrote")
    assert "own=[" not in ended.err and not mark.exists()


LIBRARIES = ["os.system", "torch.load", "torch.serialization.load", "subprocess.Popen", "builtins.exec", "sora.evil.part"]


@pytest.mark.parametrize("target", LIBRARIES)
def test_a_library_is_called_by_no_run_and_cannot_be_named(sora, material, evil, target):
    here, mark = evil
    run = with_values(material.copy("dit"), {("dit", "block"): {"_target_": target}})
    assert_refused(sora("sample", f"checkpoint={run}", "prompt=x", cwd=here), target)
    module = target.rpartition(".")[0]
    assert_refused(sora("sample", f"checkpoint={run}", "prompt=x", f"own=[{module}]", cwd=here), module)
    assert not mark.exists()


def test_a_named_module_gives_a_run_what_it_defines_and_nothing_else(sora, material, evil):
    here, mark = evil
    (here / "good.py").write_text("from os import system\n\ndef part(number, parts):\n    raise ValueError('asked for')\n")
    run, words = material.copy("dit"), ["sample", "prompt=x", "own=[./good.py]"]
    for target, said in {"good.system": "line 1", "evil.parts.part": "evil.parts", "good.part": "asked for"}.items():
        with_values(run, {("dit", "block"): {"_target_": target}})
        assert_refused(sora(*words, f"checkpoint={run}", cwd=here), said)
    assert not mark.exists()


@pytest.mark.parametrize("text", ["own: [evil.parts]\n", "own: ./evil_file.py\n", "defaults: [{override /dit: evil}]\n"])
def test_a_folder_of_options_names_no_module(sora, evil, tmp_path, text):
    here, mark = evil
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/dit").mkdir()
    (tmp_path / "conf/dit/evil.yaml").write_text("defaults: [toy, _self_]\nblock: {_target_: evil.parts.part}\n")
    (tmp_path / "conf/experiment/x.yaml").write_text(f"# @package _global_\n{text}")
    words, said = ["train", "experiment=x", "data.folders=[x]", "vae=x"], "own" if "own" in text else "evil.parts.part"
    assert_refused(sora(*words, f"--config-dir={tmp_path / 'conf'}", cwd=here), said)
    assert_refused(sora(*words, cwd=here, env={"SORA_CONFIG_DIR": str(tmp_path / "conf")}), said)
    assert not mark.exists()


def test_what_a_sweep_left_names_no_module(sora, material, evil):
    here, mark = evil
    runs = [material.copy("live").rename(here / f"seed={seed}") for seed in (0, 1)]
    (here / ".sweep.json").write_text(json.dumps({"runs": {run.name: [run.name, "own=[evil.parts]"] for run in runs}}))
    for words in (["compare", *map(str, runs)], ["report", *map(str, runs)], ["sample", f"checkpoint={runs[0]}", "prompt=x", "steps=1"]):
        assert_bounded(sora(*words, cwd=here))
    assert not mark.exists()


def test_pages_and_tables_of_a_run_with_own_code_need_none_of_it(sora, material, evil):
    here, mark = evil
    runs = [material.copy("live").rename(here / name) for name in ("a", "b")]
    for run in runs:
        with_values(run, {("dit", "block"): {"_target_": "evil.parts.part"}})
        recorded(run, {"evil.parts": {"files": {"evil/parts.py": "0" * 64}}})
    assert sora("report", str(runs[0]), cwd=here).code == 0
    assert_bounded(sora("compare", *map(str, runs), cwd=here))
    assert not mark.exists()


DAMAGED = [3, [], {"x": 3}, {"x": {}}, {"x": {"files": {"a": "b"}}}, {"x": {"files": {}, "file": 7}}, {"x": {"files": {}, "more": 1}}]


@pytest.mark.parametrize("own", DAMAGED)
def test_a_damaged_record_is_told(sora, material, own):
    run = recorded(material.copy("dit"), own)
    assert_refused(sora("sample", f"checkpoint={run}", "prompt=x"), "run.json")
