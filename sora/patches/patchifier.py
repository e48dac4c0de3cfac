"""Split latents into spacetime patches, and assemble latents from patches."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sora.tokens import Grid


class Patchifier:
    """Splits latents into spacetime patches of one size, (t, h, w) in latent frames, rows and columns."""

    def __init__(self, *, size: Sequence[int]) -> None:
        if len(size) != 3 or min(size) < 1:
            raise ValueError(f"patches.size is {list(size)}; it needs three whole numbers of at least 1: frames, rows, columns")
        self.size = Grid(*map(int, size))

    def __repr__(self) -> str:
        return f"Patchifier(size={tuple(self.size)})"

    def channels(self, latent_channels: int) -> int:
        """P, the number of values in a patch of latents with `latent_channels` channels."""
        return latent_channels * self.size.tokens

    def grid(self, t: int, h: int, w: int) -> Grid:
        """Number of patches of a clip with t latent frames, h rows and w columns. Raises ValueError unless patches fit exactly."""
        pt, ph, pw = self.size
        if t % pt or h % ph or w % pw or min(t, h, w) < 1:
            raise ValueError(f"latents of {t}x{h}x{w} do not divide into patches of {pt}x{ph}x{pw}; crop the clip or change patches.size")
        return Grid(t // pt, h // ph, w // pw)

    def patchify(self, latents: Float[Tensor, "C T H W"]) -> Float[Tensor, "n P"]:
        """Latents as one row per patch, ordered by time, row and column; the values in a row by time, row, column and channel."""
        pt, ph, pw = self.size
        self.grid(*latents.shape[1:])
        return rearrange(latents, "c (t pt) (h ph) (w pw) -> (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)

    def unpatchify(self, tokens: Float[Tensor, "n P"], grid: Grid, channels: int) -> Float[Tensor, "C T H W"]:
        """Inverse of `patchify`. channels: number of latent channels, C."""
        pt, ph, pw = self.size
        if tuple(tokens.shape) != (grid.tokens, self.channels(channels)):
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)} are not a grid of {grid.t}x{grid.h}x{grid.w} patches"
                f" with {self.channels(channels)} numbers each ({channels} channels, patches of {pt}x{ph}x{pw})"
            )
        pattern = "(t h w) (pt ph pw c) -> c (t pt) (h ph) (w pw)"
        return rearrange(tokens, pattern, t=grid.t, h=grid.h, w=grid.w, pt=pt, ph=ph, pw=pw, c=channels)
