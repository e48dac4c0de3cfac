"""The denoising network: a transformer over packed spacetime patches (DiT, Peebles & Xie 2023; blocks as in PixArt, Chen et al. 2023).

    patches -> embed -> depth x [ attention in the clip, attention to its caption, MLP ] -> prediction per patch

Each token is modulated by the noise level of its own latent frame; levels are embedded once per (clip, latent frame), never per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.layout import Attention
from sora.dit.rope import AxialRope, rotate
from sora.tokens import NoiseLevels, PackedTokens, Segments, TextTokens


class Context(NamedTuple):
    """What every block is given beside the tokens, computed once per forward pass."""

    segments: Segments
    rotation: Complex[Tensor, "N 1 E2"]
    modulation: Float[Tensor, "U C"]
    level_index: Int[Tensor, "N"]
    text: Float[Tensor, "M D"]
    text_segments: Segments


class LevelEmbedding(nn.Module):
    """Noise levels in [0, 1] -> vectors, through waves of wave length 2 pi / 1000 and longer."""

    rates: Float[Tensor, "W"]

    def __init__(self, *, width: int, waves: int = 256) -> None:
        super().__init__()
        rates = 1000 * 10_000 ** (-torch.arange(waves // 2) / (waves // 2))
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, levels: Float[Tensor, "U"]) -> Float[Tensor, "U D"]:
        angles = levels.float()[:, None] * self.rates
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(next(self.mlp.parameters()).dtype))


class HeadNorm(nn.Module):
    """RMS norm of each head's channels, with one gain per channel (Dehghani et al. 2023): scores stay bounded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        return F.rms_norm(x, x.shape[-1:], self.gain.to(x.dtype), eps=1e-6)


class SelfAttention(nn.Module):
    """Every token of a clip sees every other token of it, and no other."""

    def __init__(self, *, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = HeadNorm(width // heads), HeadNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N D"], context: Context) -> Float[Tensor, "N D"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)  # N H E
        q = rotate(self.q_norm(q), context.rotation)
        k = rotate(self.k_norm(k), context.rotation)
        return self.out(self.attention(q, k, v, context.segments, context.segments).flatten(1))


class CrossAttention(nn.Module):
    """Every token of a clip sees the clip's own caption."""

    def __init__(self, *, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = HeadNorm(width // heads), HeadNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N D"], context: Context) -> Float[Tensor, "N D"]:
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)))
        k, v = self.kv(context.text).unflatten(-1, (2, self.heads, -1)).unbind(1)  # M H E
        return self.out(self.attention(q, self.k_norm(k), v, context.segments, context.text_segments).flatten(1))


class GeluMlp(nn.Module):
    """Two layers with a GELU between; erf, which on a CPU costs a third of the tanh form."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.down(F.gelu(self.up(x)))


class SwiGluMlp(nn.Module):
    """A gated MLP (Shazeer 2020), a third narrower than `GeluMlp` so that both have the same number of weights."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = 8 * round(width * ratio * 2 / 3 / 8)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def gelu(width: int, ratio: float) -> GeluMlp:
    """dit.mlp: see `GeluMlp`. ratio: hidden width over width."""
    return GeluMlp(width, ratio)


def swiglu(width: int, ratio: float) -> SwiGluMlp:
    """dit.mlp: see `SwiGluMlp`. ratio: hidden width over width, of the ungated MLP with as many weights."""
    return SwiGluMlp(width, ratio)


class Block(nn.Module):
    """x + gate * f(norm(x) * (1 + scale) + shift), for f = attention and then the MLP, with the caption in between (adaLN-single)."""

    def __init__(self, *, width: int, heads: int, attention: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6 * width))
        self.attention = SelfAttention(width=width, heads=heads, attention=attention)
        self.cross = CrossAttention(width=width, heads=heads, attention=attention)
        self.mlp = mlp

    def forward(self, x: Float[Tensor, "N D"], context: Context) -> Float[Tensor, "N D"]:
        # An embedding rather than an index: its gradient is a sorted sum, quick on a CPU and deterministic on a GPU.
        parts = (context.modulation + self.table).chunk(6, dim=-1)  # U D
        scale1, shift1, gate1, scale2, shift2, gate2 = (F.embedding(context.level_index, part) for part in parts)  # N D
        x = torch.addcmul(x, gate1, self.attention(modulate(x, scale1, shift1), context))
        x = x + self.cross(x, context)
        return torch.addcmul(x, gate2, self.mlp(modulate(x, scale2, shift2)))


