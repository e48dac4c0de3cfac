"""Two thousand steps of a small run, whose memory, descriptors, threads, children and shared memory must stay flat.

    python -m tests.training.soak_long [steps] [output.json]

`sora train` with loader workers, a tracker, averages that leave snapshots, a held-out loss and a checkpoint every 25 steps is looked at
from outside, all its processes together. What is found goes to experiments/benchmarks/soak.json, of which `python experiments/soak_page.py`
makes the plot in docs/checkpoints.md; that of a run of other steps goes to soak-STEPS.json. Exit code 1: something grew, or a process is
left behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sora.runs.jsonl import read
from sora.system.files import write_json

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "experiments" / "benchmarks" / "soak.json"
STEPS, EVERY, PAUSE = 2000, 25, 2.0
WARM = 0.25  # of the steps, before which caches still fill
GROWTH = {"memory_mb": 0.02, "descriptors": 0.0, "threads": 0.0, "children": 0.0, "shared_mb": 0.0}  # of the first quarter after that
CHILD_SUBREAPER = 36  # linux/prctl.h: whoever is left by its parent becomes ours


@dataclass(frozen=True)
class Look:
    """What a run and all that it started hold at a step.

    memory_mb: resident, each page shared by so many counted by its share; without pages of files, such as libraries, which are not the
    run's: how much of them is counted depends on how many other processes of the machine have the same ones.
    """

    step: int
    memory_mb: float
    descriptors: int
    threads: int
    children: int
    shared_mb: float


def family(process: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def looked(process: int, step: int) -> Look:
    """Raises OSError for one that ends meanwhile."""
    memory = descriptors = threads = 0
    everyone = family(process)
    for one in everyone:
        place = Path("/proc") / str(one)
        held = [line.split() for line in (place / "smaps_rollup").read_text().splitlines()]
        memory += sum(int(line[1]) for line in held if line[0] in ("Pss_Anon:", "Pss_Shmem:"))
        descriptors += len(os.listdir(place / "fd"))
        threads += len(os.listdir(place / "task"))
    shared = sum(path.stat().st_size for path in Path("/dev/shm").rglob("*") if path.is_file() and path.stat().st_uid == os.getuid())
    return Look(step, memory / 1024, descriptors, threads, len(everyone) - 1, shared / 2**20)


def words(home: Path, steps: int) -> list[str]:
    often = [f"steps={steps}", "log_every=5", f"checkpoint.every={EVERY}", "checkpoint.keep=2", "trainer.threads=1", "workers=2"]
    measured = ["evaluation=loss", "evaluation.every=1000", "evaluation.clips=4", "evaluation.levels=2", "evaluation.share=null"]
    return [
        *("experiment=toy", f"vae={home}/vae", f"data.folders=[{home}/world]", "plan.budget=120", "plan.window=2", "plan.packs=2"),
        *(*often, "ema=post_hoc", "logger=csv", *measured, f"output={home}/run"),
    ]


def grown(rows: Sequence[Look]) -> dict[str, tuple[float, float]]:
    """Of each: its median in the first quarter after the warm-up, and in the last."""
    warm = [row for row in rows if row.step >= WARM * rows[-1].step]
    part = max(1, len(warm) // 4)
    ends = [[asdict(row) for row in some] for some in (warm[:part], warm[-part:])]
    return {name: tuple(statistics.median(row[name] for row in some) for some in ends) for name in GROWTH}  # pyright: ignore[reportReturnType]


def main(steps: int, output: Path) -> int:
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        home = Path(place)
        from tests.training.soak import prepared

        prepared(home)
        process = subprocess.Popen([sys.executable, "-m", "sora.train", *words(home, steps)], cwd=ROOT, stdout=subprocess.DEVNULL)
        log = home / "run" / "metrics.jsonl"
        while process.poll() is None:
            time.sleep(PAUSE)
            try:
                step = max((row["step"] for row in read(log)), default=0) if log.exists() else 0
                if step:
                    rows.append(looked(process.pid, step))
            except (OSError, StopIteration, json.JSONDecodeError):  # it ends, or writes
                continue
        code = process.wait()
        left = [one for one in family(os.getpid()) if one != os.getpid()]
    found = grown(rows)
    bad = [name for name, (first, last) in found.items() if last > first * (1 + GROWTH[name])]
    figures = {f"{name}_{when}": value for name, pair in found.items() for when, value in zip(("first", "last"), pair, strict=True)}
    facts = {"steps": rows[-1].step, "code": code, "left_behind": len(left), "figures": figures}
    write_json(output, {**facts, "rows": [asdict(row) for row in rows]})
    for name, (first, last) in found.items():
        print(f"{name:<12} {first:8.1f} after {WARM:.0%} of the steps, {last:8.1f} at the end{'   GREW' if name in bad else ''}")
    print(f"{rows[-1].step} steps in {time.monotonic() - began:.0f} s, exit code {code}, {len(left)} processes left behind: {output}")
    return int(bool(bad or left or code))


def place_of(steps: int) -> Path:
    """Where what is found goes."""
    return FOUND if steps == STEPS else FOUND.with_name(f"soak-{steps}.json")


if __name__ == "__main__":
    given = sys.argv[1:]
    asked = int(given[0]) if given else STEPS
    raise SystemExit(main(asked, Path(given[1]) if len(given) > 1 else place_of(asked)))
