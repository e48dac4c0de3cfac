"""Activation checkpointing (`recompute=` of sora train): which activations a network's blocks save for the backward pass, and which they
recompute.

Each function changes in place how the blocks of `network.blocks` run. Names and values of weights do not change, nor do results beyond
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sora.dit.attention.op import is_attention
from sora.dit.blocks.lean import LeanBlock
from sora.dit.kernels.gelu_mlp import is_mlp

# An MLP with all its hidden channels needs about eight times the memory of its tokens for a moment; its saved output needs that of the
# tokens. So this many blocks may save the output without raising the peak memory of a step, however deep the network is.
PAID = 8


def recompute_none(network: nn.Module) -> None:
    """Save every activation: the fastest option, and the one that needs the most memory."""


def recompute_all(network: nn.Module) -> None:
    """Save only the inputs of blocks, and recompute each block in the backward pass (Chen et al. 2016): steps take about a third longer."""
    _run(_blocks(network), _all_again)


def recompute_every_n(network: nn.Module, *, n: int) -> None:
    """Recompute every n-th block as `recompute_all` does.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"recompute.n={n} must be at least 1: every n-th block is computed again")
    _run(_blocks(network)[::n], _all_again)


def recompute_all_but_attention(network: nn.Module) -> None:
    """Recompute blocks as `recompute_all` does, but save the output of self-attention, which is small and costs most of a block's time in
    long clips.

    The last blocks, if they are lean (`sora.dit.blocks.lean`), also save the output of the MLP, in the memory that its hidden channels no
    longer take.
    """
    blocks = _blocks(network)
    for block in blocks[-PAID:]:
        if isinstance(block, LeanBlock):
            block.frugal = True
    _run(blocks, _all_but_dear_again)


def recompute_by_size(network: nn.Module, *, above: int) -> None:
    """Apply `recompute_all_but_attention` to networks of more than `above` parameters; leave smaller ones as they are."""
    if sum(value.numel() for value in network.parameters()) > above:
        recompute_all_but_attention(network)


def _all_again(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(type(block).forward, block, *inputs, use_reentrant=False, preserve_rng_state=False)


def _all_but_dear_again(block: nn.Module, *inputs: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _keep_dear)
    return checkpoint(type(block).forward, block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _keep_dear(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # Only self-attention is expensive; cross-attention to the few keys of a caption is cheaper to recompute than to save.
    dear = is_attention(op) and args[0].shape == args[1].shape
    return CheckpointPolicy.MUST_SAVE if dear or is_mlp(op) else CheckpointPolicy.PREFER_RECOMPUTE


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    blocks = network.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _run(blocks: Sequence[nn.Module], how: Callable) -> None:
    for block in blocks:
        # Replaced in place, because a wrapping module would rename the weights; by a method, because every block would be recompiled for a
        # closure of its own.
        block.forward = MethodType(how, block)
