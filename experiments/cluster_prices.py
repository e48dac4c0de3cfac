"""Whether `sora plan cluster=…` tells the truth: predictions against runs on this CPU, and a 10 B network on 1,024 ranks.

memory_prediction_error_max: of what four small runs really keep (weights, average, optimiser, and what torch's allocator hands out between
the beginning and the end of a forward pass), and of what was traced without numbers; the largest relative difference of the sums.
Of runs in two processes, what the kernel was handed by a rank in a step is compared with the messages that were foretold, too (rows:
sent_error); gloo sums whole tensors where NCCL hands out parts of the sum, so that those count twice.
flops_prediction_error_max: of the operations that a run logs and of those that torch's counter sees in it, to the same predictions.
plan_10b_1024_seconds: to price a network of 10 billion weights on 1,024 H100s, in a process of its own; its memory is in the rows.
`experiments/benchmarks/cluster.py` calls `measure`; `python -m experiments.cluster_prices` prints what it finds.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from sora import plan
from sora.assembly.training import diffusion_task, training_module
from sora.config.build import build, plain
from sora.config.compose import compose
from sora.cost import tracing
from sora.cost.price import Costs, PackOf, Wanted, batch_of, bill
from sora.cost.tally import CostCounter
from sora.parallel.mesh import seat
from sora.text.encoder import IdentityText
from sora.tokens import Grid, Movable
from sora.training.module import TrainingModule

GIVEN = {"patch_channels": 32, "text_width": 24}
CLIPS = [(Grid(3, 8, 12), 7), (Grid(1, 8, 8), 5), (Grid(2, 5, 9), 11)]  # 442 of 512 tokens
SMALL = [
    "task=diffusion",
    "cluster=h100x1",
    "dit=toy",
    "dit.width=96",
    "dit.depth=4",
    "dit.heads=4",
    "dit.rope.axes=[8,8,8]",
    "plan.budget=512",
    "plan.max_clips=6",
]
TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true"]
RUNS = {
    "cross": [],
    "lean, Muon, attention kept": ["dit.block._target_=sora.dit.lean_block", "optimizer=muon", "recompute=save_attention", "ema=power"],
    "dual, bf16, every second block kept": [
        *("dit.block._target_=sora.dit.dual_block", "recompute=every_n", "ema=none", "trainer.precision=bf16-mixed", "dit.kv_heads=null"),
    ],
    "shards of two ranks": ["trainer=fsdp", "recompute=full", *TWO],
    "tokens shared by two ranks": ["trainer=cp", "trainer.context=2", *TWO],
    "products shared by two ranks": ["trainer=tp", "trainer.tensor=2", *TWO],
}
PARTS = ("weights", "average", "moments", "kept")
TEN = ["task=diffusion", "cluster=h100x1024", "dit=8b", "dit.depth=48", "trainer=fsdp", "plan.budget=32768", "plan.packs=1024"]


@dataclass(frozen=True)
class Item:
    """A configuration of a network on packs, as it trains and as it is priced."""

    config: DictConfig
    given: Mapping[str, int]
    packs: Sequence[PackOf]

    @property
    def wanted(self) -> Wanted:
        return plan.wanted(self.config, self.given, self.packs, IdentityText, epoch=None)

    def module(self) -> TrainingModule:
        """What trains, with the attention that the configuration names."""
        config = self.config.copy()
        config.compile = False
        task, scales = diffusion_task(config, self.given, IdentityText, encode=None)
        return training_module(config, task, scales=scales)


def wanted(words: Sequence[str], *, given: dict[str, int], packs: Sequence[PackOf]) -> Item:
    return Item(compose("plan", words).config, given, packs)


BEGINS, ENDS = "forward begins", "forward ends"
MEMORY, COUNT = range(2, 42), 42  # the steps whose allocations are read, and the one whose operations are counted


class Steps(Dataset):
    """The same pack in every step."""

    def __init__(self, batch: Movable) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return COUNT + 1

    def __getitem__(self, step: int) -> list[Movable]:
        return [self.batch]


class Meter(Callback):
    """What a run sends, keeps and multiplies, from outside: the kernel's count of bytes in the second step, torch's allocator in the
    next ones, its counter of operations in the last.

    The least of many: what a thread of gloo's is the last to let go is given back without torch's profiler (nor the allocator's own sum)
    seeing it. That is chance; with two ranks that share products one step in four is without.
    """

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.watch: Any = None
        self.written = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.begin()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.task.register_forward_pre_hook(lambda *_: self._mark(BEGINS), prepend=True)
        pl_module.task.register_forward_hook(lambda *_: self._mark(ENDS))

    def _mark(self, name: str) -> None:
        with torch.profiler.record_function(name):
            pass

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.written = written()
        if batch_idx in MEMORY:
            self.watch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        if batch_idx == COUNT:
            self.watch = FlopCounterMode(display=False)
        if self.watch is not None:
            self.watch.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.found["sent"] = written() - self.written
        if self.watch is not None:
            self.watch.__exit__(None, None, None)
        if batch_idx in MEMORY:
            self.found |= {name: min(size, self.found.get(name, size)) for name, size in kept_by(self.watch).items()}
        if batch_idx == COUNT:
            self.found |= {"flops": self.watch.get_total_flops(), "model": pl_module.report.flops / seat(trainer).readers}
            self.found |= {
                "weights": tracing.held(pl_module.task.parameters()),
                "average": tracing.held(pl_module.average.shadow.values()),
                "moments": tracing.held(tracing.moments(pl_module)),
            }


def written() -> int:
    """Bytes that this process has handed to the kernel, for sockets and files."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


def kept_by(profile: Any) -> dict[str, float]:
    """Bytes that were handed out and not given back between the two marks, and the most at any time of the step."""
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    marks = {event.name(): event.start_ns() for event in events if event.name() in (BEGINS, ENDS)}
    memory = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    inside = [size for when, size in memory if marks[BEGINS] <= when <= marks[ENDS]]
    now = most = 0
    for _, size in memory:
        now += size
        most = max(most, now)
    return {"kept": sum(inside), "most": most}


def ran(item: Item) -> dict[str, float]:
    """A real run of a few steps in this process."""
    torch.manual_seed(0)
    meter = Meter()
    trainer = build(item.config.trainer)(callbacks=[meter])
    trainer.fit(item.module(), DataLoader(Steps(batch_of(item.wanted, item.packs[0], item.config.plan.budget)), batch_size=None))
    return meter.found


def ran_in_two(item: Item, folder: Path) -> dict[str, float]:
    """The same in two processes that share the weights; what the first one keeps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            torch.set_num_threads(1)  # threads of OpenMP are not forked, and whoever waits for those of the parent waits for ever
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
            os.environ.update(TORCHELASTIC_RUN_ID="prices", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            found = ran(item)
            if rank == 0:
                (folder / "found.json").write_text(json.dumps(found))
            dist.barrier()
            code = 0
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if codes != [0, 0]:
        raise RuntimeError(f"the run in two processes ended with {codes}")
    return json.loads((folder / "found.json").read_text())


def foretold(item: Item) -> dict[str, float]:
    """What is predicted of the same run."""
    tree = plain(item.config.trainer)
    ranks = (tree.get("devices") or 1) * (tree.get("nodes") or 1)
    batch = batch_of(item.wanted, item.packs[0], item.config.plan.budget)
    plain_send, handed_out = CostCounter._send, []

    def send(tally: CostCounter, name: str, *given: Any) -> None:
        before = sum(tally.sent.values())
        plain_send(tally, name, *given)
        handed_out.append(sum(tally.sent.values()) - before if "reduce_scatter" in name else 0)

    with mock.patch.object(CostCounter, "_send", send):
        found = tracing.traced(item.module, [batch], trainer=build(tree)(callbacks=[]), ranks=ranks, gpu=False)
    costs = Costs(item.wanted.flops, item.packs)
    parts = {name: getattr(found, name) for name in PARTS}
    parts |= {"flops": float(costs.executed(found, item.packs)[0]), "model": float(costs.model[0]), "largest": found.largest}
    return {**parts, "sent": sum(found.sent.values()) + sum(handed_out)}


def compared(name: str, folder: Path) -> dict[str, Any]:
    """One run and its prediction, side by side."""
    item = wanted([*SMALL, *RUNS[name]], given=GIVEN, packs=[CLIPS])
    shared = (item.config.trainer.get("devices") or 1) > 1
    real, said = ran_in_two(item, folder) if shared else ran(item), foretold(item)
    sums = [sum(each[part] for part in PARTS) for each in (said, real)]
    errors = {"memory_error": abs(sums[0] / sums[1] - 1), "kept_error": abs(said["kept"] / real["kept"] - 1)}
    most = real["most"] + sum(real[part] for part in PARTS[:3])  # what the step adds, to what lay there
    errors |= {"peak_error": abs(said["largest"] / most - 1)}
    errors |= {f"{part}_error": abs(said[part] / real[part] - 1) for part in ("flops", "model") if real[part]}
    if shared:
        errors["sent_error"] = abs(said["sent"] / real["sent"] - 1)
    return {"run": name, "said": said, "real": real, **errors}


def ten_billion() -> dict[str, Any]:
    """Seconds and memory of a process that prices the large network."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "experiments.cluster_prices", "ten"], capture_output=True, text=True, check=True)
    return {"seconds": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def priced_ten() -> dict[str, Any]:
    found = bill(wanted(TEN, given={"patch_channels": 64, "text_width": 4096}, packs=[[(Grid(21, 30, 52), 512)]]).wanted)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"run": "10 B on 1,024", "peak_mb": usage.ru_maxrss / 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime, **found.figures}


def measure() -> tuple[dict[str, float], list[dict]]:
    """The figures and what they are from; about two minutes on a quiet machine."""
    with TemporaryDirectory() as folder:
        rows = [compared(name, Path(folder)) for name in sorted(RUNS, key=lambda name: "ranks" not in name)]  # forks come first
    ten = ten_billion()
    figures = {
        "memory_prediction_error_max": max(row["memory_error"] for row in rows),
        "flops_prediction_error_max": max(row.get(f"{part}_error", 0.0) for row in rows for part in ("flops", "model")),
        "plan_10b_1024_seconds": ten["seconds"],
    }
    return figures, [*rows, ten]


if __name__ == "__main__":
    if sys.argv[1:] == ["ten"]:
        print(json.dumps(priced_ten()))
    elif len(sys.argv) > 1:
        with TemporaryDirectory() as made:
            print(json.dumps(compared(sys.argv[1], Path(made)), indent=1))
    else:
        print(json.dumps(measure(), indent=1))
