"""A small denoising network and packs that are hard to cut over ranks: odd lengths, images among videos, conditions, no words."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sora.diffusion import levels, prediction, weighting
from sora.diffusion.density import Uniform
from sora.diffusion.objective import Objective
from sora.diffusion.path import Straight
from sora.patches.packing import pack
from sora.system import draws
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid
from sora.training.diffusion_task import DiffusionTask
from tests.dit.test_dit import TEXT, P, network

PACKS, BUDGET, WORDS, CLIPS = 4, 32, 13, 4
GRIDS = (Grid(1, 2, 2), Grid(3, 3, 1), Grid(2, 1, 4), Grid(1, 1, 1), Grid(5, 2, 2), Grid(1, 4, 4))
LENGTHS = (4, 1, 0, 3, 5, 2)


def packs_of(step: int) -> list[Batch]:
    """Ragged: none has the clips of another, and one has no padding."""
    return [_pack(step, number) for number in range(PACKS)]


def _pack(step: int, number: int) -> Batch:
    chosen = [(step + number) % 6, (2 * step + number + 1) % 6] if number else [4, 2, 0]  # the latter fill the budget
    grids = [GRIDS[place] for place in chosen]
    ids = [100 * step + 10 * number + place for place in range(len(chosen))]

    def drawn(kind: str, shape: tuple[int, ...], sample: int) -> torch.Tensor:
        return draws.normal(kind, shape, seed=5, epoch=0, sample=sample)

    patches = [drawn("patches", (grid.tokens, P), sample) for grid, sample in zip(grids, ids, strict=True)]
    words = [drawn("words", (LENGTHS[place], TEXT), sample) for place, sample in zip(chosen, ids, strict=True)]
    seconds = [torch.arange(grid.t) / 4 for grid in grids]
    conditions = torch.zeros(BUDGET, dtype=torch.bool)
    conditions[: grids[0].h * grids[0].w] = grids[0].t > 1  # its first frame is given
    return Batch(
        tokens=pack(patches, grids, seconds=seconds, budget=BUDGET, max_clips=CLIPS),
        text=pack_text(words, budget=WORDS, max_clips=CLIPS),
        conditions=conditions,
        sample_ids=tuple(ids),
        epochs=(0,) * len(ids),
    )


def task(**changes: Any) -> DiffusionTask:
    """The same weights every time. changes: of the network."""
    objective = Objective(
        path=Straight(),
        density=Uniform(),
        prediction=prediction.velocity_prediction,
        weighting=weighting.constant_weight,
        shift=partial(levels.constant_shift, value=1.0),
        frame_level_share=0.5,
        max_levels=24,
    )
    dit = network(**({"width": 64, "heads": 4, "trained": False} | changes))  # pyright: ignore[reportArgumentType]
    for parameter in dit.parameters():  # so that everything matters, and nothing so much that rounding does
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return DiffusionTask(dit=dit, text=torch.nn.Identity(), objective=objective, seed=1, bins=4, encode=None)
