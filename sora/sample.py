"""Make videos from prompts, at any size and length, with the networks of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.configs.compose import Composed
    from sora.configs.load import LoadedDiffusion
    from sora.generation.generator import Generator, Request
    from sora.prompts import Line

EXAMPLES = (
    'sora sample checkpoint=outputs/dit prompt="a red circle moves left"',
    "sora sample checkpoint=outputs/dit prompts=prompts.txt size=9:16 seconds=4 guidance.scale=6 output=samples",
    'sora sample checkpoint=outputs/dit prompt="the ball bounces on" input=first.png sampler=heun steps=20',
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main(composed: Composed) -> None:
    """Generate, and write a video, a strip of its frames and a JSON sidecar for each sample."""
    from sora.configs.load import fill_of, load_diffusion
    from sora.progress import progress_bar
    from sora.prompts import check_numbers, negative_of, read_prompts, refuse_unguided, with_cuts
    from sora.text.limits import with_fill

    config = composed.config
    check_numbers(config)
    lines = read_prompts(config.prompt, config.prompts)
    refuse_unguided(negative_of(config.negative), lines, config.guidance)
    loaded = load_diffusion(Path(config.checkpoint), config.step, ema=config.ema, stretch=config.stretch)
    generator = make_generator(loaded, config)
    limits = with_fill(loaded.encoder.limits(), fill_of(loaded.config))
    requests, told = with_cuts(plan_requests(lines, config, loaded), limits)
    for line in told:
        print(line)
    output = Path(config.output) if config.output else loaded.run / "samples" / f"step-{loaded.step:08d}"
    print(f"{len(requests)} samples from step {loaded.step} of {loaded.run}")
    with progress_bar("sampling") as progress:
        clips = generator.generate(requests, progress=progress)
    about = describe(loaded, config)
    paths = write_samples(output, requests, clips, about=about, enlarge=config.enlarge)
    print(f"the samples are in {output}: {', '.join(path.name for path in paths[:3])}{', …' if len(paths) > 3 else ''}")


# ---- what to make


def plan_requests(lines: Sequence[Line], config: Any, loaded: LoadedDiffusion) -> list[Request]:
    """One request for each sample of each prompt; sample numbers count within a prompt's seed, so that adding prompts changes no others."""
    from sora.draws import sample_id
    from sora.generation.generator import Request
    from sora.generation.sizes import frames_of, size_of
    from sora.prompts import negative_of

    stride, patch = loaded.vae.stride, loaded.patchifier.size
    usual = (1.0, 1.0)
    if config.area is None or (config.fps is None and any(line.fps is None for line in lines)):
        usual = trained_on(loaded.config)
    area, fps = float(config.area or usual[0]), float(config.fps or usual[1])
    requests = []
    for line in lines:
        rate = line.fps or fps
        size = size_of(str(line.size or config.size), area=area, multiple=(stride[1] * patch.h, stride[2] * patch.w))
        seconds = config.seconds if line.seconds is None else line.seconds
        frames = frames_of(seconds, rate, stride[0], patch=patch.t)
        given = None if config.input is None else read_input(Path(config.input), size=size, frames=config.input_frames, fps=rate)
        seed = config.seed if line.seed is None else line.seed
        negative = negative_of(config.negative) if line.negative is None else line.negative
        for copy in range(config.samples):
            sample = sample_id(line.prompt, copy)
            requests.append(Request(line.prompt, frames, *size, fps=rate, seed=seed, sample=sample, given=given, negative=negative))
    return requests


def trained_on(config: Mapping[str, Any]) -> tuple[float, float]:
    """The usual pixels of a frame and the commonest frame rate of what a run trained on."""
    import numpy as np

    from sora.data.index import Index

    data = config["data"]
    folders = data.get("folders") or [data.get("folder")]
    try:
        indexes = [Index.open(Path(folder), "train") for folder in folders]
    except (ValueError, TypeError) as error:
        raise ValueError(f"the run's dataset cannot be asked for its size and frame rate ({error}); give area= and fps=") from None
    area = np.concatenate([index.heights * index.widths for index in indexes])
    fps = np.concatenate([index.fps for index in indexes])
    if ladder := data.get("areas"):  # of data=videos: clips were trained on at these sizes and rates
        area = np.sort(ladder)[np.maximum(np.searchsorted(np.sort(ladder), area, side="right") - 1, 0)]
        fps = np.minimum(fps, data["rate"] or np.inf)
    rates, counts = np.unique(fps, return_counts=True)
    return float(np.median(area)), float(rates[counts.argmax()])


def read_input(path: Path, *, size: tuple[int, int], frames: int, fps: float) -> Any:
    """The first frames of an image or video at a size, as a uint8 tensor (K, H, W, 3)."""
    import torch

    from sora.data.video import read

    if not path.is_file():
        raise ValueError(f"input={path} does not exist")
    if path.suffix.lower() in PICTURES:
        if frames != 1:
            raise ValueError(f"input={path} is one image, input_frames={frames} asks for more")
        return torch.from_numpy(read_picture(path, size=size))[None]
    found = read(path, frames=frames, fps=None if frames == 1 else fps, size=size)
    if len(found.frames) < frames:
        raise ValueError(f"input={path} has {len(found.frames)} frames, input_frames={frames} asks for more")
    return torch.from_numpy(found.frames.copy())


