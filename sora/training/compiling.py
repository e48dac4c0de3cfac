"""Compile a network's blocks one by one, so that all of them share one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sora.dit.dit import Context
from sora.system.torch_private import allow_lengths


def compile_blocks(network: nn.Module, *, words: bool, levels: bool, backend: str = "inductor") -> None:
    """Compile the forward and backward of `network.blocks` in place; names and values of weights do not change.

    Blocks of one kind share one graph, so compiling takes as long for two blocks as for forty. Every axis of a pack has a fixed budget, and
    segments and grids are inputs of the graph, so shapes are static and later steps recompile nothing. words, levels: whether the axis of
    text tokens, or that of noise levels, has no budget (data.text_budget=null, objective.max_levels=null). The graph then takes any length
    of that axis.
    """
    blocks = network.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
        compiled = block._compiled_call_impl
        assert compiled is not None
        block._compiled_call_impl = _once(compiled, block._call_impl, words=words, levels=levels)


def _once(compiled: Callable[..., Any], plain: Callable[..., Any], *, words: bool, levels: bool) -> Callable[..., Any]:
    """A block's compiled call, which marks the axes without a fixed length at every call, because each block makes new text tokens for the
    next one.

    Without gradients, as in evaluations between steps, packs have other shapes, and the block runs uncompiled.
    """

    def call(x: Tensor, text: Tensor, context: Context) -> Any:
        if not torch.is_grad_enabled():
            return plain(x, text, context)
        for tensor in (*(_along_words(text, context) if words else ()), *(_along_levels(context) if levels else ())):
            allow_lengths(tensor)
        return compiled(x, text, context)

    return call


def _along_words(text: Tensor, context: Context) -> Iterator[Tensor]:
    yield text
    if context.text_levels is not None:
        yield context.text_levels.index
    if context.joined is not None:  # both hold tokens and words together
        yield from (context.joined.places, context.joined.order)


def _along_levels(context: Context) -> Iterator[Tensor]:
    yield from (context.levels.level, context.levels.modulation)
