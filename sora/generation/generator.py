"""Samples clips: prompts of any sizes and lengths are packed end to end, denoised together from noise, and decoded.

A sample depends on (prompt, size, frames, seed, sample number) and the network alone, not on the other clips of its pack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from sora.diffusion.levels import Schedule, Shift, uniform_levels
from sora.diffusion.objective import Network, pack_levels
from sora.diffusion.path import Path, like
from sora.diffusion.prediction import Prediction, check_levels, convert
from sora.diffusion.prediction import velocity_prediction as velocity_prediction
from sora.diffusion.samplers import Draw, Predict, Sampler
from sora.patches.packing import frame_times, pack, patch_times, unpack
from sora.patches.patchifier import Patchifier
from sora.system.draws import normal
from sora.text.packing import pack_text
from sora.tokens import Grid, NoiseLevels, PackedTokens, TextTokens
from sora.vae.vae import VideoVAE

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


class Stopped(Exception):
    """Raised when the function `stop` returns True; no clip of the call is returned."""


@dataclass(frozen=True)
class Request:
    """One clip to sample. given: the frames that it begins with, 1 + k·stride of them at its size, which are kept and continued.

    negative: the prompt that guidance leads away from; "" is the empty caption, which stands for dropped captions in training. cut: words
    of the prompt and of the negative prompt that the text encoder does not read, for the sidecar.
    """

    prompt: str
    frames: int
    height: int
    width: int
    fps: float
    seed: int
    sample: int
    given: UInt8[Tensor, "K H W 3"] | None = None
    negative: str = ""
    cut: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PatchedRequest:
    """A request in patches: its grid, its tokens (noise, or the given ones), and which tokens are given."""

    grid: Grid
    start: Float[Tensor, "n P"]
    conditions: Bool[Tensor, "n"]
    seconds: Float[Tensor, "t"]


@dataclass(frozen=True)
class Recipe:
    """Settings of sampling. guidance: (ask, clips=..., path=...) -> prediction. shift: of the levels, by a clip's tokens.
    schedule: of the levels."""

    sampler: Sampler
    guidance: Callable[..., Predict]
    steps: int
    shift: Shift
    first: float = 1.0
    schedule: Schedule = uniform_levels


class Generator:
    """Samples clips from prompts. encode: captions to token states (m, D). text: the trained part of the text path, or the identity."""

    def __init__(
        self,
        *,
        dit: Network,
        encode: Callable[[list[str]], list[Tensor]],
        text: Callable[[TextTokens], TextTokens],
        vae: VideoVAE,
        patchifier: Patchifier,
        path: Path,
        prediction: Prediction,
        recipe: Recipe,
        token_budget: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dit = dit
        self.encode = encode
        self.text = text
        self.vae = vae
        self.patchifier = patchifier
        self.path = path
        self.prediction = prediction
        self.recipe = recipe
        self.token_budget = token_budget
        self.device = torch.device(device)

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], *, progress: Progress | None = None, stop: Stop | None = None
    ) -> list[UInt8[Tensor, "_ _ _ 3"]]:
        """The clips, in the order of the requests: uint8 (frames, height, width, 3) RGB on the CPU.

        progress: called with the steps done and their number, over all packs. stop: called before every prediction of the network and
        before every decoding; if it returns True, `Stopped` is raised.
        """
        latents = self.latents(requests, progress=progress, stop=stop)
        clips = self.decode(latents, stop=stop)
        return [_keep_given(clip, request.given) for clip, request in zip(clips, requests, strict=True)]

    @torch.no_grad()
    def latents(
        self, requests: Sequence[Request], *, progress: Progress | None = None, stop: Stop | None = None
    ) -> list[Float[Tensor, "C _ _ _"]]:
        """Whitened latents of the requests. progress, stop: as in `generate`."""
        planned = [self.plan(request) for request in requests]
        packs = self.packs(requests)
        total = len(packs) * self.recipe.steps
        states = self.encode([request.prompt for request in requests])
        away = dict.fromkeys(request.negative for request in requests)
        away = dict(zip(away, self.encode(list(away)), strict=True))
        found: dict[int, Tensor] = {}
        for number, members in enumerate(packs):
            report = partial(_report, progress, before=number * self.recipe.steps, total=total)
            texts = {"text": [states[member] for member in members], "away": [away[requests[member].negative] for member in members]}
            noise = partial(self._noise, [requests[member] for member in members], [planned[member].grid for member in members])
            clips = self._denoise([planned[member] for member in members], texts, noise, report, stop)
            for member, tokens in zip(members, clips, strict=True):
                found[member] = self.patchifier.unpatchify(tokens, planned[member].grid, self.vae.latent_channels)
        return [found[number] for number in range(len(requests))]

    def packs(self, requests: Sequence[Request]) -> list[list[int]]:
        """Indices of the requests that are denoised together. Sampled by itself, a pack gives the same pack again, in the same order."""
        return fill_packs([self.grid(request).tokens for request in requests], self.token_budget)

    def grid(self, request: Request) -> Grid:
        """The grid of a request's patches; ValueError if its size or length does not fit."""
        return self.patchifier.grid(*self.vae.latent_shape(request.frames, request.height, request.width))

    @torch.no_grad()
    def decode(
        self, latents: Sequence[Float[Tensor, "C _ _ _"]], *, batch: int = 8, stop: Stop | None = None
    ) -> list[UInt8[Tensor, "_ _ _ 3"]]:
        """Frames of whitened latents; up to `batch` clips of one shape are decoded together. stop: as in `generate`."""
        shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, latent in enumerate(latents):
            shapes[tuple(latent.shape)].append(number)
        found: dict[int, Tensor] = {}
        for members in shapes.values():
            for start in range(0, len(members), batch):
                _refuse_stopped(stop)
                some = members[start : start + batch]
                frames = self.vae.decode(torch.stack([latents[number] for number in some]))
                found.update(zip(some, frames.cpu(), strict=True))
        return [found[number] for number in range(len(latents))]

    def plan(self, request: Request) -> PatchedRequest:
        """The grid, noise and given tokens of a request; ValueError if its size or length does not fit."""
        shape = self.vae.latent_shape(request.frames, request.height, request.width)
        grid = self.patchifier.grid(*shape)
        channels = self.patchifier.channels(self.vae.latent_channels)
        noise = normal("sample", (grid.tokens, channels), seed=request.seed, epoch=0, sample=request.sample)
        times = patch_times(frame_times(shape[0], request.fps, self.vae.stride[0]), self.patchifier.size[0])
        conditions = torch.zeros(grid.tokens, dtype=torch.bool)
        if request.given is not None:
            clean = self._given_tokens(request, request.given)
            noise[: len(clean)] = clean
            conditions[: len(clean)] = True
        return PatchedRequest(grid=grid, start=noise, conditions=conditions, seconds=times)

    def _given_tokens(self, request: Request, given: Tensor) -> Tensor:
        if tuple(given.shape[1:3]) != (request.height, request.width) or len(given) >= request.frames:
            raise ValueError(
                f"given frames of {len(given)}x{given.shape[1]}x{given.shape[2]} cannot begin a clip of "
                f"{request.frames}x{request.height}x{request.width}"
            )
        latents = self.vae.encode(given[None].to(self.device))[0]
        return self.patchifier.patchify(latents).cpu()

    def _denoise(
        self,
        clips: Sequence[PatchedRequest],
        texts: Mapping[str, list[Tensor]],
        noise: Draw,
        report: Callable[[int], None],
        stop: Stop | None,
    ) -> list[Tensor]:
        """The tokens of clips, denoised together. texts: for each named prediction the caption states of all clips."""
        grids = [clip.grid for clip in clips]
        packed = _packed_levels(clips)
        table = self._schedule(clips, len(packed.levels))
        levels = table[:, packed.index]
        conditions = torch.cat([clip.conditions for clip in clips]).to(self.device)
        start = torch.cat([clip.start for clip in clips]).to(self.device)
        first = path_start(self.path, levels[0].to(self.device), start, conditions)
        owner = torch.repeat_interleave(torch.arange(len(clips)), torch.tensor([grid.tokens for grid in grids])).to(self.device)
        guided = self.recipe.guidance(_Asked(self, clips, texts, moving=levels[0] > 0), clips=owner, path=self.path)
        tops = table.amax(1).tolist()

        def predict(x: Tensor, t: Tensor) -> Tensor:
            _refuse_stopped(stop)
            result = guided(x, t)
            now = float(t.max())
            report(min(1 + sum(top > now for top in tops), self.recipe.steps))
            return result

        return [clip.cpu() for clip in unpack(self.recipe.sampler(predict, first, levels, path=self.path, noise=noise), grids)]

    def _noise(self, requests: Sequence[Request], grids: Sequence[Grid], number: int) -> Float[Tensor, "N P"]:
        """The noise that a sampler adds on the way, for the `number`-th time, for the tokens of some clips."""
        channels = self.patchifier.channels(self.vae.latent_channels)
        draws = [
            normal("sampler", (grid.tokens, channels), seed=request.seed, epoch=number, sample=request.sample)
            for request, grid in zip(requests, grids, strict=True)
        ]
        return torch.cat(draws).to(self.device)

    def _schedule(self, clips: Sequence[PatchedRequest], count: int) -> Float[Tensor, "S1 U"]:
        """The values of the pack's `count` noise levels at every step, on the CPU."""
        columns = []
        for clip in clips:
            levels = self.recipe.schedule(self.recipe.steps, shift=self.recipe.shift(clip.grid.tokens), first=self.recipe.first)
            check_levels(levels[:-1], self.prediction, path=self.path)
            columns.append(levels[:, None].expand(-1, clip.grid.t))
        rows = torch.cat(columns, dim=1)
        return torch.nn.functional.pad(rows, (0, count - rows.shape[1]))


