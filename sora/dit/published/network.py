"""A network with the architecture of a published one: the blocks of `sora.dit`, with its own embeddings and final layer.

It is called like `sora.dit.DiT`, on packed clips. Besides their blocks, published networks differ in these modules:

    level   (width, text_width) -> module(levels, owners, text) -> embedded levels (U, C), before the activation
    text    (text_width, width, heads, attention) -> module(text, highest level of each segment) -> words of width D
    final   (width, level width) -> module(x, embedded levels, index) -> x, before the projection to patches
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.dit.attention.layout import Attention, Layout, Pattern, Route
from sora.dit.dit import Context, GainedLayerNorm, Modulation, Parts, Stream, as_weights, begin, one_on_scales, refuse_sizes
from sora.dit.layers.rope import Rope, positive
from sora.dit.published.options import Leaves, plain
from sora.tokens import NoiseLevels, PackedTokens, TextTokens, highest, join, owners

if TYPE_CHECKING:
    from sora.dit.published.keys import KeyMap


@runtime_checkable
class Remembering(Protocol):
    """A module whose `values` returns its constructor arguments by name, such as `AxialRope`."""

    def values(self) -> dict[str, Any]: ...


class PublishedDiT(nn.Module):
    """Predicts for each patch of noised latents the P numbers that the published network was trained to predict.

    patch: frames, rows and columns of a patch, as patches.size. by_frame: whether positions in time are indices of latent frames, as in
    networks trained at one frame rate; otherwise they are seconds. rope, position: None if the network has none; `position` is called with
    the tokens' coordinates and the sizes of their clips. keys: network -> key map of its published checkpoints. level, text, final: see the
    module docstring. For the other parameters see `DiT`.
    """

    embed_position: Any
    embed_level: Any
    embed_text: Any

    def __init__(
        self,
        *,
        patch_channels: int,
        text_width: int,
        width: int,
        depth: int,
        heads: int,
        patch: Sequence[int],
        mlp: Callable[[int, float], nn.Module],
        mlp_ratio: float,
        level: Callable[[int, int], nn.Module],
        text: Callable[[int, int, int, Attention], nn.Module],
        rope: Rope | None,
        by_frame: bool,
        position: Callable[[int], nn.Module] | None,
        norm: Callable[[int], nn.Module],
        qk_norm: Callable[[int, int], nn.Module],
        modulation: Modulation,
        attention: Attention,
        pattern: Pattern,
        block: Callable[[int, Parts], nn.Module],
        final: Callable[[int, int], nn.Module],
        keys: Callable[[PublishedDiT], KeyMap],
    ) -> None:
        super().__init__()
        sizes = {f"patch[{place}]": size for place, size in enumerate(patch)}
        refuse_sizes(width, heads, rope, {"depth": depth, "mlp_ratio": mlp_ratio, **sizes})
        if len(patch) != 3:
            raise ValueError(f"dit.patch is {list(patch)}; it needs three numbers: frames, rows and columns")
        area = patch[0] * patch[1] * patch[2]
        if patch_channels % area:
            raise ValueError(f"patches of {patch_channels} numbers are not dit.patch={list(patch)}; choose patches of that size")
        self.patch_channels, self.text_width, self.width, self.heads = patch_channels, text_width, width, heads
        self.patch, self.latent_channels, self.mlp_ratio = tuple(patch), patch_channels // area, mlp_ratio
        self.by_frame, self.keys = by_frame, keys
        # Parts by key, for `leaves`. Not attention: the choice of backend does not change the network.
        parts = {"mlp": mlp, "level": level, "text": text, "rope": rope, "position": position, "norm": norm, "qk_norm": qk_norm}
        self.parts = {**parts, "modulation": modulation, "pattern": pattern, "block": block, "final": final}
        self.rope = rope
        self.embed = nn.Linear(patch_channels, width)
        self.embed_position = position(width) if position is not None else None
        self.embed_level = level(width, text_width)
        self.route = Route(attention)
        self.embed_text = text(text_width, width, heads, self.route)
        level_width = getattr(self.embed_level, "width", None)
        if not isinstance(level_width, int):
            raise ValueError(f"dit.level gives a {type(self.embed_level).__name__}, which is none of sora.dit.published.levels; choose one")
        self.modulation = nn.Linear(level_width, 6 * width) if modulation.shared else None
        mlps = partial(mlp, width, mlp_ratio)
        parts = Parts(depth, width, level_width, heads, heads, mlps, norm, qk_norm, self.route, pattern, modulation)
        self.blocks = nn.ModuleList(block(number, parts) for number in range(depth))
        self.joint = any(block.joint for block in self.blocks)
        self.final = final(width, level_width)
        self.out = nn.Linear(width, patch_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `DiT` does: Xavier weights, zero biases, identity blocks and a prediction of zero."""
        begin(self, self.blocks, self.modulation, self.out)

    def forward(self, tokens: PackedTokens, levels: NoiseLevels, text: TextTokens) -> Float[Tensor, "N P"]:
        """Prediction for each token. tokens: noised patches. levels: their noise levels. text: captions, one segment per clip segment."""
        layout, peaks = Layout.of(tokens), highest(levels, text.segments)
        places = layout.coordinates.to(tokens.positions.dtype)
        segments = torch.arange(len(peaks), device=peaks.device)
        words = self.embed_text(text, peaks)  # TextTokens, of M D
        level = self.embed_level(levels.levels, levels.owners, text)  # U C
        context = Context(
            layout=layout,
            rotation=self.rope(places if self.by_frame else tokens.positions) if self.rope is not None else None,
            levels=self.stream(level, levels.index),
            text_segments=words.segments,
            text_levels=self.stream(self.embed_level(peaks, segments, text), owners(words.segments)) if self.joint else None,
            joined=join(tokens.segments, words.segments) if self.joint else None,
        )
        x = as_weights(self.embed(tokens.patches), self.embed)  # N D
        if self.embed_position is not None:
            x = x + self.embed_position(places, extents(layout)).to(x.dtype)
        states = as_weights(words.states, self.embed) if self.joint else words.states
        return self.out(self.final(self.run(x, states, context), level, levels.index))

    def run(self, x: Float[Tensor, "N D"], states: Float[Tensor, "M W"], context: Context) -> Float[Tensor, "N D"]:
        """Apply the blocks in order, as `DiT.run` does."""
        for block in self.blocks:
            x, states = block(x, states, context)
        return x

    def stream(self, level: Float[Tensor, "U C"], index: Int[Tensor, "N"]) -> Stream:
        """Activate embedded levels, and compute the modulation shared by all blocks."""
        active = F.silu(level)
        ones = one_on_scales(6, self.width, level)
        return Stream(active, self.modulation(active) + ones if self.modulation is not None else ones.expand(len(level), -1), index)


