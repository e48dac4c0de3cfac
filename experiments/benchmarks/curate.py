"""`sora curate`: what its stages find, and what the work costs beside the bare loop, a plain script and decoding alone.

`make bench-curate` writes curate.json here; ARGS="only=NAME" makes one part of it alone. Ratios are measured side by side in one run. The
videos are drawn by the built-in world and come from clips that packages ship.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sora.curation.curating import Curation, CurationSettings
from sora.curation.cuts.differences import AdaptiveCuts
from sora.curation.engines.local import ProcessEngine, SerialEngine
from sora.curation.engines.ray import RayEngine
from sora.curation.inputs import InputSettings, Unit
from sora.curation.joining import Shards
from sora.curation.results import Results
from sora.curation.selecting import SelectionRules
from sora.curation.steps.deduplicating import Deduplication
from sora.curation.steps.finding import Cuts, Probe, UnitWork
from sora.curation.steps.scoring import CheapScoring
from sora.curation.steps.transcoding import Transcode
from sora.system.files import file_hash, write_json
from sora.video.files import write
from sora.world.world import World

HERE = Path(__file__).resolve().parent
COUNT, BROKEN, WAYS = 1000, 50, 12
SECONDS, RATE, SIDE = 6.0, 24.0, 128
PATIENCE = 2.0  # seconds that a unit may take where decoders hang
HANG, CRASH, SWELL = (255, 0, 0), (0, 255, 0), (0, 0, 255)  # first frames on which the faulty detector misbehaves
LIMITS = {"seconds": PATIENCE, "memory_gb": 4.0}


class Moody:
    """A detector of cuts that hangs, crashes or takes all memory where a video begins with a plain frame of a certain colour."""

    def __init__(self, inner: AdaptiveCuts) -> None:
        self.inner = inner

    def identity(self) -> str:
        return f"moody {self.inner.identity()}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.inner.size(height, width)

    def __call__(self, frames: Any, *, fps: float) -> Any:
        return self.inner(self._watched(frames), fps=fps)

    def _watched(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for number, frame in enumerate(frames):
            if number == 0:
                colour = [round(float(value) / 255) * 255 for value in frame.reshape(-1, 3).mean(0)] if frame.std((0, 1)).max() < 12 else []
                if colour == list(HANG):
                    time.sleep(1000)
                if colour == list(CRASH):
                    os.kill(os.getpid(), signal.SIGSEGV)
                if colour == list(SWELL):
                    np.ones(1 << 40)
            yield frame


def adaptive() -> AdaptiveCuts:
    from sora.config.build import build
    from sora.config.compose import compose

    return build(compose("curate", ["input=x", "output=y", "cuts=adaptive"], []).config.cuts)


def settings(*, moody: bool = False, **changed: Any) -> CurationSettings:
    said: dict[str, Any] = {
        "reading": InputSettings(),
        "cuts": Cuts(Moody(adaptive()) if moody else adaptive(), trim_frames=2, least_seconds=1.0, most_seconds=20.0),
        "scoring": (CheapScoring(),),
        "duplicates": Deduplication(overlap=0.5),
        "selection": SelectionRules(),
        "transcode": Transcode(fps=24.0, size=None, multiple=16, lossless=False),
        "shards": Shards(held_out=0.05, shard_mb=1024, licence="unknown"),
    }
    return CurationSettings(**said | changed)


@contextmanager
def quiet(what: str, total: int) -> Any:
    yield lambda done: None


def in_processes(place: Path, work: Path, workers: int, **changed: Any) -> Curation:
    return curation(place, work, ProcessEngine(workers=workers, seconds=60.0, memory_gb=4.0), **changed)


def curation(place: Path, work: Path, engine: Any, *, moody: bool = False, **changed: Any) -> Curation:
    work.mkdir(parents=True, exist_ok=True)
    return Curation(place, work, settings(moody=moody, **changed), engine=engine, counting=quiet)


def draw(folder: Path, first: int, last: int) -> None:
    world = World(seed=1, sizes=((SIDE, SIDE),), seconds=(SECONDS,), rates=(RATE,), stride_time=1, image_share=0.0)
    for index in range(first, last):
        write(folder / f"{index:05d}.mp4", world.clip(index).frames, RATE, lossless=False)


def videos(folder: Path, count: int) -> Path:
    folder.mkdir()
    with get_context("spawn").Pool(2) as pool:
        pool.starmap(draw, [(folder, start, min(start + 25, count)) for start in range(0, count, 25)])
    return folder


def spoilt(path: Path, way: int, number: int) -> None:
    """Put a video that is broken in one of twelve ways in the place of another."""
    content = path.read_bytes()
    if way in (9, 10, 11):
        colour = (HANG, CRASH, SWELL)[way - 9]
        frames = np.broadcast_to(np.array(colour, np.uint8), (24 + number, SIDE, SIDE, 3))
        write(path, frames, RATE, lossless=False)
        return
    random = np.random.default_rng(number)
    path.write_bytes(
        (
            lambda: content[: len(content) // 2],
            lambda: content[:40],
            lambda: b"",
            lambda: bytes(5000 + number),
            lambda: random.bytes(5000),
            lambda: b"<html><body>404 Not Found</body></html>" + bytes([number]),
            lambda: content.replace(b"moov", b"mood"),
            lambda: content.replace(b"stsd", b"stsx"),
            lambda: content.replace(b"avc1", b"xvc1"),
        )[way]()
    )


def with_bad(folder: Path) -> dict[str, float]:
    """Whether exactly the broken ones are refused, and what they cost: the rate of good videos beside that of a set without bad ones."""
    clean = videos(folder / "clean", COUNT - BROKEN)
    mixed = Path(shutil.copytree(clean, folder / "mixed"))
    bad = set()
    for number in range(BROKEN):
        path = mixed / f"x{number:05d}.mp4"
        shutil.copy(clean / f"{number:05d}.mp4", path)
        spoilt(path, number % WAYS, number)
        bad.add(path.name)
    engine, seconds = ProcessEngine(workers=2, **LIMITS), dict[str, float]()
    for name, place in (("clean", clean), ("mixed", mixed)):
        start = time.perf_counter()
        one = curation(place, folder / f"work-{name}", engine, moody=True)
        done = one.run(until="scores")
        seconds[name] = time.perf_counter() - start
    lost = {unit.told for unit in done.inputs.units if any(step.lost(unit) for step in one.steps)}
    refused = lost | {one.source for one in done.inputs.refused}
    copies = set(done.inputs.copies)
    return {
        "bad_refused": len(refused & bad) / len(bad - copies),
        "good_refused": float(len(refused - bad)),
        "throughput_with_bad": seconds["clean"] / seconds["mixed"],
        "videos_per_second": (COUNT - BROKEN) / seconds["clean"],
    }


def bare(places: list[Path], work: Path | None = None) -> None:
    """The loop over units without anything around it: the functions of the same stages on the same videos, in this process. work: a folder
    in which each result is saved as a curation saves it; None: they are forgotten."""
    said = settings()
    for path in places:
        unit = Unit(file_hash(path), path.name, str(path))
        tables = {"probe": Probe()(UnitWork(unit))}
        tables["cuts"] = said.cuts(UnitWork(unit))
        tables["scores"] = CheapScoring()(UnitWork(unit, {"cuts": tables["cuts"]}))
        for name, table in tables.items() if work is not None else ():
            Results(work / f"{name}-0").write(unit.name, table)


def overheads(folder: Path) -> dict[str, float]:
    """Time over that of the bare loop over units, for one process of each engine, interleaved; the start of Ray is not counted, that of the
    guarded process is. The names that end with _saving compare with a bare loop that saves its results, too."""
    place = videos(folder / "some", 40)  # many enough that starts, which are a tenth of a second for each stage, do not count
    paths = sorted(place.glob("*.mp4"))
    ray, taken = RayEngine(address=None, **LIMITS | {"seconds": 60.0}), dict[str, list[float]]()
    start = time.perf_counter()
    ray.start(cores=1)
    started = time.perf_counter() - start
    curation(place, folder / "warm", ray).run(until="scores")  # its processes import what they need
    runs: dict[str, Callable[[Path], Any]] = {
        "bare": lambda work: bare(paths),
        "saving": lambda work: bare(paths, work),
        "serial": lambda work: curation(place, work, SerialEngine()).run(until="scores"),
        "process": lambda work: in_processes(place, work, 1).run(until="scores"),
        "ray": lambda work: curation(place, work, ray).run(until="scores"),
    }
    for repeat in range(5):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(folder / f"{name}-{repeat}")
            taken.setdefault(name, []).append(time.perf_counter() - begin)
    ray.close()

    def over(name: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(taken[name], taken[other], strict=True)) - 1

    found = {f"{name}_overhead": over(name, "bare") for name in ("serial", "process", "ray")}
    found |= {f"{name}_overhead_saving": over(name, "saving") for name in ("serial", "process", "ray")}
    return found | {"ray_start_seconds": started}


def plain_script(paths: list[Path], out: Path) -> int:
    """What one writes in an afternoon with the same packages, for one process: PySceneDetect, a few scores by OpenCV, clips by FFmpeg."""
    import cv2
    from scenedetect import AdaptiveDetector, detect

    made = 0
    for path in paths:
        for first, last in detect(str(path), AdaptiveDetector(), start_in_scene=True):
            capture = cv2.VideoCapture(str(path))
            capture.set(cv2.CAP_PROP_POS_FRAMES, first.frame_num)
            before, frames = None, list[np.ndarray]()
            for _ in range(first.frame_num, last.frame_num):
                there, frame = capture.read()
                if not there:
                    break
                grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
                cv2.Laplacian(grey, cv2.CV_64F).var()
                if before is not None:
                    cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
                before = grey
                frames.append(frame[..., ::-1])
            write(out / f"{path.stem}-{made}.mp4", np.stack(frames), RATE, lossless=False)
            made += 1
    return made


def beside_a_script(folder: Path) -> dict[str, float]:
    """The rate of the whole way to shards over that of a plain script in two processes, interleaved."""
    place = videos(folder / "plain", 40)
    paths = sorted(place.glob("*.mp4"))
    taken: dict[str, list[float]] = {"script": [], "curate": []}
    for repeat in range(3):
        out = folder / f"script-{repeat}"
        out.mkdir()
        start = time.perf_counter()
        with get_context("fork").Pool(2) as pool:
            pool.starmap(plain_script, [(paths[number::2], out) for number in range(2)])
        taken["script"].append(time.perf_counter() - start)
        start = time.perf_counter()
        in_processes(place, folder / f"curate-{repeat}", 2).run()
        taken["curate"].append(time.perf_counter() - start)
    return {"vs_plain_script": statistics.median(a / b for a, b in zip(taken["script"], taken["curate"], strict=True))}


def memory(folder: Path) -> dict[str, float]:
    """How much more memory deciding and joining take at their peak for 4,000 clips than for 1,000, in MB: the work of units is replaced by
    rows that were made up, so that it is this process alone that is measured. duplicates.py measures the search for duplicates."""
    peaks = {}
    for count in (1000, 4000):
        script = f"from curate import made_up; made_up({str(folder / str(count))!r}, {count})"
        told = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, check=True).stdout
        peaks[count] = float(told.split()[-1])
    return {"memory_mb_1000_clips": peaks[1000], "memory_mb_4000_clips": peaks[4000], "memory_growth": peaks[4000] / peaks[1000]}


def made_up(folder: str, count: int) -> None:
    """Decide about and join clips of made-up videos, and print the peak of memory in MB."""
    import resource

    place, work = Path(folder) / "videos", Path(folder) / "work"
    place.mkdir(parents=True)
    one = World(seed=1, sizes=((32, 32),), seconds=(2.0,), rates=(8.0,), stride_time=1, image_share=0.0)
    for index in range(40):
        write(place / f"{index:02d}.mp4", one.clip(index).frames, 8.0, lossless=False)
    few = in_processes(place, work, 2)
    few.run(until="scores")
    known = [(path, [(step, step.results.read(file_hash(path))) for step in few.steps]) for path in sorted(place.glob("*.mp4"))]
    for number in range(count):  # other bytes, so another unit, with the results of a video that was worked on
        path, tables = known[number % len(known)]
        again = place / f"x{number:05d}.mp4"
        again.write_bytes(path.read_bytes() + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
        for step, table in tables:
            step.results.write(file_hash(again), table)
    del known
    in_processes(place, work, 2, duplicates=None).run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def of_cuts(folder: Path) -> dict[str, float]:
    """F1 of shot changes in composed films, which cuts.py tells by detector."""
    del folder
    subprocess.run([sys.executable, str(HERE / "cuts.py")], check=True)
    wanted = ("cuts_hard_f1", "cuts_gradual_f1", "both_cpu_vs_transnet", "both_all_f1", "transnetv2_all_f1")
    told = json.loads((HERE / "cuts.json").read_text())["figures"]
    return {name: told[name] for name in wanted} | {
        name: told[name] for name in told if name.startswith("scenedetect") and "best" not in name
    }


def of_duplicates(folder: Path) -> dict[str, float]:
    """Recall by kind of copy, false merges and growth, which duplicates.py measures."""
    del folder
    from duplicates import figures  # beside this file

    return figures()


def of_scores(folder: Path) -> dict[str, float]:
    """Time of decoding with all cheap scores over that of decoding alone, which scores.py measures."""
    del folder
    from scores import figures  # beside this file

    return figures()


PARTS: dict[str, Callable[[Path], dict[str, float]]] = {
    "cuts": of_cuts,
    "scores": of_scores,
    "duplicates": of_duplicates,
    "with_bad": with_bad,
    "overheads": overheads,
    "script": beside_a_script,
    "memory": memory,
}


def main() -> None:
    only = next((word.removeprefix("only=") for word in sys.argv[1:] if word.startswith("only=")), None)
    path = HERE / "curate.json"
    figures: dict[str, float] = json.loads(path.read_text())["figures"] if only and path.is_file() else {}
    for name, part in PARTS.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                found = part(Path(folder))
            figures |= found
            print(name, json.dumps({key: round(value, 4) for key, value in found.items()}), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    about = {"commit": commit, "cores": len(os.sched_getaffinity(0)), "machine": platform.processor() or platform.machine()}
    write_json(path, {"figures": dict(sorted(figures.items())), "about": about})
    print(path)


if __name__ == "__main__":
    main()
