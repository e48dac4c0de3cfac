"""Positions on three axes, seconds, rows and columns: rotary (Su et al. 2021; axial as in the published video DiTs), and absolute waves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn


class AxialRope(nn.Module):
    """Rotate pairs of channels of each head by angles that grow with a token's position, so that scores feel differences only.

    axes: how many of a head's channels follow seconds, rows and columns (even numbers; they add up to the head's width).
    time_scale: positions per second, so that a second weighs as much as so many rows. theta: the slowest pair turns about once in
    2 pi theta positions.
    """

    rates: Float[Tensor, "3 E2"]

    def __init__(self, *, axes: Sequence[int], time_scale: float, theta: float) -> None:
        super().__init__()
        if len(axes) != 3 or any(axis % 2 or axis < 0 for axis in axes):
            raise ValueError(f"rope.axes is {list(axes)}; it needs three even numbers: channels for seconds, rows and columns")
        self.width = sum(axes)
        rates = [theta ** (-torch.arange(0, axis, 2, dtype=torch.float64) / max(axis, 1)) for axis in axes]
        scales = (time_scale, 1.0, 1.0)
        table = torch.block_diag(*[(rate * scale)[None] for rate, scale in zip(rates, scales, strict=True)])
        self.register_buffer("rates", table.float(), persistent=False)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Complex[Tensor, "N 1 E2"]:
        """The unit complex number by which each token's E/2 pairs are multiplied, the same for every head."""
        # float32 whatever the autocast: bf16 angles repeat after about 256 positions.
        with torch.autocast(positions.device.type, enabled=False):
            angles = positions.float() @ self.rates.float()
        return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotate(x: Float[Tensor, "N K E"], rotation: Complex[Tensor, "N J E2"]) -> Float[Tensor, "N K E"]:
    """Turn each pair (x[2i], x[2i + 1]) by its angle."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class Waves(nn.Module):
    """An absolute position as cosines and sines of each axis, projected to the network's width (as in Vaswani et al. 2017).

    Rotations tell tokens how far apart they are, never where the clip's edges lie; a caption that says "at the top" needs both.
    waves: per axis, of wave lengths from 2 to 512 positions. time_scale: positions per second.
    """

    rates: Float[Tensor, "W"]
    scales: Float[Tensor, "3"]

    def __init__(self, width: int, *, waves: int, time_scale: float) -> None:
        super().__init__()
        rates = 2 * torch.pi / torch.logspace(1, 9, waves, base=2.0)
        self.register_buffer("rates", rates, persistent=False)
        self.register_buffer("scales", torch.tensor([time_scale, 1.0, 1.0]), persistent=False)
        self.project = nn.Linear(6 * waves, width)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        angles = ((positions * self.scales)[..., None] * self.rates).flatten(1)  # N 3W
        return self.project(torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.project.weight.dtype))


def waves(width: int, *, count: int, time_scale: float) -> Waves:
    """dit.position: see `Waves`."""
    return Waves(width, waves=count, time_scale=time_scale)
