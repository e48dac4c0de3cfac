"""What is measured while a run trains, from its configuration: held-out clips, videos of their captions, and the figures of both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sora.data.index import Index
    from sora.data.planning import Listing
    from sora.generation.generator import Generator, Request
    from sora.jobs import Job
    from sora.tokens import Grid
    from sora.training.evaluation import Evaluations
    from sora.training.journal import Journal
    from sora.training.module import TrainingModule
    from sora.training.phases import Phases
    from sora.training.run import Run

METRICS = ("adherence", "frechet", "kvd")
PERMUTATIONS = 79  # of both sets together, for floors and p values
TOLD = 3  # clips that cannot be read, of those that a message names


@dataclass(frozen=True)
class HeldOutClips:
    """Clips of a split of the datasets that a run trains on, prepared as those are, and the packs that they are measured in.

    read: the packs of a step of the listing. encode: makes a batch of one (None: it is one already). shape: a grid in frames and pixels.
    """

    data: Any
    listing: Listing
    read: Callable[[int], Sequence[Any]]
    encode: Callable[[Any, Any], Any] | None
    shape: Callable[[Grid], dict[str, int]]

    def batches(self, step: int, device: Any) -> list[Any]:
        """The packs of a step, ready for the network."""
        return [pack.to(device) if self.encode is None else self.encode(pack, device) for pack in self.read(step)]

    @property
    def indexes(self) -> tuple[Index, ...]:
        from sora.data.latent_batches import LatentData

        return tuple(item.index for item in self.data.latents) if isinstance(self.data, LatentData) else self.data.indexes

    def place(self, row: int) -> tuple[int, int]:
        """(dataset, its row) of a row of the listing."""
        import numpy as np

        dataset = int(np.searchsorted(self.listing.clips.starts, row, side="right")) - 1
        return dataset, row - self.listing.clips.starts[dataset]


def evaluations(
    config: DictConfig,
    job: Job,
    run: Run,
    *,
    widths: Mapping[str, float],
    journal: Journal,
    phases: Phases,
    tracker: Any,
    stop: Callable[[], bool],
) -> list[Evaluations]:
    """The callback that measures, or none, as `evaluation` says. widths: of the averages that the run keeps besides its own. stop: whether
    this rank was asked to."""
    from omegaconf import OmegaConf

    from sora.training.evaluation import Evaluations
    from sora.training.measures import HeldOut, Samples

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
                score=scorer(settings.videos, clips, requests),
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
    """The averaged weights in place; the trained ones, where a run keeps no others."""
    return module.average.applied(module.trained())


def raw(module: TrainingModule) -> Any:
    """The trained weights, as they are."""
    return nullcontext()


def profile(module: TrainingModule, *, kind: str) -> Any:
    """One of the averages that ema=post_hoc keeps in place of the trained weights."""
    from sora.training.ema import Average

    return Average(None, module.average.kinds()[kind]).applied(module.trained())


WEIGHTS = {"ema": averaged, "raw": raw}


def chosen_weights(names: Sequence[str | float], widths: Mapping[str, float]) -> dict[str, Callable[[TrainingModule], Any]]:
    """What puts weights in place, by name. names: of WEIGHTS, or relative widths of averages. widths: of those that the run keeps."""
    profiles = {f"{width:g}": functools.partial(profile, kind=kind) for kind, width in widths.items()}
    known, wanted = {**WEIGHTS, **profiles}, [name if isinstance(name, str) else f"{name:g}" for name in names]
    if not wanted or not set(wanted) <= set(known):
        raise ValueError(f"evaluation.weights={list(names)}: choose from {', '.join(known)}; other averages are kept with ema=post_hoc")
    return {name: known[name] for name in wanted}


def held_out_loss(objective: Any, settings: Any) -> Any:
    """The loss that an objective's network is measured by. settings: levels, draws and seed."""
    from sora.diffusion.heldout import HeldOutLoss

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
    """Clips of another split of the run's datasets. config: of the run. budget, max_clips: a pack's. vae: the artefact, of hash `identity`.

    Raises ValueError if the split is what the run trains on, does not exist, or has not been encoded.
    """

    from sora.configs.build import build, plain, resolve
    from sora.data.planning import Listing
    from sora.data.video_batches import VideoData
    from sora.jobs import Planned, online_encoder
    from sora.started import started
    from sora.vae import artefact

    if split == config.data.split:
        raise ValueError(f"split={split} is what the run trains on, so its clips are not held out; choose another")
    stride, patchifier = artefact.read_card(vae)["stride"], build(config.patches)
    settings = {**plain(config.data), "split": split, "drop": 0.0, "first_frame": 0.0, "weights": None}
    encoder, online = build(config.text), resolve(config.data._target_) is VideoData
    shared = {"text": encoder, "patchifier": patchifier, "seed": seed}
    if online:
        data = build(settings, **shared, stride=stride, reader=build(config.reader))
    else:
        data = build({**settings, "cache_mb": 0}, **shared, vae_hash=identity)
    listing = Listing(data.clips, count=count, budget=budget, max_clips=max_clips, seed=seed)
    planned = Planned(data, listing, encoder, patchifier, vae, identity, online)
    near = started().near if "trainer" in config else 1  # what evaluates a run has no trainer
    encode = online_encoder(planned, artefact.load(vae), near=near) if online else None
    size = patchifier.size

    def shape(grid: Grid) -> dict[str, int]:
        frames = 1 + (grid.t * size.t - 1) * stride[0]
        return {"frames": frames, "height": grid.h * size.h * stride[1], "width": grid.w * size.w * stride[2]}

    return HeldOutClips(data, listing, data.batches(listing).__getitem__, encode, shape)


