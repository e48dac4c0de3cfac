"""The denoising network: a transformer over packed spacetime patches (DiT, Peebles & Xie 2023; blocks as in PixArt, Chen et al. 2023).

    patches -> embed -> depth x [ attention in the clip, attention to its caption, MLP ] -> prediction per patch

Each token is modulated by the noise level of its own latent frame; levels are embedded once per (clip, latent frame), not per token.
Other blocks, attention patterns, modulations, norms and MLPs have the same interfaces and are passed to `DiT` in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.attention.layout import Attention, Layout, Pattern, Route
from sora.dit.layers.rope import AxialRope, positive, rotate
from sora.tokens import Joined, NoiseLevels, PackedTokens, Segments, TextTokens, highest, join, means, owners


class Stream(NamedTuple):
    """Embedded noise levels of the patches or of the words, their modulation shared by all blocks, and each token's index into both."""

    level: Float[Tensor, "U C"]
    modulation: Float[Tensor, "U S"]
    index: Int[Tensor, "N"]


class Context(NamedTuple):
    """Inputs of every block besides the tokens, computed once per forward pass.

    text_levels, joined: for joint blocks, in which words are tokens too; else None. A word has the highest noise level of its clip.
    """

    layout: Layout
    rotation: Complex[Tensor, "N J E2"] | None
    levels: Stream
    text_segments: Segments
    text_levels: Stream | None
    joined: Joined | None


class Modulation(Protocol):
    """Kind of modulation (see `sora.dit.layers.modulation`): whether blocks share a projection, and the projection of each block."""

    @property
    def shared(self) -> bool: ...

    def own(self, level_width: int, channels: int) -> Projection | None: ...


class Projection(Protocol):
    """A block's own projection of embedded levels (U, C) to modulation, added to the shared one; `begin` initialises it to zero."""

    def __call__(self, level: Tensor, /) -> Tensor: ...

    def begin(self) -> None: ...


class Parts(NamedTuple):
    """Sizes and constructors for blocks. level_width: C. kv_heads: number of key heads, a divisor of heads (GQA, Ainslie et al. 2023)."""

    depth: int
    width: int
    level_width: int
    heads: int
    kv_heads: int
    mlp: Callable[[], nn.Module]
    norm: Callable[[int], nn.Module]
    qk_norm: Callable[[int, int], nn.Module]
    attention: Attention
    pattern: Pattern
    modulation: Modulation


class LevelEmbedding(nn.Module):
    """Embeds noise levels in [0, 1] by sinusoids, with wavelengths from 2 pi / 1000 to about 20 pi, and a two-layer MLP."""

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
    """RMS norm of queries or keys over each head's channels, with one gain per channel, which bounds the scores (Dehghani et al. 2023)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(width)), positive("qk_norm.eps", eps)

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        # In float32 if the gains are, as autocast does on a GPU; then back to x's dtype, because flash attention needs half precision.
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))
        return F.rms_norm(wide, x.shape[-1:], self.gain.to(wide.dtype), eps=self.eps).to(x.dtype)


def rms_per_head(heads: int, head_width: int, *, eps: float) -> HeadNorm:
    """Build a `HeadNorm`, for dit.qk_norm; all heads share the gains."""
    return HeadNorm(head_width, eps)


class LayerNorm(nn.Module):
    """Layer norm without parameters, then scale and shift per token; `scale` includes the 1 of (1 + scale), added by `DiT` per level."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = positive("norm.eps", eps)

    def forward(self, x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), scale)


def layer_norm(width: int, *, eps: float) -> LayerNorm:
    """Build a `LayerNorm`, for dit.norm."""
    return LayerNorm(eps)


class GainedLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` in the wider dtype of x and the parameters: FSDP gathers halves, which CPUs do not mix with float32."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)


class SelfAttention(nn.Module):
    """Self-attention within each clip, in which a token sees the tokens that the attention pattern allows (usually all)."""

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = parts.width, parts.heads, parts.kv_heads
        head_width = width // parts.heads
        if parts.heads == parts.kv_heads:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * parts.kv_heads * head_width)
        self.q_norm, self.k_norm = parts.qk_norm(parts.heads, head_width), parts.qk_norm(parts.kv_heads, head_width)
        self.out = nn.Linear(width, width)
        self.attend = parts.pattern(parts.attention, number)

    def project(self, x: Float[Tensor, "N D"], rotation: Complex[Tensor, "N J E2"] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, E), keys and values (N, K, E); queries and keys are rotated unless `rotation` is None."""
        if self.heads == self.kv_heads:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        else:
            q = self.q(x).unflatten(-1, (self.heads, -1))
            k, v = self.kv(x).unflatten(-1, (2, self.kv_heads, -1)).unbind(1)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotation is None else (rotate(q, rotation), rotate(k, rotation), v)

    def forward(self, x: Float[Tensor, "N D"], context: Context) -> Float[Tensor, "N D"]:
        return self.out(self.attend(*self.project(x, context.rotation), context.layout).flatten(1))

    def begin(self) -> None:
        """Set the biases of queries and keys to 1: with this constant part, rotations make tokens attend to their neighbours at first."""
        biases = [self.qkv.bias[: -self.qkv.in_features]] if self.heads == self.kv_heads else [self.q.bias, self.kv.bias.chunk(2)[0]]
        for bias in biases:
            nn.init.constant_(bias, 1.0)


class CrossAttention(nn.Module):
    """Cross-attention of the tokens of each clip to the words of its caption."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        width, self.heads, self.attention = parts.width, parts.heads, parts.attention
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = (parts.qk_norm(parts.heads, width // parts.heads) for _ in "qk")
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context) -> Float[Tensor, "N D"]:
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)))
        k, v = self.kv(text).unflatten(-1, (2, self.heads, -1)).unbind(1)  # M H E
        return self.out(self.attention(q, self.k_norm(k), v, context.layout.segments, context.text_segments).flatten(1))


class GeluMlp(nn.Module):
    """Two linear layers with a GELU between; the erf form, which on a CPU takes a third of the time of the tanh form."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, round(width * ratio))
        self.down = nn.Linear(round(width * ratio), width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.down(F.gelu(self.up(x)))


def gelu(width: int, ratio: float) -> GeluMlp:
    """Build a `GeluMlp`, for dit.mlp. ratio: hidden width / width."""
    return GeluMlp(width, ratio)


class Block(nn.Module):
    """x + gate * f(norm(x) * (1 + scale) + shift), for f = self-attention, then for f = MLP, with cross-attention between the two."""

    joint: ClassVar[bool] = False  # whether words are tokens of the block too

    def __init__(self, number: int, parts: Parts) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 6 * parts.width)
        self.norm1, self.norm2 = parts.norm(parts.width), parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.cross = CrossAttention(parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        x = torch.addcmul(x, gate1, self.attention(self.norm1(x, scale1, shift1), context))
        x = x + self.cross(x, text, context)
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2))), text

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates and zero output of the cross-attention."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()
        nn.init.zeros_(self.cross.out.weight)


def cross_block(number: int, parts: Parts) -> Block:
    """Build a `Block`, for dit.block."""
    return Block(number, parts)


def modulations(stream: Stream, table: Float[Tensor, "S"], own: Projection | None) -> tuple[Float[Tensor, "N D"], ...]:
    """Scale, shift and gate of each token for each branch of a block: shared modulation + the block's table + its own projection."""
    width = stream.modulation.shape[1] // 6
    parts = stream.modulation[:, : len(table)] + table
    if own is not None:
        parts = parts + own(stream.level)
    # F.embedding and not indexing: its backward is fast on a CPU and deterministic on a GPU.
    return tuple(F.embedding(stream.index, part) for part in parts.split(width, dim=-1))


class DiT(nn.Module):
    """Diffusion transformer: predicts P numbers for each patch of noised latents. It starts with identity blocks and zero prediction.

    patch_channels: P. text_width: width of the caption states. width: D. kv_heads: number of key and value heads; None for `heads`.
    mlp: (width, ratio) -> MLP of a block. position: width -> module for absolute positions, added to the tokens besides the rotations.
    pooled_text: add the mean of a clip's caption to its embedded noise levels, so that it modulates every block. clip_shape: width ->
    module that is added likewise for a clip's size and frame rate, see `sora.dit.layers.clip_shape`. registers: (width, pattern) ->
    register tokens, see `sora.dit.layers.registers`. norm: width -> modulated norm. qk_norm: (heads, head width) -> norm of queries or
    keys. modulation: see `sora.dit.layers.modulation`. attention: backend, see `sora.dit.attention`. pattern: which tokens a token sees,
    see `sora.dit.attention.patterns`. block: (number, parts) -> block; `cross_block` here, others in `sora.dit.blocks`.
    """

    registers: Any

    def __init__(
        self,
        *,
        patch_channels: int,
        text_width: int,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int | None,
        mlp: Callable[[int, float], nn.Module],
        mlp_ratio: float,
        rope: AxialRope,
        position: Callable[[int], nn.Module] | None,
        pooled_text: bool,
        clip_shape: Callable[[int], nn.Module] | None = None,
        registers: Callable[[int, Pattern], nn.Module] | None = None,
        norm: Callable[[int], nn.Module],
        qk_norm: Callable[[int, int], nn.Module],
        modulation: Modulation,
        attention: Attention,
        pattern: Pattern,
        block: Callable[[int, Parts], nn.Module],
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        refuse_sizes(width, heads, rope, {"depth": depth, "kv_heads": kv_heads, "mlp_ratio": mlp_ratio})
        if heads % kv_heads:
            raise ValueError(f"dit.kv_heads={kv_heads} does not divide dit.heads={heads}; each serves as many heads as the next")
        self.patch_channels, self.text_width, self.width, self.heads = patch_channels, text_width, width, heads
        self.rope = rope
        self.embed = nn.Linear(patch_channels, width)
        self.embed_position = position(width) if position is not None else None
        self.embed_pooled = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if pooled_text else None
        self.embed_shape = clip_shape(width) if clip_shape is not None else None
        self.registers = registers(width, pattern) if registers is not None else None
        self.embed_text = nn.Sequential(GainedLayerNorm(text_width), nn.Linear(text_width, width), nn.GELU(), nn.Linear(width, width))
        self.embed_level = LevelEmbedding(width=width)
        self.modulation = nn.Linear(width, 6 * width) if modulation.shared else None
        self.route = Route(attention)
        parts = Parts(depth, width, width, heads, kv_heads, lambda: mlp(width, mlp_ratio), norm, qk_norm, self.route, pattern, modulation)
        self.blocks = nn.ModuleList(block(number, parts) for number in range(depth))
        self.joint = any(block.joint for block in self.blocks)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_norm = norm(width)
        self.out = nn.Linear(width, patch_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights, see `begin`."""
        begin(self, self.blocks, self.modulation, self.final_modulation, self.out)

    def forward(self, tokens: PackedTokens, levels: NoiseLevels, text: TextTokens) -> Float[Tensor, "N P"]:
        """Prediction for each token. tokens: noised patches. levels: their noise levels. text: captions, one segment per clip segment."""
        states = self.embed_text(text.states)
        whole = self.embed_pooled(means(states, text.segments)) if self.embed_pooled is not None else None  # G D
        if self.embed_shape is not None:
            told = self.embed_shape(tokens.positions, tokens.segments)
            whole = told if whole is None else whole + told
        layout, rotation = Layout.of(tokens), self.rope(tokens.positions)
        peaks = highest(levels, text.segments) if self.joint or self.registers is not None else None
        x = as_weights(self.embed(tokens.patches), self.embed)  # N D
        if self.joint:
            states = as_weights(states, self.embed)
        if self.embed_position is not None:
            x = x + self.embed_position(tokens.positions)
        wide: Any = None
        if self.registers is not None:
            wide = self.registers.widened(layout, levels, peaks)
            layout, rotation, x = wide.layout, self.registers.rotation(rotation, wide), self.registers.fill(x, wide)
            levels = wide.levels
        context = Context(
            layout=layout,
            rotation=rotation,
            levels=(stream := self.stream(levels.levels, levels.index, whole if whole is None else F.embedding(levels.owners, whole))),
            text_segments=text.segments,
            text_levels=self.stream(peaks, owners(text.segments), whole) if self.joint and peaks is not None else None,
            joined=join(layout.segments, text.segments) if self.joint else None,
        )
        x = self.run(x, states, context)
        final = self.final_modulation(stream.level) + one_on_scales(2, self.width, stream.level)
        scale, shift = F.embedding(levels.index, final).chunk(2, dim=-1)
        x = self.out(self.final_norm(x, scale, shift))
        return x if wide is None else x.index_select(0, wide.places)

    def run(self, x: Float[Tensor, "N D"], states: Float[Tensor, "M W"], context: Context) -> Float[Tensor, "N D"]:
        """Apply the blocks in order. A method of its own, because `sora.parallel.tensor` splits tokens over ranks before and after it."""
        for block in self.blocks:
            x, states = block(x, states, context)
        return x

    def stream(self, levels: Float[Tensor, "U"], index: Int[Tensor, "N"], pooled: Float[Tensor, "U D"] | None) -> Stream:
        """Embed noise levels, and compute the modulation shared by all blocks. pooled: (U, D), added to the embedded levels."""
        level = self.embed_level(levels)  # U D
        if pooled is not None:
            level = level + pooled
        ones = one_on_scales(6, self.width, level)
        shared = self.modulation(level) + ones if self.modulation is not None else ones.expand(len(level), -1)
        return Stream(level, shared, index)


def as_weights(x: Float[Tensor, "N D"], layer: nn.Linear) -> Float[Tensor, "N D"]:
    """Cast x to the wider of its dtype and the layer's. Under autocast this is float32, the dtype in which blocks with float32 tables
    return tokens; so the first block has the same input dtype as the others, and is compiled only once."""
    return x.to(torch.promote_types(x.dtype, layer.weight.dtype))


def refuse_sizes(width: int, heads: int, rope: Any, others: Mapping[str, float]) -> None:
    """Raise ValueError unless all sizes are above 0, heads divides width, and the rotary embedding, if any, has the width of a head."""
    for name, size in {"width": width, "heads": heads, **others}.items():
        positive(f"dit.{name}", size)
    if width % heads or (rope is not None and rope.width != width // heads):
        told = "" if rope is None else f", and dit.rope turns heads of {rope.width} channels, which its axes add up to"
        raise ValueError(
            f"a head is {width / heads:g} wide (dit.width={width} / dit.heads={heads}){told}; it must be a whole number, the same"
        )


def begin(network: nn.Module, blocks: nn.ModuleList, *last: nn.Linear | None) -> None:
    """Initialise linear layers to Xavier weights and zero biases, blocks to identities, and the weights of the layers `last` to zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in blocks:
        block.begin()  # pyright: ignore[reportCallIssue]
    for layer in last:
        if layer is not None:
            nn.init.zeros_(layer.weight)


def one_on_scales(parts: int, width: int, like: Tensor) -> Float[Tensor, "C"]:
    """Vector of `parts` * `width` channels: 1 in scales (parts 0, 3, …), 0 in shifts and gates."""
    ones = torch.zeros(parts, width, dtype=like.dtype, device=like.device)
    ones[::3] = 1
    return ones.flatten()
