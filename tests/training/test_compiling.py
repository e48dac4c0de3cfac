"""Compiled blocks: one graph for all packs, and the numbers of plain ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.long
@pytest.mark.slow
def test_blocks_are_compiled_once_whatever_the_packs_hold():
    done = subprocess.run([sys.executable, "-m", "tests.training.compiled"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["full"]["packs"] == 50
    for name, each in found.items():
        # factorised: blocks of two kinds in turn; dual: the last one leaves words alone
        assert each["graphs"] == (2 if name in ("factorised", "dual", "dual halves") else 1), (name, each)
        assert (each["lengths"] == 1) == (name == "fixed"), (name, each)
        assert each["breaks"] == 0, (name, each)
        assert each["worst"] <= 1e-6, (name, each)
