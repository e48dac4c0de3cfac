"""The same script on the CPU at toy sizes, so that it does not rot until a GPU is at hand; and what it says where something is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.sections import SECTIONS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "benchmarks" / "gpu.py"
BLOCKED = """
import sys
for name in {names!r}: sys.modules[name] = None
sys.argv = [{script!r}, *{words!r}]
import runpy; runpy.run_path({script!r}, run_name="__main__")
"""


def gpu_check(*words, blocked=()):
    code = BLOCKED.format(names=list(blocked), script=str(SCRIPT), words=list(words))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=580)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_section_runs_on_a_cpu(tmp_path):
    """Heavy packages that a bare machine may lack are blocked; a network and an installation are not needed."""
    only = ",".join(section.name for section in SECTIONS if section.name != "peer")  # in one process: imports take as long as sections
    lacking = ("wandb", "decord", "diffusers", "tensorboard", "flash_attn", "torchcodec")
    ran = gpu_check("device=cpu", "minutes=9", f"only={only}", f"output={tmp_path}/gpu.json", f"wheels={tmp_path}", blocked=lacking)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    asked = only.split(",")
    assert {name: entry["status"] for name, entry in found["sections"].items() if name in asked} == dict.fromkeys(asked, "ran"), ran.stdout
    figures = found["figures"]
    errors = {name: value for name, value in figures.items() if "_error" in name}
    assert errors and all(value <= 2e-2 for value in errors.values()), errors
    assert {"training_loop_share_b_2", "training_draws_share_b_2", "compiling_time_vs_plain_compiled_frugal_compiled"} <= set(figures)
    assert figures["vae_decode_a_minute_streaming"] is None and "not there yet" in str(found["sections"]["vae"]["rows"])
    truths = [
        value for name, value in figures.items() if "no_waiting" in name or name.endswith(("resumed_is_equal", "same_bits", "finite"))
    ]
    assert truths and set(truths) == {1.0}


@pytest.mark.slow
def test_what_is_missing_or_wrong_is_said_in_a_line(tmp_path):
    other = tmp_path / "wheels"
    other.mkdir()
    (other / "einops-0.8.0-cp27-cp27m-win32.whl").write_bytes(b"")
    for words, code, told in (
        ([], 2, "no CUDA device here"),
        (["minutes=none"], 2, "must be a number above 0"),
        (["minutes=0"], 2, "must be a number above 0"),
        (["device=tpu"], 2, "must be cuda or cpu"),
        (["only=attention,speeed"], 2, "there is no speeed; sections: ceilings"),
        (["seconds=4"], 2, "is none of minutes="),
        (["device=cpu", "only=ceilings", f"wheels={other}", f"output={tmp_path}/gpu.json"], 0, "is of another Python"),
    ):
        ran = gpu_check(*words)
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        assert told in ran.stdout + ran.stderr and "Traceback" not in ran.stderr, (words, ran.stdout, ran.stderr)
