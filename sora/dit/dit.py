"""The denoising network: a transformer over packed spacetime patches (DiT, Peebles & Xie 2023; blocks as in PixArt, Chen et al. 2023).

    patches -> embed -> depth x [ attention in the clip, attention to its caption, MLP ] -> prediction per patch

Each token is modulated by the noise level of its own latent frame; levels are embedded once per (clip, latent frame), never per token.
Other kinds of blocks, patterns of attention, modulations and norms are siblings of the ones here, and chosen in the same place.
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
    """The noise levels of one kind of token (of patches, or of words): embedded, as all blocks modulate by them, and which a token has."""

    level: Float[Tensor, "U C"]
    modulation: Float[Tensor, "U S"]
    index: Int[Tensor, "N"]


class Context(NamedTuple):
    """What every block is given beside the tokens, computed once per forward pass.

    text_levels, joined: for blocks in which words are tokens too; a word has the highest level of its clip.
    """

    layout: Layout
    rotation: Complex[Tensor, "N J E2"] | None
    levels: Stream
    text_segments: Segments
    text_levels: Stream | None
    joined: Joined | None


class Modulation(Protocol):
    """How levels modulate blocks, see `sora.dit.layers.modulation`: whether blocks share a projection, and what each adds of its own."""

    @property
    def shared(self) -> bool: ...

    def own(self, level_width: int, channels: int) -> Projection | None: ...


class Projection(Protocol):
    """What a block projects level vectors (U, C) by, beside what all share; `begin` makes it zero."""

    def __call__(self, level: Tensor, /) -> Tensor: ...

    def begin(self) -> None: ...


class Parts(NamedTuple):
    """What a network makes its blocks of. level_width: C. kv_heads: of keys and values, a divisor of heads (GQA, Ainslie et al. 2023)."""

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

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(width)), positive("qk_norm.eps", eps)

    def forward(self, x: Float[Tensor, "N K E"]) -> Float[Tensor, "N K E"]:
        # As autocast has it on a GPU, in float32 where gains are; but back, since flash attention takes halves only.
        wide = x.to(torch.promote_types(x.dtype, self.gain.dtype))
        return F.rms_norm(wide, x.shape[-1:], self.gain.to(wide.dtype), eps=self.eps).to(x.dtype)


def rms_per_head(heads: int, head_width: int, *, eps: float) -> HeadNorm:
    """dit.qk_norm: see `HeadNorm`; all heads share their gains."""
    return HeadNorm(head_width, eps)


class LayerNorm(nn.Module):
    """The normalised x, scaled and shifted. `scale` is the whole factor: the 1 of (1 + scale) is added per level, by the network."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = positive("norm.eps", eps)

    def forward(self, x: Float[Tensor, "N D"], scale: Float[Tensor, "N D"], shift: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), scale)


def layer_norm(width: int, *, eps: float) -> LayerNorm:
    """dit.norm: see `LayerNorm`; without gains of its own."""
    return LayerNorm(eps)


class GainedLayerNorm(nn.LayerNorm):
    """With gain and bias, in the wider dtype of theirs and x's: FSDP gathers them as halves, which CPUs refuse beside float32."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)


class SelfAttention(nn.Module):
    """Every token of a clip sees the tokens of it that the pattern allows (usually all), and none of another clip."""

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
        """Queries (N, H, E), keys and values (N, K, E), rotated unless `rotation` is None."""
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
        """Queries and keys start with a part that is the same everywhere, so that rotations alone make neighbours attend to one another."""
        biases = [self.qkv.bias[: -self.qkv.in_features]] if self.heads == self.kv_heads else [self.q.bias, self.kv.bias.chunk(2)[0]]
        for bias in biases:
            nn.init.constant_(bias, 1.0)


class CrossAttention(nn.Module):
    """Every token of a clip sees the clip's own caption."""

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
    """Two layers with a GELU between; erf, which on a CPU costs a third of the tanh form."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, round(width * ratio))
        self.down = nn.Linear(round(width * ratio), width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.down(F.gelu(self.up(x)))


def gelu(width: int, ratio: float) -> GeluMlp:
    """dit.mlp: see `GeluMlp`. ratio: hidden width over width."""
    return GeluMlp(width, ratio)


class Block(nn.Module):
    """x + gate * f(norm(x) * (1 + scale) + shift), for f = attention and then the MLP, with the caption in between (adaLN-single)."""

    joint: ClassVar[bool] = False  # whether words are tokens of it too

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
        """Make the block the identity: gates that are zero, and nothing from the caption."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()
        nn.init.zeros_(self.cross.out.weight)


