"""Wan 2.1 (Wan team 2025): cross-attention with a layer norm before it, and queries and keys normalised across heads."""

from __future__ import annotations

from functools import partial
from operator import floordiv, mul
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.dit.dit import Context, CrossAttention, GainedLayerNorm, Parts, SelfAttention, modulations
from sora.dit.layers.rope import positive
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.options import From, Options

ATTENTION = {
    "to_q.*": "qkv.*[0/3]",
    "to_k.*": "qkv.*[1/3]",
    "to_v.*": "qkv.*[2/3]",
    "to_out.0.*": "out.*",
}
CROSS = {"to_q.*": "q.*", "to_k.*": "kv.*[0/2]", "to_v.*": "kv.*[1/2]", "to_out.0.*": "out.*"}
QK_NORMS = {"norm_q.weight": "q_norm.gain", "norm_k.weight": "k_norm.gain"}
MLP = {"net.0.proj.*": "up.*", "net.2.*": "down.*"}
# Published order: shift, scale, gate of attention, then of the MLP. Our order: scale, shift, gate.
SIX = "{0}[1/6] {0}[0/6] {0}[2/6] {0}[4/6] {0}[3/6] {0}[5/6]"
TWO = "{0}[1/2] {0}[0/2]"
TIME = {"linear_1.*": "mlp.0.*", "linear_2.*": "mlp.2.*"}
TEXT = {"linear_1.*": "0.*", "linear_2.*": "2.*"}


class NormedCrossBlock(nn.Module):
    """`sora.dit.Block` with a layer norm, with gain and bias, before the cross-attention. eps: epsilon of that layer norm."""

    joint: ClassVar[bool] = False

    def __init__(self, number: int, parts: Parts, *, eps: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6 * parts.width))
        self.own = parts.modulation.own(parts.level_width, 6 * parts.width)
        self.norm1, self.norm2 = parts.norm(parts.width), parts.norm(parts.width)
        self.attention = SelfAttention(number, parts)
        self.cross_norm = GainedLayerNorm(parts.width, eps=positive("block.eps", eps))
        self.cross = CrossAttention(parts)
        self.mlp = parts.mlp()

    def forward(
        self, x: Float[Tensor, "N D"], text: Float[Tensor, "M D"], context: Context
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulations(context.levels, self.table, self.own)
        x = torch.addcmul(x, gate1, self.attention(self.norm1(x, scale1, shift1), context))
        x = x + self.cross(self.cross_norm(x), text, context)
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, scale2, shift2))), text

    def begin(self) -> None:
        """Initialise the block to the identity: zero gates and zero output of the cross-attention."""
        if self.own is not None:
            self.own.begin()
        self.attention.begin()
        nn.init.zeros_(self.cross.out.weight)


def normed_cross_block(number: int, parts: Parts, *, eps: float) -> NormedCrossBlock:
    """Build a `NormedCrossBlock`, for dit.block."""
    return NormedCrossBlock(number, parts, eps=eps)


def _axes(head: int) -> list[int]:
    """Rotary channels of frames, rows and columns: rows and columns get a third of a head each, rounded down to pairs."""
    side = 2 * (head // 6)
    return [head - 2 * side, side, side]


OPTIONS = Options(
    names=("WanTransformer3DModel",),
    defaults={
        "patch_size": [1, 2, 2],
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    },
    only={
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "image_dim": None,
        "added_kv_proj_dim": None,
        "pos_embed_seq_len": None,
    },
    unread=("rope_max_seq_len",),  # maximum length of an axis
    shapeless=("num_attention_heads", "attention_head_dim", "eps"),
    ours={
        "width": From("num_attention_heads attention_head_dim", mul),
        "depth": From("num_layers"),
        "heads": From("num_attention_heads"),
        "patch": From("patch_size"),
        "mlp._target_": "sora.dit.gelu_tanh",
        "mlp_ratio": From("ffn_dim num_attention_heads attention_head_dim", lambda hidden, heads, head: hidden / (heads * head)),
        "level._target_": "sora.dit.published_level",
        "level.waves": From("freq_dim"),
        "level.before": 0,
        "text._target_": "sora.dit.two_layer_text",
        "text.fill": 512,
        "rope._target_": "sora.dit.AxialRope",
        "rope.axes": From("attention_head_dim", _axes),
        "rope.time_scale": 1.0,
        "rope.theta": 10000.0,
        "by_frame": True,
        "norm._target_": "sora.dit.layer_norm",
        "norm.eps": From("eps"),
        "qk_norm._target_": "sora.dit.rms_across_heads",
        "qk_norm.eps": From("eps"),
        "modulation._target_": "sora.dit.SingleModulation",
        "pattern._target_": "sora.dit.full_attention",
        "block._target_": "sora.dit.normed_cross_block",
        "block.eps": From("eps"),
        "final._target_": "sora.dit.table_final",
        "final.norm._target_": "sora.dit.layer_norm",
        "final.norm.eps": From("eps"),
        "latent_channels": From("in_channels"),
        "out_channels": From("out_channels"),
        "text_width": From("text_dim"),
    },
    theirs={
        "patch_size": "patch",
        "num_attention_heads": "heads",
        "attention_head_dim": From("width heads", floordiv),
        "in_channels": "latent_channels",
        "out_channels": "latent_channels",
        "text_dim": "text_width",
        "freq_dim": "level.waves",
        "ffn_dim": "hidden",
        "num_layers": "depth",
        "eps": "norm.eps",
    },
)


def wan_text_to_video(dit: PublishedDiT) -> KeyMap:
    """Key map of WanTransformer3DModel without image conditions, for dit.keys."""
    return KeyMap(OPTIONS, partial(_keys, dit), dit.patch)


def _keys(dit: PublishedDiT) -> dict[str, Key]:
    table = {
        "patch_embedding.weight": Key("embed.weight", "d (t h w c) -> d c t h w"),
        "patch_embedding.bias": "embed.bias",
        "condition_embedder.time_proj.*": SIX.format("modulation.*"),
        "scale_shift_table": Key(TWO.format("final.table"), "(two d) -> 1 two d"),
        "proj_out.*": "out.*",
    }
    found = keys(table)
    found |= keys(TIME, theirs="condition_embedder.time_embedder.", ours="embed_level.time.")
    found |= keys(TEXT, theirs="condition_embedder.text_embedder.", ours="embed_text.project.")
    for number in range(len(dit.blocks)):
        block = f"blocks.{number}."
        found |= keys(ATTENTION | QK_NORMS, theirs=f"{block}attn1.", ours=f"{block}attention.")
        found |= keys(CROSS | QK_NORMS, theirs=f"{block}attn2.", ours=f"{block}cross.")
        found |= keys(MLP, theirs=f"{block}ffn.", ours=f"{block}mlp.")
        found |= keys({"norm2.*": "cross_norm.*"}, theirs=block, ours=block)
        found |= keys({"scale_shift_table": Key(SIX.format("table"), "(six d) -> 1 six d")}, theirs=block, ours=block)
    return found