def requests_of(clips: HeldOutClips, count: int, *, seed: int) -> list[tuple[int, Request]]:
    """What to make: `count` of the clips, spread over them, each with its row; prompts are their captions, as training chooses them."""
    import numpy as np

    from sora.data.planning.frames import FrameClips
    from sora.generation.generator import Request
    from sora.text.dropping import choose_caption

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
    """A generator with the networks that train, and the run's VAE."""
    from sora.configs.build import build
    from sora.diffusion.shift import constant_shift
    from sora.generation.generator import Generator, Recipe
    from sora.training.measures import opened
    from sora.vae import artefact

    said, task = config.evaluation.videos, opened(module)
    objective = task.objective
    shift = objective.shift if said.shift is None else functools.partial(constant_shift, value=float(said.shift))
    recipe = Recipe(sampler=build(said.sampler), guidance=build(said.guidance), steps=said.steps, shift=shift, first=said.first)
    return Generator(
        dit=task.predict,
        encode=functools.partial(states_of, clips.data.texts, build(config.text)),
        text=task.read,
        vae=artefact.load(vae).eval().to(module.device),
        patchifier=clips.data.patchifier,
        path=objective.path,
        prediction=objective.prediction,
        recipe=recipe,
        token_budget=said.budget,
        device=module.device,
    )


def states_of(caches: Sequence[Any] | None, encoder: Any, prompts: list[str]) -> list[Tensor]:
    """Token states of prompts: stored ones where there are stores, so that no text encoder is loaded beside the network."""
    if caches is None:
        return encoder.encode(prompts)
    return [next((cache for cache in caches if prompt in cache), caches[0]).states(prompt) for prompt in prompts]


def keep(config: DictConfig, folder: Path, requests: Sequence[Request], clips: Sequence[Tensor]) -> list[Path]:
    """Write clips as `sora sample` does; the videos' paths."""
    from omegaconf import OmegaConf

    from sora.samples import write_samples

    return write_samples(folder, requests, clips, about={"evaluation": OmegaConf.to_container(config.evaluation)}) if clips else []


# ---- scores


def scorer(
    said: Any, clips: HeldOutClips, requests: Sequence[tuple[int, Request]]
) -> Callable[[Sequence[Tensor]], dict[str, float]] | None:
    """What measures the videos, by said.metrics; None for nothing."""
    from sora.configs.build import build
    from sora.evaluation.targets import world_of

    names = tuple(said.metrics)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"evaluation.videos.metrics={list(names)} has {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    if "adherence" in names and any(world_of(index) is None for index in clips.indexes):
        raise ValueError("evaluation.videos.metrics has adherence, which is measured on captions of the built-in world; leave it out")
    if not names:
        return None
    if not {"frechet", "kvd"} & set(names):
        return Scorer(names, clips, requests, extractor=None)
    extractor, shortest = build(said.extractor), min(request.frames for _, request in requests)
    name = extractor.name  # reads the weights: a missing file is told before training
    if len(requests) < 2:
        raise ValueError(f"evaluation.videos.count={len(requests)}: frechet and kvd take at least 2 videos")
    if shortest < extractor.minimum_frames:
        raise ValueError(
            f"evaluation.videos.extractor: {name} sees {extractor.minimum_frames} frames or more, and held-out clips have {shortest}; "
            "choose another, or leave frechet and kvd out of evaluation.videos.metrics"
        )
    return Scorer(names, clips, requests, extractor=extractor)


