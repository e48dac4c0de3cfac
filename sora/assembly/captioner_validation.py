"""Validation while a captioner trains, and the held-out clips of a trained one, from their configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.assembly.captioning import CaptionClips, caption_clips, online_encoder_of
from sora.assembly.validation import chosen_weights, keep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omegaconf import DictConfig
    from torch import Tensor

    from sora.assembly.job import Job
    from sora.assembly.load_captioner import LoadedCaptioner
    from sora.data.loading.held_out import HeldOutClips
    from sora.runs.run import Run
    from sora.tokens import Batch
    from sora.training.callbacks.validation import Evaluations


def caption_evaluations(config: DictConfig, job: Job, run: Run, *, widths: Mapping[str, float], **beside: Any) -> list[Evaluations]:
    """The callback that evaluates a captioner, in a list; an empty list if `evaluation` is off. Arguments as in `evaluations`."""
    from sora.training.callbacks.validation import Evaluations
    from sora.training.callbacks.validation_captions import HeldOutCaptions

    settings = config.evaluation
    if settings.every is None:
        return []
    plan = job.steps.plan
    asked = {"count": settings.clips, "budget": plan.budget, "max_clips": plan.max_clips, "seed": settings.seed}
    held, clips = held_out_captioned(config, split=settings.split, **asked)
    measure = HeldOutCaptions(
        held.listing,
        read=held.read,
        show=functools.partial(shown, clips),
        keep=functools.partial(keep, config),
        folder=run.folder,
        **{name: settings[name] for name in ("shown", "beam", "most")},
    )
    weights = chosen_weights(settings.weights, widths)
    return [Evaluations(run, every=settings.every, share=settings.share, weights=weights, measures=[measure], steps=config.steps, **beside)]


def held_out_captioned(
    config: DictConfig, *, split: str, count: int | None, budget: int, max_clips: int, seed: int
) -> tuple[HeldOutClips, CaptionClips]:
    """Clips of another split of the run's datasets, with all their captions. Raises ValueError if the run trains on the split."""
    from sora.data.loading.held_out import HeldOutClips
    from sora.data.plan.listing import Listing
    from sora.patches.geometry import Geometry

    if split == config.data.split:
        raise ValueError(f"split={split} is what the run trains on, so its clips are not held out; choose another")
    clips = caption_clips(config, split=split)
    listing = Listing(clips.data.clips, count=count, budget=budget, max_clips=max_clips, seed=seed)
    geometry = Geometry(clips.eyes.stride, clips.patchifier.size)

    def shape(grid: Any) -> dict[str, int]:
        return dict(zip(("frames", "height", "width"), geometry.pixels(*grid), strict=True))

    held = HeldOutClips(clips.data, listing, clips.data.batches(listing).__getitem__, online_encoder_of(clips, listing), shape)
    return held, clips


def held_out_of_captioner(
    loaded: LoadedCaptioner, folder: Path, *, sets: Sequence[str] | None, selection: str | None, **asked: Any
) -> tuple[HeldOutClips, CaptionClips]:
    """Held-out clips of dataset `folder` for a trained captioner; see `held_out_of`."""
    from omegaconf import OmegaConf

    from sora.assembly.data import known_sets
    from sora.runs.run import open_run

    chosen = {"sets": known_sets(open_run(loaded.run), folder) if sets is None else list(sets), "selection": selection}
    vae = None if loaded.config.get("vae") is None else str(loaded.run / "vae")
    config = {**loaded.config, "vae": vae, "data": {**loaded.config["data"], **chosen, "folders": [str(folder)]}}
    return held_out_captioned(OmegaConf.create(config), **asked)


def shown(clips: CaptionClips, batch: Batch, place: int) -> tuple[Tensor, float]:
    """The frames (T, H, W, 3) of a clip of a pack, as its latents decode, and their rate."""
    from sora.patches.packing import unpack

    patches = unpack(batch.tokens.patches, batch.tokens.grids)[place]
    latents = clips.patchifier.unpatchify(patches.cpu(), batch.tokens.grids[place], clips.eyes.latent_channels)
    return clips.eyes.decode(latents[None])[0], rate_of(clips, batch, place)


def rate_of(clips: CaptionClips, batch: Batch, place: int) -> float:
    """The frames a second of a clip of a pack, from the time of its last patch; 8 for an image."""
    from sora.patches.packing import frame_times, patch_times, unpack

    patch, grids = clips.patchifier.size.t, batch.tokens.grids
    last = float(unpack(batch.tokens.positions, grids)[place][-1, 0])
    at_one = float(patch_times(frame_times(grids[place].t * patch, 1.0, clips.eyes.stride[0]), patch)[-1])
    return at_one / last if last > 0 else 8.0


def evaluations_of(kind: str) -> Callable[..., list[Evaluations]]:
    """What makes the callback that evaluates a kind of run."""
    from sora.assembly.validation import evaluations

    if kind != "captioner":
        return evaluations
    return lambda config, job, run, *, scorer, **rest: caption_evaluations(config, job, run, **rest)
