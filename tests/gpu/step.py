"""A training step of the network: right beside float32 on the CPU, no waiting inside, and what it takes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from experiments.cluster_prices import Item
from sora.cost.price import bill
from sora.system.devices import stated
from tests.gpu.ceilings import matmul_rate
from tests.gpu.fitting import fitting
from tests.gpu.measuring import error, peak_bytes, seconds_of, step_bytes
from tests.gpu.networks import batches, sizes, trained, wanted
from tests.gpu.record import Place, Report

NETWORKS = ("b_2", "xl_2", "wan_2_1_1_3b")
LOSS, GRADIENT = 2e-2, 5e-2  # of bfloat16 beside float32, relative; float32 with bfloat16's products is as far


def correctness(place: Place) -> Iterator[Report]:
    """loss_error_NAME and gradient_error_NAME of two blocks in the trainer's precision, beside float32 on the CPU."""
    broken = []
    for name in NETWORKS:
        try:
            loss, gradient = wrong(place, name)
        except (ValueError, RuntimeError) as refused:
            broken.append(f"{name}: {refused}")
            continue
        yield Report(figures={f"loss_error_{name}": loss, f"gradient_error_{name}": gradient})
        if not (loss <= LOSS and gradient <= GRADIENT):
            broken.append(f"{name}: loss {loss:.3g}, gradients {gradient:.3g}")
    if broken:
        raise AssertionError(f"not as float32 on the CPU (loss {LOSS}, gradients {GRADIENT} allowed): {'; '.join(broken)}")


def wrong(place: Place, name: str) -> tuple[float, float]:
    """Relative errors of the loss and of all gradients together."""
    item = wanted(place, name, "dit.depth=2")
    cpu = Place("cpu", place.toy, place.folder)
    exact = wanted(cpu, name, "dit.depth=2", "trainer.precision=32-true")
    if not place.toy:  # a CPU's step of whole packs would take the section's time
        item = _smaller(item)
        exact = _smaller(exact)
    found = []
    for here, each in ((place, item), (cpu, exact)):
        made = trained(here, each, alike=True)
        loss = made.learn(made.prepare(batches(each)[0]))
        grads = torch.cat([value.grad.flatten().float().cpu() for value in made.module.trained().values() if value.grad is not None])
        found.append((loss.float().cpu(), grads))
    (loss, grads), (true_loss, true_grads) = found
    return error(loss, true_loss), error(grads, true_grads)


