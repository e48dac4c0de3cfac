"""LTX-Video (HaCohen et al. 2024): cross-attention blocks with RMS norms, and rotary positions that differ between heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import pi
from operator import floordiv, itemgetter, mul
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from sora.dit.layers.rope import positive
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.options import From, Options, across
from sora.dit.published.wan import ATTENTION, CROSS, MLP, QK_NORMS, SIX, TEXT, TIME, TWO


class WideRope(nn.Module):
    """Rotary embedding whose rates, from pi / 2 to theta * pi / 2, are spread over the channels of all heads together.

    width: channels of all heads together. scales: factors from positions (seconds, rows and columns of patches) to seconds and pixels.
    extents: maximum of each axis in seconds and pixels; scaled positions are divided by it and mapped from [0, 1] to [-1, 1].
    """

    def __init__(self, *, width: int, heads: int, scales: Sequence[float], extents: Sequence[float], theta: float) -> None:
        super().__init__()
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"rope.width={width} does not divide into pairs of rope.heads={heads}")
        for key, values in {"rope.scales": scales, "rope.extents": extents}.items():
            if len(values) != 3:
                raise ValueError(f"{key} is {list(values)}; it needs three numbers, for seconds, rows and columns")
            for axis, value in enumerate(values):
                positive(f"{key}[{axis}]", value)
        self.width, self.heads = width // heads, heads
        self.scales, self.extents, self.theta = tuple(scales), tuple(extents), positive("rope.theta", theta)

    def values(self) -> dict[str, Any]:
        """Constructor arguments by name."""
        whole = {"width": self.width * self.heads, "heads": self.heads}
        return {**whole, "scales": self.scales, "extents": self.extents, "theta": self.theta}

    def forward(self, positions: Float[Tensor, "N 3"]) -> Complex[Tensor, "N H E2"]:
        """Unit complex factor of each of a token's pairs, for each head."""
        # Keep the network's order of operations in float32: at a rate of 10,000 one bit is 1e-3 of an angle. No buffers: casts change them.
        steps = torch.linspace(0, 1, self.heads * self.width // 6, dtype=torch.float32, device=positions.device)
        rates = self.theta**steps * pi / 2
        axes = zip(positions.float().unbind(1), self.scales, self.extents, strict=True)
        parts = torch.stack([place * scale / extent for place, scale, extent in axes], dim=1)
        angles = (rates[:, None] * (parts[:, None] * 2 - 1)).flatten(1)  # N 3R, from the slowest on, three axes at each rate
        angles = torch.cat((angles.new_zeros(len(angles), self.heads * self.width // 2 - angles.shape[1]), angles), dim=1)
        return torch.polar(torch.ones_like(angles), angles).unflatten(1, (self.heads, -1))


OPTIONS = Options(
    names=("LTXVideoTransformer3DModel",),
    defaults={
        "in_channels": 128,
        "out_channels": 128,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "cross_attention_dim": 2048,
        "num_layers": 28,
        "activation_fn": "gelu-approximate",
        "qk_norm": "rms_norm_across_heads",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 4096,
        "attention_bias": True,
        "attention_out_bias": True,
    },
    only={
        "patch_size_t": 1,
        "activation_fn": "gelu-approximate",
        "qk_norm": "rms_norm_across_heads",
        "norm_elementwise_affine": False,
        "attention_bias": True,
        "attention_out_bias": True,
    },
    unread=(),
    shapeless=("patch_size", "num_attention_heads", "attention_head_dim", "norm_eps"),
    ours={
        "width": From("num_attention_heads attention_head_dim cross_attention_dim", across),
        "depth": From("num_layers"),
        "heads": From("num_attention_heads"),
        "patch": From("patch_size", lambda size: [1, size, size]),
        "mlp._target_": "sora.dit.gelu_tanh",
        "mlp_ratio": 4.0,
        "level._target_": "sora.dit.published_level",
        "level.waves": 256,
        "level.before": 0,
        "text._target_": "sora.dit.two_layer_text",
        "text.fill": 0,
        "rope._target_": "sora.dit.WideRope",
        "rope.width": From("num_attention_heads attention_head_dim", mul),
        "rope.heads": From("num_attention_heads"),
        "rope.scales": From("patch_size", lambda size: [1.0, 32.0 * size, 32.0 * size]),  # 32: as in its pipeline
        "rope.extents": [20.0, 2048.0, 2048.0],
        "rope.theta": 10000.0,
        "by_frame": False,
        "norm._target_": "sora.dit.rms_norm",
        "norm.eps": From("norm_eps"),
        "qk_norm._target_": "sora.dit.rms_across_heads",
        "qk_norm.eps": 1e-5,
        "modulation._target_": "sora.dit.SingleModulation",
        "pattern._target_": "sora.dit.full_attention",
        "block._target_": "sora.dit.cross_block",
        "final._target_": "sora.dit.table_final",
        "final.norm._target_": "sora.dit.layer_norm",
        "final.norm.eps": 1e-6,
        "latent_channels": From("in_channels patch_size", lambda channels, size: channels / size**2),
        "out_channels": From("out_channels in_channels patch_size", lambda out, channels, size: (out or channels) / size**2),
        "text_width": From("caption_channels"),
    },
    theirs={
        "in_channels": From("latent_channels patch", lambda channels, patch: channels * patch[1] ** 2),  # its inputs are patches
        "out_channels": From("latent_channels patch", lambda channels, patch: channels * patch[1] ** 2),
        "patch_size": From("patch", itemgetter(1)),
        "num_attention_heads": "heads",
        "attention_head_dim": From("width heads", floordiv),
        "cross_attention_dim": "width",
        "num_layers": "depth",
        "norm_eps": "norm.eps",
        "caption_channels": "text_width",
    },
)


def ltx_text_to_video(dit: PublishedDiT) -> KeyMap:
    """Key map of LTXVideoTransformer3DModel, for dit.keys."""
    return KeyMap(OPTIONS, partial(_keys, dit), dit.patch)


def _keys(dit: PublishedDiT) -> dict[str, Key]:
    table = {
        "proj_in.weight": Key("embed.weight", "d (t h w c) -> d (c t h w)"),
        "proj_in.bias": "embed.bias",
        "proj_out.weight": Key("out.weight", "(t h w c) d -> (c t h w) d"),
        "proj_out.bias": Key("out.bias", "(t h w c) -> (c t h w)"),
        "time_embed.linear.*": SIX.format("modulation.*"),
        "scale_shift_table": Key(TWO.format("final.table"), "(two d) -> two d"),
    }
    found = keys(table)
    found |= keys(TIME, theirs="time_embed.emb.timestep_embedder.", ours="embed_level.time.")
    found |= keys(TEXT, theirs="caption_projection.", ours="embed_text.project.")
    for number in range(len(dit.blocks)):
        ours, theirs = f"blocks.{number}.", f"transformer_blocks.{number}."
        found |= keys(ATTENTION | QK_NORMS, theirs=f"{theirs}attn1.", ours=f"{ours}attention.")
        found |= keys(CROSS | QK_NORMS, theirs=f"{theirs}attn2.", ours=f"{ours}cross.")
        found |= keys(MLP, theirs=f"{theirs}ff.", ours=f"{ours}mlp.")
        found |= keys({"scale_shift_table": Key(SIX.format("table"), "(six d) -> six d")}, theirs=theirs, ours=ours)
    return found
