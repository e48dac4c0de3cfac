"""A causal video VAE with a Haar stem and linear shortcuts.

Frames are encoded in groups, one latent frame per group: the first frame alone, then `stride[0]` frames each. The first frame is repeated
in front to fill its group, so an image is a clip of one frame, and the first frame of a clip is encoded as that image would be.
Beside the convolutional encoder and decoder runs a linear map of each block of pixels (compare the shortcuts of DC-AE, Chen et al. 2024).
It is initialised to the block's coarsest Haar coefficients, so that the convolutions learn only what a linear map cannot encode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from sora.patches.geometry import Geometry
from sora.vae.layers import COLOURS, CausalConv, Down, FromPixels, OutputHead, ResidualBlock, ToPixels, Triple, Up, triple

LOG_VARIANCE = (-20.0, 4.0)
LARGEST_KERNEL = 31
LARGEST_BLOCK = 2048  # pixels per latent position; the Haar basis is a square matrix of three times this size


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian posterior over raw (not whitened) latents."""

    mean: Float[Tensor, "B C t h w"]
    logvar: Float[Tensor, "B C t h w"]

    def sample(self, noise: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        """Latents mean + std * noise, for standard normal `noise`."""
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, "B C t h w"]:
        """KL divergence from the standard normal, in nats, for each latent value (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class VideoVAE(nn.Module):
    """Encodes uint8 frames (B, T, H, W, 3) to whitened latents (B, C, t, h, w), and decodes them.

    stem: frames, rows and columns of pixels per position of the first level, powers of two. widths, blocks: channels and number of
    residual blocks of each encoder level; the decoder has the same widths in reverse order, and `decoder_blocks`. strides: downsampling
    (time, rows, columns) between successive levels, one fewer than levels. kernels: kernel sizes of each level's convolutions, odd in rows
    and columns. noise: standard deviation of the posterior at initialisation.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        latent_channels: int,
        stem: Sequence[int],
        widths: Sequence[int],
        blocks: Sequence[int],
        decoder_blocks: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        noise: float,
    ) -> None:
        super().__init__()
        stem = triple(stem, "stem")
        steps, sizes = [triple(step, "strides") for step in strides], [triple(size, "kernels") for size in kernels]
        check_levels(widths, blocks, decoder_blocks, steps, sizes)
        self.settings: dict[str, Any] = {
            "latent_channels": int(latent_channels),
            "stem": list(stem),
            "widths": [int(width) for width in widths],
            "blocks": [int(count) for count in blocks],
            "decoder_blocks": [int(count) for count in decoder_blocks],
            "strides": [list(step) for step in steps],
            "kernels": [list(size) for size in sizes],
            "noise": float(noise),
        }
        self.stride: Triple = whole_stride(stem, steps)
        if (pixels := math.prod(self.stride)) > LARGEST_BLOCK:
            raise ValueError(f"a latent is of {pixels:,} pixels, {LARGEST_BLOCK:,} are the most; lower vae.stem or vae.strides")
        self.latent_channels = int(latent_channels)
        block = COLOURS * self.stride[0] * self.stride[1] * self.stride[2]
        if not 1 <= latent_channels <= block:
            raise ValueError(f"latent_channels must lie in 1..{block}, not {latent_channels}; change vae.latent_channels")
        self.encoder = encoder_trunk(stem, widths, blocks, steps, sizes)
        self.to_posterior = OutputHead(widths[-1], nn.Conv3d(widths[-1], 2 * latent_channels, 1))
        self.linear_encode = FromPixels(self.stride, latent_channels, (1, 1, 1))
        self.decoder = decoder_trunk(latent_channels, widths, decoder_blocks, steps, sizes)
        self.to_pixels = OutputHead(widths[0], ToPixels(widths[0], stem))
        self.linear_decode = ToPixels(latent_channels, self.stride)
        self.register_buffer("shift", torch.zeros(latent_channels))
        self.register_buffer("scale", torch.ones(latent_channels))
        self._start(noise)

    def _start(self, noise: float) -> None:
        """Initialise the linear shortcuts to the coarsest Haar coefficients, and the posterior's standard deviation to `noise`."""
        if noise <= 0:
            raise ValueError(f"noise must be above 0, not {noise}; change vae.noise")
        keep = torch.eye(self.latent_channels, self.linear_encode.coefficients)
        with torch.no_grad():
            self.linear_encode.conv.conv.weight.copy_(rearrange(keep, "c d -> c d 1 1 1"))
            self.linear_decode.map.weight.copy_(keep.T)
            nn.init.zeros_(self.linear_encode.conv.conv.bias)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(self.linear_decode.map.bias)
            self.to_posterior.out.bias[self.latent_channels :] = 2 * math.log(noise)  # pyright: ignore

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a clip. Raises ValueError if its size does not fit the stride."""
        return Geometry(self.stride).latent_shape(frames, height, width)

    def posterior(self, frames: UInt8[Tensor, "B T H W 3"]) -> Posterior:
        """Posterior over the raw latents of the frames."""
        self.latent_shape(*frames.shape[1:4])
        pixels = fill_first_group(from_uint8(frames).to(self.shift.dtype), self.stride[0])
        mean, logvar = self.to_posterior(self.encoder(pixels)).chunk(2, dim=1)
        return Posterior(mean=mean + self.linear_encode(pixels), logvar=logvar.clamp(*LOG_VARIANCE))

    def whiten(self, raw: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C t h w"]:
        """Standardise raw latents to mean 0 and standard deviation 1 per channel, by the statistics that `whitening.measure` found."""
        return (raw - rearrange(self.shift, "c -> c 1 1 1")) / rearrange(self.scale, "c -> c 1 1 1")

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B C t h w"]:
        """Whitened mean of the posterior."""
        return self.whiten(self.posterior(frames).mean)

    def decode_float(self, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Decode whitened latents to frames whose pixels lie around [-1, 1]; differentiable and not clamped."""
        if latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents have {latents.shape[1]} channels, this VAE has {self.latent_channels}; they are of another VAE")
        raw = latents * rearrange(self.scale, "c -> c 1 1 1") + rearrange(self.shift, "c -> c 1 1 1")
        frames = self.to_pixels(self.decoder(raw)) + self.linear_decode(raw)
        return frames[:, :, self.stride[0] - 1 :]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C t h w"]) -> UInt8[Tensor, "B T H W 3"]:
        return to_uint8(self.decode_float(latents))


