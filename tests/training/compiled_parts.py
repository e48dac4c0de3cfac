"""Run by `test_parity_context`: compiled networks on two ranks that share packs, told on standard output. A process of its own, because the
checks of types that every test runs under cannot be compiled."""

import json
import tempfile
from pathlib import Path

from torch._dynamo.utils import counters

from sora.training.compiling import compile_blocks
from tests.training.groups import in_ranks
from tests.training.test_parity_context import KINDS, apart, cut, learnt, summed
from tests.training.tokens import task

NAMES = ("factorised", "dual")


def main() -> None:
    wanted = {name: learnt(task(**KINDS[name])) for name in NAMES}

    def work(rank: int) -> None:
        for name in NAMES:
            counters.clear()
            made = cut(task(**KINDS[name]), 2)
            compile_blocks(made.dit, backend="aot_eager")
            far = apart(summed(learnt(made)), wanted[name])
            told = {"kind": name, "apart": far, "breaks": len(counters["graph_break"]), "graphs": counters["stats"]["unique_graphs"]}
            print(json.dumps(told), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        in_ranks(2, Path(folder), work)


if __name__ == "__main__":
    main()
