"""Latte (Ma et al. 2024), with text: blocks in a frame, which read the caption, and blocks over time, in turn."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.dit import Block, Context, Parts, SelfAttention, modulations
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT, extents
from sora.dit.published.positions import sines
from sora.dit.published.wan import ATTENTION, CROSS, MLP, SIX, TEXT, TIME, TWO


class TemporalBlock(nn.Module):
    """As `sora.dit.plain.PlainBlock`. told: waves of the frame's number are added first, unless the clip is an image."""

    joint: ClassVar[bool] = False

    def __init__(self, number: int, parts: Parts, *, told: bool) -> None:
        super().__init__()
        self.told = told
        self.table = nn.Parameter(torch.zeros(6 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 6 * parts.width)
        self.norm1, self.norm2 = parts.norm(parts.width), parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        if self.told:
            frames = extents(context.layout)[:, :1]
            x = x + sines(context.layout.coordinates[:, 0].float(), x.shape[1]).to(x.dtype) * (frames > 1)
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        x = torch.addcmul(x, gate1, self.attention(self.norm1(x, scale1, shift1), context))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2))), text

    def begin(self) -> None:
        """Make the block the identity (but for what it tells of time): gates that are zero."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()


def spatial_and_temporal(number: int, parts: Parts) -> Block | TemporalBlock:
    """dit.block: blocks with attention to the caption and `TemporalBlock`s in turn; for dit.pattern=sora.dit.patterns.factorised."""
    return TemporalBlock(number, parts, told=number == 1) if number % 2 else Block(number, parts)


def text_to_video(dit: PublishedDiT) -> KeyMap:
    """dit.keys: LatteTransformer3DModel."""
    table = {
        "pos_embed.proj.weight": Key("embed.weight", "d (t h w c) -> d c (t h) w"),
        "pos_embed.proj.bias": "embed.bias",
        "adaln_single.linear.*": SIX.format("modulation.*"),
        "scale_shift_table": Key(TWO.format("final.table"), "(two d) -> two d"),
        "proj_out.*": Key("out.*", halved=True),
    }
    found = keys(table)
    found |= keys(TIME, theirs="adaln_single.emb.timestep_embedder.", ours="embed_level.time.")
    found |= keys(TEXT, theirs="caption_projection.", ours="embed_text.project.")
    for number in range(len(dit.blocks)):
        kind = "temporal_transformer_blocks" if number % 2 else "transformer_blocks"
        ours, theirs = f"blocks.{number}.", f"{kind}.{number // 2}."
        found |= keys(ATTENTION, theirs=f"{theirs}attn1.", ours=f"{ours}attention.")
        found |= keys(CROSS, theirs=f"{theirs}attn2.", ours=f"{ours}cross.") if number % 2 == 0 else {}
        found |= keys(MLP, theirs=f"{theirs}ff.", ours=f"{ours}mlp.")
        found |= keys({"scale_shift_table": Key(SIX.format("table"), "(six d) -> six d")}, theirs=theirs, ours=ours)
    config = {
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.width // dit.heads,
        "in_channels": dit.latent_channels,
        "out_channels": dit.latent_channels,
        "num_layers": len(dit.blocks) // 2,
        "cross_attention_dim": dit.width,
        "attention_bias": True,
        "sample_size": dit.embed_position.rows * dit.patch[1],
        "patch_size": dit.patch[1],
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": dit.text_width,
    }
    return KeyMap("LatteTransformer3DModel", config, found, dit.patch)
