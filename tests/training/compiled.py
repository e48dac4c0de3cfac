"""Run by `test_compiling`: compiled networks over many packs, told on standard output. A process of its own, because the checks of types
that every test runs under cannot be compiled."""

import json
import random
from functools import partial

import torch
from torch._dynamo.utils import counters

from sora.dit.attention import patterns
from sora.dit.blocks.dual import dual_block
from sora.dit.blocks.lean import lean_block
from sora.training import activation_checkpointing as recompute
from sora.training.compiling import compile_blocks
from tests.dit.test_dit import Clip, network, packed

# Each of them takes seconds to compile, so that they share what they show.
KINDS = {
    "full": ({}, recompute.recompute_none, 50),
    "fixed": ({}, recompute.recompute_none, 4),
    "factorised": ({"pattern": patterns.factorised_attention}, recompute.recompute_all, 4),
    "dual": ({"block": dual_block}, recompute.recompute_none, 4),
    "lean": (
        {"block": lean_block, "pattern": partial(patterns.windowed_attention, frames=1, rows=1, columns=1)},
        recompute.recompute_none,
        4,
    ),
    "saved": ({"block": lean_block, "pattern": partial(patterns.causal_attention, frames=-1)}, recompute.recompute_all_but_attention, 4),
    "halves": ({}, recompute.recompute_none, 2),
    "dual halves": ({"block": dual_block, "depth": 3}, recompute.recompute_none, 2),
    "lean halves": ({"block": lean_block}, recompute.recompute_none, 2),
}


def pack_of(seed: int, *, fixed: bool):
    """A pack whose words and levels are as many as its budgets, or as it needs (data.text_budget, objective.max_levels null)."""
    draw = random.Random(seed)
    clips = [Clip(draw.randrange(4)) for _ in range(draw.randint(1, 4))]
    words = sum(len(clip.words) for clip in clips)
    return packed(clips, budget=40, max_clips=5, max_levels=24 if fixed else None, max_words=40 if fixed else max(2, words))


def step(net, inputs, *, halves):
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=halves):
        out = net(*inputs).float()
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


def main() -> None:
    found = {}
    for name, (changes, policy, packs) in KINDS.items():
        torch._dynamo.reset()
        counters.clear()
        plain, compiled = (network(**{"depth": 2, **changes}) for _ in range(2))
        policy(compiled)
        compile_blocks(compiled, words=name != "fixed", levels=name != "fixed", backend="aot_eager")
        worst, lengths = 0.0, set()
        for seed in range(packs):
            inputs = pack_of(seed, fixed=name == "fixed")
            lengths.add((len(inputs[1].levels), len(inputs[2].states)))
            with torch.no_grad():  # an evaluation between steps, on packs of other budgets
                compiled(*packed([Clip(seed % 4)], budget=30 + seed, max_clips=1 + seed % 8))
            for mine, theirs in zip(*(step(net, inputs, halves="halves" in name) for net in (compiled, plain)), strict=True):
                worst = max(worst, float((mine - theirs).norm() / theirs.norm().clamp_min(1e-3)))
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        found[name] = {"packs": packs, "graphs": graphs, "breaks": breaks, "worst": worst, "lengths": len(lengths)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
