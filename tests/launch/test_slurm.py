"""Submitting, against an sbatch that only writes down what it was asked."""

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from sora import cli
from sora.config.command_line.sweep import split
from sora.config.compose import compose
from sora.launch.slurm import OPTIONS, Slurm, scripts, seconds

PLAIN = {"nodes": 2, "tasks": 4, "cpus": 3, "gpus": None, "time": "1:00:00", "warning": 60, "partition": None, "account": "me"}
PLAIN |= {"at_once": 5, "dry": False, "options": []}


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
    assert Slurm(**{**PLAIN, "options": ["--mem=0", "--exclusive"]}).job("train", ["output=a b", "seed=1"]).submit() == "77"
    words, python = asked()
    wanted = {
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=3",
        "--time=1:00:00",
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
    Slurm(**PLAIN).job("train", []).submit()
    assert asked()[1] == "apptainer exec sora.sif python"


AWKWARD = ["prompt=a red ball, 'rolling' left", "data.folders=[a,b]", 'title="x"', "path=$HOME/`id`;rm", "back\\slash", "%s%d", "glob=*"]


def test_the_lines_of_an_array_are_read_back_word_for_word_and_nothing_of_them_is_run(asked, tmp_path):
    Slurm(**PLAIN).array("train", [AWKWARD, ["seed=1"]], tmp_path / "jobs").submit()
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
        Slurm(**PLAIN).array("sample", [["checkpoint=x", "prompt=a"], ["checkpoint=x", word]], tmp_path / "jobs").submit()
    assert not (tmp_path / "jobs").exists() and not (tmp_path / "asked.json").exists()


@pytest.mark.slow
def test_a_dry_job_shows_the_script_and_a_line_that_submits_the_same_and_leaves_nothing(asked, tmp_path, monkeypatch, capsys):
    words = ["experiment=toy_vae", "data.folders=[w]", "output=a ü's b", "launcher=slurm", "launcher.dry=true"]
    monkeypatch.setattr(sys, "executable", "/my own/python")
    before = sorted(tmp_path.iterdir())
    for given in (words, ["-m", "seed=0,1", *words[:2], *words[3:], "output=o"]):
        assert cli.run("train", given) == 0
        assert sorted(tmp_path.iterdir()) == before
    told = capsys.readouterr().out
    one, many = (line for line in told.splitlines() if line.startswith("SORA_PYTHON="))
    assert (scripts() / "train.sbatch").read_text() in told and (scripts() / "job.sh").read_text() in told
    assert "train seed=1 experiment=toy_vae 'data.folders=[w]' output=o/seed=1\n" in told
    subprocess.run(["bash", "-c", one], check=True, cwd=tmp_path)
    wanted = asked()
    assert cli.run("train", words[:-1]) == 0
    assert asked() == wanted and wanted[0][-1] == "output=a ü's b" and wanted[1] == "/my own/python"
    assert "--array=0-1" in many and many.endswith("outputs/jobs/000.list")
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without Slurm
    assert cli.run("train", words) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer=cpu"], "start 8 ranks, but this trainer is one process"),
        (["trainer=fsdp", "trainer.devices=8"], "start 8 ranks, but trainer.devices=8 lay out others"),
        (["trainer.devices=4", "trainer.nodes=1"], "trainer.devices=4 trainer.nodes=1 lay out others"),
        (["trainer.devices=4", "trainer.nodes=2"], ""),
        ([], ""),
        (["trainer=fsdp"], ""),
        (["trainer=fsdp", "plan.packs=12"], "plan.packs=12 does not divide over the 8 ranks"),
        (["trainer=fsdp", "trainer.context=4", "plan.packs=2"], ""),
        (["trainer=tp", "trainer.tensor=2", "plan.packs=2"], "over the 4 ranks .* a multiple of 4"),
    ],
)
def test_a_trainer_of_other_ranks_than_the_jobs_is_refused_before_the_queue(words, told):
    config = compose("train", ["plan.packs=8", *words] if not any("packs" in word for word in words) else words).config
    with pytest.raises(ValueError, match=told) if told else nullcontext():
        assert Slurm(**PLAIN).refuse_ranks(config.trainer, packs=config.plan.packs) is None


