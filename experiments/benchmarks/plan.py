"""How much of what a cluster pays for is useful, packed by our plan and in bucket tables, and what planning 100 million clips costs.

`make bench-plan` writes plan.json here. No tensors: ranks are simulated, and a step takes as long as its slowest rank. A clip of n tokens
costs n + n^2 / 6 d (d: the network's width), padding of a pack costs what tokens do.

published: the bucket table of Open-Sora 2.0's first stage as published (hpcaitech/Open-Sora, configs/diffusion/train/stage1.py) and its
sampler: batches of all buckets are shuffled and dealt to ranks, which therefore hold different buckets in one step. Clips: 20 % images,
frames lognormal with median 81, at most 129.
three_resolutions: 25 % images, frames of 256, 1,024 or 2,304 tokens, lognormal durations with median 12 latent frames, at most 33 and at
most 40,000 tokens; buckets of 1, 5, 9, 17 and 33 latent frames with as many clips as 40,000 tokens hold. How well such buckets do
hangs on the durations: 57 to 74 % over other distributions and widths, 23 to 34 % where clips over 40,000 tokens are batches of one.
Rows of 64 ranks also tell it for networks of 2 and 14 billion weights, and with the frames that buckets cut away counted as lost.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from sora.data.plan.clips import LatentClips
from sora.data.plan.cost import Cost
from sora.data.plan.filling import Bucketed, Filling, Packed, Padded
from sora.data.plan.plan import TokenPlan
from sora.system.files import write_json
from sora.tokens import Grid

HERE = Path(__file__).resolve().parent
RANKS = (8, 64, 512)
STEPS = 64  # of a window
PUBLISHED_BUDGET, THREE_BUDGET = 26_624, 40_000
STEP_SECONDS = 6 * 11e9 * PUBLISHED_BUDGET / 4e14  # 11 billion weights on a device that makes 400 TFLOP/s
MILLION = 1_000_000


def published(clips: int, draw: np.random.Generator) -> np.ndarray:
    """(clips, 3) latent frames, rows, columns after patches of 2: video at 256 tokens a frame, images of 256, 2,304 or 4,096."""
    frames = np.clip(np.exp(draw.normal(np.log(81), 0.6, clips)), 5, 129).astype(int)
    time_ = (frames - 1) // 4 + 1
    image = draw.random(clips) < 0.2
    side = np.where(image, draw.choice([64, 48, 16], clips, p=[0.5, 0.25, 0.25]), 16)
    return np.stack([np.where(image, 1, time_), side, side], axis=1).astype(np.int16)


def published_batch(shapes: np.ndarray) -> np.ndarray:
    """How many clips of each shape the table puts into a batch."""
    frames = (shapes[:, 0].astype(int) - 1) * 4 + 1
    video = np.select([frames <= 33, frames <= 65, frames <= 97], [12, 6, 4], 3)
    return np.where(shapes[:, 0] > 1, video, np.select([shapes[:, 1] == 16, shapes[:, 1] == 48], [45, 13], 7))


def three_resolutions(clips: int, draw: np.random.Generator) -> np.ndarray:
    """(clips, 3) latent frames, rows, columns after patches of 2."""
    side = draw.choice([16, 32, 48], clips)
    time_ = np.where(draw.random(clips) < 0.25, 1, np.clip(np.exp(draw.normal(np.log(12), 0.8, clips)), 1, 33).astype(int))
    return np.stack([np.minimum(time_, THREE_BUDGET // side**2), side, side], axis=1).astype(np.int16)


def coarse(shapes: np.ndarray) -> np.ndarray:
    """The shapes after cutting the frames to those of the buckets."""
    table = np.array([1, 5, 9, 17, 33])
    kept = table[np.searchsorted(table, shapes[:, 0], side="right") - 1]
    return np.concatenate([kept[:, None], shapes[:, 1:]], axis=1)


def bucketed(shapes: np.ndarray, batch: np.ndarray, *, ranks: int, cost: Cost, draw: np.random.Generator) -> float:
    """Useful over paid FLOPs of a bucket table whose shuffled batches are dealt to ranks; incomplete batches are not counted."""
    kinds, members, counts = np.unique(shapes, axis=0, return_inverse=True, return_counts=True)
    each = np.zeros(len(kinds), dtype=int)
    each[members.ravel()] = batch
    costs = np.repeat(cost.of(kinds.astype(int).prod(axis=1)) * each, counts // each)
    costs = draw.permutation(costs)
    steps = costs[: len(costs) // ranks * ranks].reshape(-1, ranks)
    return float(steps.sum() / (steps.max(axis=1).sum() * ranks))


def planned(shapes: np.ndarray, *, ranks: int, cost: Cost, budget: int, filling: Filling) -> dict[str, float]:
    """The same of one of our planners: one pack for each rank, whole steps of its first epoch."""
    clips = LatentClips([shapes], patch=Grid(1, 1, 1), fingerprint="bench")
    plan = of(clips, packs=ranks, budget=budget, cost=cost, filling=filling)
    steps = plan.packs_of_windows(plan.windows_of_epoch() or 1) // ranks
    useful = paid = tokens = 0.0
    for step in range(steps):
        parts = plan.columns(step)
        paid += max(float(part.paid.max()) for part in parts) * ranks
        useful += sum(float(cost.of(part.tokens).sum()) for part in parts)
        tokens += sum(int(part.tokens.sum()) for part in parts)
    parts = plan.packs_between(0, plan.packs_of_windows(plan.windows_of_epoch() or 1))
    rows = np.concatenate([part.rows for part in parts])
    frames = float(shapes[rows[np.sort(np.unique(rows, return_index=True)[1])], 0].sum() / shapes[:, 0].sum())
    return {"useful": useful / paid, "fill": tokens / (steps * ranks * budget), "frames_kept": frames, "steps": steps}


def of(clips: LatentClips, *, packs: int, budget: int, cost: Cost, filling: Filling, drop_long: bool = False) -> TokenPlan:
    settings = {"accumulate": 1, "window": STEPS, "frames": None, "area": None, "images": None, "curriculum": (), "weights": None}
    return TokenPlan(
        clips, filling=filling, cost=cost, budget=budget, max_clips=512, packs=packs, drop_long=drop_long, width=None, seed=0, **settings
    )


def clips_for(ranks: int, each: float) -> int:
    """Three windows of steps."""
    return int(3 * STEPS * ranks * each)


def compared(figures: dict[str, float], rows: list[dict]) -> None:
    mixes = (
        ("published", published, PUBLISHED_BUDGET, Cost(linear=1.0, quadratic=1 / (6 * 3072)), lambda shapes: shapes, published_batch),
        (
            "three_resolutions",
            three_resolutions,
            THREE_BUDGET,
            Cost(linear=1.0, quadratic=1 / (6 * 2048)),
            coarse,
            lambda shapes: np.maximum(1, THREE_BUDGET // shapes.astype(int).prod(axis=1)),
        ),
    )
    for name, make, budget, cost, cut, batch in mixes:
        for ranks in RANKS:
            draw = np.random.default_rng(ranks)
            each = budget / make(20_000, np.random.default_rng(0)).astype(int).prod(axis=1).mean()
            shapes = make(clips_for(ranks, each), draw)
            ours = planned(shapes, ranks=ranks, cost=cost, budget=budget, filling=Packed())
            theirs = bucketed(cut(shapes), batch(cut(shapes)), ranks=ranks, cost=cost, draw=draw)
            figures[f"useful_{name}_{ranks}"], figures[f"bucket_useful_{name}_{ranks}"] = ours["useful"], theirs
            figures["frames_kept"] = min(figures.get("frames_kept", 1.0), ours["frames_kept"])
            bucket_kept = float(cut(shapes)[:, 0].sum() / shapes[:, 0].sum())
            rows.append({"mix": name, "ranks": ranks, "clips": len(shapes), **ours, "bucket": theirs, "bucket_frames_kept": bucket_kept})
            print(json.dumps(rows[-1]), flush=True)
            if ranks == 64:
                if name == "three_resolutions":
                    rows += evidence_rows(shapes, draw)
                for filling in (Bucketed(), Padded()):
                    other = planned(shapes, ranks=ranks, cost=cost, budget=budget, filling=filling)
                    rows.append({"mix": name, "ranks": ranks, "plan": type(filling).__name__.lower(), **other})
                    print(json.dumps(rows[-1]), flush=True)


def evidence_rows(shapes: np.ndarray, draw: np.random.Generator) -> list[dict]:
    """The three-resolution row of the survey again, for networks of 2 and 14 billion weights, with lost frames counted as lost.

    A bucket cuts a clip to its frames: `bucket_of_all_frames` is useful over paid times the share of the latent frames that are kept.
    """
    rows, kept = [], coarse(shapes)
    for weights, width in (("2B", 2048), ("14B", 5120)):
        cost = Cost(linear=1.0, quadratic=1 / (6 * width))
        batch = np.maximum(1, THREE_BUDGET // kept.astype(int).prod(axis=1))
        useful, share = bucketed(kept, batch, ranks=64, cost=cost, draw=draw), float(kept[:, 0].sum() / shapes[:, 0].sum())
        ours = planned(shapes, ranks=64, cost=cost, budget=THREE_BUDGET, filling=Packed())
        told = {"bucket": useful, "bucket_frames_kept": share, "bucket_of_all_frames": useful * share}
        rows.append({"mix": "three_resolutions", "ranks": 64, "network": weights, **ours, **told})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def large(path: str, clips: int, left_out: bool) -> dict[str, float]:
    """Seconds and memory of planning for `clips` clips whose columns lie in a file; in a process of its own."""
    columns = np.memmap(path, dtype=np.int16, mode="r", shape=(clips, 3))
    before = memory()
    start = time.process_time()
    budget = PUBLISHED_BUDGET if not left_out else 8192
    plan = of(LatentClips([columns], patch=Grid(1, 1, 1), fingerprint="bench"), packs=512, budget=budget,
              cost=Cost(linear=1.0, quadratic=1 / (6 * 3072)), filling=Packed(), drop_long=True)  # fmt: skip
    opened = time.process_time() - start
    windows, start = 4, time.process_time()
    packs = plan.packs_of_windows(windows)
    seconds = time.process_time() - start
    after = memory()
    return {
        "left_out_share": sum(plan.skipped.values()) / clips,
        "budget": budget,
        "seconds_to_open": opened,
        "seconds_a_step": seconds / (packs / 512),
        "clips_a_window": sum(len(part.rows) for part in plan.packs_between(0, packs)) / windows,
        "anonymous_mb": after["RssAnon"] - before["RssAnon"],
        "peak_mb": after["VmHWM"] - before["VmRSS"],
        "file_pages_mb": after["RssFile"] - before["RssFile"],
    }


def memory() -> dict[str, float]:
    """Of this process in MB, by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[0].rstrip(":") in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


def main() -> None:
    figures: dict[str, float] = {}
    rows: list[dict] = []
    compared(figures, rows)
    clips = 100 * MILLION
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/shapes.bin"
        block = published(MILLION, np.random.default_rng(1))
        with open(path, "wb") as file:
            for _ in range(clips // MILLION):
                file.write(block.tobytes())
        for left_out in (False, True):
            with get_context("spawn").Pool(1) as pool:
                rows.append({"clips": clips, **pool.apply(large, (path, clips, left_out))})
            print(json.dumps(rows[-1]), flush=True)
    figures["planning_share_100m"] = max(row["seconds_a_step"] for row in rows[-2:]) / STEP_SECONDS
    figures["planning_memory_mb_100m"] = max(row["peak_mb"] - row["file_pages_mb"] for row in rows[-2:])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        HERE / "plan.json",
        {
            "figures": figures,
            "rows": rows,
            "settings": {"window_steps": STEPS, "packs": "as many as ranks", "step_seconds": STEP_SECONDS, "max_clips": 512},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": sys.version.split()[0], "numpy": np.__version__},
            "commit": commit,
        },
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
