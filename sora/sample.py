"""Make videos from prompts, at any size and length, with the networks of a run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system import terminal
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.assembly.load import LoadedDiffusion
    from sora.config.compose import Composed
    from sora.generation.generator import Generator, Request
    from sora.generation.prompts import Line
    from sora.generation.samples import SampleFolder

EXAMPLES = (
    'sora sample checkpoint=outputs/dit prompt="a red circle moves left"',
    "sora sample checkpoint=outputs/dit prompts=prompts.txt size=9:16 seconds=4 guidance.scale=6 output=samples",
    'sora sample checkpoint=outputs/dit prompt="the ball bounces on" input=first.png sampler=heun steps=20',
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main(composed: Composed) -> None:
    """Generate, and write a video, a strip of its frames and a JSON sidecar of each sample as soon as its pack is denoised."""
    from sora.assembly.generation import described, generator_of, sampling
    from sora.assembly.load import fill_of, load_diffusion
    from sora.config.command_line.following import after_samples
    from sora.gate.sizes import refuse_numbers
    from sora.generation.prompts import NUMBERS, negative_of, read_prompts, refuse_idle, refuse_unguided, with_cuts
    from sora.generation.samples import check_place, check_videos, times
    from sora.system.devices import choose_device
    from sora.system.locks import alone_in
    from sora.text.limits import with_fill

    config = composed.config
    refuse_numbers(config, NUMBERS)
    lines = read_prompts(config.prompt, config.prompts)
    refuse_unguided(negative_of(config.negative), lines, config.guidance, composed.choices.get("guidance"))
    refuse_idle(config, composed.said, lines)
    times(1, 1, config.enlarge)
    if config.output:
        check_place(Path(config.output), key="output")
    loaded = load_diffusion(Path(config.checkpoint), config.step, ema=config.ema, stretch=config.stretch)
    how = sampling(config)
    generator = generator_of(loaded, how, choose_device(config.device))
    limits = with_fill(loaded.encoder.limits(), fill_of(loaded.config))
    requests, told = with_cuts(plan_requests(lines, config, loaded), limits)
    for line in told:
        terminal.say(line)
    packs = generator.packs(requests)
    check_videos(requests, config.enlarge)
    batch = batch_of(requests, loaded, config, described(loaded, how), device=str(generator.device))
    with alone_in(batch.folder, "sampling into"):
        batch.claim(replace=config.replace)
        try:
            make(generator, batch, packs, source=f"step {loaded.step} of {loaded.run}")
        finally:
            batch.leave()
        paths = batch.finish()
    print(f"the samples are in {batch.folder}: {', '.join(path.name for path in paths[:3])}{', …' if len(paths) > 3 else ''}")
    print(f"next: {after_samples(batch.folder, loaded.run)}")


def batch_of(requests: Sequence[Request], loaded: LoadedDiffusion, config: Any, about: Mapping[str, Any], *, device: str) -> SampleFolder:
    """The samples and their folder: the one that was named, else the first in the run that holds no others."""
    from sora.gate.files import below
    from sora.generation.samples import SampleFolder, check_place, free_folder

    within = {"device": device, "budget": config.budget}
    home = Path(config.output) if config.output else below(loaded.run, "samples", f"step-{loaded.step:08d}")
    batch = SampleFolder(home, requests, about, within, config.enlarge)
    if config.output:
        return batch
    check_place(home, key="output")
    folder = free_folder(home, batch.mark, batch.files)
    return dataclasses.replace(batch, folder=below(loaded.run, "samples", folder.name))


def make(generator: Generator, batch: SampleFolder, packs: Sequence[Sequence[int]], *, source: str) -> None:
    """Write the samples that are not there yet, pack by pack; of a pack all are made again, since their bytes depend on one another."""
    from sora.system.terminal import progress_bar

    missing = [pack for pack in packs if not all(batch.made(number) for number in pack)]
    total, left = len(batch.requests), sum(len(pack) for pack in missing)
    there = f", {total - left} of which are there" if left < total else ""
    goes_on = "; stopped, the same command goes on" if len(missing) > 1 else ""  # of one pack nothing is there before it is whole
    print(f"{counted(total, 'sample')} from {source}, into {batch.folder}{there}{goes_on}", flush=True)
    if not missing:
        return
    steps = generator.recipe.steps
    with progress_bar("sampling", "step") as progress:
        for done, pack in enumerate(missing):

            def report(step: int, _: int, before: int = done * steps) -> None:
                progress(before + step, len(missing) * steps)

            clips = generator.generate([batch.requests[number] for number in pack], progress=report)
            for number, clip in zip(pack, clips, strict=True):
                batch.write(number, clip)


# ---- what to make


def plan_requests(lines: Sequence[Line], config: Any, loaded: LoadedDiffusion) -> list[Request]:
    """One request for each sample of each prompt. Sample numbers count within what is asked of one prompt, so that adding others changes
    none, and a prompt that comes three times gives three samples."""
    from sora.assembly.usual import KEYS, told
    from sora.generation.generator import Request
    from sora.generation.prompts import negative_of
    from sora.generation.samples import MOST_SAMPLES, check_frames
    from sora.patches.geometry import Geometry, size_of
    from sora.runs.run import open_run
    from sora.system.draws import sample_id

    geometry = Geometry(loaded.vae.stride, loaded.patchifier.size)
    usual = told(open_run(loaded.run), missing_of(lines, config)) | {key: config[key] for key in KEYS if config[key] is not None}
    seen: Counter[tuple[Any, ...]] = Counter()
    requests = []
    for line in lines:
        rate = float(usual["fps"] if line.fps is None else line.fps)
        size = size_of(str(line.size or config.size), area=float(usual.get("area", 1)), multiple=geometry.block)
        seconds = float(usual["seconds"] if line.seconds is None else line.seconds)
        frames = geometry.nearest_frames(seconds, rate)
        check_frames(frames, *size, most_gb=config.clip_gb)
        if len(requests) + config.samples > MOST_SAMPLES:
            raise ValueError(f"samples={config.samples:,} make more than {MOST_SAMPLES:,} samples, the most of one command; give several")
        given = None if config.input is None else read_input(Path(config.input), size=size, frames=config.input_frames, fps=rate)
        seed = config.seed if line.seed is None else line.seed
        negative = negative_of(config.negative) if line.negative is None else line.negative
        wanted = (line.prompt, negative, frames, size, rate, seed)
        for _ in range(config.samples):
            sample = sample_id(line.prompt, seen[wanted])
            seen[wanted] += 1  # who asks twice for the same wants two samples
            requests.append(Request(line.prompt, frames, *size, fps=rate, seed=seed, sample=sample, given=given, negative=negative))
    return requests


def missing_of(lines: Sequence[Line], config: Any) -> set[str]:
    """What neither the command nor all lines say, so that the run is asked for it."""
    from sora.patches.geometry import exact

    sized = all(exact(str(line.size or config.size)) for line in lines)
    found = {"area"} if config.area is None and not sized else set()
    return found | {key for key in ("fps", "seconds") if config[key] is None and any(getattr(line, key) is None for line in lines)}


def read_input(path: Path, *, size: tuple[int, int], frames: int, fps: float) -> Any:
    """The first frames of an image or video at a size, as a uint8 tensor (K, H, W, 3)."""
    import torch

    from sora.video.files import CONFINED

    if not path.is_file():
        raise ValueError(f"input={path} does not exist")
    if path.suffix.lower() in PICTURES:
        if frames != 1:
            raise ValueError(f"input={path} is one image, input_frames={frames} asks for more")
        return torch.from_numpy(read_picture(path, size=size))[None]
    found = CONFINED.read(path, frames=frames, fps=None if frames == 1 else fps, size=size, name=f"input={path}")
    if len(found.frames) < frames:
        raise ValueError(f"input={path} has {counted(len(found.frames), 'frame')}, input_frames={frames} asks for more")
    return torch.from_numpy(found.frames.copy())


def read_picture(path: Path, *, size: tuple[int, int]) -> Any:
    """An image that fills (height, width), uint8: scaled with its aspect kept, what stands over cut off evenly, upright, on white."""
    import numpy as np
    from PIL import Image, ImageOps

    from sora.gate.files import opened
    from sora.video.demuxing.kinds import HEAD, kind_of
    from sora.video.files import CONFINED

    with opened(path) as file:
        head = file.read(HEAD)
        if head.startswith(b"BM"):
            file.seek(0)
            flat = read_bmp(file, f"input={path}")
        elif kind_of(head).picture:
            flat = Image.fromarray(CONFINED.read(path, frames=1, name=f"input={path}").frames[0])
        else:  # of what it is called, Pillow would start other programs
            raise ValueError(f"input={path} cannot be read as an image: it is {kind_of(head).what}")
    return np.array(ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.LANCZOS))


def read_bmp(file: Any, named: str) -> Any:
    """A BMP image, which is the one kind that no video reader takes; it has no orientation, and is hardly packed."""
    from PIL import Image

    try:
        with Image.open(file, formats=["BMP"]) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise ValueError(f"{named} cannot be read as an image: {error}") from None


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("sample"))