def _packed_levels(clips: Sequence[PatchedRequest]) -> NoiseLevels:
    """The noise levels of a pack, of which only the index and the owners are used."""
    grids = [clip.grid for clip in clips]
    conditions = torch.cat([clip.conditions for clip in clips])
    return pack_levels([torch.zeros(grid.t) for grid in grids], grids, conditions, segments=len(grids) + 1)


class _View(NamedTuple):
    """What a network is given for some named predictions, but for x and its levels: each clip once for each name."""

    tokens: PackedTokens
    levels: NoiseLevels
    text: TextTokens
    moving: Bool[Tensor, "N"]


class _Asked:
    """Callable that returns named velocities of a pack's clips, from one forward of the network.

    texts: for each name the caption states of all clips. moving: which tokens move, on the CPU; the others have velocity 0.
    """

    def __init__(self, generator: Generator, clips: Sequence[PatchedRequest], texts: Mapping[str, list[Tensor]], *, moving: Tensor) -> None:
        self._generator, self._clips, self._texts, self._moving = generator, clips, texts, moving
        self._views: dict[tuple[str, ...], _View] = {}

    def __call__(self, x: Tensor, t: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        generator = self._generator
        if names not in self._views:
            self._views[names] = self._view(names)
        view, many = self._views[names], len(names)
        x, t = x.repeat(many, 1), t.to(x.device).repeat(many)
        levels = replace(view.levels, levels=torch.zeros_like(view.levels.levels, dtype=t.dtype).scatter(0, view.levels.index, t))
        prediction = generator.dit(view.tokens.with_patches(x), levels, view.text)
        result = convert(prediction.float(), x, t, generator.prediction, velocity_prediction, path=generator.path)
        # Given tokens do not move; where() instead of a product, since some predictions are singular at level 0.
        return list(torch.where(like(view.moving, result), result, torch.zeros_like(result)).chunk(many))

    def _view(self, names: tuple[str, ...]) -> _View:
        clips, device = [*self._clips] * len(names), self._generator.device
        grids = [clip.grid for clip in clips]
        total = sum(grid.tokens for grid in grids)
        tokens = pack([clip.start for clip in clips], grids, seconds=[clip.seconds for clip in clips], budget=total, max_clips=len(clips))
        states = [state for name in names for state in self._texts[name]]
        text = self._generator.text(pack_text(states, budget=None, max_clips=len(states)).to(device))
        return _View(tokens.to(device), _packed_levels(clips).to(device), text, self._moving.repeat(len(names)).to(device))


def _report(progress: Progress | None, done: int, *, before: int, total: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _refuse_stopped(stop: Stop | None) -> None:
    if stop is not None and stop():
        raise Stopped


def path_start(path: Path, levels: Float[Tensor, "N"], start: Float[Tensor, "N P"], conditions: Bool[Tensor, "N"]) -> Float[Tensor, "N P"]:
    """Noise scaled to the path's state at the first level; given tokens are returned unchanged."""
    return torch.where(like(conditions, start), start, like(path.sigma(levels), start) * start)


def fill_packs(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the clips of each pack, first fit from the longest down, equal lengths side by side. A clip over the budget is alone."""
    packs: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(tokens)), key=lambda number: (-tokens[number], number)):
        place = next((place for place, rest in enumerate(free) if rest >= tokens[number]), None)
        if place is None:
            packs.append([])
            free.append(budget)
            place = len(packs) - 1
        packs[place].append(number)
        free[place] -= tokens[number]
    return packs


def _keep_given(clip: Tensor, given: Tensor | None) -> Tensor:
    """The clip with the given frames put back exactly, instead of their VAE reconstruction."""
    return clip if given is None else torch.cat([given.cpu(), clip[len(given) :]])
