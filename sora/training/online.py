"""Encoding while training: packs of frames and captions to packs of latent patches and token states, on the device that trains."""

from __future__ import annotations

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from sora.data.video_batches import VideoPack
from sora.patches import Patchifier, frame_times, pack, patch_times
from sora.text.encoder import TextEncoder
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid, TextTokens
from sora.vae.vae import VideoVAE


class OnlineEncoder:
    """`(VideoPack, device) -> Batch`. The VAE and the text encoder are frozen and no part of the task, so no checkpoint holds them.

    budget, max_clips: of the plan. text_budget: text tokens of a pack (None: as many as there are). batch: clips of one shape that the
    VAE encodes at once; their number changes results by no more than rounding.
    """

    def __init__(
        self,
        *,
        vae: VideoVAE,
        text: TextEncoder,
        patchifier: Patchifier,
        budget: int,
        max_clips: int,
        text_budget: int | None,
        batch: int,
    ) -> None:
        self.vae, self.text, self.patchifier = vae.eval().requires_grad_(False), text, patchifier
        self.budget, self.max_clips, self.text_budget, self.batch = budget, max_clips, text_budget, batch

    def __call__(self, clips: VideoPack, device: torch.device) -> Batch:
        found = self._latents(clips, device)
        grids = [self.patchifier.grid(latents.shape[1], latents.shape[2], latents.shape[3]) for latents in found]
        tokens = pack(
            [self.patchifier.patchify(latents) for latents in found],
            grids,
            seconds=[self._seconds(grid, fps) for grid, fps in zip(grids, clips.fps, strict=True)],
            budget=self.budget,
            max_clips=self.max_clips,
        )
        conditions = torch.zeros(self.budget, dtype=torch.bool)
        start = 0
        for grid, given in zip(grids, clips.given, strict=True):
            conditions[start : start + grid.h * grid.w] = given and grid.t > 1
            start += grid.tokens
        return Batch(tokens, self._packed_text(clips), conditions, sample_ids=clips.sample_ids, epochs=clips.epochs).to(device)

    def _latents(self, clips: VideoPack, device: torch.device) -> list[Float[Tensor, "C _ _ _"]]:
        """Whitened latents of each clip, in fp32 as the stored ones are made, whatever precision the network trains in."""
        frames, shapes = clips.frames, defaultdict(list)
        for number, shape in enumerate(clips.shapes):
            shapes[shape].append(number)
        vae, found = self.vae.to(device), {}
        with torch.autocast(device.type, enabled=False):
            for same in shapes.values():
                for start in range(0, len(same), self.batch):
                    some = same[start : start + self.batch]
                    encoded = vae.encode(torch.stack([frames[number] for number in some]).to(device, non_blocking=True))
                    found.update(zip(some, encoded.float(), strict=True))
        return [found[number] for number in range(len(frames))]

    def _seconds(self, grid: Grid, fps: float) -> Float[Tensor, "t"]:
        size = self.patchifier.size.t
        return patch_times(frame_times(grid.t * size, fps, self.vae.stride[0]), size)

    def _packed_text(self, clips: VideoPack) -> TextTokens:
        if clips.states is not None:
            return pack_text(clips.states, budget=self.text_budget, max_clips=self.max_clips)
        # each caption alone and as float16: what a cache holds of it, so that both ways train on the same numbers
        known = {said: self.text.encode([said])[0].half().float() for said in dict.fromkeys(clips.captions)}
        return pack_text([known[said] for said in clips.captions], budget=self.text_budget, max_clips=self.max_clips)