class Scorer:
    """Figures of videos made from captions of held-out clips. extractor: of features; None where no distance is asked for.

    Of pure functions, not metrics: it is asked on one rank, and a metric waits for all of them.
    """

    def __init__(self, names: Sequence[str], clips: HeldOutClips, requests: Sequence[tuple[int, Request]], *, extractor: Any) -> None:
        self._names, self._clips, self._requests, self._extractor = names, clips, requests, extractor
        self._real: dict[int, Tensor] | None = None

    def __call__(self, videos: Sequence[Tensor]) -> dict[str, float]:
        found = self._adherence(videos) if "adherence" in self._names else {}
        return found | (self._distances(videos) if self._extractor is not None else {})

    def _adherence(self, videos: Sequence[Tensor]) -> dict[str, float]:
        from sora.data.world import PALETTE, parse
        from sora.evaluation.measures import wilson
        from sora.metrics.adherence import counted, judge, shares

        wanted = [request for _, request in self._requests]
        frames = [video.numpy() for video in videos]
        agreed = judge(frames, [item.fps for item in wanted], [parse(item.prompt) for item in wanted], palette=PALETTE)
        found = {f"adherence_{name}": value for name, value in shares(*counted(agreed)).items()}
        if "adherence_all" in found:
            found["adherence_all_low"], found["adherence_all_high"] = wilson(found["adherence_all"], int(found["adherence_n"]))
        return found

    def _distances(self, videos: Sequence[Tensor]) -> dict[str, float]:
        """To the very clips whose captions were the prompts, so that both sets are the same mixture of sizes and lengths.

        distance_clips: how many those are. Where an original cannot be read, what was made of its caption is left out, too.
        """
        import torch

        from sora.metrics.comparison import compare_features

        if self._real is None:
            self._real = {number: self._extractor(frames[None]) for number, frames in self._originals().items()}
        found = {"distance_clips": float(len(self._real))}
        if len(self._real) < 2:
            return found
        fake = torch.cat([self._extractor(videos[number][None]) for number in self._real])
        real = torch.cat(list(self._real.values()))
        figures = compare_features(real, fake, key="", ddof=1, seed=0, bootstrap=0, permutations=PERMUTATIONS, neighbours=5)
        named = {name.replace("/", "_").rstrip("_").replace("__", "_"): value for name, value in figures.items()}
        wanted = ("frechet", "frechet_floor", "frechet_over_floor", "frechet_p", "kvd", "kvd_p")
        return {name: named[name] for name in wanted if name in named and name.split("_")[0] in self._names} | found

    def _originals(self) -> dict[int, Tensor]:
        """The held-out clips by the numbers of the requests, as what trains sees them: what their patches cover, or what is brought to
        size and rate for encoding. Says which cannot be read."""
        shown, reasons = self._stored() if self._clips.encode is None else self._prepared()
        lacking = [number for number in range(len(self._requests)) if number not in shown]
        if lacking:
            listing = self._clips.listing
            told = [f"{listing.clips.key(self._requests[number][0])}{reasons.get(number, '')}" for number in lacking[:TOLD]]
            more = f", and {len(lacking) - TOLD} more" if len(lacking) > TOLD else ""
            left = "" if len(shown) > 1 else "; of fewer than two there is no distance"
            print(
                f"beware: {len(lacking)} held-out clips of {len(self._requests)} have no part in distances: {', '.join(told)}{more}{left}"
            )
        return shown

    def _prepared(self) -> tuple[dict[int, Tensor], dict[int, str]]:
        """Those that were brought to size and rate; why others were not is in the quarantine of the held-out clips."""
        found: dict[int, Tensor] = {}
        for step in range(len(self._clips.listing)):
            for pack in self._clips.read(step):
                found |= dict(zip(pack.sample_ids, pack.frames, strict=True))
        samples = {number: request.sample for number, (_, request) in enumerate(self._requests)}
        return {number: found[sample] for number, sample in samples.items() if sample in found}, {}

    def _stored(self) -> tuple[dict[int, Tensor], dict[int, str]]:
        """The part of each stored clip that its patches cover, or why there is none."""
        import torch

        from sora.data.loading import read_clip
        from sora.data.video import PYAV

        found, reasons = {}, {}
        for number, (row, request) in enumerate(self._requests):
            dataset, place = self._clips.place(row)
            try:
                frames = read_clip(self._clips.indexes[dataset], place, reader=PYAV)
            except ValueError as error:
                reasons[number] = f" ({error})"
                continue
            found[number] = torch.from_numpy(frames[: request.frames, : request.height, : request.width].copy())
        return found, reasons
