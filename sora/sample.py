"""Make videos from prompts, at any size and length, with the networks of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system import terminal
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.assembly.load import LoadedDiffusion
    from sora.config.compose import Composed
    from sora.generation.generator import Generator, Request
    from sora.generation.samples import SampleFolder

EXAMPLES = (
    'sora sample checkpoint=outputs/dit prompt="a red circle moves left"',
    "sora sample checkpoint=outputs/dit prompts=prompts.txt size=9:16 seconds=4 guidance.scale=6 output=samples",
    'sora sample checkpoint=outputs/dit prompt="the ball bounces on" input=first.png sampler=heun steps=20',
)


def main(composed: Composed) -> None:
    """Generate, and write a video, a strip of its frames and a JSON sidecar of each sample as soon as its pack is denoised."""
    from sora.assembly.generation import described, generator_of, sampling
    from sora.assembly.load import fill_of, load_diffusion
    from sora.assembly.requests import plan_requests
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


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("sample"))
