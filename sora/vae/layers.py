"""Layers of the VAE: Haar transforms of pixel blocks, causal convolutions, downsampling and upsampling.

All layers are causal in time and normalise each position by itself, so a later frame cannot change an earlier output, and the output for
a clip does not depend on the other clips of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Triple = tuple[int, int, int]

# Standard deviations, for pixels in [-1, 1], of a block's mean, and of the amplitude of scale 0 extrapolated from its finer Haar scales.
MEAN_SPREAD, DETAIL_SPREAD = 0.4, 0.1
COLOURS = 3
COLOUR_SPREADS = (1.5, 0.6, 0.6)  # standard deviations of lightness and two colour differences, relative to RGB; mean square is about 1


def triple(values: object, name: str) -> Triple:
    """Check a value from YAML and return it as three positive integers (time, rows, columns). Raises ValueError that names the key."""
    items = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(items) != 3 or not all(isinstance(item, int) and item >= 1 for item in items):
        raise ValueError(f"{name} must be three positive integers (time, rows, columns), not {values!r}; change vae.{name}")
    return items


def group(x: Float[Tensor, "B C T H W"], size: Triple) -> Float[Tensor, "B D t h w"]:
    """Move each block of `size` positions (time, rows, columns) into the channels (space-to-depth)."""
    return rearrange(x, "b c (t pt) (h ph) (w pw) -> b (pt ph pw c) t h w", pt=size[0], ph=size[1], pw=size[2])


def ungroup(x: Float[Tensor, "B D t h w"], size: Triple) -> Float[Tensor, "B C T H W"]:
    """Inverse of `group`."""
    return rearrange(x, "b (pt ph pw c) t h w -> b c (t pt) (h ph) (w pw)", pt=size[0], ph=size[1], pw=size[2])


def haar_levels(length: int) -> tuple[Float[Tensor, "n n"], list[int]]:
    """Orthonormal Haar basis of `length` samples, one basis vector per row from coarse to fine, and the scale of each row (0: mean)."""
    if length < 1 or length & (length - 1):
        raise ValueError(f"a Haar stem needs block sizes that are powers of two, not {length}; change vae.stem or vae.strides")
    basis, levels = torch.ones(1, 1, dtype=torch.float64), [0]
    while len(levels) < length:
        count = len(levels)
        coarse = torch.kron(basis, torch.tensor([[1.0, 1.0]], dtype=torch.float64))
        fine = torch.kron(torch.eye(count, dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64))
        basis, levels = torch.cat([coarse, fine]) / 2**0.5, levels + [max(levels) + 1] * count
    return basis, levels


def haar_blocks(size: Triple) -> tuple[Float[Tensor, "D D"], Float[Tensor, " D"]]:
    """Orthonormal Haar basis of a block's D = 3 * time * rows * columns pixel values, and the standard deviation of each coefficient.

    Basis vectors are ordered by Haar scale, coarse first, and within a scale by lightness and two colour differences. The standard
    deviations assume pixels in [-1, 1] and a spectrum like that of natural video: each finer scale has half the amplitude.
    """
    (time, a), (rows, b), (columns, c) = (haar_levels(length) for length in size)
    scales = [i + j + k for i in a for j in b for k in c]
    order = sorted(range(len(scales)), key=lambda row: scales[row])
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    colours = colours / colours.square().sum(1, keepdim=True).sqrt()
    basis = torch.kron(torch.kron(torch.kron(time, rows), columns)[order], colours)
    spread = torch.tensor([DETAIL_SPREAD * 0.5**scale if scale else MEAN_SPREAD for scale in sorted(scales)]) * len(scales) ** 0.5
    return basis.float(), torch.kron(spread, torch.tensor(COLOUR_SPREADS))


class CausalConv(nn.Module):
    """3-D convolution that is causal in time: it sees the current frame and earlier ones, and zeros before the first."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple) -> None:
        super().__init__()
        self.past = kernel[0] - 1
        self.sides = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D T H W"]:
        return self.with_weight(x, self.conv.weight)

    def with_weight(self, x: Float[Tensor, "B C T H W"], weight: Float[Tensor, "D C kt kh kw"]) -> Float[Tensor, "B D T H W"]:
        # Beware: torch's CPU conv3d is several times slower for batch 1 at small sizes. In all other cases F.pad keeps the fast kernel.
        past = F.pad(x, (0, 0, 0, 0, self.past, 0)) if self.past else x
        return F.conv3d(past, weight, self.conv.bias, padding=self.sides)


