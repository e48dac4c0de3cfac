"""Compiling a network from outside: each of its blocks by itself, all by one graph."""

from __future__ import annotations

from torch import nn


def compile_blocks(network: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the forward and backward of `network.blocks`, in place; names and values of weights stay.

    Blocks of one kind share one graph, so that compiling takes as long for two blocks as for forty. Every axis of a pack has a budget, and
    what varies inside it (segments, grids) is data to the graph, so nothing is compiled again in later steps: shapes are static.
    """
    blocks = network.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
