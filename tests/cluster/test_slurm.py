"""Submitting, against an sbatch that only writes down what it was asked."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sora.cluster.slurm import OPTIONS, Slurm, scripts
from sora.configs.sweep import split

PLAIN = {"nodes": 2, "tasks": 4, "cpus": 3, "gpus": None, "time": "1:00", "warning": 60, "partition": None, "account": "me"}
PLAIN |= {"at_once": 5, "options": []}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A folder to submit from, with an sbatch that answers 77; gives what the last call was asked, and SORA_PYTHON."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "json.dump([sys.argv[1:], os.environ['SORA_PYTHON']], open('asked.json', 'w'))\nprint('77;cluster')\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    return lambda: json.loads((tmp_path / "asked.json").read_text())


def test_a_job_asks_for_what_the_launcher_says_and_for_nothing_it_leaves_open(asked):
    assert Slurm(**{**PLAIN, "options": ["--mem=0", "--exclusive"]}).submit("train", ["output=a b", "seed=1"]) == "77"
    words, python = asked()
    wanted = {
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=3",
        "--time=1:00",
        "--signal=USR1@60",
        "--account=me",
        "--mem=0",
        "--exclusive",
    }
    assert words[-3:] == [str(scripts() / "train.sbatch"), "output=a b", "seed=1"]
    assert {word for word in words[:-3] if word not in ("--parsable", "--export=ALL")} == wanted
    assert python == sys.executable


def test_the_python_of_the_environment_comes_first(asked, monkeypatch):
    monkeypatch.setenv("SORA_PYTHON", "apptainer exec sora.sif python")
    Slurm(**PLAIN).submit("train", [])
    assert asked()[1] == "apptainer exec sora.sif python"


AWKWARD = ["prompt=a red ball, 'rolling' left", "data.folders=[a,b]", 'title="x"', "path=$HOME/`id`;rm", "back\\slash", "%s%d", "glob=*"]


def test_the_lines_of_an_array_are_read_back_word_for_word_and_nothing_of_them_is_run(asked, tmp_path):
    Slurm(**PLAIN).sweep("train", [AWKWARD, ["seed=1"]], tmp_path / "jobs")
    words, _ = asked()
    assert "--array=0-1%5" in words
    line = Path(words[-1]).read_text().splitlines()[0]
    script = (scripts() / "array.sbatch").read_text().splitlines()
    reading = next(text for text in script if text.startswith("mapfile"))
    shell = f"line=$(cat)\n{reading}\nprintf '%s\\0' \"${{words[@]}}\""
    done = subprocess.run(["bash", "-c", shell], input=line, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split("\0")[:-1] == ["train", *AWKWARD]


@pytest.mark.parametrize("word", ["prompt=a\nsample prompt=b", "\n", "prompt=a\r\nb"])
def test_a_word_of_several_lines_is_refused_before_anything_is_submitted(asked, tmp_path, word):
    with pytest.raises(ValueError, match="of several lines"):
        Slurm(**PLAIN).sweep("sample", [["checkpoint=x", "prompt=a"], ["checkpoint=x", word]], tmp_path / "jobs")
    assert not (tmp_path / "jobs").exists() and not (tmp_path / "asked.json").exists()


def test_two_sweeps_do_not_share_a_list(asked, tmp_path):
    for runs in ([["a"]], [["b"]]):
        Slurm(**PLAIN).sweep("encode", runs, tmp_path / "jobs")
    assert [path.read_text() for path in sorted((tmp_path / "jobs").iterdir())] == ["encode a\n", "encode b\n"]


@pytest.mark.parametrize("word", ["--export=LD_PRELOAD=x", "--wrap=id", "--output=/etc/x", "--chdir=/", "-x", "--uid=0", "mem=0", "--"])
def test_a_configuration_cannot_make_sbatch_run_or_write_something_else(word):
    with pytest.raises(ValueError, match="launcher.options"):
        Slurm(**{**PLAIN, "options": [word]})
    assert not {"export", "wrap", "output", "error", "chdir", "uid", "get-user-env", "batch", "bb", "container", "prolog"} & set(OPTIONS)


def test_without_sbatch_nothing_is_submitted_and_the_message_says_what_fits(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="launcher=here"):
        Slurm(**PLAIN).submit("train", [])


@pytest.mark.slow
def test_runs_of_a_sweep_have_folders_of_their_own_unless_they_are_given():
    base = ["data.folders=[w]", "vae=v"]
    runs = split("train", [*base, "seed=0,1", "density=uniform,mode", "output=o"], [])
    assert sorted(word for run in runs for word in run if word.startswith("output=")) == [
        f"output=o/seed={seed},density={name}" for seed in (0, 1) for name in ("mode", "uniform")
    ]
    given = [*base, "seed=3", "output=a,b"]
    assert [run[-1] for run in split("train", given, [])] == ["output=a", "output=b"]
    odd = split("train", [*base, "data.split='a/b','..'"], [])
    assert len({run[-1] for run in odd}) == 2
    assert all("/" not in run[-1].removeprefix("output=outputs/train/") for run in odd)
