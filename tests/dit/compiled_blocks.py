"""How many graphs the blocks of some networks compile to, over packs of different clips; run by test_blocks.py.

Two where the last block is another kind. Packs of other clips are no reason to compile again, and compiling changes nothing.
"""

import json

import torch

from tests.dit.test_blocks import MIXED, NAMES
from tests.dit.test_dit import Clip, apart, network, packed


def graphs(changes) -> int:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit, plainly = network(**changes), network(**changes)
    for block in dit.blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    for numbers in ((0, 1), (1, 2), (2, 0, 3), (3,)):
        inputs = packed([Clip(number) for number in numbers], budget=25, max_clips=4)
        found = dit(*inputs)
        found.sum().backward()
        assert apart(found[: inputs[0].real], plainly(*inputs)[: inputs[0].real]) <= 1e-6
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


if __name__ == "__main__":
    wanted = ("parallel", "dual then single", "expert")
    print(json.dumps({name: graphs(changes) for name, changes in zip(NAMES, MIXED, strict=True) if name in wanted}))
