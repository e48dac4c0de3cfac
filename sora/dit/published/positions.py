"""Absolute position embeddings of published networks, for dit.position: width -> module(coordinates, extents of the clips) -> (N, D)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sora.dit.layers.rope import positive


def sines_1d(positions: Float[Tensor, "N"], width: int) -> Float[Tensor, "N W"]:
    """Sines, then cosines, with `width` / 2 rates from 1 down to 1 / 10,000 (Vaswani et al. 2017, 3.5), in float64."""
    rates = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64, device=positions.device) / (width / 2))
    angles = positions.double()[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Sines3d(nn.Module):
    """Sinusoids of frames (1/4 of the channels), columns and rows (3/8 each), as in CogVideoX-2B. stretch: divisor of rows and columns."""

    def __init__(self, width: int, stretch: float) -> None:
        super().__init__()
        self.width, self.stretch = width, positive("position.stretch", stretch)

    def forward(self, coordinates: Float[Tensor, "N 3"], extents: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        frame, row, column = coordinates.unbind(1)
        flat = 3 * self.width // 8
        parts = (sines_1d(frame, self.width // 4), sines_1d(column / self.stretch, flat), sines_1d(row / self.stretch, flat))
        return torch.cat(parts, dim=1).float()


def sines_3d(width: int, *, stretch: float) -> Sines3d:
    """Build a `Sines3d`, for dit.position."""
    return Sines3d(width, stretch)


class Sines2d(nn.Module):
    """Sinusoids of columns and rows (1/2 of the channels each) of clips rescaled to `rows` rows and columns. density: their divisor."""

    def __init__(self, width: int, rows: int, density: float) -> None:
        super().__init__()
        self.width = width
        self.rows, self.density = positive("position.rows", rows), positive("position.density", density)

    def forward(self, coordinates: Float[Tensor, "N 3"], extents: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        row, column = (coordinates[:, axis] / (extents[:, axis] / self.rows) / self.density for axis in (1, 2))
        return torch.cat((sines_1d(column, self.width // 2), sines_1d(row, self.width // 2)), dim=1).float()


def sines_2d(width: int, *, rows: int, density: float) -> Sines2d:
    """Build a `Sines2d`, for dit.position."""
    return Sines2d(width, rows, density)
