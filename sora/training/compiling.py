"""Compiling a network from outside: each of its blocks by itself, all by one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sora.dit.dit import Context
from sora.system.torch_private import allow_lengths


def compile_blocks(network: nn.Module, *, words: bool, levels: bool, backend: str = "inductor") -> None:
    """Compile the forward and backward of `network.blocks`, in place; names and values of weights stay.

    Blocks of one kind share one graph, so that compiling takes as long for two blocks as for forty. Every axis of a pack has a budget, and
    what varies inside it (segments, grids) is data to the graph, so nothing is compiled again in later steps: shapes are static. words,
    levels: whether these axes have none, and are as long as a pack needs (data.text_budget=null, objective.max_levels=null); the one
    graph is for any length of them then.
    """
    blocks = network.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
        compiled = block._compiled_call_impl
        assert compiled is not None
        block._compiled_call_impl = _once(compiled, block._call_impl, words=words, levels=levels)


def _once(compiled: Callable[..., Any], plain: Callable[..., Any], *, words: bool, levels: bool) -> Callable[..., Any]:
    """A block's compiled call, told at each one, as blocks make new words for the next, which axes have no fixed length.

    What is no training, as evaluations between steps are, has packs of other shapes, and is not compiled.
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
    if context.joined is not None:  # of tokens and words together
        yield from (context.joined.places, context.joined.order)


def _along_levels(context: Context) -> Iterator[Tensor]:
    yield from (context.levels.level, context.levels.modulation)
