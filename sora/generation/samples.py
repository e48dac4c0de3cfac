"""A folder of samples: each sample's video, strip of frames and sidecar are written as soon as it is made; and checks of earlier files.

FOLDER/samples.json          identifies the command's samples; written before the first sample, removed last
FOLDER/0000-WORDS.mp4        one sample, FOLDER/0000-WORDS.png a strip of its frames, FOLDER/0000-WORDS.json how it was made, written last
FOLDER/sheet.png             the strips of the first ones
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.generation.generator import Request

MARK, SHEET = "samples.json", "sheet.png"
SUFFIXES = (".mp4", ".png", ".json")  # the files of one sample, in the order in which they are written
ON_SHEET = 64  # the most samples on a sheet
LARGEST = 16384  # pixels of a side, the limit of H.264
TAKEN = ("run.json", "dataset.json", "vae.json", "scores.json")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif", ".ts", ".mpg", ".mpeg")


@dataclass(frozen=True)
class SampleFolder:
    """The samples of one command in their folder. about: facts for all sidecars besides each sample's own. within: whatever else the bytes
    depend on. enlarge: see `enlarged`."""

    folder: Path
    requests: Sequence[Request]
    about: Mapping[str, Any]
    within: Mapping[str, Any]
    enlarge: int | None = None

    @cached_property
    def names(self) -> list[str]:
        """The names of the samples' files, without suffix."""
        return [name_of(number, request) for number, request in enumerate(self.requests)]

    @property
    def files(self) -> list[str]:
        """The names of all files that are written into the folder."""
        return [SHEET, *(f"{name}{suffix}" for name in self.names for suffix in SUFFIXES), MARK]

    @cached_property
    def mark(self) -> dict[str, Any]:
        """The identity of this command's samples, as plain JSON. The run's folder is no part of it, since a run may be moved."""
        samples = {name: sidecar(request) for name, request in zip(self.names, self.requests, strict=True)}
        found = json.loads(json.dumps({**self.about, "enlarge": self.enlarge, **self.within, "samples": samples}))
        return placeless(found)

    def claim(self, *, replace: bool) -> None:
        """Make the folder this command's. Raises ValueError if it holds videos or samples of another command, unless `replace` allows to
        delete those samples; files that are not known to be samples always stay."""
        from sora.system.files import sweep, write_json

        sweep(self.folder)
        theirs = mark_of(self.folder)
        if theirs == self.mark:
            return
        old = written_by_sample(self.folder, theirs)
        if old and not replace:
            raise ValueError(
                f"{self.folder} holds samples of another command ({difference(theirs, self.mark)}): {old[0]}{more(old)}; choose another "
                "output=FOLDER, or replace=true, which removes them"
            )
        if strangers := [name for name in in_the_way(self.folder, self.files) if name not in old]:
            raise ValueError(
                f"{self.folder} holds {strangers[0]}{more(strangers)}, no samples of this command; choose another output=FOLDER"
            )
        for name in [*old, MARK]:
            (self.folder / name).unlink(missing_ok=True)
        write_json(self.folder / MARK, self.mark)

    def leave(self) -> None:
        """Remove the mark if no sample was made, so that the next command finds the folder free."""
        if not any((self.folder / name).exists() for name in self.files[:-1]):
            with suppress(OSError):
                (self.folder / MARK).unlink()

    def made(self, number: int) -> bool:
        """Whether a sample is in the folder, whole."""
        paths = [self.folder / f"{self.names[number]}{suffix}" for suffix in SUFFIXES]
        if not all(path.is_file() for path in paths):
            return False
        from sora.gate.texts import read_json

        with suppress(ValueError):
            return placeless(read_json(paths[-1])) == placeless(json.loads(json.dumps(self.story(number))))
        return False

    def story(self, number: int) -> dict[str, Any]:
        """The content of a sample's sidecar."""
        request = self.requests[number]
        return {**sidecar(request), "enlarged": times(request.height, request.width, self.enlarge), **self.about}

    def write(self, number: int, clip: Any) -> Path:
        """Write a sample of (T, H, W, 3) frames and return its video's path."""
        from sora.system.files import write_json
        from sora.video.files import write

        frames, path = clip.numpy(), self.folder / f"{self.names[number]}.mp4"
        write(path, enlarged(frames, self.enlarge), self.requests[number].fps, lossless=False)
        write_png(path.with_suffix(".png"), strip(frames))
        write_json(path.with_suffix(".json"), self.story(number))
        return path

    def finish(self) -> list[Path]:
        """Write the sheet of the strips and return the paths of all videos."""
        paths = [self.folder / f"{name}.mp4" for name in self.names]
        write_png(self.folder / SHEET, sheet([read_png(path.with_suffix(".png")) for path in paths[:ON_SHEET]]))
        return paths


