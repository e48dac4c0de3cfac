"""Own modules: named on the command line or in the environment alone, used like sora's parts, recorded by runs, checked as these are."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sora import cli
from sora.config import own
from sora.config.build import build
from sora.config.command_line.commands import command
from sora.config.command_line.completion import candidates
from sora.config.command_line.flags import parse, passed_on
from sora.config.compose import compose
from sora.config.targets import find
from sora.launch.stages import Stage, depends, environment
from sora.system.own_modules import OWN, named, source
from tests.config.own_material import EVERY, EXAMPLE, GATED, ROOT, told

# ---- the law: what is not named is not imported


@pytest.mark.parametrize("target", ["lab_of_mine.blocks.part", "lab_of_mine.part", "lab_of_mine.inner.deep.part"])
def test_a_module_that_is_not_named_is_not_imported(lab, target):
    for look in (find, lambda name: build({"_target_": name}), lambda name: compose("train", [f"dit.block._target_={name}"])):
        with pytest.raises(ValueError, match=f"{target} is refused: it is none of sora's"):
            look(target)
    with own.naming(["lab_of_mine.blocks"]):
        if "blocks" not in target:
            with pytest.raises(ValueError, match="is refused"):
                build({"_target_": target})
    assert not lab.exists() and "lab_of_mine" not in sys.modules


def test_composing_help_and_completion_import_nothing(lab, capsys):
    words = ["own=[lab_of_mine.blocks]", "dit.block._target_=lab_of_mine.blocks.part"]
    assert cli.main(["train", *words, "--cfg", "job"]) == 0
    assert cli.main(["train", *words, "--help"]) == 0
    assert "lab_of_mine.blocks.part(number, parts)" in capsys.readouterr().out
    assert candidates(f"sora train {words[0]} dit.block._target_=") == ["dit.block._target_=lab_of_mine.blocks.part"]
    assert not lab.exists()


@pytest.mark.parametrize("name", ["_hidden", "system", "Imported", "alias", "inner.method"])
def test_only_what_a_module_defines_itself_is_called(tmp_path, name):
    (tmp_path / "mine.py").write_text(
        "from os import system\nfrom pathlib import Path as Imported\nimport os\nalias = os.remove\ndef _hidden(): pass\n"
        "class inner:\n    def method(self): pass\n"
    )
    with own.naming([str(tmp_path / "mine.py")]), pytest.raises(ValueError, match="is refused"):
        build({"_target_": f"mine.{name}"})


def test_a_name_that_is_another_object_by_the_time_it_is_imported_is_refused(tmp_path):
    (tmp_path / "swap.py").write_text("def part(x): pass\nfrom os import remove as part\n")
    with own.naming([str(tmp_path / "swap.py")]), pytest.raises(ValueError, match="not a class or a function"):
        build({"_target_": "swap.part"})


@pytest.mark.parametrize("place", ["experiment/x.yaml", "dit/x.yaml"])
def test_no_file_of_options_names_a_module(lab, tmp_path, capsys, place):
    path = tmp_path / "conf" / place
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\nown: [lab_of_mine.blocks]\n")
    said = told(capsys, "train", f"--config-dir={tmp_path / 'conf'}", f"{path.parent.name}=x", "--cfg=job")
    assert "own" in said and not lab.exists()


@pytest.mark.parametrize("word", ["+own=[lab_of_mine.blocks]", "own=lab_of_mine.blocks"])
def test_the_command_line_names_one_however_it_is_written(lab, word):
    assert parse([word]).own == ["lab_of_mine.blocks"] and parse([word]).overrides == []


# ---- naming


@pytest.mark.parametrize(("stem", "module"), [("blocks", "blocks"), ("my block", "my_block"), ("größe-2", "größe_2"), ("ü", "ü")])
def test_a_file_is_a_module_wherever_it_lies(tmp_path, stem, module):
    folder = tmp_path / "2026_11_29 ü, [notes]"
    folder.mkdir()
    (folder / f"{stem}.py").write_text("def part(number, *, size=3):\n    return number + size\n")
    with own.naming([str(folder / f"{stem}.py")]):
        assert list(named()) == [module]
        assert build({"_target_": f"{module}.part", "size": 5})(2) == 7
        again = parse(["train", *parse([]).again()])
        assert again.own == [str(folder / f"{stem}.py")]
    assert not named()


def test_a_package_is_found_below_the_current_folder_where_nothing_else_has_it(tmp_path, monkeypatch):
    (tmp_path / "here_only").mkdir()
    (tmp_path / "here_only/parts.py").write_text("def part(x):\n    return x + 1\n")
    monkeypatch.chdir(tmp_path)
    with own.naming(["here_only.parts"]):
        assert build({"_target_": "here_only.parts.part"})(1) == 2
    sys.modules.pop("here_only.parts"), sys.modules.pop("here_only")


def test_the_environment_names_modules_and_folders_for_every_command(monkeypatch, capsys):
    monkeypatch.setenv(OWN, f"{GATED}\n")
    monkeypatch.setenv("SORA_CONFIG_DIR", str(EXAMPLE / "conf"))
    assert cli.main(["train", "experiment=toy", "dit/block=gated", "--cfg", "job"]) == 0
    assert "_target_: gated.gated\n    strength: 0.5" in capsys.readouterr().out
    monkeypatch.setenv("SORA_CONFIG_DIR", "/nowhere")
    assert "the variable SORA_CONFIG_DIR names /nowhere" in told(capsys, "train", "--cfg", "job")


BAD = {
    "own=[./blocs.py]": "blocs.py does not exist (did you mean 'blocks.py'",
    "own=[./folder/]": "is a folder; name a file in it (inside.py)",
    "own=[./torch.py]": "is called as the module 'torch' of Python or of a library; rename the file",
    "own=[./sora.py]": "is called as the module 'sora'",
    "own=[./random.py]": "is called as the module 'random'",
    "own=[./_pytest.py]": "rename the file so that it begins with a letter",
    "own=[./iniconfig.py]": "is called as the installed module 'iniconfig'",
    "own=[./2026.py]": "would be the module '2026'",
    "own=[./class.py]": "would be the module 'class'",
    "own=[./blocks.py,./folder/../other/blocks.py]": "are both the module 'blocks'",
    "own=[./blocks.ipynb/x]": "does not exist",
    "own=[./notes.txt]": "does not end in .py",
    "own=[os]": "is of Python or of a library",
    "own=[torch.serialization]": "is of Python or of a library",
    "own=[sora.dit]": "is sora's own",
    "own=[nowhere_at_all.blocks]": "no such module can be imported",
    "own=[lab_of_mine.blcks]": "lab_of_mine has no module 'blcks' (did you mean 'blocks'?)",
    "own=[lab_of_mine.inner]": "is a folder without __init__.py; name a module in it: lab_of_mine.inner.deep",
    "own=[a-b]": "neither the name of a module",
    "own=": "names no module",
    "own=[{a: b}]": "names no module",
}


@pytest.mark.parametrize("word", BAD)
def test_what_cannot_be_named_is_one_line(lab, tmp_path, monkeypatch, capsys, word):
    for name in ("blocks", "folder/inside", "torch", "sora", "random", "_pytest", "iniconfig", "2026", "class", "other/blocks"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    assert BAD[word] in told(capsys, "train", word, "--cfg", "job")


# ---- what does not import, and what does not fit

BROKEN = {
    "import torhc\n": ("ModuleNotFoundError: No module named 'torhc'", "broken.py:1 (import torhc); install torhc"),
    "import beside_it\n": ("name that file, too: own=[", "beside_it.py]"),
    "def part(number, parts):\n  return (\n": ("SyntaxError: '(' was never closed", "broken.py:2"),
    "x = 1\ny = x / 0\n": ("ZeroDivisionError: division by zero", "broken.py:2 (y = x / 0)"),
    "import sys\nsys.exit(3)\n": ("SystemExit: 3", "broken.py:2 (sys.exit(3))"),
    "x = '\0'": ("source code string cannot contain null bytes", "broken.py"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_module_that_does_not_import_says_where(tmp_path, capsys, monkeypatch, text):
    (tmp_path / "beside_it.py").write_text("")
    (tmp_path / "broken.py").write_text(text + "\ndef part(number, parts):\n    pass\n")
    words = ["train", f"own={tmp_path / 'broken.py'}", "dit.block._target_=broken.part", "data.folders=[x]", "vae=x"]
    said = told(capsys, *words, f"output={tmp_path / 'run'}")
    assert all(part in said for part in ("does not import", *BROKEN[text])), said
    assert not (tmp_path / "run").exists()


MISFITS = {
    ("sample", "sampler", "def part(predict, x): pass"): "it is called with 3, and takes 2",
    (
        "sample",
        "sampler",
        "def part(predict, x, levels, eta): pass",
    ): "nothing gives it eta; a setting has a default, or is set in the conf",
    ("sample", "sampler", "class part: pass"): "has no __call__",
    ("sample", "guidance", "def part(ask, *, scale=1.0): pass"): "given clips and path by name",
    ("train", "density", "def part(u): pass"): "takes a class, as LogNormal",
    ("train", "density", "class part:\n    def quantil(self, u): pass"): "has no quantile",
    ("train", "schedule", "def part(step): pass"): "given steps by name",
    ("train", "logger", "class part: pass"): "has to be one of sora's",
    ("train", "dit.block", "def part(number, parts): pass\ndef part(number): pass"): "defines 'part' 2 times, in lines 1 and 2",
}


@pytest.mark.parametrize(("verb", "key", "text"), MISFITS)
def test_a_part_with_another_signature_is_told_what_it_lacks(tmp_path, capsys, verb, key, text):
    (tmp_path / "mine.py").write_text(text)
    said = told(capsys, verb, f"own={tmp_path / 'mine.py'}", f"{key}._target_=mine.part", "--cfg=job")
    assert MISFITS[verb, key, text] in said, said


INSIDE = {
    "def part(parts): pass": "it is called with 2, and takes 1",
    "def part(number, parts, size): pass": "nothing gives it size",
    "def part(number: str, parts): pass": "is one of (str, parts)",
    "def part(number, parts, *, size): pass": "needs size",
}


@pytest.mark.parametrize("text", INSIDE)
def test_a_part_inside_another_is_told_what_it_lacks(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    with own.naming([str(tmp_path / "mine.py")]):
        config = compose("train", ["experiment=toy", "dit.block._target_=mine.part"]).config
        with pytest.raises(ValueError, match="mine.part") as error:
            build(config.dit, patch_channels=4, text_width=4)
    assert INSIDE[text] in str(error.value)


def test_settings_that_the_configuration_says_need_no_default(tmp_path):
    (tmp_path / "mine.py").write_text("def part(predict, x, levels, eta, *, path, noise): return eta\n")
    with own.naming([str(tmp_path / "mine.py")]):
        config = compose("sample", ["checkpoint=x", "sampler._target_=mine.part", "sampler.eta=0.5"]).config
        assert build(config.sampler)(1, 2, 3, path=4, noise=5) == 0.5
        with pytest.raises(ValueError, match=r"mine\.part has no key 'etta' \(did you mean 'eta'\?\)"):
            compose("sample", ["checkpoint=x", "sampler._target_=mine.part", "sampler.etta=0.5"])


# ---- folders of options


def test_an_option_within_a_part_takes_its_place():
    with own.naming([GATED]):
        composed = compose("train", ["experiment=toy", "dit/block=gated", "dit.block.strength=3"], [EXAMPLE / "conf"])
        assert composed.config.dit.block == {"_target_": "gated.gated", "strength": 3}
        assert "dit.block" in composed.said
        with pytest.raises(ValueError, match=r"there is no dit/block=gatd \(did you mean 'gated'\?\); its options: gated"):
            compose("train", ["dit/block=gatd"], [EXAMPLE / "conf"])


def test_an_experiment_of_ones_own_chooses_it(tmp_path):
    for name, text in {
        "dit/block/mine.yaml": "_target_: gated.gated\nstrength: 4.0\n",
        "experiment/mine.yaml": "# @package _global_\ndefaults: [toy, {/dit/block: mine}, _self_]\nsteps: 3\n",
        "dit/gated_toy.yaml": "defaults: [toy, _self_]\nblock: {_target_: gated.gated, strength: 5.0}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with own.naming([GATED]):
        config = compose("train", ["experiment=mine"], [tmp_path]).config
        assert (config.steps, config.dit.block) == (3, {"_target_": "gated.gated", "strength": 4.0})
        assert compose("train", ["experiment=toy", "dit=gated_toy"], [tmp_path]).config.dit.block.strength == 5


def test_a_folder_without_groups_is_refused(tmp_path, capsys):
    (tmp_path / "dits").mkdir()
    (tmp_path / "dits/mine.yaml").write_text("_target_: sora.dit.DiT\n")
    assert "lie in dits (did you mean 'dit'?)" in told(capsys, "train", f"--config-dir={tmp_path}", "--cfg=job")
    assert "holds no options" in told(capsys, "train", f"--config-dir={tmp_path / 'dits'}", "--cfg=job")


# ---- other processes


def test_what_is_pickled_reaches_processes_that_are_spawned(tmp_path):
    (tmp_path / "my part.py").write_text("class Part:\n    def __init__(self, n): self.n = n\n\ndef doubled(part): return 2 * part.n\n")
    (tmp_path / "program.py").write_text(
        "import sora, sys\nfrom multiprocessing import get_context\nfrom sora.config import own\nfrom sora.config.build import build\n"
        "if __name__ == '__main__':\n"
        "    with own.naming([sys.argv[1]]):\n"
        "        part, doubled = build({'_target_': 'my_part.Part', 'n': 21}), build({'_target_': 'my_part.doubled'})\n"
        "        for way in ('spawn', 'fork', 'forkserver'):\n"
        "            with get_context(way).Pool(1) as pool:\n"
        "                print(pool.apply(doubled, (part,)))\n"
    )
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "my part.py")]
    done = subprocess.run(words, capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.stdout.split() == ["42"] * 3, done.stderr


def test_a_job_of_a_cluster_is_given_the_modules(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["experiment=toy", "data.folders=[x]", "vae=x", "launcher=slurm", "launcher.dry=true", "dit/block=gated", f"output={tmp_path}"]
    given = ["own=[examples/own_block/gated.py]", "--config-dir=examples/own_block/conf"]
    assert cli.main(["train", *words, *given]) == 0
    line = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert f"own=[{GATED}]" in line and f"--config-dir={EXAMPLE / 'conf'}" in line
    assert cli.main(["train", "-m", *words, "seed=0,1", *given]) == 0
    jobs = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("train ")]
    assert len(jobs) == 2 and all(f"own=[{GATED}]" in job for job in jobs)
    assert "is not swept over" in told(capsys, "train", "-m", *words, f"own={GATED},{EVERY}")


def test_commands_that_a_command_starts_have_its_modules_and_folders(monkeypatch):
    stage = Stage("dit", "Train", "train", ("experiment=toy", "dit/block=gated", "data.folders=[x]", "vae=x"), None)
    with pytest.raises(ValueError, match="dit/block"):
        depends(stage, [], Path("outputs"))
    with passed_on([EXAMPLE / "conf"]), own.naming([GATED]):
        assert depends(stage, [], Path("outputs")) != depends(stage, ["another"], Path("outputs"))
        words = [sys.executable, "-m", "sora.train", *stage.overrides, "--cfg=job"]
        shown = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True, cwd="/").stdout
    assert "_target_: gated.gated" in shown


def test_a_printed_command_names_what_this_command_has_imported():
    with own.naming([GATED, EVERY]):
        build({"_target_": "gated.gated"})
        sys.modules.pop("every_kind", None)
        assert command("sample", checkpoint="run") == f"sora sample checkpoint=run own=[{GATED}]"
        assert command("report", "run") == "sora report run"
        assert source("gated") == Path(GATED)
