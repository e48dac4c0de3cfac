"""The Fréchet distance by factors against the matrix square root, in time and in digits, and its floor (`experiments/metric_floors.py`);
what prompt adherence makes of clips with faults (`experiments/faulty_clips.py`): `make bench-metrics` writes metrics.json here.

Ours, SciPy's square root of the product of covariances (what most public FVD code does) and torchmetrics' eigenvalues of it run in turns on
the same features; ratios are of medians. `motion_frozen_over_floor` is what a distance of motion makes of frozen real clips: see
experiments/ladders. What is right is known: 0 for identical sets, and a closed form
for a set that is the other, widened and moved.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries load
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import scipy
import scipy.linalg
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from experiments.ladders.measured import motion_figures
from sora.metrics.frechet import frechet_distance
from sora.storage import write_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # a script's own folder is not the repository's

from experiments import faulty_clips, metric_floors  # noqa: E402

SHAPES = ((2048, 400, 25), (256, 1408, 3))  # clips, dimensions, rounds


def by_scipy(one: Tensor, two: Tensor) -> float:
    x, y = one.double().numpy(), two.double().numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the product is singular
        root = scipy.linalg.sqrtm(first @ second)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def by_torchmetrics(one: Tensor, two: Tensor) -> float:
    x, y = one.double(), two.double()
    return float(_compute_fid(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T)))


WAYS: dict[str, Callable[[Tensor, Tensor], float]] = {"factors": frechet_distance, "scipy": by_scipy, "torchmetrics": by_torchmetrics}


def features(n: int, d: int, seed: int) -> Tensor:
    """With a spectrum that falls as features' spectra do."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=draw) * torch.arange(1, d + 1, dtype=torch.float64) ** -0.5


def timed(n: int, d: int, rounds: int) -> list[dict[str, float | int | str]]:
    """Seconds of processor time of each way, in turns, on two different sets."""
    one, two = features(n, d, 0), 1.1 * features(n, d, 1) + 0.01
    rows: list[dict[str, float | int | str]] = []
    for turn in range(rounds):
        for name, way in WAYS.items():
            start, begun = time.process_time(), time.perf_counter()
            value = way(one, two)
            seconds = {"cpu_seconds": time.process_time() - start, "wall_seconds": time.perf_counter() - begun}
            rows.append({"what": "time", "n": n, "d": d, "turn": turn, "way": name, "value": value, **seconds})
            print(rows[-1], flush=True)
    return rows


def scaled(n: int, d: int) -> tuple[Tensor, Tensor, float]:
    """Two sets whose distance is known: one is the other, three times as wide about its mean, and moved by 1 in each dimension."""
    one = features(n, d, 2)
    mean = one.mean(0)
    trace = float((one - mean).square().sum() / (n - 1))
    return one, mean + 3 * (one - mean) + 1, 4 * trace + d


def errors() -> list[dict[str, float | int | str]]:
    """How far each way is from what is right: 0 for identical sets, (1 - 3)² tr S + d for scaled and moved ones, relative to that."""
    rows: list[dict[str, float | int | str]] = []
    for n in (8, 64, 512, 2048):
        one = features(n, 400, 3)
        rows += [{"what": "identical", "n": n, "d": 400, "way": name, "error": abs(way(one, one))} for name, way in WAYS.items()]
    for n in (64, 512):
        one, two, true = scaled(n, 400)
        rows += [{"what": "scaled", "n": n, "d": 400, "way": name, "error": abs(way(one, two) / true - 1)} for name, way in WAYS.items()]
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for shape in SHAPES for row in timed(*shape)]
    figures: dict[str, float] = {}
    for n, d, _ in SHAPES:
        spent = {
            name: statistics.median(float(row["cpu_seconds"]) for row in rows if row["d"] == d and row["n"] == n and row["way"] == name)
            for name in WAYS
        }
        figures[f"frechet_speedup_vs_scipy_d{d}"] = spent["scipy"] / spent["factors"]
        figures[f"frechet_speedup_vs_torchmetrics_d{d}"] = spent["torchmetrics"] / spent["factors"]
        figures |= {f"frechet_{name}_cpu_seconds_d{d}": seconds for name, seconds in spent.items()}
    figures |= motion_figures()
    wrong = errors()
    for row in wrong:
        suffix = "" if row["way"] == "factors" else f"_{row['way']}"
        figures[f"frechet_error_{row['what']}_n{row['n']}{suffix}"] = float(row["error"])
    floors, of_floors = metric_floors.figures()
    figures |= floors
    steady, of_faults = faulty_clips.figures()
    figures |= steady
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        HERE / "metrics.json",
        {
            "figures": figures,
            "rows": [*rows, *wrong, *of_floors, *of_faults],
            "settings": {"shapes": [list(shape) for shape in SHAPES], "threads": 1, "dtype": "float64", "ratios": "of median CPU seconds"},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {
                "python": sys.version.split()[0],
                "torch": torch.__version__,
                "scipy": scipy.__version__,
                "numpy": np.__version__,
                "torchmetrics": torchmetrics.__version__,
            },
            "commit": commit,
        },
    )
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
