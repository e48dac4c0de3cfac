"""Validation while a run trains, from its configuration: the loss of held-out clips, videos of their captions, and metrics of these."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sora.assembly.job import Job
    from sora.assembly.load import LoadedDiffusion
    from sora.data.loading.held_out import HeldOutClips
    from sora.generation.generator import Generator, Request
    from sora.runs.run import Run
    from sora.tokens import Grid
    from sora.training.callbacks.journal import Journal
    from sora.training.callbacks.validation import Evaluations
    from sora.training.logging.goodput import Phases
    from sora.training.module import TrainingModule


def evaluations(
    config: DictConfig,
    job: Job,
    run: Run,
    *,
    scorer: Callable[..., Any],
    widths: Mapping[str, float],
    journal: Journal,
    phases: Phases,
    tracker: Any,
    stop: Callable[[], bool],
) -> list[Evaluations]:
    """The callback that evaluates, in a list; an empty list if `evaluation` is off.

    scorer: makes the function that computes metrics of videos, from evaluation.videos.metrics, a factory of extractors, the held-out clips
    and the requests. widths: of the post-hoc averages that the run keeps. stop: whether this rank was asked to stop.
    """
    from omegaconf import OmegaConf

    from sora.config.build import build
    from sora.training.callbacks.validation import Evaluations
    from sora.training.callbacks.validation_measures import HeldOut, Samples

    settings = OmegaConf.select(config, "evaluation")
    if settings is None or settings.every is None:
        return []
    job_plan, objective = job.steps.plan, job.task.objective
    clips = held_out_clips(
        config,
        split=settings.split,
        count=settings.clips,
        budget=job_plan.budget,
        max_clips=job_plan.max_clips,
        seed=settings.seed,
        vae=run.vae,
        identity=job.depends["vae"],
    )
    measures: list[Any] = [HeldOut(held_out_loss(objective, settings), clips.listing, read=clips.read, shape=clips.shape)]
    if settings.videos is not None:
        requests = requests_of(clips, settings.videos.count, seed=settings.seed)
        measures.append(
            Samples(
                [request for _, request in requests],
                make=functools.partial(maker, config, clips, vae=run.vae),
                keep=functools.partial(keep, config),
                score=scorer(tuple(settings.videos.metrics), functools.partial(build, settings.videos.extractor), clips, requests),
                folder=run.folder,
                shown=settings.videos.shown,
            )
        )
    return [
        Evaluations(
            run,
            every=settings.every,
            share=settings.share,
            weights=chosen_weights(settings.weights, widths),
            measures=measures,
            steps=config.steps,
            phases=phases,
            journal=journal,
            tracker=tracker,
            stop=stop,
        )
    ]


def averaged(module: TrainingModule) -> Any:
    """A context with the averaged weights in place of the trained ones; unchanged if a run keeps no average."""
    return module.average.applied(module.trained())


def raw(module: TrainingModule) -> Any:
    """A context with the trained weights unchanged."""
    return nullcontext()


def profile(module: TrainingModule, *, kind: str) -> Any:
    """A context with one of the averages of ema=post_hoc in place of the trained weights."""
    from sora.training.optim.ema import Average

    return Average(None, module.average.kinds()[kind]).applied(module.trained())


WEIGHTS = {"ema": averaged, "raw": raw}


def chosen_weights(names: Sequence[str | float], widths: Mapping[str, float]) -> dict[str, Callable[[TrainingModule], Any]]:
    """Contexts that put weights in place, by name. names: of WEIGHTS, or relative widths of averages. widths: those that the run keeps."""
    profiles = {f"{width:g}": functools.partial(profile, kind=kind) for kind, width in widths.items()}
    known, wanted = {**WEIGHTS, **profiles}, [name if isinstance(name, str) else f"{name:g}" for name in names]
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"evaluation.weights={list(names)}: choose from {', '.join(known)}; other averages are kept with ema=post_hoc")
    return {name: known[name] for name in wanted}


def held_out_loss(objective: Any, settings: Any) -> Any:
    """The held-out loss of an objective's network. settings: levels, draws and seed."""
    from sora.diffusion.validation_loss import HeldOutLoss

    return HeldOutLoss(
        path=objective.path,
        prediction=objective.prediction,
        levels=settings.levels,
        draws=settings.draws,
        seed=settings.seed,
        max_levels=objective.max_levels,
    )


