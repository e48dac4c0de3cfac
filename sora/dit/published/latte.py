"""Latte (Ma et al. 2024), text to video: alternating spatial blocks, which attend to the caption, and temporal blocks."""

from __future__ import annotations

from functools import partial
from operator import floordiv, itemgetter
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.dit import Block, Context, Parts, SelfAttention, modulations
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT, extents
from sora.dit.published.options import OLDER, From, Options, across, with_variances
from sora.dit.published.positions import sines_1d
from sora.dit.published.wan import ATTENTION, CROSS, MLP, SIX, TEXT, TIME, TWO


class TemporalBlock(nn.Module):
    """`sora.dit.PlainBlock`. told: add sinusoids of the frame's index to the tokens first, unless the clip is an image."""

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
            x = x + sines_1d(context.layout.coordinates[:, 0].float(), x.shape[1]).to(x.dtype) * (frames > 1)
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        x = torch.addcmul(x, gate1, self.attention(self.norm1(x, scale1, shift1), context))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2))), text

    def begin(self) -> None:
        """Initialise the block to the identity, except for the sinusoids of `told`: zero gates."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()


def spatial_temporal_block(number: int, parts: Parts) -> Block | TemporalBlock:
    """Build a `Block` for even and a `TemporalBlock` for odd numbers, for dit.block; with dit.pattern=sora.dit.factorised_attention."""
    return TemporalBlock(number, parts, told=number == 1) if number % 2 else Block(number, parts)


OPTIONS = Options(
    names=("LatteTransformer3DModel",),
    defaults={
        "num_attention_heads": 16,
        "attention_head_dim": 88,
        "in_channels": None,
        "out_channels": None,
        "num_layers": 1,
        "dropout": 0.0,
        "cross_attention_dim": None,
        "attention_bias": False,
        "sample_size": 64,
        "patch_size": None,
        "activation_fn": "geglu",
        "num_embeds_ada_norm": None,
        "norm_type": "layer_norm",
        "norm_elementwise_affine": True,
        "norm_eps": 1e-5,
        "caption_channels": None,
        "video_length": 16,
    },
    only=OLDER
    | {
        "dropout": 0.0,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
    },
    unread=(
        "num_embeds_ada_norm",
        "norm_num_groups",
        "upcast_attention",
        "video_length",
    ),  # video_length: number of frames of its pipeline
    shapeless=("num_attention_heads", "attention_head_dim", "sample_size", "norm_eps"),
    ours={
        "width": From("num_attention_heads attention_head_dim cross_attention_dim", across),
        "depth": From("num_layers", lambda pairs: 2 * pairs),
        "heads": From("num_attention_heads"),
        "patch": From("patch_size", lambda size: [1, size, size]),
        "mlp._target_": "sora.dit.gelu_tanh",
        "mlp_ratio": 4.0,
        "level._target_": "sora.dit.published_level",
        "level.waves": 256,
        "level.before": 1,
        "text._target_": "sora.dit.two_layer_text",
        "text.fill": 0,
        "by_frame": True,
        "position._target_": "sora.dit.sines_2d",
        "position.rows": From("sample_size patch_size", floordiv),
        "position.density": From("sample_size", lambda size: max(size // 64, 1)),
        "norm._target_": "sora.dit.layer_norm",
        "norm.eps": From("norm_eps"),
        "qk_norm._target_": "sora.dit.no_norm",
        "modulation._target_": "sora.dit.SingleModulation",
        "pattern._target_": "sora.dit.factorised_attention",
        "block._target_": "sora.dit.spatial_temporal_block",
        "final._target_": "sora.dit.table_final",
        "final.norm._target_": "sora.dit.layer_norm",
        "final.norm.eps": 1e-6,
        "latent_channels": From("in_channels"),
        "out_channels": From("in_channels out_channels", with_variances),
        "text_width": From("caption_channels"),
    },
    theirs={
        "num_attention_heads": "heads",
        "attention_head_dim": From("width heads", floordiv),
        "in_channels": "latent_channels",
        "out_channels": "latent_channels",
        "num_layers": From("depth", lambda blocks: blocks // 2),
        "cross_attention_dim": "width",
        "sample_size": From("position.rows patch", lambda rows, patch: rows * patch[1]),
        "patch_size": From("patch", itemgetter(1)),
        "num_embeds_ada_norm": From("", lambda: 1000),
        "norm_eps": "norm.eps",
        "caption_channels": "text_width",
    },
)


def latte_text_to_video(dit: PublishedDiT) -> KeyMap:
    """Key map of LatteTransformer3DModel, for dit.keys."""
    return KeyMap(OPTIONS, partial(_keys, dit), dit.patch)


def _keys(dit: PublishedDiT) -> dict[str, Key]:
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
    return found
