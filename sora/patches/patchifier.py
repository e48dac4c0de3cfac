"""Cut latents into spacetime patches, and put them together again."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sora.tokens import Grid


class Patchifier:
    """Spacetime patches of one size (t, h, w), in latent frames, rows and columns."""

    def __init__(self, *, size: Sequence[int]) -> None:
        if len(size) != 3 or min(size) < 1:
            raise ValueError(f"patches.size is {list(size)}; it needs three whole numbers of at least 1: frames, rows, columns")
        self.size = Grid(*map(int, size))

    def __repr__(self) -> str:
        return f"Patchifier(size={tuple(self.size)})"

    def channels(self, latent_channels: int) -> int:
        """P, how many numbers a patch of latents with so many channels holds."""
        return latent_channels * self.size.tokens

    def grid(self, t: int, h: int, w: int) -> Grid:
        """How many patches a clip of t latent frames, h rows and w columns spans; ValueError unless patches fit exactly."""
        pt, ph, pw = self.size
        if t % pt or h % ph or w % pw or min(t, h, w) < 1:
            raise ValueError(f"latents of {t}x{h}x{w} do not divide into patches of {pt}x{ph}x{pw}; crop the clip or change patches.size")
        return Grid(t // pt, h // ph, w // pw)

    def patchify(self, latents: Float[Tensor, "C T H W"]) -> Float[Tensor, "n P"]:
        """One row per patch, in the order time, row, column; inside a row: time, row, column, channel."""
        pt, ph, pw = self.size
        self.grid(*latents.shape[1:])
        return rearrange(latents, "c (t pt) (h ph) (w pw) -> (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)

    def unpatchify(self, tokens: Float[Tensor, "n P"], grid: Grid, channels: int) -> Float[Tensor, "C T H W"]:
        """The inverse of `patchify`. channels: C of the latents."""
        pt, ph, pw = self.size
        if tuple(tokens.shape) != (grid.tokens, self.channels(channels)):
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)} are not a grid of {grid.t}x{grid.h}x{grid.w} patches"
                f" with {self.channels(channels)} numbers each ({channels} channels, patches of {pt}x{ph}x{pw})"
            )
        pattern = "(t h w) (pt ph pw c) -> c (t pt) (h ph) (w pw)"
        return rearrange(tokens, pattern, t=grid.t, h=grid.h, w=grid.w, pt=pt, ph=ph, pw=pw, c=channels)
