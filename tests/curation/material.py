"""Videos that curations are tried on, drawn here, and a curation of them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sora.curation.curating import Curation, CurationSettings
from sora.curation.engines.local import ProcessEngine, SerialEngine
from sora.curation.inputs import InputSettings
from sora.curation.joining import Shards
from sora.curation.selecting import SelectionRules
from sora.curation.spans import Transition
from sora.curation.steps.deduplicating import Deduplication
from sora.curation.steps.finding import Cuts
from sora.curation.steps.scoring import CheapScoring
from sora.curation.steps.transcoding import Transcode
from sora.data.index.index import ClipFacts, DatasetWriter
from sora.video.files import encode, write


class Jumps:
    """Hard cuts where the mean of the picture jumps: for drawn videos whose shots differ in brightness."""

    def identity(self) -> str:
        return "jumps 1"

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, frames: Any, *, fps: float) -> list[Transition]:
        means = [float(frame.mean()) for frame in frames]
        return [Transition(place, place) for place in range(1, len(means)) if abs(means[place] - means[place - 1]) > 25]


class Letters:
    """A scorer of captions: how many letters they have."""

    names, needs_text = ("letters",), True

    def identity(self) -> str:
        return "letters 1"

    def frames(self, count: int) -> list[int]:
        return [0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, frames: Any, *, text: str | None) -> dict[str, float]:
        return {"letters": float(len(text or ""))}


class Hues:
    """A scorer whose embeddings of clips are their mean colours, from the middle."""

    names, needs_text = ("hue",), False

    def identity(self) -> str:
        return "hues 1"

    def frames(self, count: int) -> list[int]:
        return [0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def __call__(self, frames: Any, *, text: str | None) -> dict[str, float]:
        return {"hue": 0.0}

    def embed(self, frames: Any) -> np.ndarray:
        return frames.reshape(-1, 3).mean(0) - 128.0


def shot(seed: int, frames: int, *, level: int, height: int = 36, width: int = 64) -> np.ndarray:
    """A textured picture of mean brightness `level` that moves to the right."""
    random = np.random.default_rng(seed)
    texture = random.integers(-20, 21, (height // 4, width // 4, 3)).repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(level + texture, 2 * number, axis=1) for number in range(frames)]).clip(0, 255).astype(np.uint8)


def folder_of_videos(folder: Path, count: int = 4) -> Path:
    """A folder with `count` videos of two or three shots each at 8 frames a second, and what else lies in such folders."""
    folder.mkdir(parents=True)
    for number in range(count):
        shots = [shot(100 * number + part, 16 + 3 * part + number, level=(60, 140, 200)[part]) for part in range(2 + number % 2)]
        write(folder / f"clip {number} ü.mp4", np.concatenate(shots), 8.0, lossless=False)
        (folder / f"clip {number} ü.txt").write_text(f"a texture that moves, number {number}")
    (folder / "notes.pdf").write_text("bought in May")
    (folder / "broken.mp4").write_bytes((folder / "clip 0 ü.mp4").read_bytes()[:900])
    (folder / "page.mp4").write_text("<html>404</html>")
    return folder


def a_dataset(folder: Path, shards: int = 3) -> Path:
    """A dataset of one clip in each shard."""
    with DatasetWriter(folder, licence="", max_bytes=1) as writer:  # a shard for each clip
        for number in range(shards):
            frames = shot(number, 8, level=60 + 40 * number)
            facts = ClipFacts(key=f"k{number}", frames=8, fps=8.0, height=36, width=64, source=f"{number}.mp4", split="train")
            writer.write(facts, encode(frames, 8.0, lossless=False))
        writer.finish({})
    return folder


def settings(**changed: Any) -> CurationSettings:
    said: dict[str, Any] = {
        "reading": InputSettings(),
        "cuts": Cuts(Jumps(), trim_frames=1, least_seconds=0.5, most_seconds=1.5),
        "scoring": (CheapScoring(),),
        "duplicates": Deduplication(overlap=0.5),
        "selection": SelectionRules(),
        "transcode": Transcode(fps=None, size=None, multiple=2, lossless=False),
        "shards": Shards(held_out=0.0, shard_mb=1024, licence="unknown"),
    }
    return CurationSettings(**said | changed)


@contextmanager
def uncounted(what: str, total: int) -> Any:
    yield lambda done: None


SERIAL = SerialEngine()


def processes(workers: int) -> ProcessEngine:
    return ProcessEngine(workers=workers, seconds=60, memory_gb=8)


def curation(place: Path, work: Path, *, engine: Any = SERIAL, part: Any = None, **changed: Any) -> Curation:
    work.mkdir(parents=True, exist_ok=True)
    more = {} if part is None else {"part": part}
    return Curation(place, work, settings(**changed), engine=engine, counting=uncounted, **more)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a work folder but those that only remember times, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    kept = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: bytes_ for name, bytes_ in kept.items() if not name.startswith(("inputs-", "plan/"))}
