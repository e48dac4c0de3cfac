"""Register tokens (Darcet et al. 2023): learned tokens without a position, added to each clip, that can hold global information."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from sora.dit.attention.layout import Layout, Pattern
from sora.dit.attention.patterns import full_attention
from sora.tokens import NoiseLevels, Segments, owners


class Widened(NamedTuple):
    """Pack of L tokens with registers at the end of each segment. places: new indices of the N tokens. own: indices of the registers."""

    layout: Layout
    levels: NoiseLevels
    places: Int[Tensor, "N"]
    own: Int[Tensor, "L"]


class Registers(nn.Module):
    """Adds `count` learned register tokens to each clip, at the clip's highest noise level and without rotation.

    Empty segments and the padding get registers too, so that shapes do not depend on the number of clips.
    """

    def __init__(self, width: int, *, count: int, pattern: Pattern) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"dit.registers.count is {count}; it needs 1 or more, or dit.registers=null")
        if (pattern.func if isinstance(pattern, partial) else pattern) is not full_attention:
            raise ValueError(
                "dit.registers have no place in a clip: dit.pattern._target_=sora.dit.full_attention alone sees them; choose it, or "
                "dit.registers=null"
            )
        self.start = nn.Parameter(0.02 * torch.randn(count, width))

    def widened(self, layout: Layout, levels: NoiseLevels, highest: Float[Tensor, "G"]) -> Widened:
        """Pack with room for the registers, computed on the device. highest: (G,), highest noise level of each segment."""
        segments, count = layout.segments, len(self.start)
        here = torch.arange(segments.count, device=highest.device)
        places = torch.arange(segments.total, device=highest.device) + count * owners(segments)
        own = (segments.cu_seqlens[1:, None] + count * here[:, None] + torch.arange(count, device=highest.device)).flatten()
        index = places.new_zeros(segments.total + len(own)).index_copy(0, places, levels.index)
        index = index.index_copy(0, own, (len(levels.levels) + here).repeat_interleave(count, output_size=len(own)))
        grown = Segments(
            # computed from the host tensor and not created anew, so that it has values even under FakeTensorMode
            host=segments.host + count * (torch.ones_like(segments.host).cumsum(0) - 1),
            cu_seqlens=segments.cu_seqlens + count * torch.arange(segments.count + 1, device=highest.device, dtype=torch.int32),
        )
        coordinates = layout.coordinates.new_zeros(len(index), 3).index_copy(0, places, layout.coordinates)
        return Widened(
            layout=Layout(grown, layout.grids, coordinates),
            levels=NoiseLevels(torch.cat((levels.levels, highest)), index, owners=torch.cat((levels.owners, here))),
            places=places,
            own=own,
        )

    def rotation(self, rotation: Complex[Tensor, "N 1 E2"], wide: Widened) -> Complex[Tensor, "L 1 E2"]:
        """Rotations of all L tokens; registers get 1, no rotation."""
        whole = torch.ones(len(wide.levels.index), *rotation.shape[1:], dtype=rotation.dtype, device=rotation.device)
        return whole.index_copy(0, wide.places, rotation)

    def fill(self, x: Float[Tensor, "N D"], wide: Widened) -> Float[Tensor, "L D"]:
        """States of all L tokens: those of `x`, with the learned registers inserted."""
        whole = x.new_zeros(len(x) + len(wide.own), x.shape[1]).index_copy(0, wide.places, x)
        start = self.start.to(x.dtype).repeat(len(wide.own) // len(self.start), 1)
        return whole.index_copy(0, wide.own, start)


def register_tokens(width: int, pattern: Pattern, *, count: int) -> Registers:
    """Build `Registers`, for dit.registers. count: number of registers per clip."""
    return Registers(width, count=count, pattern=pattern)