def held_out_clips(
    config: DictConfig, *, split: str, count: int | None, budget: int, max_clips: int, seed: int, vae: Path, identity: str
) -> HeldOutClips:
    """Clips of another split of the run's datasets. config: of the run. budget, max_clips: tokens and clips of a pack. vae: the folder of
    the VAE, with hash `identity`.

    Raises ValueError if the run trains on the split, or it does not exist or has not been encoded.
    """
    from sora.assembly.data import Planned, dataset, of_frames, online_encoder
    from sora.config.build import build, plain
    from sora.data.loading.held_out import HeldOutClips
    from sora.data.plan.listing import Listing
    from sora.patches.geometry import Geometry
    from sora.system.started import started
    from sora.vae import artefact

    if split == config.data.split:
        raise ValueError(f"split={split} is what the run trains on, so its clips are not held out; choose another")
    stride, patchifier, encoder = artefact.read_card(vae)["stride"], build(config.patches), build(config.text)
    node = {**plain(config.data), "split": split, "drop": 0.0, "first_frame": 0.0, "weights": None}
    online = of_frames(node)
    node |= {} if online else {"cache_mb": 0}
    data = dataset(config, node, encoder=encoder, patchifier=patchifier, vae=vae, identity=identity, seed=seed)
    listing = Listing(data.clips, count=count, budget=budget, max_clips=max_clips, seed=seed)
    planned = Planned(data, listing, encoder, patchifier, vae, identity, online)
    near = started().near if "trainer" in config else 1  # a run is evaluated without a trainer
    encode = online_encoder(planned, artefact.load(vae), near=near) if online else None
    geometry = Geometry(stride, patchifier.size)

    def shape(grid: Grid) -> dict[str, int]:
        return dict(zip(("frames", "height", "width"), geometry.pixels(*grid), strict=True))

    return HeldOutClips(data, listing, data.batches(listing).__getitem__, encode, shape)


def held_out_of(
    loaded: LoadedDiffusion, folder: Path, *, sets: Sequence[str] | None = None, selection: str | None = None, **asked: Any
) -> HeldOutClips:
    """Held-out clips of dataset `folder` for a loaded run. sets: of captions (None: the run's own, where the dataset has them). selection:
    of the clips. asked: as in `held_out_clips`."""
    from omegaconf import OmegaConf

    from sora.assembly.data import known_sets
    from sora.runs.run import open_run

    chosen = {"sets": known_sets(open_run(loaded.run), folder) if sets is None else list(sets), "selection": selection}
    data = loaded.config["data"]
    alone = {key: False for key in ("shard_vae", "shard_text") if "shard_vae" in data}  # each process has packs of its own
    config = OmegaConf.create({**loaded.config, "data": {**data, **alone, **chosen, "folders": [str(folder)]}})
    return held_out_clips(config, **asked, vae=loaded.run / "vae", identity=loaded.hashes["vae"])


def requests_of(clips: HeldOutClips, count: int, *, seed: int) -> list[tuple[int, Request]]:
    """Requests for `count` of the clips, spread over them, each with its row; prompts are captions, chosen as in training."""
    import numpy as np

    from sora.data.plan.frames import FrameClips
    from sora.generation.generator import Request
    from sora.text.caption_mix import choose_caption

    listing, found = clips.listing, []
    if not 1 <= count <= len(listing.rows):
        raise ValueError(f"evaluation.videos.count={count}: from 1 to the {len(listing.rows)} held-out clips; raise evaluation.clips")
    for place in np.linspace(0, len(listing.rows) - 1, count).round().astype(int).tolist():
        row, sample, shape = int(listing.rows[place]), listing.samples[place], clips.shape(listing.grids[place])
        dataset, number = clips.place(row)
        index = clips.indexes[dataset]
        kinds = [(caption.kind, caption.text) for caption in index.captions(number)]
        prompt = choose_caption(kinds, clips.data.captions, seed=seed, epoch=0, sample=sample)
        fps = listing.clips.rates(np.array([row]))[0] if isinstance(listing.clips, FrameClips) else index.fps[number]
        size = (shape["frames"], shape["height"], shape["width"])
        found.append((row, Request(prompt, *size, fps=float(fps), seed=seed, sample=sample)))
    return found


def maker(config: DictConfig, clips: HeldOutClips, module: TrainingModule, *, vae: Path) -> Generator:
    """A generator with the networks in training and the run's VAE."""
    from sora.assembly.generation import generator, sampling
    from sora.config.build import build
    from sora.training.callbacks.validation_measures import opened
    from sora.vae import artefact

    task = opened(module)
    return generator(
        sampling(config.evaluation.videos),
        task.objective,
        dit=task.predict,
        encode=functools.partial(states_of, clips.data.texts, build(config.text)),
        text=task.read,
        vae=artefact.load(vae).eval().to(module.device),
        patchifier=clips.data.patchifier,
        device=module.device,
    )


def states_of(caches: Sequence[Any] | None, encoder: Any, prompts: list[str]) -> list[Tensor]:
    """Token states of prompts: from stores if there are any, so that no text encoder is loaded beside the network."""
    if caches is None:
        return encoder.encode(prompts)
    return [next((cache for cache in caches if prompt in cache), caches[0]).states(prompt) for prompt in prompts]


def keep(config: DictConfig, folder: Path, requests: Sequence[Request], clips: Sequence[Tensor]) -> list[Path]:
    """Write clips as `sora sample` does; return the paths of the videos."""
    from omegaconf import OmegaConf

    from sora.generation.samples import write_samples

    return write_samples(folder, requests, clips, about={"evaluation": OmegaConf.to_container(config.evaluation)}) if clips else []
