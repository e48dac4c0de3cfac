"""The loss on clips that are never trained on, at levels and with noise that never change: what two checkpoints differ in is theirs.

It is the error of the velocity that a prediction means, unweighted, at levels spread evenly over [0, 1]. So it is a matter of path and
data alone: runs with another prediction, weighting, density or shift are measured by the same yardstick.
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
    """The errors of one pack's clips, (G,), at one level with one draw of noise. batch: the pack's number."""

    batch: int
    level: int
    errors: Float[Tensor, "G"]


class HeldOutLoss:
    """Measures a network on packs of clips, each clip at every level.

    levels: how many, the middles of as many equal parts of [0, 1]. draws: of noise for each clip and level. seed: of the noise. max_levels:
    as for `Objective`. Raises ValueError where the prediction means no velocity at one of the levels.
    """

    def __init__(self, *, path: Path, prediction: Prediction, levels: int, draws: int, seed: int, max_levels: int | None = None) -> None:
        if levels < 1 or draws < 1:
            raise ValueError(f"a loss at {levels} levels with {draws} draws of noise: give at least one of both")
        self.path, self.prediction, self.seed, self.draws, self.max_levels = path, prediction, seed, draws, max_levels
        self.levels = tuple((number + 0.5) / levels for number in range(levels))
        check_levels(torch.tensor(self.levels), prediction, path=path)

    def pieces(self, network: Network, text: Text, batches: Sequence[Batch]) -> Iterator[LevelLoss]:
        """All there is to measure, a forward pass each: len(batches) * levels * draws of them."""
        for number, batch in enumerate(batches):
            said = text(batch.text)
            for level in range(len(self.levels)):
                for draw in range(self.draws):
                    yield LevelLoss(number, level, self.errors(network, batch, said, level=level, draw=draw))

    @torch.no_grad()
    def errors(self, network: Network, batch: Batch, text: TextTokens, *, level: int, draw: int) -> Float[Tensor, "G"]:
        """The mean squared error of each clip's velocity, over its tokens that are no conditions and their channels. text: ready for it."""
        noised = self._noised(batch, level=self.levels[level], draw=draw)
        t, x = noised.levels.spread(), noised.tokens.patches
        target = like(self.path.d_alpha(t), x) * batch.tokens.patches.float() + like(self.path.d_sigma(t), x) * noised.eps
        found = convert(network(noised.tokens, noised.levels, text).float(), x, t, self.prediction, velocity_prediction, path=self.path)
        error = (found - target).square().mean(dim=1)
        # where, not times: at level 0, which padding has, some predictions mean no velocity
        counted = torch.where(noised.mask, error, torch.zeros_like(error)).double()
        owner, groups = owners(batch.tokens.segments), batch.tokens.segments.count
        total = torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, owner, counted)
        count = torch.zeros(groups, dtype=torch.float64, device=x.device).index_add(0, owner, noised.mask.double())
        clips = len(batch.tokens.grids)
        return total[:clips] / count[:clips]

    def _noised(self, batch: Batch, *, level: float, draw: int) -> Noised:
        """Noise follows from the clip, the seed and the draw: the same at every level, on every device and in any pack."""
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
    """Of each clip (n) at each level (L). samples: the clips' ids; grids: their patches. Clips that could not be read are left out."""

    levels: tuple[float, ...]
    samples: tuple[int, ...]
    grids: tuple[Grid, ...]
    values: Float[Tensor, "n L"]

    @property
    def clips(self) -> Float[Tensor, "n"]:
        """Of each clip, over all levels: what two checkpoints are compared by."""
        return self.values.mean(dim=1)

    def by_level(self) -> dict[float, float]:
        return dict(zip(self.levels, self.values.mean(dim=0).tolist(), strict=True))

    def by_shape(self) -> list[tuple[Grid, int, list[float]]]:
        """For each grid, the smallest first: how many clips have it, and their mean loss at each level."""
        found = []
        for grid in sorted(set(self.grids), key=lambda grid: (grid.tokens, grid)):
            rows = [number for number, other in enumerate(self.grids) if other == grid]
            found.append((grid, len(rows), self.values[rows].mean(dim=0).tolist()))
        return found


class LossTable:
    """Adds up pieces, of any packs in any order; over ranks, `sums` is summed. samples, grids: of all clips that are to be measured."""

    def __init__(self, samples: Sequence[int], grids: Sequence[Grid], levels: tuple[float, ...]) -> None:
        self.samples, self.grids, self.levels = tuple(samples), tuple(grids), levels
        self._place = {sample: number for number, sample in enumerate(samples)}
        self.sums = torch.zeros(2, len(self.samples), len(levels), dtype=torch.float64)  # of errors, and how many

    def add(self, piece: LevelLoss, samples: Sequence[int]) -> None:
        """samples: of the piece's pack."""
        rows = [self._place[sample] for sample in samples]
        self.sums[0, rows, piece.level] += piece.errors.cpu()
        self.sums[1, rows, piece.level] += 1

    def losses(self) -> Losses:
        """Raises ValueError if not one clip was measured."""
        seen = (self.sums[1] > 0).all(dim=1)
        if not bool(seen.any()):
            raise ValueError("no held-out clip could be measured: none of them can be read")
        rows = seen.nonzero().flatten().tolist()
        kept = [(self.samples[row], self.grids[row]) for row in rows]
        values = self.sums[0, rows] / self.sums[1, rows]
        return Losses(self.levels, tuple(sample for sample, _ in kept), tuple(grid for _, grid in kept), values)