def modulate(x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The normalised x, scaled and shifted. `scale` is the whole factor: the 1 of (1 + scale) is added per level, by the network."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)


class DiT(nn.Module):
    """Predicts, for each patch of noised latents, the P numbers that the objective asks for.

    patch_channels: P. text_width: of the caption states. width: D. mlp: (width, ratio) -> the MLP of a block. position: width -> what
    is added to a token for its place, beside the rotations. pooled_text: add the mean of a clip's caption to its noise levels, so that
    it modulates every block. attention: see `sora.dit.attention`. At birth every block is the identity and the prediction is zero.
    """

    def __init__(
        self,
        *,
        patch_channels: int,
        text_width: int,
        width: int,
        depth: int,
        heads: int,
        mlp: Callable[[int, float], nn.Module],
        mlp_ratio: float,
        rope: AxialRope,
        position: Callable[[int], nn.Module] | None,
        pooled_text: bool,
        attention: Attention,
    ) -> None:
        super().__init__()
        if width % heads or rope.width != width // heads:
            raise ValueError(
                f"dit.rope.axes add up to {rope.width}, but a head is {width / heads:g} wide (dit.width={width} / dit.heads={heads});"
                " the two must be equal"
            )
        self.patch_channels, self.text_width, self.width, self.heads = patch_channels, text_width, width, heads
        self.rope = rope
        self.embed = nn.Linear(patch_channels, width)
        self.embed_position = position(width) if position is not None else None
        self.embed_pooled = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if pooled_text else None
        self.embed_text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width), nn.GELU(), nn.Linear(width, width))
        self.embed_level = LevelEmbedding(width=width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width=width, heads=heads, attention=attention, mlp=mlp(width, mlp_ratio)) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, patch_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier weights and zero biases; zeros where a residual branch or the prediction ends, so that the network begins as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        crosses = [module.out for module in self.modules() if isinstance(module, CrossAttention)]
        for attention in (module for module in self.modules() if isinstance(module, SelfAttention)):
            # Queries and keys start with a part that is the same everywhere, so that rotations alone make neighbours attend to one another.
            nn.init.constant_(attention.qkv.bias[: 2 * self.width], 1.0)
        for last in (self.modulation, self.final_modulation, self.out, *crosses):
            nn.init.zeros_(last.weight)

    def forward(self, tokens: PackedTokens, levels: NoiseLevels, text: TextTokens) -> Float[Tensor, "N P"]:
        """tokens: noised patches. levels: their noise levels. text: one segment of caption states for each segment of tokens."""
        states = self.embed_text(text.states)
        level = self.embed_level(levels.levels)  # U D
        if self.embed_pooled is not None:
            level = level + F.embedding(levels.owners, self.embed_pooled(means(states, text.segments)))
        context = Context(
            segments=tokens.segments,
            rotation=self.rope(tokens.positions),
            modulation=self.modulation(level) + one_on_scales(6, self.width, level),
            level_index=levels.index,
            text=states,
            text_segments=text.segments,
        )
        x = self.embed(tokens.patches)  # N D
        if self.embed_position is not None:
            x = x + self.embed_position(tokens.positions)
        for block in self.blocks:
            x = block(x, context)
        final = self.final_modulation(level) + one_on_scales(2, self.width, level)
        scale, shift = F.embedding(levels.index, final).chunk(2, dim=-1)
        return self.out(modulate(x, scale, shift))


def owners(segments: Segments) -> Int[Tensor, "N"]:
    """The segment of each token; computed on the device, with no shape that depends on the clips."""
    places = torch.arange(segments.total, device=segments.cu_seqlens.device, dtype=torch.int32)
    return torch.searchsorted(segments.cu_seqlens, places, right=True) - 1


def means(states: Float[Tensor, "M D"], segments: Segments) -> Float[Tensor, "G D"]:
    """The mean of each segment's states; 0 for a segment without any."""
    # In float32 at least: a sum of hundreds of bf16 states stops growing.
    whole = states.to(torch.promote_types(states.dtype, torch.float32))
    sums = whole.new_zeros(segments.count, whole.shape[1]).index_add(0, owners(segments), whole)
    return (sums / segments.cu_seqlens.diff().clamp_min(1)[:, None]).to(states.dtype)


def one_on_scales(parts: int, width: int, like: Tensor) -> Float[Tensor, "C"]:
    """1 in the channels of modulation that multiply (every third part, from the first), 0 in those that shift and gate."""
    ones = torch.zeros(parts, width, dtype=like.dtype, device=like.device)
    ones[::3] = 1
    return ones.flatten()
