"""How well shot changes are found, and at what cost, in films whose transitions are known: `make bench-cuts` writes cuts.json here.

    make bench-cuts ARGS="films=4"     # fewer films, for a look; writes nothing

The films are composed (`experiments/composed_films.py`) of other draws than those on which the thresholds of `conf/cuts/` were set, seeds 1
and 2, but of the same shipped clips. Each detector of PySceneDetect is given with its own threshold, and with the best of three in
hindsight. A find matches a known transition that it meets within two frames, one to one; F1 counts each false find in full for either kind.
Processor times are of detecting alone, without decoding, one thread, detectors in turns on each film.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries load

import cv2
import numpy as np
import scenedetect
import torch
from omegaconf import OmegaConf
from scenedetect import detectors

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder is not the repository's

from experiments.composed_films import FPS, film  # noqa: E402
from experiments.cut_scores import GRADUAL, HARD, Tally  # noqa: E402
from sora.config.build import build  # noqa: E402
from sora.curation.cuts.peaks import Peaks  # noqa: E402
from sora.curation.cuts.pyscenedetect import found_by  # noqa: E402
from sora.curation.cuts.transnet import TransNetV2Cuts  # noqa: E402
from sora.curation.cuts.windows import ShotProbabilities  # noqa: E402
from sora.curation.spans import Transition  # noqa: E402
from sora.system.files import write_json  # noqa: E402

FILMS, TRANSITIONS, SEED = 26, 12, 0
# The detectors of PySceneDetect: their own threshold first.
THEIRS: dict[str, tuple[Callable[..., Any], str, tuple[float, ...]]] = {
    "content": (detectors.ContentDetector, "threshold", (27.0, 18.0, 36.0)),
    "adaptive": (detectors.AdaptiveDetector, "adaptive_threshold", (3.0, 2.0, 4.5)),
    "histogram": (detectors.HistogramDetector, "threshold", (0.2, 0.1, 0.35)),
    "threshold": (detectors.ThresholdDetector, "threshold", (12.0, 6.0, 24.0)),
    "hash": (detectors.HashDetector, "threshold", (0.35, 0.25, 0.45)),
}
AUTHORS = Peaks(sudden=0.5, slow=0.5, slow_frames=1, part=0.999)  # TransNetV2's own reading of its probabilities

Detect = Callable[[Iterator[np.ndarray]], list[Transition]]


class Remembering(ShotProbabilities):
    """Answers a window that it has answered before from memory, so that two readings of the network's answers cost one."""

    def __init__(self) -> None:
        self._answers: dict[bytes, np.ndarray] = {}

    def window(self, frames: np.ndarray) -> np.ndarray:
        key = frames.tobytes()
        if key not in self._answers:
            self._answers[key] = super().window(frames)
        return self._answers[key]


def ways() -> dict[str, Detect]:
    """Every detector, by the name under which its figures stand."""
    ours = {name: build(OmegaConf.load(ROOT / f"conf/cuts/{name}.yaml")) for name in ("both", "transnetv2", "adaptive", "content")}
    remembering = Remembering()
    authors = TransNetV2Cuts(peaks=AUTHORS)
    for detector in (ours["transnetv2"], authors):
        vars(detector)["_probabilities"] = remembering
    found: dict[str, Detect] = {name: partial(detector, fps=FPS) for name, detector in ours.items() if name in ("both", "transnetv2")}
    found["transnetv2_as_its_authors"] = partial(authors, fps=FPS)
    for name, (kind, key, values) in THEIRS.items():
        for value in values:
            found[f"{name}({value:g})"] = lambda frames, kind=kind, key=key, value=value: found_by(kind(**{key: value}), frames)
    return found


