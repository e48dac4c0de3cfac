"""Position embeddings over seconds, rows and columns: axial rotary (Su et al. 2021), and absolute, as sinusoids or learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Protocol

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Stretch = Callable[[Sequence[Tensor]], tuple[Sequence[Tensor], float]]


class Rope(Protocol):
    """Computes rotations of heads of `width` channels from the positions of tokens, (N, 3)."""

    width: int

    def __call__(self, positions: Tensor) -> Tensor: ...


def positive(key: str, value: float) -> float:
    """Return `value` if it is above 0 and finite. Raises ValueError that names `key` otherwise."""
    if not 0 < value < inf:
        raise ValueError(f"{key} is {value}; it must be above 0, and finite")
    return value


class AxialRope(nn.Module):
    """Axial rotary position embedding: pairs of channels of each head rotate by angles proportional to time, row or column.

    axes: number of channels of a head for seconds, rows and columns; even numbers that add up to the head's width.
    time_scale: positions per second; one second counts as this many rows. theta: base of the rates; the slowest pair turns about once in
    2 pi theta positions. stretch: rescales rates for longer or larger clips than in training, see `sora.dit.layers.rope_scaling`.
    """

    axis: Int[Tensor, "E2"]
    bits: Int[Tensor, "E2"]

    def __init__(self, *, axes: Sequence[int], time_scale: float, theta: float, stretch: Stretch | None = None) -> None:
        super().__init__()
        if len(axes) != 3 or any(axis % 2 or axis < 0 for axis in axes):
            raise ValueError(f"rope.axes is {list(axes)}; it needs three even numbers: channels for seconds, rows and columns")
        self.width, self.axes, self.time_scale, self.theta, self.stretch = sum(axes), tuple(axes), time_scale, theta, stretch
        theta, time_scale = positive("rope.theta", theta), positive("rope.time_scale", time_scale)
        rates = [theta ** (-torch.arange(0, axis, 2, dtype=torch.float64) / max(axis, 1)) for axis in axes]
        rates, self.gain = stretch(rates) if stretch is not None else (rates, 1.0)
        scales = (time_scale, 1.0, 1.0)
        table = torch.cat([rate * scale for rate, scale in zip(rates, scales, strict=True)])
        self.register_buffer("axis", torch.cat([torch.full((len(rate),), number) for number, rate in enumerate(rates)]), persistent=False)
        # As int32 bits, because casting a module to bf16 casts its float buffers too; bf16 rates are wrong by a turn at position 1,000.
        self.register_buffer("bits", table.float().view(torch.int32), persistent=False)

    def values(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        return {"axes": self.axes, "time_scale": self.time_scale, "theta": self.theta, "stretch": self.stretch}

    @property
    def rates(self) -> Float[Tensor, "E2"]:
        """Rotation rate of each pair, in radians per second, or per row or column of patches."""
        return self.bits.view(torch.float32)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Complex[Tensor, "N 1 E2"]:
        """Complex factor of each of a token's E/2 pairs, the same for every head; its modulus is 1, or the gain of `stretch`."""
        # No matrix product, which autocast would run in bf16: bf16 angles repeat after about 256 positions.
        angles = positions.float().index_select(1, self.axis) * self.rates
        return torch.polar(torch.full_like(angles, self.gain), angles)[:, None]


def rotate(x: Float[Tensor, "N K E"], rotation: Complex[Tensor, "N J E2"]) -> Float[Tensor, "N K E"]:
    """Multiply each pair (x[2i], x[2i + 1]), as a complex number, by its rotation."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class Waves(nn.Module):
    """Absolute position embedding: cosines and sines along each axis (Vaswani et al. 2017), projected to the network's width.

    Rotary embeddings encode only distances between tokens; a caption that says "at the top" needs absolute positions too.
    waves: number of wavelengths per axis, from 2 to 512 positions. time_scale: positions per second.
    """

    bits: Int[Tensor, "W"]
    scales: Float[Tensor, "3"]

    def __init__(self, width: int, *, waves: int, time_scale: float) -> None:
        super().__init__()
        if waves < 1:
            raise ValueError(f"dit.position.count is {waves}; it needs 1 wave or more per axis, or dit.position=null")
        rates = 2 * torch.pi / torch.logspace(1, 9, waves, base=2.0)
        self.register_buffer("bits", rates.view(torch.int32), persistent=False)  # as in AxialRope
        self.register_buffer("scales", torch.tensor([positive("dit.position.time_scale", time_scale), 1.0, 1.0]), persistent=False)
        self.project = nn.Linear(6 * waves, width)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        angles = ((positions * self.scales)[..., None] * self.bits.view(torch.float32)).flatten(1)  # N 3W
        return self.project(torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.project.weight.dtype))


def wave_positions(width: int, *, count: int, time_scale: float) -> Waves:
    """Build a `Waves`, for dit.position. count: number of wavelengths per axis."""
    return Waves(width, waves=count, time_scale=time_scale)


class Learned(nn.Module):
    """Learned absolute position embedding: the sum of one vector per axis, from a table of each axis (NaViT, Dehghani et al. 2023).

    places: number of vectors in each table, for positions 0 to places - 1. Vectors are interpolated linearly between these positions, and
    later positions get the last vector. time_scale: positions per second.
    """

    scales: Float[Tensor, "3"]

    def __init__(self, width: int, *, places: int, time_scale: float) -> None:
        super().__init__()
        if places < 1:
            raise ValueError(f"dit.position.count is {places}; an axis has one place or more")
        self.tables = nn.ParameterList(0.02 * torch.randn(places, width) for _ in range(3))
        self.register_buffer("scales", torch.tensor([positive("dit.position.time_scale", time_scale), 1.0, 1.0]), persistent=False)

    def forward(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N D"]:
        time, rows, columns = (
            _between(table, place) for table, place in zip(self.tables, (positions * self.scales).unbind(1), strict=True)
        )
        return time + rows + columns


def _between(table: Float[Tensor, "K D"], places: Float[Tensor, "N"]) -> Float[Tensor, "N D"]:
    """Rows of a table at fractional indices, by linear interpolation between the two nearest rows."""
    last = len(table) - 1
    inside = places.float().clamp(0, last)
    before = inside.floor()
    share = (inside - before)[:, None].to(table.dtype)
    first = before.long()
    return torch.lerp(F.embedding(first, table), F.embedding((first + 1).clamp(max=last), table), share)


def learned_positions(width: int, *, count: int, time_scale: float) -> Learned:
    """Build a `Learned`, for dit.position. count: number of vectors per axis."""
    return Learned(width, places=count, time_scale=time_scale)