def write_samples(folder: Path, requests: Sequence[Request], clips: Sequence[Any], *, about: Mapping[str, Any]) -> list[Path]:
    """Write all samples at once into a folder of the program's own, over earlier ones, and return the videos' paths."""
    batch = SampleFolder(folder, requests, about, {})
    for number, clip in enumerate(clips):
        batch.write(number, clip)
    return batch.finish()


# ---- checks before sampling


def check_place(folder: Path, *, key: str) -> None:
    """Raise ValueError for a folder that cannot be created or written to. key: the setting that names it, for the message."""
    from sora.system.files import LONGEST_NAME

    if long := [part for part in folder.parts if len(os.fsencode(part)) > LONGEST_NAME]:
        raise ValueError(f"{key}={folder}: {long[0][:40]}… is longer than the {LONGEST_NAME} bytes that a name may have")
    there = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
    if not there.is_dir():
        which = "is" if there == folder else f"cannot be made: {there} is"
        raise ValueError(f"{key}={folder} {which} {'a file' if there.exists() else 'a link to nowhere'}; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{key}={folder}: {there} cannot be written to; name another folder or change its permissions")


MOST_SAMPLES = 100_000  # the most samples of one command


def check_frames(frames: int, height: int, width: int, *, most_gb: float) -> None:
    """Raise ValueError for a clip that is larger than video formats allow, or whose frames need more than `most_gb` of memory."""
    if max(height, width) > LARGEST:
        raise ValueError(f"samples of {width}x{height} are too large; a side has at most {LARGEST}: lower size= or area=")
    if (bytes_ := frames * height * width * 3 * 4) > most_gb * 2**30:
        raise ValueError(
            f"a clip of {counted(frames, 'frame')} of {width}x{height} takes {bytes_ / 2**30:,.1f} GiB of memory, and "
            f"clip_gb={most_gb:g} is all; lower size=, area= or seconds=, or raise clip_gb="
        )


def check_videos(requests: Sequence[Request], enlarge: int | None) -> None:
    """Raise ValueError for sizes and rates that no video can have, by encoding one black frame of each."""
    import av
    import numpy as np

    from sora.video.files import encode

    for height, width, fps in sorted({(request.height, request.width, request.fps) for request in requests}):
        factor = times(height, width, enlarge)
        if factor * max(height, width) > LARGEST:
            raise ValueError(f"enlarge={factor}: videos of {factor * width}x{factor * height} are too large; a side has at most {LARGEST}")
        try:
            encode(np.zeros((1, factor * height, factor * width, 3), np.uint8), fps, lossless=False)
        except (ValueError, ArithmeticError, av.FFmpegError) as error:
            raise ValueError(f"samples of {width}x{height} at fps={fps:g} cannot be written as video: {error}") from None


# ---- earlier files in the folder


