"""Run by `test_compiling`: compiled networks over many packs, told on standard output. A process of its own, because the checks of types
that every test runs under cannot be compiled."""

import json
import random
from functools import partial

import torch
from torch._dynamo.utils import counters

from sora.dit import patterns
from sora.dit.lean import lean
from sora.training import recompute
from sora.training.compiling import compile_blocks
from tests.dit.test_dit import Clip, network, packed

# Each of them takes seconds to compile, so that they share what they show.
KINDS = {
    "full": ({}, recompute.none, 50),
    "factorised": ({"pattern": patterns.factorised}, recompute.full, 4),
    "lean": ({"block": lean, "pattern": partial(patterns.windowed, frames=1, rows=1, columns=1)}, recompute.none, 4),
    "saved": ({"block": lean, "pattern": partial(patterns.causal, frames=-1)}, recompute.save_attention, 4),
}


def pack_of(seed: int):
    draw = random.Random(seed)
    return packed([Clip(draw.randrange(4)) for _ in range(draw.randint(1, 4))], budget=40, max_clips=5, max_levels=24, max_words=40)


def step(net, inputs):
    net.zero_grad()
    out = net(*inputs)
    out.square().sum().backward()
    return [out.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


def main() -> None:
    found = {}
    for name, (changes, policy, packs) in KINDS.items():
        torch._dynamo.reset()
        counters.clear()
        plain, compiled = network(depth=2, **changes), network(depth=2, **changes)
        policy(compiled)
        compile_blocks(compiled, backend="aot_eager")
        worst = 0.0
        for seed in range(packs):
            inputs = pack_of(seed)
            for mine, theirs in zip(step(compiled, inputs), step(plain, inputs), strict=True):
                worst = max(worst, float((mine - theirs).norm() / theirs.norm().clamp_min(1e-3)))
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        found[name] = {"packs": packs, "graphs": graphs, "breaks": breaks, "worst": worst}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
