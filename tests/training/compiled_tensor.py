"""Run by `test_parity_tensor`: a compiled network spread over two ranks, told on standard output. A process of its own, because the checks
of types that every test runs under cannot be compiled."""

import json
import tempfile
from pathlib import Path

from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from sora.dit.blocks.lean import lean_block
from sora.parallel.tensor import spread_tensor
from sora.system import distributed as ranks
from sora.training.compiling import compile_blocks
from tests.dit.test_dit import Clip, network, packed
from tests.training.groups import in_ranks


def main() -> None:
    inputs = packed([Clip(number) for number in range(4)], budget=24, max_clips=5, max_words=23)

    def work(rank: int) -> None:
        alone, together = (network(width=64, heads=4, block=lean_block) for _ in range(2))
        compile_blocks(together, words=True, levels=True, backend="aot_eager")
        spread_tensor(together, init_device_mesh("cpu", (2,), mesh_dim_names=("tensor",)))
        for dit in (together, alone):
            dit(*inputs).square().mean().backward()
        mine, wanted = ([ranks.whole(value.grad) for value in dit.parameters() if value.grad is not None] for dit in (together, alone))
        far = max(float((a - b).norm() / b.norm()) for a, b in zip(mine, wanted, strict=True))
        told = {"apart": far, "breaks": len(counters["graph_break"]), "graphs": counters["stats"]["unique_graphs"]}
        if rank == 0:
            (folder / "told.json").write_text(json.dumps(told))

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        in_ranks(2, folder, work)
        print((folder / "told.json").read_text())


if __name__ == "__main__":
    main()
