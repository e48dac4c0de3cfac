"""Clips of 16 frames at 64x64 pixels that the built-in world draws in a second: `make bench-world` writes world.json here."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy

from sora.system.files import write_json
from sora.world.judge.adherence import observe
from sora.world.language import PALETTE
from sora.world.scenes import MOTIONS
from sora.world.world import World

HERE = Path(__file__).resolve().parent
SETTINGS = {"seed": 0, "sizes": ((64, 64),), "seconds": (2.0,), "rates": (8.0,), "stride_time": 1, "image_share": 0.0}
CLIPS = 400
PROCESSES = 2


def draw(first: int, last: int, motions: tuple[str, ...] = tuple(MOTIONS)) -> float:
    """Seconds that one process takes for clips first..last-1, after a few to warm up."""
    world = World(motions=motions, **SETTINGS)
    for index in range(5):
        world.clip(index)
    start = time.perf_counter()
    for index in range(first, last):
        world.clip(index)
    return time.perf_counter() - start


def main() -> None:
    with get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(draw, [(0, 5)] * PROCESSES)  # imports
        seconds = pool.starmap(draw, [(i * CLIPS, (i + 1) * CLIPS) for i in range(PROCESSES)], chunksize=1)
    rows = [{"motion": motion, "clips_per_second": 150 / draw(0, 150, (motion,))} for motion in MOTIONS]
    world = World(**SETTINGS)
    clips = [world.clip(index) for index in range(40)]
    start = time.perf_counter()
    for clip in clips:
        observe(clip.frames, clip.fps, PALETTE)
    figures = {
        "clips_per_second": PROCESSES * CLIPS / max(seconds),
        "clips_per_second_one_process": CLIPS / min(seconds),
        "judged_clips_per_second": len(clips) / (time.perf_counter() - start),
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        HERE / "world.json",
        {
            "figures": figures,
            "rows": rows,
            "settings": {"size": [64, 64], "frames": 16, "clips": PROCESSES * CLIPS, "processes": PROCESSES},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "scipy": scipy.__version__},
            "commit": commit,
        },
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
