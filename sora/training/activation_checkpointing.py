"""What a network's blocks keep for the backward, and what they compute again there (activation checkpointing): `recompute=` of sora train.

Each takes the network and changes how its `blocks` run, nothing else: names and values of weights, and results beyond rounding, stay.
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

# An MLP with all its hidden channels needs some eight times the memory of its tokens for a moment, its result once: so many blocks may
# keep it, and the most memory that a step needs is not more, however deep the network.
PAID = 8


def recompute_none(network: nn.Module) -> None:
    """Keep everything: the fastest, and the most memory."""


def recompute_all(network: nn.Module) -> None:
    """Keep what stands between blocks only, and compute each block again (Chen et al. 2016): a third more time."""
    _run(_blocks(network), _all_again)


def recompute_every_n(network: nn.Module, *, n: int) -> None:
    """As `full`, in every n-th block.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"recompute.n={n} must be at least 1: every n-th block is computed again")
    _run(_blocks(network)[::n], _all_again)


def recompute_all_but_attention(network: nn.Module) -> None:
    """As `full`, but keep what self-attention gives: little memory, and with many tokens most of the time of a block.

    Of the last blocks, if they are lean (`sora.dit.blocks.lean`), what the MLP gives is kept too, and paid with its hidden channels.
    """
    blocks = _blocks(network)
    for block in blocks[-PAID:]:
        if isinstance(block, LeanBlock):
            block.frugal = True
    _run(blocks, _all_but_dear_again)


def recompute_by_size(network: nn.Module, *, above: int) -> None:
    """`save_attention` for networks of more than `above` parameters, `none` for smaller ones."""
    if sum(value.numel() for value in network.parameters()) > above:
        recompute_all_but_attention(network)


def _all_again(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(type(block).forward, block, *inputs, use_reentrant=False, preserve_rng_state=False)


def _all_but_dear_again(block: nn.Module, *inputs: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _keep_dear)
    return checkpoint(type(block).forward, block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _keep_dear(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # What costs much is attention among a clip's tokens; to a caption, whose keys are few, it is cheaper to compute than to keep.
    dear = is_attention(op) and args[0].shape == args[1].shape
    return CheckpointPolicy.MUST_SAVE if dear or is_mlp(op) else CheckpointPolicy.PREFER_RECOMPUTE


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    blocks = network.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _run(blocks: Sequence[nn.Module], how: Callable) -> None:
    for block in blocks:
        # In place rather than by a wrapping module, which would rename the weights; a method rather than a closure, which every block
        # would be compiled anew for.
        block.forward = MethodType(how, block)
