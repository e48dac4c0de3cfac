"""Measures how long a network takes for clips of several lengths, so that a plan can balance the true cost of steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from sora.diffusion.objective import pack_levels
from sora.patches.packing import pack
from sora.text.packing import pack_text
from sora.tokens import Grid, NoiseLevels, PackedTokens, TextTokens

_WORDS = 32  # text tokens of a clip


def seconds_per_token(dit: nn.Module, *, lengths: Sequence[int], budget: int, repeats: int) -> list[float]:
    """Median seconds of forward and backward over packs of about `budget` tokens with clips of one length, divided by the pack's tokens.

    The network's `patch_channels` and `text_width` set the sizes of inputs. Lengths are timed in turn, so that a slow phase of the machine
    affects all.

    Raises:
        ValueError: a length is over the budget, or `repeats` is below 1.
    """
    if repeats < 1 or min(lengths) < 1 or max(lengths) > budget:
        raise ValueError(f"clips of {list(lengths)} tokens, {repeats} times, do not fit packs of plan.budget={budget} tokens")
    packs = [_pack(dit, length, budget // length) for length in lengths]
    seconds: list[list[float]] = [[] for _ in lengths]
    for number in range(repeats + 1):
        for kept, inputs in zip(seconds, packs, strict=True):
            taken = _timed(dit, inputs)
            if number:  # the first round warms up
                kept.append(taken)
    return [median(taken) / (budget // length * length) for taken, length in zip(seconds, lengths, strict=True)]


def _pack(dit: nn.Module, length: int, clips: int) -> tuple[PackedTokens, NoiseLevels, TextTokens]:
    device = next(dit.parameters()).device
    draw = torch.Generator().manual_seed(0)
    grids = [Grid(1, 1, length)] * clips
    patches = [torch.randn(length, dit.patch_channels, generator=draw) for _ in grids]  # pyright: ignore[reportArgumentType]
    tokens = pack(patches, grids, seconds=[torch.zeros(1)] * clips, budget=clips * length, max_clips=clips)
    levels = pack_levels([torch.rand(1, generator=draw) for _ in grids], grids, torch.zeros(clips * length).bool(), segments=clips + 1)
    states = [torch.randn(_WORDS, dit.text_width, generator=draw) for _ in grids]  # pyright: ignore[reportArgumentType]
    return tokens.to(device), levels.to(device), pack_text(states, budget=None, max_clips=clips).to(device)


def _timed(dit: nn.Module, inputs: tuple[PackedTokens, NoiseLevels, TextTokens]) -> float:
    device = inputs[0].patches.device
    _wait(device)
    start = time.perf_counter()
    dit(*inputs).float().square().mean().backward()
    _wait(device)
    taken = time.perf_counter() - start
    dit.zero_grad(set_to_none=True)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
