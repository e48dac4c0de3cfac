"""Blocks of pixels in the place of latents, for a captioner of videos for which there is no VAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sora.patches.geometry import Geometry
from sora.system.files import text_hash


class PixelBlocks(nn.Module):
    """Cuts frames into blocks as a causal VAE does, and gives their pixels as channels: it has no weights.

    The first frame fills a block of its own, in which it is repeated. stride: frames, rows and columns of a block.
    """

    def __init__(self, *, stride: Sequence[int]) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"pixels.stride={list(stride)}: give frames, rows and columns of a block, each at least 1")
        time, rows, columns = map(int, stride)
        self.stride = (time, rows, columns)
        self.latent_channels = 3 * time * rows * columns

    @property
    def fingerprint(self) -> str:
        return text_hash(f"blocks of pixels {self.stride}")

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Blocks in time, rows and columns of a clip. ValueError if its size does not fit the stride."""
        return Geometry(self.stride).latent_shape(frames, height, width)

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B C t h w"]:
        """Pixels from -1 to 1."""
        self.latent_shape(*frames.shape[1:4])
        time, rows, columns = self.stride
        whole = torch.cat([frames[:, :1].expand(-1, time - 1, -1, -1, -1), frames], dim=1).float() / 127.5 - 1.0
        return rearrange(whole, "b (t u) (h v) (w x) c -> b (u v x c) t h w", u=time, v=rows, x=columns)

    def decode(self, blocks: Float[Tensor, "B C t h w"]) -> UInt8[Tensor, "B T H W 3"]:
        """The frames that `encode` was given."""
        time, rows, columns = self.stride
        whole = rearrange(blocks, "b (u v x c) t h w -> b (t u) (h v) (w x) c", u=time, v=rows, x=columns)
        return ((whole[:, time - 1 :] + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
