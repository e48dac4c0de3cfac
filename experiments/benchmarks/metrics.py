"""The Fréchet distance by factors against the matrix square root, in time and in digits, its floor and p (`experiments/metric_floors.py`),
what prompt adherence makes of clips with faults (`experiments/faulty_clips.py`), and what a distance of motion makes of frozen real clips
(`experiments/ladders`): `make bench-metrics` writes metrics.json here.

    make bench-metrics ARGS="only=rand3d,steady"     # these parts; what the file holds of the others stays
    make bench-metrics ARGS="only=speed,cost"        # the times, which want a machine without other work

Ours, SciPy's square root of the product of covariances (what most public FVD code does) and torchmetrics' eigenvalues of it run in turns on
the same features; ratios are of medians. What is right is known: 0 for identical sets, and a closed form for a set that is the other,
widened and moved. Each part is written as it is measured, with its commit, machine and versions.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries load
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import scipy
import scipy.linalg
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from sora.metrics.distribution.frechet import frechet_distance
from sora.system.files import write_json

HERE = Path(__file__).resolve().parent
FILE = HERE / "metrics.json"
sys.path.insert(0, str(HERE.parents[1]))  # a script's own folder is not the repository's

from experiments import faulty_clips, metric_floors  # noqa: E402
from experiments.ladders import measured  # noqa: E402
from experiments.metric_floors import Found  # noqa: E402

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


def timed(n: int, d: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of processor time of each way, in turns, on two different sets."""
    one, two = features(n, d, 0), 1.1 * features(n, d, 1) + 0.01
    rows: list[dict[str, Any]] = []
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


def errors() -> list[dict[str, Any]]:
    """How far each way is from what is right: 0 for identical sets, (1 - 3)² tr S + d for scaled and moved ones, relative to that."""
    rows: list[dict[str, Any]] = []
    for n in (8, 64, 512, 2048):
        one = features(n, 400, 3)
        rows += [{"what": "identical", "n": n, "d": 400, "way": name, "error": abs(way(one, one))} for name, way in WAYS.items()]
    for n in (64, 512):
        one, two, true = scaled(n, 400)
        rows += [{"what": "scaled", "n": n, "d": 400, "way": name, "error": abs(way(one, two) / true - 1)} for name, way in WAYS.items()]
    for row in rows:
        print(row, flush=True)
    return rows


def speed() -> Found:
    """Ratios of median processor time, and the medians themselves."""
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
    return figures, rows


def digits() -> Found:
    wrong = errors()
    suffix = {name: "" if name == "factors" else f"_{name}" for name in WAYS}
    return {f"frechet_error_{row['what']}_n{row['n']}{suffix[str(row['way'])]}": float(row["error"]) for row in wrong}, wrong


def motion() -> Found:
    figures = measured.motion_figures()
    return figures, [{"what": "motion", "figure": name, "value": value} for name, value in figures.items()]


Part = Mapping[str, Any]  # figures, rows, and what `about` tells
# Each measures by itself and gives figures with the rows that they come from. Times come last: they want a machine without other work.
PARTS: dict[str, Callable[[], Found]] = {
    "errors": digits,
    "motion": motion,
    "steady": faulty_clips.figures,
    **{name: partial(metric_floors.figures_of, name) for name in metric_floors.POPULATIONS},
    "speed": speed,
    "cost": metric_floors.cost_figures,
}


def chosen(words: Sequence[str]) -> list[str]:
    """The parts that only=a,b names, or all. Raises ValueError for other words."""
    names = [name for word in words for name in word.removeprefix("only=").split(",")]
    if any(not word.startswith("only=") for word in words) or not set(names) <= set(PARTS):
        raise ValueError(f"{' '.join(words)}: say nothing, or only=A,B of {', '.join(PARTS)}")
    return [name for name in PARTS if name in names or not words]


def about() -> dict[str, Any]:
    """Of one part's run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "scipy": scipy.__version__,
            "numpy": np.__version__,
            "torchmetrics": torchmetrics.__version__,
        },
        "commit": commit,
    }


def read() -> dict[str, Part]:
    """What the file holds of each part; nothing of a file of before there were parts."""
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    rows = found.get("rows", [])
    return {
        name: {**part, "rows": [{key: value for key, value in row.items() if key != "part"} for row in rows if row["part"] == name]}
        for name, part in found.get("parts", {}).items()
    }


def together(parts: Mapping[str, Part]) -> dict[str, Any]:
    """The file, of what is known of each part. What is over several parts is there once all of them are."""
    known = {name: parts[name] for name in PARTS if name in parts}
    figures = {key: value for part in known.values() for key, value in part["figures"].items()}
    return {
        "figures": {**figures, **metric_floors.worst(figures)},
        "rows": [{"part": name, **row} for name, part in known.items() for row in part["rows"]],
        "settings": {"shapes": [list(shape) for shape in SHAPES], "threads": 1, "dtype": "float64", "ratios": "of median CPU seconds"},
        "parts": {name: {key: value for key, value in part.items() if key != "rows"} for name, part in known.items()},
    }


def main(words: Sequence[str]) -> int:
    try:
        names = chosen(words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in names:
        print(f"== {name}", flush=True)
        told = about()  # of the code as it is now, not when it is done
        figures, rows = PARTS[name]()
        # Read anew each time: another part may have been measured by another process meanwhile.
        write_json(FILE, together({**read(), name: {"figures": figures, **told, "rows": rows}}))
        print("\n".join(f"{figure}: {value:.4g}" for figure, value in figures.items()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
