"""`make bench-metrics` in parts: one that is measured anew leaves the others' figures, and what is over all is there once all are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.metric_floors import POPULATIONS, uneven, worst

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "benchmarks" / "metrics.py"


@pytest.fixture
def metrics(monkeypatch):
    """The script as a module; what it says of threads to libraries that load holds for the test alone."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    from experiments.benchmarks import metrics

    return metrics


def test_a_part_that_is_measured_anew_leaves_the_others(tmp_path, metrics, monkeypatch):
    file, tried = tmp_path / "metrics.json", iter([1.0, 2.0, 3.0])
    parts = {name: lambda name=name: ({f"{name}_x": next(tried)}, [{"of": name}]) for name in ("errors", "steady")}
    monkeypatch.setattr(metrics, "FILE", file)
    monkeypatch.setattr(metrics, "PARTS", parts)
    file.write_text('{"figures": {"of before": 1}, "rows": [{"what": "time"}]}')  # of no part: nobody knows how it was measured
    assert [metrics.main(words) for words in ([], ["only=steady"])] == [0, 0]
    found = json.loads(file.read_text())
    assert found["figures"] == {"errors_x": 1.0, "steady_x": 3.0}
    assert found["rows"] == [{"part": "errors", "of": "errors"}, {"part": "steady", "of": "steady"}]
    assert all({"figures", "machine", "versions", "commit"} == set(part) for part in found["parts"].values())


@pytest.mark.parametrize("words", [["only=speeed"], ["steady"], ["only="]])
def test_a_part_that_is_not_there_is_refused_with_those_that_are(metrics, words, capsys):
    assert metrics.main(words) == 2
    assert "only=A,B of errors, motion, steady, rand3d" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_refuses_from_any_folder(tmp_path):
    ran = subprocess.run([sys.executable, SCRIPT, "only=speeed"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "only=A,B of errors" in ran.stderr and "Traceback" not in ran.stderr


def test_what_is_over_all_populations_waits_for_all():
    of_one = {"floor_error_": 0.01, "closed_form_error_": 0.5, "p_uniform_ks_": 0.04}
    some = {f"{start}{name}": value + place / 1000 for place, name in enumerate(POPULATIONS) for start, value in of_one.items()}
    all_of_them = {**some, "p_uniform_ks_rand3d_n2048_m2048": 0.09}
    assert worst(all_of_them) == {"floor_error_max": 0.014, "closed_form_error_max": 0.504, "p_uniform_ks": 0.09}
    assert worst({**all_of_them, **worst(all_of_them)}) == worst(all_of_them)
    for name in POPULATIONS:
        assert worst({key: value for key, value in all_of_them.items() if key != f"floor_error_{name}"}) == {}


def test_populations_reach_from_16_to_2048_clips_and_sides_that_differ():
    assert {"rand3d", "transnetv2", "efficientnet"} < set(POPULATIONS) and any("gaussian" in name for name in POPULATIONS)
    for _, sizes in POPULATIONS.values():
        counts = {(n, m) for n, m, _ in sizes}
        assert {(16, 16), (2048, 2048), (2048, 512), (16, 64)} <= counts


def test_how_uneven_p_is():
    assert uneven([step / 80 for step in range(1, 81)]) == 0 and uneven([1.0] * 9) == pytest.approx(79 / 80)
    assert uneven([1 / 80] * 5) == pytest.approx(79 / 80)
