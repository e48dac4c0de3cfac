"""How many graphs the blocks of some published networks compile to, over packs of other order; run by test_parity.py, in a process of its
own, since the checks of shapes that pytest switches on are nothing that can be compiled. Compiling and recomputing change nothing."""

import json
from copy import deepcopy

import torch

from sora.training.activation_checkpointing import recompute_all_but_attention
from tests.dit.published.test_parity import apart, inputs_of, pair

WANTED = ("wan_2_1_1_3b", "latte_xl_2", "hunyuan_video")


def graphs(name: str) -> int:
    dit, _, _, _, clips = pair(name)
    plainly, again = deepcopy(dit), deepcopy(dit)
    recompute_all_but_attention(again)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in dit.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        inputs = [part.to("cpu") for part in inputs_of(dit, [clips[number] for number in order])]
        results = []
        for network in (plainly, dit, again):
            network.zero_grad()
            out = network(*inputs)[: inputs[0].real]
            out.square().sum().backward(retain_graph=True)
            results.append([out, *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)])
        for expected, *others in zip(*results, strict=True):
            assert all(apart(other, expected) <= 1e-5 for other in others)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


if __name__ == "__main__":
    print(json.dumps({name: graphs(name) for name in WANTED}))