def cross_block(number: int, parts: Parts) -> Block:
    """dit.block: see `Block`."""
    return Block(number, parts)


def modulations(stream: Stream, table: Float[Tensor, "S"], own: Projection | None) -> tuple[Float[Tensor, "N D"], ...]:
    """Scale, shift and gate of each token, three for each branch of a block: the blocks' shared ones, its table, and what is its own."""
    width = stream.modulation.shape[1] // 6
    parts = stream.modulation[:, : len(table)] + table
    if own is not None:
        parts = parts + own(stream.level)
    # An embedding rather than an index: its gradient is a sorted sum, quick on a CPU and deterministic on a GPU.
    return tuple(F.embedding(stream.index, part) for part in parts.split(width, dim=-1))


class DiT(nn.Module):
    """Predicts, for each patch of noised latents, the P numbers that the objective asks for.

    patch_channels: P. text_width: of the caption states. width: D. kv_heads: keys and values for as many heads; None: for all.
    mlp: (width, ratio) -> the MLP of a block. position: width -> what is added to a token for its place, beside the rotations.
    pooled_text: add the mean of a clip's caption to its noise levels, so that it modulates every block. clip_shape: width -> what does
    the same for a clip's size and rate, see `sora.dit.layers.clip_shape`. registers: see `sora.dit.layers.registers`. norm: width -> a
    norm that is modulated. qk_norm: (heads, head width) -> a norm of queries or keys. modulation: see `sora.dit.layers.modulation`.
    attention: who computes it, see `sora.dit.attention`. pattern: who sees whom, see `sora.dit.attention.patterns`. block: (number, parts)
    -> a block; `cross` here, others in `sora.dit.blocks.plain`, `parallel`, `dual`, `single` and `expert`. At birth every block is the
    identity and the prediction is zero.
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
        """See `begin`."""
        begin(self, self.blocks, self.modulation, self.final_modulation, self.out)

    def forward(self, tokens: PackedTokens, levels: NoiseLevels, text: TextTokens) -> Float[Tensor, "N P"]:
        """tokens: noised patches. levels: their noise levels. text: one segment of caption states for each segment of tokens."""
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
        """The blocks, one after another: where tokens are spread over ranks and come together again (`sora.parallel.tensor`)."""
        for block in self.blocks:
            x, states = block(x, states, context)
        return x

    def stream(self, levels: Float[Tensor, "U"], index: Int[Tensor, "N"], pooled: Float[Tensor, "U D"] | None) -> Stream:
        """What modulates tokens of these levels, and of clips with these pooled captions."""
        level = self.embed_level(levels)  # U D
        if pooled is not None:
            level = level + pooled
        ones = one_on_scales(6, self.width, level)
        shared = self.modulation(level) + ones if self.modulation is not None else ones.expand(len(level), -1)
        return Stream(level, shared, index)


def as_weights(x: Float[Tensor, "N D"], layer: nn.Linear) -> Float[Tensor, "N D"]:
    """x in the wider dtype of its own and the layer's weights: float32 under autocast, as blocks with float32 tables make it from the first
    on; begun so, the first is compiled as the others are."""
    return x.to(torch.promote_types(x.dtype, layer.weight.dtype))


def refuse_sizes(width: int, heads: int, rope: Any, others: Mapping[str, float]) -> None:
    """Raise ValueError unless all are above 0, heads divide the width, and rotary positions, if there are any, are for such heads."""
    for name, size in {"width": width, "heads": heads, **others}.items():
        positive(f"dit.{name}", size)
    if width % heads or (rope is not None and rope.width != width // heads):
        told = "" if rope is None else f", and dit.rope turns heads of {rope.width} channels, which its axes add up to"
        raise ValueError(
            f"a head is {width / heads:g} wide (dit.width={width} / dit.heads={heads}){told}; it must be a whole number, the same"
        )


def begin(network: nn.Module, blocks: nn.ModuleList, *last: nn.Linear | None) -> None:
    """Xavier weights and zero biases; zeros where a residual branch or the prediction ends, so that the network begins as nothing."""
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
    """1 in the channels of modulation that multiply (every third part, from the first), 0 in those that shift and gate."""
    ones = torch.zeros(parts, width, dtype=like.dtype, device=like.device)
    ones[::3] = 1
    return ones.flatten()