@pytest.fixture(params=["my project", "ü'quoted' \"one\""])
def elsewhere(request, tmp_path):
    """Runs a batch script of a checkout whose path is odd, under what stands for Slurm; what the task was started with."""
    place = tmp_path / request.param
    shutil.copytree(scripts(), place / "slurm")
    python = place / "venv" / "python"
    python.parent.mkdir()
    for path, text in {
        python: 'printf "%s\\0" "$0" "$@"',
        tmp_path / "scontrol": 'printf "   JobId=9\\n   Command=%s\\n" "$COMMAND"',
        tmp_path / "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    }.items():
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def ran(name: str, words: list[str], **more: str) -> list[str]:
        script = place / "slurm" / name
        given = {"SLURM_JOB_ID": "9", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
        given |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "COMMAND": " ".join([str(script), *words])}
        given |= {"SORA_PYTHON": str(python), "SLURM_SUBMIT_DIR": str(place)} | more
        copy = tmp_path / "slurm_script"
        shutil.copy(script, copy)  # as Slurm runs it
        done = subprocess.run(["bash", str(copy), *words], env=given, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [word.removeprefix(f"{place}/") for word in done.stdout.split("\0")[:-1]]

    return ran


def test_a_checkout_and_an_environment_may_lie_in_a_path_with_spaces_and_quotes(elsewhere, tmp_path):
    words = ["output=a b/train.sbatch x", "seed=1"]
    assert elsewhere("train.sbatch", words) == ["venv/python", "-m", "sora.train", *words, "resume=auto"]
    assert elsewhere("evaluate.sbatch", ["data=c d"]) == ["venv/python", "-m", "sora.evaluate", "data=c d"]
    (tmp_path / "a list").write_text("encode 'data=e f'\n")
    task = {"SLURM_ARRAY_TASK_ID": "0"}
    assert elsewhere("array.sbatch", [f"{tmp_path}/a list"], **task) == ["venv/python", "-m", "sora.encode", "data=e f"]
    container = {"SORA_PYTHON": "env 'A=b c' venv/python"}
    assert elsewhere("evaluate.sbatch", [], **container) == ["venv/python", "-m", "sora.evaluate"]


def test_two_sweeps_do_not_share_a_list(asked, tmp_path):
    for runs in ([["a"]], [["b"]]):
        Slurm(**PLAIN).array("encode", runs, tmp_path / "jobs").submit()
    assert [path.read_text() for path in sorted((tmp_path / "jobs").iterdir())] == ["encode a\n", "encode b\n"]


@pytest.mark.parametrize("word", ["--export=LD_PRELOAD=x", "--wrap=id", "--output=/etc/x", "--chdir=/", "-x", "--uid=0", "mem=0", "--"])
def test_a_configuration_cannot_make_sbatch_run_or_write_something_else(word):
    with pytest.raises(ValueError, match="launcher.options"):
        Slurm(**{**PLAIN, "options": [word]})
    assert not {"export", "wrap", "output", "error", "chdir", "uid", "get-user-env", "batch", "bb", "container", "prolog"} & set(OPTIONS)


# what `man sbatch` says of --time
@pytest.mark.parametrize(
    ("time", "said"),
    [
        (90, 5400),
        ("90", 5400),
        ("2:30", 150),
        ("1:02:03", 3723),
        ("2-3", 183_600),
        ("2-3:04", 183_840),
        ("2-3:04:05", 183_845),
        ("0", 0),
        ("UNLIMITED", 0),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(time, said):
    assert seconds(time) == said


@pytest.mark.parametrize("time", ["", "-1", "1:2:3:4", "1h", "1-", "-3", "1.5", "24:00:00;id"])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(ValueError, match="launcher.time"):
        Slurm(**{**PLAIN, "time": time})


@pytest.mark.parametrize(("time", "most"), [(5, 150), ("0:59", 29), ("1-0", 43_200)])
def test_a_warning_leaves_half_of_the_time_to_train(time, most):
    Slurm(**{**PLAIN, "time": time, "warning": most})
    for warning in (most + 1, -1):
        with pytest.raises(ValueError, match=f"0 to {most} s"):
            Slurm(**{**PLAIN, "time": time, "warning": warning})
    Slurm(**{**PLAIN, "time": "UNLIMITED", "warning": most + 1})


@pytest.fixture
def turn(tmp_path):
    """What job.sh does after a turn of training that ended with a code: (its exit code, whether it asked for another turn, its output)."""
    for name, text in {"srun": 'exit "$CODE"', "scontrol": 'echo "$*" >>asked; echo JobState=RUNNING PreemptTime=2026-01-01'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def ended(code: int, *, restarts: int = 0) -> tuple[int, bool, str]:
        (tmp_path / "asked").unlink(missing_ok=True)
        given = {
            "CODE": str(code),
            "SLURM_JOB_ID": "9",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NTASKS": "1",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        given |= {"MASTER_ADDR": "here", "MASTER_PORT": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        shell = ["bash", "-c", f"source '{scripts() / 'job.sh'}'; job train output=run"]
        done = subprocess.run(shell, env=given, cwd=tmp_path, capture_output=True, text=True)
        asked = tmp_path / "asked"
        return done.returncode, asked.exists() and "requeue 9" in asked.read_text(), done.stdout + done.stderr

    return ended


@pytest.mark.parametrize("code", [138, 140, 134, 137, 139])
def test_a_run_that_saves_gets_turn_after_turn_and_one_that_saves_nothing_three(turn, tmp_path, code):
    for step in range(5):
        (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        assert turn(code, restarts=step)[:2] == (0, True)
    assert turn(code, restarts=5)[:2] == (0, True)
    ended, again, said = turn(code, restarts=6)
    assert (ended, again) == (code, False)
    assert "nothing saved" in said and "step-00000004" in said


def test_a_signal_before_there_is_a_folder_is_no_endless_circle(turn):
    assert [turn(138, restarts=restarts)[:2] for restarts in range(4)] == [(0, True), (0, True), (138, False), (138, False)]
    assert turn(137)[:2] == (137, False)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_is_complete_or_mistaken_stays_away(turn, tmp_path, code):
    (tmp_path / "run").mkdir()
    assert turn(code)[:2] == (code, False)


def test_preemption_is_not_the_runs_fault(turn, tmp_path):
    (tmp_path / "run").mkdir()
    assert [turn(143, restarts=restarts)[:2] for restarts in range(5)] == [(0, True)] * 5


def test_without_sbatch_nothing_is_submitted_and_the_message_says_what_fits(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="launcher=here"):
        Slurm(**PLAIN).job("train", []).submit()


@pytest.mark.slow
def test_runs_of_a_sweep_have_folders_of_their_own_unless_they_are_given():
    base = ["data.folders=[w]", "vae=v"]
    runs = split("train", [*base, "seed=0,1", "density=uniform,mode", "output=o"], [])
    assert sorted(word for run in runs.runs for word in run if word.startswith("output=")) == [
        f"output=o/seed={seed},density={name}" for seed in (0, 1) for name in ("mode", "uniform")
    ]
    given = [*base, "seed=3", "output=a,b"]
    assert [run[-1] for run in split("train", given, []).runs] == ["output=a", "output=b"]
    odd = split("train", [*base, "data.split='a/b','..'"], []).runs
    assert len({run[-1] for run in odd}) == 2
    assert all("/" not in run[-1].removeprefix("output=outputs/train/") for run in odd)