class FromPixels(nn.Module):
    """Causal convolution over the Haar coefficients of blocks of pixels.

    The coefficients are scaled to about unit variance, so that all weights learn at the same rate; see `haar_blocks` for their order. They
    are never computed: the transform is multiplied into the weights, which is cheaper than transforming the pixels.
    """

    forth: Tensor

    def __init__(self, size: Triple, outputs: int, kernel: Triple) -> None:
        super().__init__()
        self.size = size
        self.coefficients = COLOURS * size[0] * size[1] * size[2]
        self.conv = CausalConv(self.coefficients, outputs, kernel)
        basis, spread = haar_blocks(size)
        self.register_buffer("forth", basis / spread[:, None], persistent=False)

    def forward(self, frames: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B D t h w"]:
        weight = einsum(self.conv.conv.weight, self.forth, "d k t h w, k p -> d p t h w")
        return self.conv.with_weight(group(frames, self.size), weight)


class ToPixels(nn.Module):
    """Linear map of each position to Haar coefficients, followed by the inverse Haar transform to pixels."""

    back: Tensor

    def __init__(self, inputs: int, size: Triple) -> None:
        super().__init__()
        self.size = size
        self.map = nn.Linear(inputs, COLOURS * size[0] * size[1] * size[2])
        basis, spread = haar_blocks(size)
        self.register_buffer("back", (basis * spread[:, None]), persistent=False)

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        weight = rearrange(self.back.T @ self.map.weight, "d i -> d i 1 1 1")
        return ungroup(F.conv3d(x, weight, self.map.bias @ self.back), self.size)


class Norm(nn.Module):
    """RMS norm over the channels of each position (Zhang & Sennrich 2019), so that no statistics are shared across time or space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.gain


class ResidualBlock(nn.Module):
    """Residual block of two causal convolutions, initialised to the identity."""

    def __init__(self, channels: int, kernel: Triple) -> None:
        super().__init__()
        self.first = nn.Sequential(Norm(channels), nn.SiLU(), CausalConv(channels, channels, kernel))
        self.second = nn.Sequential(Norm(channels), nn.SiLU(), CausalConv(channels, channels, kernel))
        zero(self.second[-1])

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        return x + self.second(self.first(x))


class OutputHead(nn.Module):
    """Norm, SiLU and an output layer initialised to zero, so that at initialisation only the linear shortcut beside it contributes."""

    def __init__(self, channels: int, out: nn.Module) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.out = out
        zero(out)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Tensor:
        return self.out(F.silu(self.norm(x)))


class Down(nn.Module):
    """Downsampling: blocks of `factor` positions are moved into the channels and mixed by a 1x1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, factor: Triple) -> None:
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv3d(inputs * factor[0] * factor[1] * factor[2], outputs, 1)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B D t h w"]:
        return self.mix(group(x, self.factor))


class Up(nn.Module):
    """Upsampling: a 1x1x1 convolution, then channels are moved into blocks of `factor` positions."""

    def __init__(self, inputs: int, outputs: int, factor: Triple) -> None:
        super().__init__()
        self.factor = factor
        self.mix = nn.Conv3d(inputs, outputs * factor[0] * factor[1] * factor[2], 1)

    def forward(self, x: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B D T H W"]:
        return ungroup(self.mix(x), self.factor)


def zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