def from_uint8(frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B 3 T H W"]:
    """Map pixels from 0..255 to [-1, 1], channels first."""
    return rearrange(frames, "b t h w c -> b c t h w").float() / 127.5 - 1.0


def to_uint8(frames: Float[Tensor, "B 3 T H W"]) -> UInt8[Tensor, "B T H W 3"]:
    """Map pixels from [-1, 1] to 0..255, rounded and clamped, channels last."""
    pixels = ((frames.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "b c t h w -> b t h w c")


def fill_first_group(frames: Float[Tensor, "B 3 T H W"], length: int) -> Float[Tensor, "B 3 U H W"]:
    """Prepend length - 1 copies of the first frame, so that it fills a group of `length` frames by itself."""
    first = frames[:, :, :1].expand(-1, -1, length - 1, -1, -1)
    return torch.cat([first, frames], dim=2)


def whole_stride(stem: Triple, steps: Sequence[Triple]) -> Triple:
    time, rows, columns = stem
    for step in steps:
        time, rows, columns = time * step[0], rows * step[1], columns * step[2]
    return time, rows, columns


def check_levels(
    widths: Sequence[int], blocks: Sequence[int], decoder_blocks: Sequence[int], steps: Sequence[Triple], kernels: Sequence[Triple]
) -> None:
    levels = len(widths)
    counts = (len(blocks), len(decoder_blocks), len(kernels), len(steps))
    if not levels or counts != (levels, levels, levels, levels - 1):
        raise ValueError(
            f"{levels} widths need {levels} blocks, decoder_blocks and kernels and {levels - 1} strides, not {counts[0]}, {counts[1]}, "
            f"{counts[2]} and {counts[3]}; change vae.widths, vae.blocks, vae.decoder_blocks, vae.kernels or vae.strides"
        )
    if (largest := max(map(max, kernels))) > LARGEST_KERNEL:
        raise ValueError(f"a kernel of {largest} is above {LARGEST_KERNEL}, the most that is built; lower vae.kernels")
    if any(kernel[1] % 2 == 0 or kernel[2] % 2 == 0 for kernel in kernels):
        raise ValueError(f"kernels {[list(kernel) for kernel in kernels]} must be odd in rows and columns; change vae.kernels")


def encoder_trunk(
    stem: Triple, widths: Sequence[int], blocks: Sequence[int], steps: Sequence[Triple], kernels: Sequence[Triple]
) -> nn.Sequential:
    layers: list[nn.Module] = [FromPixels(stem, widths[0], kernels[0])]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if level:
            layers.append(Down(widths[level - 1], width, steps[level - 1]))
        layers += [ResidualBlock(width, kernels[level]) for _ in range(count)]
    return nn.Sequential(*layers)


def decoder_trunk(
    latents: int, widths: Sequence[int], blocks: Sequence[int], steps: Sequence[Triple], kernels: Sequence[Triple]
) -> nn.Sequential:
    layers: list[nn.Module] = [CausalConv(latents, widths[-1], kernels[-1])]
    for level in reversed(range(len(widths))):
        layers += [ResidualBlock(widths[level], kernels[level]) for _ in range(blocks[level])]
        if level:
            layers.append(Up(widths[level], widths[level - 1], steps[level - 1]))
    return nn.Sequential(*layers)
