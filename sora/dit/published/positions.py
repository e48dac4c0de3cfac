"""Absolute positions of published networks: width -> module(coordinates, extents of the clips) -> what is added to the tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sora.dit.layers.rope import positive


def sines_1d(positions: Float[Tensor, "N"], width: int) -> Float[Tensor, "N W"]:
    """Sines and then cosines of `width` / 2 rates from 1 down to 1 / 10,000 (Vaswani et al. 2017, 3.5), in float64."""
    rates = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64, device=positions.device) / (width / 2))
    angles = positions.double()[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Sines3d(nn.Module):
    """A quarter of the channels for frames, the rest for columns and then rows (CogVideoX-2B). stretch: of rows and columns."""

    def __init__(self, width: int, stretch: float) -> None:
        super().__init__()
        self.width, self.stretch = width, positive("position.stretch", stretch)

    def forward(self, coordinates: Float[Tensor, "N 3"], extents: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        frame, row, column = coordinates.unbind(1)
        flat = 3 * self.width // 8
        parts = (sines_1d(frame, self.width // 4), sines_1d(column / self.stretch, flat), sines_1d(row / self.stretch, flat))
        return torch.cat(parts, dim=1).float()


def sines_3d(width: int, *, stretch: float) -> Sines3d:
    """dit.position: see `Sines3d`."""
    return Sines3d(width, stretch)


class Sines2d(nn.Module):
    """Half of the channels for columns, half for rows; a clip of any size is `rows` high and as many wide, in steps of 1 / `density`."""

    def __init__(self, width: int, rows: int, density: float) -> None:
        super().__init__()
        self.width = width
        self.rows, self.density = positive("position.rows", rows), positive("position.density", density)

    def forward(self, coordinates: Float[Tensor, "N 3"], extents: Int[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        row, column = (coordinates[:, axis] / (extents[:, axis] / self.rows) / self.density for axis in (1, 2))
        return torch.cat((sines_1d(column, self.width // 2), sines_1d(row, self.width // 2)), dim=1).float()


def sines_2d(width: int, *, rows: int, density: float) -> Sines2d:
    """dit.position: see `Sines2d`."""
    return Sines2d(width, rows, density)
