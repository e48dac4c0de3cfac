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
            compile_blocks(made.dit, words=True, levels=True, backend="aot_eager")
            far = apart(summed(learnt(made)), wanted[name])
            told = {"kind": name, "apart": far, "breaks": len(counters["graph_break"]), "graphs": counters["stats"]["unique_graphs"]}
            (folder / f"{name}-{rank}.json").write_text(json.dumps(told))  # two ranks would write into one another's lines

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        in_ranks(2, folder, work)
        for path in sorted(folder.glob("*.json")):
            print(path.read_text())


if __name__ == "__main__":
    main()
