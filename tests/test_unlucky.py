"""A run on a bad day: its terminal is closed, nobody reads any more, its folder is moved; nothing of it is lost, nothing cut in two."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sora.runs import checkpoint
from sora.runs.jsonl import read
from tests.trained import world_dataset
from tests.training.test_resume import TIMINGS

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
PATIENCE = 300.0  # seconds, on a machine that does much else


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return world_dataset(tmp_path_factory.mktemp("unlucky") / "world", clips=8)


def command(world: Path, run: Path, *more: str) -> list[str]:
    small = ["plan.shapes=[[5,16,16]]", "plan.batch=2", "trainer.threads=1", "workers=1", "log_every=1"]
    return [sys.executable, "-m", "sora.cli", "train", "experiment=toy_vae", f"data.folders=[{world}]", *small, f"output={run}", *more]


def reach(run: Path, step: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + PATIENCE
    while len(read(run / "metrics.jsonl") if run.exists() else []) < step:
        assert time.monotonic() < end
        meanwhile()
        time.sleep(0.02)


def saved(run: Path) -> list[int | None]:
    return [checkpoint.step_of(path) for path in checkpoint.listed(run / "checkpoints")]


@pytest.mark.parametrize("ignored", [False, True], ids=["plain", "nohup"])
def test_a_run_whose_terminal_is_closed_saves(world, tmp_path, ignored):
    """The kernel sends SIGHUP, and every word to the terminal is an error from then on; with nohup it goes on without a word."""
    run = tmp_path / "run"
    words = command(world, run, "steps=1000000", "checkpoint.every=1000000")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        os.execv(words[0], words)

    def drain() -> None:
        while select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 1 << 16)

    reach(run, 5, drain)
    os.close(terminal)
    if ignored:
        reach(run, 2 + len(read(run / "metrics.jsonl")))
        os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + (signal.SIGTERM if ignored else signal.SIGHUP)
    (step,) = saved(run)
    assert step == len(read(run / "metrics.jsonl")) >= 5
    checkpoint.verify(checkpoint.newest(run / "checkpoints"))


@pytest.mark.parametrize("how", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | head -1"])
def test_a_run_that_nobody_listens_to_is_made_as_any_other(world, tmp_path, how):
    told = ["steps=6", "checkpoint.every=2"]
    outcome = {}
    for name, end in (("heard", ""), ("unheard", how)):
        shell = f"set -o pipefail; {shlex.join(command(world, tmp_path / name, *told))} {end}"
        outcome[name] = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert (outcome["heard"].returncode, outcome["unheard"].returncode) == (0, 0), outcome
    lines = [[{key: row[key] for key in row if key not in TIMINGS} for row in read(tmp_path / name / "metrics.jsonl")] for name in outcome]
    assert lines[0] == lines[1] and len(lines[0]) == 6
    assert saved(tmp_path / "heard") == saved(tmp_path / "unheard")
    for path in (tmp_path / "unheard" / "checkpoints").glob("step-*"):
        checkpoint.verify(path)  # nothing that was said is in a file
    assert (tmp_path / "unheard" / "vae").is_dir()


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_whose_folder_is_moved_or_removed_is_not_cut_in_two(world, tmp_path, gone):
    run, other = tmp_path / "run", tmp_path / "other"
    words = command(world, run, "steps=1000000", "checkpoint.every=3", "workers=0")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    reach(run, 8)
    run.rename(other)
    if gone:
        subprocess.run(["rm", "-rf", other], check=True)
    told = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2 and "Traceback" not in told
    assert "was moved or removed while the run trained in it" in told and "resume=FOLDER" in told
    assert not run.exists()
    if not gone:
        steps = saved(other)[-1]
        assert steps and steps % 3 == 0
        assert (
            subprocess.run([*words[:4], f"resume={other}", f"steps={steps + 2}", "resume_allow=[steps]"], capture_output=True).returncode
            == 0
        )