def measured(films: int = FILMS, *, seed: int = SEED) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures, flat, and a row for each detector. Sets torch and OpenCV to one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    every = ways()
    tallies, seconds = {name: Tally() for name in every}, {name: [] for name in every}
    frames_in_all = 0
    for number in range(films):
        made = film(number, seed=seed, transitions=TRANSITIONS)
        frames = list(made.frames())
        frames_in_all += len(frames)
        for name, detect in every.items():
            start = time.process_time()
            found = detect(iter(frames))
            seconds[name].append(time.process_time() - start)
            tallies[name].add(number, made.known, made.decoys, found)
        print(f"film {number}: {len(frames)} frames, {len(made.known)} transitions, {len(made.decoys)} decoys", flush=True)
    rows = [_row(name, tallies[name], seconds[name], frames_in_all) for name in every]
    return _figures({row["way"]: row for row in rows}, seconds, frames_in_all), rows


def _row(name: str, tally: Tally, seconds: list[float], frames: int) -> dict[str, Any]:
    return {
        "way": name,
        "hard_f1": tally.f1(*HARD),
        "gradual_f1": tally.f1(*GRADUAL),
        "all_f1": tally.f1(*HARD, *GRADUAL),
        "recall": {kind: tally.recall(kind) for kind in (*HARD, *GRADUAL)},
        "known": tally.known,
        "false": tally.false,
        "false_by_decoys": tally.decoyed,
        "hard_exact_share": tally.exact / tally.known["hard"],
        "gradual_edge_error_frames": statistics.mean(tally.edges) if tally.edges else None,
        "cpu_ms_per_frame": 1e3 * sum(seconds) / frames,
        "missed": [[number, known.kind, known.first, known.end] for number, known in tally.missed] if name == "both" else len(tally.missed),
        "wrong": [[number, *found] for number, found in tally.wrong] if name == "both" else len(tally.wrong),
    }


def _figures(rows: dict[str, dict[str, Any]], seconds: dict[str, list[float]], frames: int) -> dict[str, float]:
    both, network, authors = rows["both"], rows["transnetv2"], rows["transnetv2_as_its_authors"]
    ratios = [one / two for one, two in zip(seconds["both"], seconds["transnetv2"], strict=True)]
    figures: dict[str, float] = {
        "cuts_transitions": float(sum(both["known"].values())),
        "cuts_frames": float(frames),
        "cuts_hard_f1": both["hard_f1"],
        "cuts_gradual_f1": both["gradual_f1"],
        "cuts_hard_exact_share": both["hard_exact_share"],
        "cuts_gradual_edge_error_frames": both["gradual_edge_error_frames"],
        "both_all_f1": both["all_f1"],
        "transnetv2_all_f1": network["all_f1"],
        "transnetv2_hard_f1": network["hard_f1"],
        "transnetv2_gradual_f1": network["gradual_f1"],
        "transnetv2_as_its_authors_hard_f1": authors["hard_f1"],
        "transnetv2_as_its_authors_gradual_f1": authors["gradual_f1"],
        "both_cpu_vs_transnet": statistics.median(ratios),
    }
    for name, (_, _, values) in THEIRS.items():
        tried = [rows[f"{name}({value:g})"] for value in values]
        for kind in ("hard_f1", "gradual_f1"):
            figures[f"scenedetect_{name}_{kind}"] = tried[0][kind]
            figures[f"scenedetect_{name}_best_{kind}"] = max(row[kind] for row in tried)
    return figures


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    films = int(given.pop("films", FILMS))
    if given:
        raise SystemExit(f"{', '.join(given)}: only films= can be said")
    figures, rows = measured(films)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    if films == FILMS:
        write_json(
            HERE / "cuts.json",
            {
                "figures": figures,
                "rows": rows,
                "settings": {"films": films, "transitions_of_a_film": TRANSITIONS, "seed": SEED},
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
                "versions": {
                    "python": sys.version.split()[0],
                    "torch": torch.__version__,
                    "scenedetect": scenedetect.__version__,
                    "opencv": cv2.__version__,
                },
                "commit": commit,
            },
        )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