def mark_of(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's samples.json (`SampleFolder.mark`); None if there is none. Raises ValueError if it is damaged."""
    from sora.gate.forms import Fields, Named, anything, beside, fitting
    from sora.gate.texts import STATE, read_json

    path = folder / MARK
    if not path.exists():
        return None
    form = Fields({"samples": Named(Named(anything), name=beside)})
    return fitting(read_json(path, limit=STATE, within=folder), form, str(path), "choose another output=FOLDER")


def written_by_sample(folder: Path, mark: Mapping[str, Any] | None) -> list[str]:
    """The files in a folder that an earlier `sora sample` wrote, by its mark or, for old versions without marks, by the sidecars."""
    names = list(mark["samples"]) if mark else [path.stem for path in sorted(folder.glob("*.json")) if _is_sidecar(path)]
    files = [f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    return [name for name in [*files, *([SHEET] if names else [])] if "/" not in name and (folder / name).is_file()]


def _is_sidecar(path: Path) -> bool:
    from sora.gate.texts import read_json

    try:
        told = read_json(path)
    except (ValueError, OSError):
        return False
    return isinstance(told, dict) and {"prompt", "seed", "sample", "checkpoint"} <= told.keys()


def in_the_way(folder: Path, files: Sequence[str]) -> list[str]:
    """The files in a folder that samples must not be mixed with: those that identify a run, a dataset or scores, videos (they would be
    scored too), and files with the samples' own names."""
    ours, found = {*files, *TAKEN} - {MARK}, sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in found if path.name in ours or (path.suffix.lower() in VIDEOS and not path.name.startswith("."))]


def free_folder(base: Path, mark: Mapping[str, Any], files: Sequence[str]) -> Path:
    """`base`, or the first of base-2, base-3, … that holds nothing of another command."""
    folder, number = base, 1
    while mark_of(folder) not in (None, mark) or (mark_of(folder) is None and in_the_way(folder, files)):
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def difference(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> str:
    """A short text about the first difference between two commands."""
    if theirs is None:
        return "of an earlier version"
    there, here = flat({**theirs, "samples": None}), flat({**ours, "samples": None})
    key = next((key for key in {**here, **there} if here.get(key) != there.get(key)), None)
    if key is None:
        return "other prompts, sizes or seeds"
    return f"{key}: {there.get(key)} there, {here.get(key)} now"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their dotted keys."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()}


def placeless(story: dict[str, Any]) -> dict[str, Any]:
    """A sidecar's content without the run's folder."""
    made_of = story.get("checkpoint")
    return {**story, "checkpoint": {**made_of, "run": None}} if isinstance(made_of, dict) else story


def more(names: Sequence[str]) -> str:
    """A text for how many names follow the first."""
    return f" and {len(names) - 1} more files" if len(names) > 1 else ""


# ---- files that are written


def name_of(number: int, request: Request) -> str:
    """The name of a sample's files, without suffix."""
    return f"{number:04d}-{slug(request.prompt)}"


def slug(text: str, *, length: int = 48) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].rstrip("-") or "sample"


def sidecar(request: Request) -> dict[str, Any]:
    """The facts of one sample for its sidecar."""
    told: dict[str, Any] = {
        "prompt": request.prompt,
        "negative": request.negative,
        "cut": dict(request.cut),
        "seed": request.seed,
        "sample": request.sample,
        "width": request.width,
        "height": request.height,
        "frames": request.frames,
        "fps": request.fps,
        "seconds": request.frames / request.fps,
        "given_frames": 0 if request.given is None else len(request.given),
    }
    if request.given is not None:
        from hashlib import sha256

        told["given_sha256"] = sha256(request.given.numpy().tobytes()).hexdigest()
    return told


def times(height: int, width: int, factor: int | None) -> int:
    """The factor by which a video is larger than its clip; None enlarges small clips until their short side is about 128 pixels."""
    if factor is not None and factor < 1:
        raise ValueError(f"enlarge={factor} must be 1 or more, or null")
    return factor or max(1, 128 // min(height, width))


def enlarged(frames: Any, factor: int | None = None) -> Any:
    """Frames (T, H, W, 3) with each pixel as a square of `factor` by `factor`, see `times`.

    Players take colours at half resolution (yuv420p), which would blur clips of 32 pixels.
    """
    factor = times(frames.shape[1], frames.shape[2], factor)
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def strip(frames: Any, *, most: int = 8) -> Any:
    """Up to `most` frames of a clip, evenly spread in time, side by side."""
    import numpy as np

    chosen = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    return np.concatenate([np.pad(frames[index], ((0, 0), (0, 2), (0, 0)), constant_values=255) for index in chosen], axis=1)


def sheet(strips: Sequence[Any]) -> Any:
    """Strips of any sizes, one below the other."""
    import numpy as np

    width = max(row.shape[1] for row in strips)
    rows = [np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in strips]
    return np.concatenate(rows)


def write_png(path: Path, picture: Any) -> None:
    """Write a uint8 (H, W, 3) picture, whole or not at all."""
    from PIL import Image

    from sora.system.files import whole_file

    with whole_file(path) as staging:
        Image.fromarray(picture).save(staging, format="PNG")


def read_png(path: Path) -> Any:
    """Read a picture that `write_png` wrote."""
    import numpy as np
    from PIL import Image

    from sora.gate.files import opened

    with opened(path) as file, Image.open(file, formats=["PNG"]) as picture:
        return np.array(picture)
