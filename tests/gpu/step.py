"""A training step of the network: right beside float32 on the CPU, no waiting inside, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sora.dit.peak import stated
from sora.price import bill
from tests.gpu.ceilings import matmul_rate
from tests.gpu.fitting import fitting
from tests.gpu.measuring import error, in_turn, peak_bytes, seconds_of, step_bytes
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
        made = trained(here, each)
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
        item = wanted(place, name)
        packs, made = batches(item), trained(place, item)
        prepared = [made.prepare(batch) for batch in packs]
        made.learn(prepared[0])  # what is compiled or asked for once is
        try:
            with forbidden(place):
                made.learn(prepared[1])
        except RuntimeError as waits:
            broken.append(f"{name}: {str(waits).splitlines()[0]}")
        yield Report(figures={f"no_waiting_{name}": float(not broken or not broken[-1].startswith(name))})
    if broken:
        raise AssertionError("; ".join(broken))


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


def speed(place: Place) -> Iterator[Report]:
    """Of each network: ms, tokens_per_second, mfu (of the ceiling measured here), mfu_stated, memory_vs_bill, by policy of recomputing.

    Where packs of the real budget do not fit, a half and a quarter of it are tried: the rows say which do, and figures are of those.
    """
    rate = matmul_rate(place, torch.bfloat16)
    for name in NETWORKS:
        for policy in ("none",) if place.toy else ("save_attention", "none", "full"):
            tried = {
                f"{sizes(place).budget // part} tokens": partial(of_step, place, name, policy, rate=rate, part=part)
                for part in ((1,) if place.toy else (1, 2, 4))
            }
            found = yield from fitting(f"{name} recompute={policy}", tried)
            yield Report(figures=found or {})
            if place.device == "cuda":
                torch.cuda.empty_cache()


def of_step(place: Place, name: str, policy: str, *, rate: float, part: int = 1) -> Mapping[str, float | None]:
    """part: of the clips of each pack, every so manieth."""
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
        found[f"memory_vs_bill_{key}"] = held / bill(item).memory.largest if held else None
    return found


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


def compiling(place: Place) -> Iterator[Report]:
    """graphs_NAME: how many the blocks of b_2 were compiled to over 20 packs; then, of each block eager and compiled, its time and memory
    over those of the plain block compiled: time_vs_plain_compiled_NAME_HOW, memory_vs_plain_compiled_NAME_HOW. One above 1 in both may go.
    """
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    from sora.training.compiling import compile_blocks

    backend = "aot_eager" if place.toy else "inductor"
    made: dict[str, Any] = {}
    memory: dict[str, int | None] = {}
    for name, (target, frugal) in BLOCKS.items():
        for how in ("eager", "compiled"):
            dynamo.reset()
            counters.clear()
            item = wanted(place, "b_2", f"dit.block._target_={target}")
            packs = batches(item)
            compiled = partial(compile_blocks, words=False, levels=False, backend=backend)  # both axes have budgets here
            each = trained(place, item, change=partial(_changed, frugal=frugal, compiled=compiled if how == "compiled" else None))
            prepared = [each.prepare(batch) for batch in packs]
            for number in range((8 if place.toy else 20) if how == "compiled" else 1):  # each pack twice at least
                each.step(prepared[number % len(prepared)])
            if how == "compiled":
                yield Report(figures={f"graphs_{name}": float(counters["stats"]["unique_graphs"])})
            made[f"{name}_{how}"] = lambda each=each, prepared=prepared: [each.step(pack) for pack in prepared]
            memory[f"{name}_{how}"] = step_bytes(made[f"{name}_{how}"], place)
    times, plain = in_turn(made, place, rounds=3, warm=1), "plain_compiled"
    yield Report(figures={f"time_vs_{plain}_{name}": seconds / times[plain] for name, seconds in times.items()})
    least = memory[plain]
    yield Report(figures={f"memory_vs_{plain}_{name}": held / least if held and least else None for name, held in memory.items()})


def _changed(network: Any, *, frugal: bool, compiled: Any) -> None:
    for block in network.blocks:
        if frugal:
            block.frugal = True
    if compiled is not None:
        compiled(network)
