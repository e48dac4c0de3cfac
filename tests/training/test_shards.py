"""What FSDP asks of a block: that what gathers its weights for the backward hangs on a tensor which nobody changes in place."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sora.dit.blocks.dual import dual_block
from sora.dit.blocks.expert import expert_block
from sora.dit.blocks.lean import lean_block
from sora.dit.blocks.parallel import parallel_block
from sora.dit.blocks.plain import plain_block
from sora.dit.blocks.single import dual_then_single_block, single_block
from tests.training.groups import in_ranks
from tests.training.tokens import packs_of, task

KINDS = {"cross": {}, "ds": {"block": partial(dual_then_single_block, dual=1)}} | {
    block.__name__: {"block": block} for block in (dual_block, expert_block, lean_block, parallel_block, plain_block, single_block)
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
def test_what_a_block_gives_as_a_view_is_words_as_they_came_and_stays_as_it_was(tmp_path):
    def work(_: int) -> None:
        mesh = init_device_mesh("cpu", (1,))
        for name, changes in KINDS.items():
            made = task(**changes)
            blocks: Any = made.dit.blocks
            outputs: list[tuple[torch.Tensor, int]] = []

            def look(module: Any, given: Any, found: Any, outputs: list = outputs, name: str = name) -> None:
                tokens, words = found
                assert tokens._base is None, name
                assert words._base is None or words is given[1], name
                outputs += [(value, value._version) for value in found]

            for block in blocks:
                fully_shard(block, mesh=mesh)
                block.register_forward_hook(look, prepend=True)
            fully_shard(made, mesh=mesh)
            prepared = made.prepare(packs_of(1), torch.device("cpu"))
            loss = made(prepared[0]).total
            assert len(outputs) == 2 * len(blocks)
            assert all(value._version == version for value, version in outputs), name
            loss.backward()
            assert all(value.grad is not None for value in blocks[0].parameters()), name

    in_ranks(1, tmp_path, work)