def leaves(dit: PublishedDiT, *, words: int | None = None) -> Leaves:
    """Configuration of a network by dotted keys. words: maximum number of tokens of a caption, if known."""
    found = Leaves(_of_parts(dit.parts))
    given = {"latent_channels": dit.latent_channels, "out_channels": dit.latent_channels, "text_width": dit.text_width, "words": words}
    sizes = {"width": dit.width, "heads": dit.heads, "depth": len(dit.blocks), "patch": list(dit.patch), "by_frame": dit.by_frame}
    hidden = round(dit.width * dit.mlp_ratio)
    return Leaves({**found, **given, **sizes, "mlp_ratio": hidden / dit.width, "hidden": hidden})


def _of_parts(parts: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the class or function of each part, and its arguments, by dotted keys."""
    for key, part in parts.items():
        made = _made_of(part)
        if made is None:
            yield f"{place}{key}", plain(part)
        else:
            yield f"{place}{key}._target_", f"sora.dit.{made[0].__qualname__}"  # sora.dit exports all of them
            yield from _of_parts(made[1], f"{place}{key}.")


def _made_of(part: Any) -> tuple[Any, Mapping[str, Any]] | None:
    """Function or class of a part and its keyword arguments; None for a plain value."""
    if isinstance(part, partial):
        return part.func, part.keywords
    if isfunction(part):
        return part, {}
    if is_dataclass(part):
        return type(part), vars(part)
    return (type(part), part.values()) if isinstance(part, Remembering) else None


def extents(layout: Layout) -> Int[Tensor, "N 3"]:
    """Number of frames, rows and columns of each token's clip, computed on the device."""
    return layout.grids.to(layout.coordinates.device, non_blocking=True)[owners(layout.segments)]


class TableFinal(nn.Module):
    """Final norm, scaled and shifted by the embedded level plus a table (adaLN-single)."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.table, self.norm = nn.Parameter(torch.zeros(2 * width)), norm

    def forward(self, x: Float[Tensor, "N D"], level: Float[Tensor, "U D"], index: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        scale, shift = ((part + level) for part in self.table.chunk(2))
        return self.norm(x, F.embedding(index, scale + 1), F.embedding(index, shift))


def table_final(width: int, level_width: int, *, norm: Callable[[int], nn.Module]) -> TableFinal:
    """Build a `TableFinal`, for dit.final."""
    return TableFinal(width, norm(width))


class ProjectedFinal(nn.Module):
    """Final norm, scaled and shifted by a projection of the embedded level (adaLN-Zero). before: module applied to x before the norm."""

    def __init__(self, width: int, level_width: int, norm: nn.Module, before: nn.Module) -> None:
        super().__init__()
        self.project, self.before, self.norm = nn.Linear(level_width, 2 * width), before, norm

    def forward(self, x: Float[Tensor, "N D"], level: Float[Tensor, "U C"], index: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        scale, shift = self.project(F.silu(level)).chunk(2, dim=-1)
        return self.norm(self.before(x), F.embedding(index, scale + 1), F.embedding(index, shift))


def projected_final(width: int, level_width: int, *, norm: Callable[[int], nn.Module]) -> ProjectedFinal:
    """Build a `ProjectedFinal`, for dit.final."""
    return ProjectedFinal(width, level_width, norm(width), nn.Identity())


def normed_projected_final(width: int, level_width: int, *, norm: Callable[[int], nn.Module], eps: float) -> ProjectedFinal:
    """Build a `ProjectedFinal`, for dit.final, with a layer norm before it. eps: epsilon of that layer norm."""
    return ProjectedFinal(width, level_width, norm(width), GainedLayerNorm(width, eps=positive("final.eps", eps)))
