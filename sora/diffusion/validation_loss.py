"""Loss on held-out clips, at fixed noise levels and with fixed noise, so that two checkpoints differ only by their weights.

It is the unweighted squared error of the velocity, to which predictions are converted, at equally spaced levels in [0, 1]. It depends on
the path and the data only, so runs with different predictions, weightings, densities or shifts are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sora.diffusion.objective import Network, Noised, pack_levels
from sora.diffusion.path import Path, like, mix
from sora.diffusion.prediction import Prediction, check_levels, convert, velocity_prediction
from sora.system.draws import normal
from sora.tokens import Batch, Grid, TextTokens, owners

Text = Callable[[TextTokens], TextTokens]


class LevelLoss(NamedTuple):
    """Errors of the G clips of one pack at one level with one draw of noise. batch, level: indices of the pack and of the level."""

    batch: int
    level: int
    errors: Float[Tensor, "G"]


class HeldOutLoss:
    """Measures the loss of a network on packs of clips, for each clip at every level.

    levels: number of noise levels: the midpoints of that many equal intervals of [0, 1]. draws: number of noise draws per clip and level.
    seed: seed of the noise. max_levels: see `Objective`.
    Raises ValueError if the prediction cannot be converted to a velocity at one of the levels.
    """

    def __init__(self, *, path: Path, prediction: Prediction, levels: int, draws: int, seed: int, max_levels: int | None = None) -> None:
        if levels < 1 or draws < 1:
            raise ValueError(f"a loss at {levels} levels with {draws} draws of noise: give at least one of both")
        self.path, self.prediction, self.seed, self.draws, self.max_levels = path, prediction, seed, draws, max_levels
        self.levels = tuple((number + 0.5) / levels for number in range(levels))
        check_levels(torch.tensor(self.levels), prediction, path=path)

    def pieces(self, network: Network, text: Text, batches: Sequence[Batch]) -> Iterator[LevelLoss]:
        """Yield the errors of every pack, level and draw: len(batches) * levels * draws forward passes. text: see `Text`."""
        for number, batch in enumerate(batches):
            said = text(batch.text)
            for level in range(len(self.levels)):
                for draw in range(self.draws):
                    yield LevelLoss(number, level, self.errors(network, batch, said, level=level, draw=draw))

    @torch.no_grad()
    def errors(self, network: Network, batch: Batch, text: TextTokens, *, level: int, draw: int) -> Float[Tensor, "G"]:
        """Mean squared error of each clip's velocity over the channels of all tokens that are not conditions.

        text: captions as the network takes them. level, draw: indices of the noise level and of the noise draw.
        """
        noised = self._noised(batch, level=self.levels[level], draw=draw)
        t, x = noised.levels.spread(), noised.tokens.patches
        target = like(self.path.d_alpha(t), x) * batch.tokens.patches.float() + like(self.path.d_sigma(t), x) * noised.eps
        found = convert(network(noised.tokens, noised.levels, text).float(), x, t, self.prediction, velocity_prediction, path=self.path)
        error = (found - target).square().mean(dim=1)
        # torch.where and not a product with the mask: at level 0, which padding has, the velocity may be infinite.
        counted = torch.where(noised.mask, error, torch.zeros_like(error)).double()
        owner, groups = owners(batch.tokens.segments), batch.tokens.segments.count
        total = torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, owner, counted)
        count = torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, owner, noised.mask.double())
        clips = len(batch.tokens.grids)
        return total[:clips] / count[:clips]

    def _noised(self, batch: Batch, *, level: float, draw: int) -> Noised:
        """Noised pack. The noise depends on the clip, the seed and the draw only: not on the level, the device or the pack."""
        clean, grids = batch.tokens.patches, batch.tokens.grids
        drawn = [
            normal("heldout", (grid.tokens, clean.shape[1]), seed=self.seed, epoch=draw, sample=sample)
            for grid, sample in zip(grids, batch.sample_ids, strict=True)
        ]
        real = sum(grid.tokens for grid in grids)
        eps = torch.zeros(clean.shape, dtype=torch.float32)
        eps[:real] = torch.cat(drawn)
        eps = eps.to(clean.device)
        conditions = batch.conditions
        levels = pack_levels(
            [torch.full((grid.t,), level) for grid in grids],
            grids,
            conditions,
            segments=batch.tokens.segments.count,
            max_levels=self.max_levels,
        )
        x = mix(self.path, clean.float(), eps, levels.spread())
        mask = (torch.arange(len(clean), device=clean.device) < real) & ~conditions
        return Noised(tokens=batch.tokens.with_patches(x), eps=eps, levels=levels, mask=mask)


@dataclass(frozen=True)
class Losses:
    """Losses of n clips at L noise levels, without the clips that could not be read. samples: ids of the clips."""

    levels: tuple[float, ...]
    samples: tuple[int, ...]
    grids: tuple[Grid, ...]
    values: Float[Tensor, "n L"]

    @property
    def clips(self) -> Float[Tensor, "n"]:
        """Mean loss of each clip over all levels, by which two checkpoints are compared."""
        return self.values.mean(dim=1)

    def by_level(self) -> dict[float, float]:
        return dict(zip(self.levels, self.values.mean(dim=0).tolist(), strict=True))

    def by_shape(self) -> list[tuple[Grid, int, list[float]]]:
        """For each grid, smallest first: the grid, the number of clips with it, and their mean loss at each level."""
        found = []
        for grid in sorted(set(self.grids), key=lambda grid: (grid.tokens, grid)):
            rows = [number for number, other in enumerate(self.grids) if other == grid]
            found.append((grid, len(rows), self.values[rows].mean(dim=0).tolist()))
        return found


class LossTable:
    """Accumulates `LevelLoss`es of any packs in any order. Over ranks, all-reduce `sums`. samples, grids: all clips to be measured."""

    def __init__(self, samples: Sequence[int], grids: Sequence[Grid], levels: tuple[float, ...]) -> None:
        self.samples, self.grids, self.levels = tuple(samples), tuple(grids), levels
        self._place = {sample: number for number, sample in enumerate(samples)}
        self.sums = torch.zeros(2, len(self.samples), len(levels), dtype=torch.float64)  # sums of errors, and their counts

    def add(self, piece: LevelLoss, samples: Sequence[int]) -> None:
        """Add the errors of one pack. samples: ids of the clips of that pack."""
        rows = [self._place[sample] for sample in samples]
        self.sums[0, rows, piece.level] += piece.errors.cpu()
        self.sums[1, rows, piece.level] += 1

    def losses(self) -> Losses:
        """Mean losses of all clips that were measured at every level. Raises ValueError if there are none."""
        seen = (self.sums[1] > 0).all(dim=1)
        if not bool(seen.any()):
            raise ValueError("no held-out clip could be measured: none of them can be read")
        rows = seen.nonzero().flatten().tolist()
        kept = [(self.samples[row], self.grids[row]) for row in rows]
        values = self.sums[0, rows] / self.sums[1, rows]
        return Losses(self.levels, tuple(sample for sample, _ in kept), tuple(grid for _, grid in kept), values)
