"""Level embeddings of published networks, for dit.level: (width, text_width) -> module(levels, owners, text) -> (U, C)."""

from __future__ import annotations

from math import inf, log

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.layers.rope import positive
from sora.tokens import TextTokens, means


class LevelWaves(nn.Module):
    """Embeds numbers by cosines and sines with rates from 1 down to 1 / 10,000 (Ho et al. 2020), and a two-layer MLP.

    waves: number of cosines and sines together. late: whether the last rate is exactly 1 / 10,000, not one step before it.
    """

    def __init__(self, waves: int, width: int, *, late: bool) -> None:
        super().__init__()
        if waves < 4 or waves % 2:
            raise ValueError(f"level.waves is {waves}; half of them are cosines and half sines, so it is an even number, 4 or more")
        self.count, self.late = waves // 2, late
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Float[Tensor, "U"]) -> Float[Tensor, "U C"]:
        # Keep these networks' order of operations in float32: one bit of a rate changes angles near 1000 by 1e-5. Rates are not a buffer,
        # because casting the network to bf16 would cast it.
        rates = torch.exp(-log(10_000) * torch.arange(self.count, dtype=torch.float32, device=numbers.device) / (self.count - self.late))
        angles = numbers.float()[:, None] * rates
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(next(self.mlp.parameters()).dtype))


def told(levels: Float[Tensor, "U"], before: int) -> Float[Tensor, "U"]:
    """Scale noise levels from [0, 1] to [0, 1000]; with before=1, to the step numbers 0 to 999 of `sora.diffusion.discrete`."""
    return (1000 * levels - before).clamp_min(0) if before else 1000 * levels


class LevelVector(nn.Module):
    """Embedding of noise levels in [0, 1] only. before: see `told`."""

    def __init__(self, width: int, waves: int, before: int) -> None:
        super().__init__()
        if before not in (0, 1):
            raise ValueError(f"level.before is {before}; levels are told as 0 to 1000: 0, or as numbers of 1,000 steps: 1")
        self.width, self.before, self.time = width, before, LevelWaves(waves, width, late=False)

    def forward(self, levels: Float[Tensor, "U"], owners: Int[Tensor, "U"], text: TextTokens) -> Float[Tensor, "U C"]:
        return self.time(told(levels, self.before))


def published_level(width: int, text_width: int, *, waves: int, before: int) -> LevelVector:
    """Build a `LevelVector` as wide as the network, for dit.level."""
    return LevelVector(width, waves, before)


def narrow_level(width: int, text_width: int, *, level_width: int, before: int) -> LevelVector:
    """Build a `LevelVector` of `level_width` channels, for dit.level; it has as many waves as the network has channels."""
    return LevelVector(int(positive("level.level_width", level_width)), width, before)


class LevelAndPooled(nn.Module):
    """Embedding of noise levels, the pooled caption vector, and, unless None, the guidance scale that a distilled network imitates."""

    def __init__(self, width: int, waves: int, pooled_width: int, guidance: float | None) -> None:
        super().__init__()
        positive("level.pooled_width", pooled_width)
        if guidance is not None and not 0 <= guidance < inf:
            raise ValueError(f"level.guidance is {guidance}; a guidance scale is at least 0, or null for a network that is told none")
        self.width, self.time, self.scale = width, LevelWaves(waves, width, late=False), guidance
        self.pooled = nn.Sequential(nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width))
        self.guidance = LevelWaves(waves, width, late=False) if guidance is not None else None

    def forward(self, levels: Float[Tensor, "U"], owners: Int[Tensor, "U"], text: TextTokens) -> Float[Tensor, "U C"]:
        wanted, given = self.pooled[0].in_features, 0 if text.pooled is None else text.pooled.shape[1]
        if text.pooled is None or given != wanted:
            raise ValueError(
                f"this network wants a vector of {wanted} numbers for each whole caption (dit.level.pooled_width), and the text encoder"
                f" gives {given or 'none'}; choose text=flux or text=hunyuan_video, or another encoder of sora.text.pooled, or another dit"
            )
        level = self.time(1000 * levels) + F.embedding(owners, self.pooled(text.pooled))
        if self.guidance is not None and self.scale is not None:
            level = level + self.guidance(torch.full_like(levels[:1], 1000 * self.scale))
        return level


def level_and_pooled(width: int, text_width: int, *, waves: int, pooled_width: int, guidance: float | None) -> LevelAndPooled:
    """Build a `LevelAndPooled`, for dit.level."""
    return LevelAndPooled(width, waves, pooled_width, guidance)


class LevelAndLabel(nn.Module):
    """Embedding of noise levels, as step numbers 0 to 999, and of a class, given as a caption of one one-hot token."""

    def __init__(self, width: int, waves: int, classes: int) -> None:
        super().__init__()
        self.width, self.time = width, LevelWaves(waves, width, late=True)
        self.label = nn.Linear(classes, width, bias=False)

    def forward(self, levels: Float[Tensor, "U"], owners: Int[Tensor, "U"], text: TextTokens) -> Float[Tensor, "U C"]:
        return self.time(told(levels, 1)) + F.embedding(owners, self.label(means(text.states, text.segments)))


def level_and_label(width: int, text_width: int, *, waves: int) -> LevelAndLabel:
    """Build a `LevelAndLabel`, for dit.level. text_width: number of classes, including the one for no class."""
    return LevelAndLabel(width, waves, text_width)
