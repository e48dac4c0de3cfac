"""The same script on the CPU at toy sizes, so that it does not rot until a GPU is at hand; and what it says where something is missing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.benchmarks import gpu
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


@pytest.mark.long
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
    assert {
        "attention_chosen_full_is_fastest",
        "attention_chosen_block_causal_is_fastest",
        "training_resumed_difference_otherwise",
        "speed_memory_vs_bill_b_2_none",
    } <= set(figures)
    assert {figures[f"compiling_graphs_{name}"] for name in ("plain", "fused", "frugal")} == {1.0}
    truths = [
        value for name, value in figures.items() if "no_waiting" in name or name.endswith(("resumed_is_equal", "same_bits", "finite"))
    ]
    assert truths and set(truths) == {1.0}


@pytest.mark.slow
def test_what_is_missing_or_wrong_is_said_in_a_line(tmp_path, monkeypatch, capfd):
    """In this process; what the script makes importable is for the test alone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    other = tmp_path / "wheels"
    other.mkdir()
    (other / "einops-0.8.0-cp27-cp27m-win32.whl").write_bytes(b"")
    (other / "einops-0.8.1-py3-none-any.whl").write_bytes(b"no zip")
    (tmp_path / "old.json").write_text("{}")
    file = f"output={tmp_path}/gpu.json"
    for words, code, told in (
        ([], 2, "no CUDA device here"),
        (["only=attention,speeed"], 2, "there is no speeed; sections: ceilings"),
        (["device=cpu", "only=vae", f"output={tmp_path}"], 2, "is a folder; name a file that ends with .json"),
        (["device=cpu", "only=vae", f"output={tmp_path}/old.json"], 2, "is no record of an earlier check"),
        (["device=cpu", "only= ceilings ,", f"wheels={other}", file], 0, "is of another Python"),
        (["device=cpu", "only=ceilings", f"wheels={other}", file], 0, "einops-0.8.1-py3-none-any.whl cannot be unpacked"),
        (["device=cpu", "minutes=0.01", file], 0, "0 of 13 sections ran"),
    ):
        monkeypatch.setattr(gpu, "BEGAN", time.monotonic())
        ended = gpu.main(words)
        out, err = capfd.readouterr()
        assert ended == code, (words, out, err)
        assert told in out + err and "Traceback" not in err, (words, out, err)
        assert code == 0 or len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["minutes=none"], "must be a number above 0"),
        (["minutes=0"], "must be a number above 0"),
        (["minutes=-4"], "must be a number above 0"),
        (["minutes=nan"], "must be a number above 0"),
        (["minutes=inf"], "must be a number above 0"),
        (["minutes="], "must be a number above 0"),
        (["minutes=4", "minutes=8"], "minutes= is there twice"),
        (["device=tpu"], "must be cuda or cpu"),
        (["device=cuda:0"], "must be cuda or cpu"),
        (["seconds=4"], "is none of minutes="),
        (["--minutes=8"], "is none of minutes="),
        (["--help"], "is none of minutes="),
        (["attention"], "is none of minutes="),
        (["only=attention,", "speed"], "is none of minutes="),
        (["only="], "names no section"),
        (["only= ,"], "names no section"),
        (["wheels=/nowhere/at/all"], "is no folder"),
    ],
)
def test_words_that_do_not_fit_are_said_in_a_line(words, told, capsys):
    with pytest.raises(ValueError, match=told):
        gpu.read(words)
    assert gpu.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("wheel", "wanted"),
    [
        ("einops-0.8.2-py3-none-any.whl", True),
        ("braceexpand-0.1.7-py2.py3-none-any.whl", True),
        (f"a-1-cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        (f"a-1-cp3{sys.version_info.minor}-abi3-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp310-abi3-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp310-cp310-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp399-abi3-manylinux_2_28_x86_64.whl", False),
        (f"a-1-cp3{sys.version_info.minor}-cp3{sys.version_info.minor}t-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp310-abi3-manylinux_2_28_aarch64.whl", False),
        ("a-1-cp310-abi3-macosx_11_0_x86_64.whl", False),
        ("a-1-cp310-abi3-win_amd64.whl", False),
        ("a-1-cp27-cp27m-any.whl", False),
    ],
)
def test_wheels_are_told_from_those_of_another_python_or_system(wheel, wanted, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert gpu.fits(wheel) == wanted


def test_an_old_torch_and_a_python_without_one_are_said(monkeypatch):
    monkeypatch.setattr(gpu, "version", lambda _: "2.9.1+cu128")
    with pytest.raises(ValueError, match="torch 2.9.1.cu128 is here, and 2.10 or later is needed"):
        gpu.refuse_lacking("wheels")
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in ("einops", "hydra") else name)
    with pytest.raises(ValueError, match="missing here: einops, hydra; run make gpu-wheels"):
        gpu.refuse_lacking("wheels")
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="has no torch"):
        gpu.refuse_lacking("wheels")


@pytest.mark.slow
def test_sections_are_imported_without_a_device_and_without_what_reads_data():
    """Whoever has asked torch how many devices there are may not fork any more, and every section is forked. A bare machine may lack the
    packages that read data; the sections that need them say so."""
    code = (
        "import torch, sys\n"
        "asked = lambda *_, **__: sys.exit('asked for a device')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = asked\n"
        "sys.modules |= dict.fromkeys(['pyarrow', 'av', 'diffusers'])\n"
        "import tests.gpu.sections, tests.gpu.processes\n"
        "for name in ('pyarrow', 'av', 'diffusers'): del sys.modules[name]\n"
        "import sora.cli, sora.train, sora.prepare, sora.encode, sora.runs.run"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