def read_picture(path: Path, *, size: tuple[int, int]) -> Any:
    """An image that fills (height, width), uint8: scaled with its aspect kept, what stands over cut off evenly, upright, on white."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
            return np.array(ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.LANCZOS))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"input={path} cannot be read as an image: {error}") from None


def make_generator(loaded: LoadedDiffusion, config: Any) -> Generator:
    """A generator of the run's networks, with the sampler, guidance and levels of a command's configuration."""
    import functools

    from sora.configs.build import build
    from sora.diffusion.shift import constant
    from sora.generation.generator import Generator, Recipe

    device = choose_device(config.device)
    shift = loaded.objective.shift if config.shift is None else functools.partial(constant, value=float(config.shift))
    recipe = Recipe(sampler=build(config.sampler), guidance=build(config.guidance), steps=config.steps, shift=shift, first=config.first)
    return Generator(
        dit=loaded.dit.to(device),
        encode=loaded.encoder.encode,
        text=loaded.text.to(device),
        vae=loaded.vae.to(device),
        patchifier=loaded.patchifier,
        path=loaded.objective.path,
        prediction=loaded.objective.prediction,
        recipe=recipe,
        token_budget=config.budget,
        device=device,
    )


def choose_device(name: str) -> str:
    """auto is the GPU if there is one."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name} must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: this torch finds no GPU; use device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# ---- what is written


def describe(loaded: LoadedDiffusion, config: Any) -> dict[str, Any]:
    """What every sample of a command has in common, for its sidecar: how it was made, and of what."""
    from omegaconf import OmegaConf

    from sora.training.run import code_version

    return {
        "checkpoint": {"run": str(loaded.run), "step": loaded.step, "ema": config.ema, "hashes": loaded.hashes},
        "sampler": OmegaConf.to_container(config.sampler),
        "guidance": OmegaConf.to_container(config.guidance),
        "stretch": OmegaConf.to_container(config.stretch) if config.get("stretch") else None,  # an evaluation has none
        "steps": config.steps,
        "shift": config.shift,
        "first": config.first,
        "code": code_version(),
        "trained_by": loaded.code,
    }


def write_samples(
    folder: Path, requests: Sequence[Request], clips: Sequence[Any], *, about: Mapping[str, Any], enlarge: int | None = None
) -> list[Path]:
    """A video, a strip of frames and a sidecar of each sample, and one sheet of all; returns the videos' paths.

    enlarge: see `enlarged`; the sidecar keeps the clip's own size, and says by how much its video is larger.
    """
    from sora import storage
    from sora.data.video import write

    paths = []
    for number, (request, clip) in enumerate(zip(requests, clips, strict=True)):
        frames = clip.numpy()
        shown = enlarged(frames, enlarge)
        path = folder / f"{number:04d}-{slug(request.prompt)}.mp4"
        write(path, shown, request.fps, lossless=False)
        write_png(path.with_suffix(".png"), strip(frames))
        storage.write_json(path.with_suffix(".json"), {**sidecar(request), "enlarged": shown.shape[1] // request.height, **about})
        paths.append(path)
    write_png(folder / "sheet.png", sheet([clip.numpy() for clip in clips[:64]]))
    return paths


def sidecar(request: Request) -> dict[str, Any]:
    """What makes one sample itself."""
    return {
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


def enlarged(frames: Any, factor: int | None = None) -> Any:
    """Frames (T, H, W, 3) with each pixel as a square of `factor` by `factor`; None brings the short side of small ones to about 128.

    Players take colours at half resolution (yuv420p), which would blur clips of 32 pixels, though nothing in them is blurred.
    """
    if factor is not None and factor < 1:
        raise ValueError(f"enlarge={factor} must be 1 or more, or null")
    times = factor or max(1, 128 // min(frames.shape[1:3]))
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def slug(text: str, *, length: int = 48) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].rstrip("-") or "sample"


def strip(frames: Any, *, most: int = 8) -> Any:
    """Up to `most` frames of a clip, evenly spread in time, side by side."""
    import numpy as np

    chosen = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
    return np.concatenate([np.pad(frames[index], ((0, 0), (0, 2), (0, 0)), constant_values=255) for index in chosen], axis=1)


def sheet(clips: Sequence[Any]) -> Any:
    """Strips of clips of any sizes, one below the other."""
    import numpy as np

    strips = [strip(clip) for clip in clips]
    width = max(row.shape[1] for row in strips)
    rows = [np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in strips]
    return np.concatenate(rows)


def write_png(path: Path, picture: Any) -> None:
    """Write uint8 (H, W, 3), whole or not at all."""
    from PIL import Image

    from sora.storage import whole_file

    with whole_file(path) as staging:
        Image.fromarray(picture).save(staging, format="PNG")


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("sample"))