def _smaller(item: Any) -> Any:
    item.config.plan.budget = 2048
    packs = [[(grid._replace(t=max(1, grid.t // 9)), 16) for grid, _ in pack[:2]] for pack in item.packs[:1]]
    return replace(item, packs=packs, longest=max(grid.tokens for grid, _ in packs[0]))


def waiting(place: Place) -> Iterator[Report]:
    """no_waiting_NAME: 1 where a forward and a backward never wait for the device (torch's sync debug mode)."""
    broken = []
    for name in NETWORKS:
        waits = waited(place, name)
        yield Report(figures={f"no_waiting_{name}": float(not waits)})
        broken += [f"{name}: {waits}"] if waits else []
    if broken:
        raise AssertionError("; ".join(broken))


def waited(place: Place, name: str) -> str:
    """Where a step waits for the device; nothing if it does not."""
    item = wanted(place, name)
    packs = batches(item)[:2]
    made = trained(place, item)
    prepared = [made.prepare(batch) for batch in packs]
    made.learn(prepared[0])  # what is compiled or asked for once is
    try:
        with forbidden(place):
            made.learn(prepared[1])
    except RuntimeError as refused:
        lines = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in traceback.extract_tb(refused.__traceback__)[-6:]]
        return f"{str(refused).splitlines()[0]} at {' > '.join(lines)}"
    return ""


class forbidden:
    """A context in which waiting for the device is an error; nothing on a CPU."""

    def __init__(self, place: Place) -> None:
        self.cuda = place.device == "cuda"

    def __enter__(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")


# What goals are of comes first.
TRIALS = (
    ("b_2", "none"),
    ("xl_2", "save_attention"),
    ("wan_2_1_1_3b", "save_attention"),
    *(("xl_2", "none"), ("b_2", "save_attention"), ("xl_2", "full"), ("wan_2_1_1_3b", "full"), ("b_2", "full"), ("wan_2_1_1_3b", "none")),
)


def speed(place: Place) -> Iterator[Report]:
    """Of each network: ms, tokens_per_second, mfu (of the ceiling measured here), mfu_stated, memory_vs_bill, by policy of recomputing.

    Where packs of the real budget do not fit, a half and a quarter of it are tried: the rows say which do, and figures are of those.
    """
    rate = matmul_rate(place, torch.bfloat16)
    for name, policy in [(name, "none") for name in NETWORKS] if place.toy else TRIALS:
        tried = {
            f"{sizes(place).budget // part} tokens": partial(of_step, place, name, policy, rate=rate, part=part)
            for part in ((1,) if place.toy else (1, 2, 4))
        }
        found = yield from fitting(f"{name} recompute={policy}", tried)
        if found is None:
            continue
        figures, held, item = found
        yield Report(figures=figures)
        if not place.toy or name == NETWORKS[0]:
            priced = bill(item.wanted).memory.largest
            yield Report(figures={f"memory_vs_bill_{name}_{policy}": None if held is None else held / priced})


def of_step(place: Place, name: str, policy: str, *, rate: float, part: int = 1) -> tuple[Mapping[str, float | None], int | None, Item]:
    """Figures, the bytes that were held (None where nobody counts them), and of what. part: of the clips of each pack, every so manieth."""
    item = wanted(place, name, f"recompute={policy}")
    if part > 1:
        item.config.plan.budget = sizes(place).budget // part
        item = replace(item, packs=[_within(pack, item.config.plan.budget) for pack in item.packs])
    packs, made = batches(item), trained(place, item)
    prepared = [made.prepare(batch) for batch in packs]
    step = lambda: [made.step(each) for each in prepared]  # noqa: E731
    seconds = seconds_of(step, place, rounds=3, warm=1)
    held, key = peak_bytes(step, place), f"{name}_{policy}"
    tokens, flops = sum(each[0].tokens for each in prepared), sum(each[0].flops for each in prepared)
    found: dict[str, float | None] = {
        f"ms_{key}": seconds / len(prepared) * 1e3,
        f"tokens_per_second_{key}": tokens / seconds,
        f"mfu_{key}": flops / seconds / rate,
    }
    if place.device == "cuda":
        known = stated(torch.cuda.get_device_name())
        found[f"mfu_stated_{key}"] = None if known is None else flops / seconds / known
    return found, held, item


def _within(pack: Any, budget: int) -> Any:
    """The clips of a pack that a smaller budget holds, shortened where one alone is above it."""
    kept, left = [], budget
    for grid, words in pack:
        grid = grid._replace(t=min(grid.t, max(1, left // (grid.h * grid.w))))
        if grid.tokens <= left:
            kept.append((grid, words))
            left -= grid.tokens
    return kept


# The default block three ways: plain torch; with fused steps and a backward by hand; and with an MLP that keeps its input only, besides.
BLOCKS = {"plain": ("sora.dit.cross_block", False), "fused": ("sora.dit.lean_block", False), "frugal": ("sora.dit.lean_block", True)}
HOW = (("plain", "compiled"), ("fused", "compiled"), ("plain", "eager"), ("fused", "eager"), ("frugal", "compiled"), ("frugal", "eager"))


def compiling(place: Place) -> Iterator[Report]:
    """graphs_NAME: how many the blocks of b_2 were compiled to over 20 packs; then, of each block eager and compiled, its time and memory
    over those of the plain block compiled: time_vs_plain_compiled_NAME_HOW, memory_vs_plain_compiled_NAME_HOW. One above 1 in both may go.
    """
    least: tuple[float, int | None] | None = None
    for name, how in HOW:
        graphs, seconds, held = compiled_or_not(place, name, compiles=how == "compiled")
        least = least or (seconds, held)
        if how == "compiled":
            yield Report(figures={f"graphs_{name}": float(graphs)})
        memory = held / least[1] if held and least[1] else None
        key = f"vs_plain_compiled_{name}_{how}"
        yield Report(figures={f"ms_{name}_{how}": seconds * 1e3, f"time_{key}": seconds / least[0], f"memory_{key}": memory})


def compiled_or_not(place: Place, name: str, *, compiles: bool) -> tuple[int, float, int | None]:
    """Graphs, seconds of a step on each pack, and the bytes that it takes beside what lies there, of a block of b_2."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    from sora.training.compiling import compile_blocks

    dynamo.reset()
    counters.clear()
    target, frugal = BLOCKS[name]
    item = wanted(place, "b_2", f"dit.block._target_={target}")
    backend = "aot_eager" if place.toy else "inductor"
    compiled = partial(compile_blocks, words=False, levels=False, backend=backend)  # both axes have budgets here
    packs = batches(item)
    made = trained(place, item, change=partial(_changed, frugal=frugal, compiled=compiled if compiles else None))
    prepared = [made.prepare(batch) for batch in packs]
    for number in range((8 if place.toy else 20) if compiles else 1):  # each pack twice at least
        made.step(prepared[number % len(prepared)])
    step = lambda: [made.step(pack) for pack in prepared]  # noqa: E731
    seconds = seconds_of(step, place, rounds=5, warm=1)
    return counters["stats"]["unique_graphs"], seconds, step_bytes(step, place)


def _changed(network: Any, *, frugal: bool, compiled: Any) -> None:
    for block in network.blocks:
        if frugal:
            block.frugal = True
    if compiled is not None:
        compiled(network)
