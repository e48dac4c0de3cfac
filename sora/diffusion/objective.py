"""Denoising objective: add noise to a pack of clips, each at its own level, and measure the squared error of the prediction.

Every random draw is a function of (seed, epoch, sample id), so a clip gets the same noise and level in any pack, on any rank and after
any resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sora.diffusion.density import Density
from sora.diffusion.levels import Shift, shifted
from sora.diffusion.path import Path, like, mix
from sora.diffusion.prediction import Prediction
from sora.diffusion.weighting import Weighting
from sora.system.draws import generator, normal
from sora.tokens import Batch, Grid, Movable, NoiseLevels, PackedTokens, TextTokens

Network = Callable[[PackedTokens, NoiseLevels, TextTokens], Tensor]


@dataclass(frozen=True)
class Noised(Movable):
    """Noised pack: x_t in `tokens`, the noise `eps` in it, its noise levels, and the mask of tokens that contribute to the loss."""

    tokens: PackedTokens
    eps: Float[Tensor, "N P"]
    levels: NoiseLevels
    mask: Bool[Tensor, "N"]

    @property
    def count(self) -> Float[Tensor, ""]:
        """Number of tokens that contribute to the loss, on the device. Its sum over packs and ranks is the divisor of the loss."""
        return self.mask.sum().to(torch.float32)


class Objective:
    """Denoising objective for one path, density of levels, kind of prediction and weighting.

    shift: maps a clip's number of tokens to the factor by which its levels are shifted (see `shifted`).
    frame_level_share: fraction of clips whose latent frames get independent levels (diffusion forcing, Chen et al. 2024); they teach the
    network to continue given frames. max_levels: size of the tensor of levels, at least the latent frames of all clips + plan.max_clips
    + 1. A fixed size keeps shapes constant; None takes the size that each pack needs.
    """

    def __init__(
        self,
        *,
        path: Path,
        density: Density,
        prediction: Prediction,
        weighting: Weighting,
        shift: Shift,
        frame_level_share: float,
        max_levels: int | None = None,
    ) -> None:
        if not 0 <= frame_level_share <= 1:
            raise ValueError(f"objective.frame_level_share={frame_level_share} is a share of clips; it must lie in [0, 1]")
        self.path = path
        self.density = density
        self.prediction = prediction
        self.weighting = weighting
        self.shift = shift
        self.frame_level_share = frame_level_share
        self.max_levels = max_levels

    def noise(self, batch: Batch, *, seed: int) -> Noised:
        """Draw levels and noise for a pack, and add the noise. Conditions stay at level 0; like padding they are masked from the loss."""
        clean = batch.tokens.patches
        grids = batch.tokens.grids
        if len(grids) != len(batch.sample_ids):
            raise ValueError(f"a pack of {len(grids)} clips came with {len(batch.sample_ids)} sample ids")
        clips = list(zip(grids, batch.sample_ids, batch.epochs, strict=True))
        drawn = [self.clip_levels(grid, seed=seed, epoch=epoch, sample=sample) for grid, sample, epoch in clips]
        levels = pack_levels(drawn, grids, batch.conditions, segments=batch.tokens.segments.count, max_levels=self.max_levels)
        eps = torch.zeros(clean.shape, dtype=torch.float32)
        start = 0
        for grid, sample, epoch in clips:
            shape = (grid.tokens, clean.shape[1])
            eps[start : start + grid.tokens] = normal("noise", shape, seed=seed, epoch=epoch, sample=sample)
            start += grid.tokens
        eps = eps.to(clean.device, non_blocking=True)
        real = torch.arange(len(clean), device=clean.device) < start
        x_t = mix(self.path, clean.float(), eps, levels.spread())
        return Noised(tokens=batch.tokens.with_patches(x_t), eps=eps, levels=levels, mask=real & ~batch.conditions)

    def clip_levels(self, grid: Grid, *, seed: int, epoch: int, sample: int) -> Float[Tensor, "t"]:
        """Noise level of each patch along the time axis of a clip: equal, or independent for a share `frame_level_share` of clips."""
        draw = generator("level", seed=seed, epoch=epoch, sample=sample)
        independent = draw.random() < self.frame_level_share
        uniform = torch.from_numpy(draw.random(grid.t if independent else 1)).clamp(1e-7, 1 - 1e-7)
        levels = shifted(self.density.quantile(uniform), self.shift(grid.tokens))
        return levels.to(torch.float32).expand(grid.t)

    def losses(self, network: Network, batch: Batch, noised: Noised, text: TextTokens) -> Float[Tensor, "N"]:
        """Weighted squared error of each token, averaged over its P channels; 0 for padding and conditions."""
        levels = noised.levels.spread()
        c0, c1 = self.prediction(self.path, levels)
        clean = batch.tokens.patches.float()
        target = like(c0, clean) * clean + like(c1, clean) * noised.eps
        prediction = network(noised.tokens, noised.levels, text)
        if prediction.shape != target.shape:
            raise ValueError(f"the network predicts {tuple(prediction.shape)} for patches of {tuple(target.shape)}")
        error = (prediction.float() - target).square().mean(dim=1)
        weight = self.weighting(levels, self.path, self.prediction)
        # torch.where and not a product with the mask: padding may hold inf, and 0 · inf is NaN.
        return torch.where(noised.mask, weight * error, torch.zeros_like(error))


def pack_levels(
    clips: Sequence[Tensor], grids: Sequence[Grid], conditions: Bool[Tensor, "N"], *, segments: int, max_levels: int | None = None
) -> NoiseLevels:
    """Noise levels of a pack: those of the clips' frames, then one level 0 for each of the `segments` segments.

    clips: levels of each clip, (t,). conditions: (N,), True for condition tokens. Condition and padding tokens get the level 0 of their own
    segment, so any set of tokens can be a condition, not only whole frames. max_levels: see `Objective`.
    """
    frames = sum(grid.t for grid in grids)
    needed = frames + segments
    size = needed if max_levels is None else max_levels
    if needed > size:
        raise ValueError(
            f"a pack of {len(grids)} clips and {segments} segments needs {needed} noise levels, but objective.max_levels={max_levels};"
            " raise it"
        )
    levels = torch.zeros(size)
    levels[:frames] = torch.cat([clip.to(torch.float32) for clip in clips]) if clips else levels[:0]
    numbers, lengths = torch.arange(len(grids)), torch.tensor([grid.t for grid in grids], dtype=torch.int64)
    fillers = torch.full((size - needed,), segments - 1)
    owners = torch.cat((numbers.repeat_interleave(lengths), torch.arange(segments), fillers))
    index = torch.full((len(conditions),), frames + segments - 1)  # padding
    still = index.clone()
    start = frame = 0
    for number, grid in enumerate(grids):
        here = slice(start, start + grid.tokens)
        index[here] = torch.arange(frame, frame + grid.t).repeat_interleave(grid.h * grid.w)
        still[here] = frames + number
        start, frame = here.stop, frame + grid.t
    levels, index, still, owners = (item.to(conditions.device, non_blocking=True) for item in (levels, index, still, owners))
    return NoiseLevels(levels=levels, index=torch.where(conditions, still, index), owners=owners)


def by_level(losses: Float[Tensor, "N"], noised: Noised, *, bins: int = 10) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Sums and counts of token losses in `bins` equal ranges of the noise level. Sum both over packs and ranks before dividing."""
    bin_of = (noised.levels.spread() * bins).to(torch.int64).clamp(0, bins - 1)
    mask = noised.mask.to(torch.float32)
    zero = torch.zeros(bins, dtype=torch.float32, device=losses.device)
    return zero.index_add(0, bin_of, losses.detach().float() * mask), zero.index_add(0, bin_of, mask)
