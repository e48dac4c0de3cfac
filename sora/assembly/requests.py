"""Requests for a generator, from prompts and the sizes, lengths and numbers of samples in a configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.assembly.load import LoadedDiffusion
    from sora.generation.generator import Request
    from sora.generation.prompts import Line


def plan_requests(lines: Sequence[Line], config: Any, loaded: LoadedDiffusion) -> list[Request]:
    """One request for each sample of each prompt. Samples are numbered per prompt, so that other prompts change nothing, and a prompt that
    occurs three times gives three different samples."""
    from sora.assembly.usual import KEYS, told
    from sora.generation.generator import Request
    from sora.generation.inputs import read_input
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
            seen[wanted] += 1  # the same request twice asks for two samples
            requests.append(Request(line.prompt, frames, *size, fps=rate, seed=seed, sample=sample, given=given, negative=negative))
    return requests


def missing_of(lines: Sequence[Line], config: Any) -> set[str]:
    """The settings that neither the command nor every line gives, so that the run's usual ones are needed."""
    from sora.patches.geometry import exact

    sized = all(exact(str(line.size or config.size)) for line in lines)
    found = {"area"} if config.area is None and not sized else set()
    return found | {key for key in ("fps", "seconds") if config[key] is None and any(getattr(line, key) is None for line in lines)}
