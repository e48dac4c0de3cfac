"""LTX-Video (HaCohen et al. 2024): cross-attention blocks with RMS norms, and rotations that differ from head to head."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.wan import ATTENTION, CROSS, MLP, QK_NORMS, SIX, TEXT, TIME, TWO
from sora.dit.rope import positive


class WideRope(nn.Module):
    """Rates from 1 to theta, in steps that all heads share among them, of positions as parts of a largest extent.

    width: of all heads together. scales: seconds, rows and columns that one position is. extents: what counts as 1 (seconds and pixels).
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

    def forward(self, positions: Float[Tensor, "N 3"]) -> Complex[Tensor, "N H E2"]:
        """The unit complex number for each token's pairs, head by head."""
        # As the network computes them, in float32: at a rate of 10,000 a last bit is an angle of 1e-3. No buffers, which a cast would cast.
        steps = torch.linspace(0, 1, self.heads * self.width // 6, dtype=torch.float32, device=positions.device)
        rates = self.theta**steps * pi / 2
        axes = zip(positions.float().unbind(1), self.scales, self.extents, strict=True)
        parts = torch.stack([place * scale / extent for place, scale, extent in axes], dim=1)
        angles = (rates[:, None] * (parts[:, None] * 2 - 1)).flatten(1)  # N 3R, from the slowest on, three axes at each rate
        angles = torch.cat((angles.new_zeros(len(angles), self.heads * self.width // 2 - angles.shape[1]), angles), dim=1)
        return torch.polar(torch.ones_like(angles), angles).unflatten(1, (self.heads, -1))


def text_to_video(dit: PublishedDiT) -> KeyMap:
    """dit.keys: LTXVideoTransformer3DModel."""
    table = {
        "proj_in.*": "embed.*",
        "time_embed.linear.*": SIX.format("modulation.*"),
        "scale_shift_table": Key(TWO.format("final.table"), "(two d) -> two d"),
        "proj_out.*": "out.*",
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
    config = {
        "in_channels": dit.patch_channels,  # it is given patches, whatever their size
        "out_channels": dit.patch_channels,
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.width // dit.heads,
        "cross_attention_dim": dit.width,
        "num_layers": len(dit.blocks),
        "caption_channels": dit.text_width,
    }
    return KeyMap("LTXVideoTransformer3DModel", config, found, dit.patch)
