"""Embedding of a clip's shape (rows and columns of patches, duration, frame rate), added to its embedded noise levels."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sora.tokens import Segments, owners


class ClipShape(nn.Module):
    """Embeds rows, columns, seconds and latent frames per second of each clip by sinusoids of log2(1 + value) and a two-layer MLP.

    It is like the size conditioning of Stable Diffusion XL (Podell et al. 2023, 2.2). The values are computed from the tokens' positions,
    on the device; the frame rate of an image is 0. waves: number of sinusoids per value, with wavelengths from 1/2 to 16 doublings.
    """

    bits: Int[Tensor, "W"]

    def __init__(self, width: int, *, waves: int) -> None:
        super().__init__()
        if waves < 1:
            raise ValueError(f"dit.clip_shape.count is {waves}; it needs 1 wave or more of each number, or dit.clip_shape=null")
        rates = 2 * torch.pi / torch.logspace(-1, 4, waves, base=2.0)
        self.register_buffer("bits", rates.view(torch.int32), persistent=False)  # as in sora.dit.AxialRope
        self.project = nn.Sequential(nn.Linear(8 * waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, positions: Float[Tensor, "N 3"], segments: Segments) -> Float[Tensor, "G D"]:
        numbers = torch.log2(1 + measured_shapes(positions, segments))  # G 4
        angles = (numbers[..., None] * self.bits.view(torch.float32)).flatten(1)
        first = self.project[0]
        assert isinstance(first, nn.Linear)
        return self.project(torch.cat((angles.cos(), angles.sin()), dim=-1).to(first.weight.dtype))


def measured_shapes(positions: Float[Tensor, "N 3"], segments: Segments) -> Float[Tensor, "G 4"]:
    """Rows, columns, seconds from the first to the last latent frame, and latent frames per second of each segment; 0 if it is empty."""
    positions, segments = segments.everyones(positions), segments.whole
    owner = owners(segments)[:, None].expand(-1, 3).to(torch.int64)
    empty = positions.new_zeros(segments.count, 3)
    largest, smallest = (empty.scatter_reduce(0, owner, positions, kind, include_self=False) for kind in ("amax", "amin"))
    seconds, rows, columns = (largest - smallest).unbind(1)
    rows, columns, tokens = rows + 1, columns + 1, segments.cu_seqlens.diff()
    steps = tokens / (rows * columns) - 1
    rate = torch.where(seconds > 0, steps / seconds.clamp_min(1e-6), 0.0)
    return torch.stack((rows, columns, seconds, rate.clamp_min(0)), dim=1) * (tokens > 0)[:, None]


def clip_shape(width: int, *, count: int) -> ClipShape:
    """Build a `ClipShape`, for dit.clip_shape. count: number of sinusoids per value."""
    return ClipShape(width, waves=count)
