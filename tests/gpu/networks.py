"""A network, its trainer and packs of mixed shapes, made from the configuration that `sora train` would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from experiments.cluster_prices import Item
from sora.config.build import build
from sora.config.compose import compose
from sora.cost.price import batch_of
from sora.cost.tracing import attach
from sora.tokens import Batch, Grid
from tests.gpu.measuring import let_go
from tests.gpu.record import Place

TEXT, CHANNELS = 384, 64  # widths of caption states and of patches
MIXES: tuple[tuple[Grid, ...], ...] = (  # of 16,384 tokens at most
    (Grid(9, 32, 28), Grid(5, 28, 32), Grid(1, 32, 32), Grid(1, 28, 36), Grid(2, 30, 30)),
    (Grid(13, 30, 30), Grid(1, 32, 32), Grid(1, 24, 42), Grid(1, 42, 24)),
    (Grid(4, 45, 45), Grid(3, 45, 45), Grid(1, 32, 32), Grid(1, 32, 32)),
    tuple(Grid(1, 32, 32) for _ in range(16)),
)
BUDGET, MAX_CLIPS, WORDS = 16384, 32, 64


@dataclass(frozen=True)
class Sizes:
    """A budget of tokens, clips of a pack at most, and the clips of several packs."""

    budget: int
    max_clips: int
    mixes: Sequence[Sequence[Grid]]


def sizes(place: Place) -> Sizes:
    """The real ones, or what a CPU makes in a moment."""
    if not place.toy:
        return Sizes(BUDGET, MAX_CLIPS, MIXES)
    return Sizes(128, 6, tuple(tuple(Grid(max(1, g.t // 5), max(1, g.h // 12), max(1, g.w // 12)) for g in mix[:6]) for mix in MIXES))


def wanted(place: Place, dit: str, *words: str) -> Item:
    """What is trained, as `sora plan` prices it: on the clips of all mixes, one pack a step."""
    size = sizes(place)
    trainer = ["trainer=gpu"] if place.device == "cuda" else ["trainer=cpu", "trainer.precision=bf16-mixed"]
    tiny = ["dit.width=32", "dit.heads=2", "dit.depth=2"] if place.toy and dit != "toy" else []
    tiny += ["dit.rope.axes=[4,6,6]"] if tiny else []
    said = [f"dit={dit}", *tiny, *trainer, "plan.packs=1", f"plan.budget={size.budget}", f"plan.max_clips={size.max_clips}", "steps=1000"]
    config = compose("plan", ["task=diffusion", "cluster=h200", "cluster.devices=1", *said, "recompute=none", *words]).config
    packs = [[(grid, WORDS if not place.toy else 3) for grid in mix] for mix in size.mixes]
    return Item(config, {"patch_channels": CHANNELS, "text_width": TEXT}, packs)


def batches(item: Item, *, seed: int = 0) -> list[Batch]:
    """A batch of random numbers for each pack of `item`, which is told how many words and levels packs have: `trained` reads that."""
    draw = torch.Generator().manual_seed(seed)
    most = max(sum(words for _, words in pack) for pack in item.packs)
    item.config.data.text_budget = most  # static shapes, as plan.budget makes those of the tokens
    item.config.objective.max_levels = max(sum(grid.t for grid, _ in pack) for pack in item.packs) + item.config.plan.max_clips + 1
    found = []
    for number, pack in enumerate(item.packs):
        empty = batch_of(item.wanted, pack, item.config.plan.budget)
        patches = torch.randn(empty.tokens.patches.shape, generator=draw)
        states = torch.randn(empty.text.states.shape, generator=draw)
        ids = tuple(1000 * number + clip for clip in range(len(pack)))
        text = replace(empty.text, states=states)
        found.append(replace(empty, tokens=empty.tokens.with_patches(patches), text=text, sample_ids=ids))
    return found


@dataclass(frozen=True)
class Trained:
    """A module on its device, as Lightning has it before the first step, and how one is made."""

    module: Any
    trainer: Any
    device: torch.device

    def prepare(self, batch: Batch) -> Any:
        return self.module.task.prepare([batch], self.device)

    def step(self, packs: Any) -> None:
        with self.trainer.strategy.precision_plugin.train_step_context():
            self.module.step(packs)

    def learn(self, packs: Any) -> torch.Tensor:
        """Forward and backward of one pack alone: the mean loss."""
        with self.trainer.strategy.precision_plugin.train_step_context():
            loss = self.module.task(packs[0])
            mean = loss.total / packs[0].count.clamp(min=1)
            mean.backward()
        return mean.detach()


def trained(place: Place, item: Item, *, change: Callable[[nn.Module], None] = lambda _: None, alike: bool = False) -> Trained:
    """The module of a configuration. change: of its network, before it moves to the device. alike: the same weights on every device; else
    large ones are drawn where they lie, since a host takes half a minute for a billion numbers.
    """
    let_go(place)
    torch.manual_seed(0)
    with nullcontext() if alike else _Undrawn():
        module = item.module()
    change(module.task.dit)
    device = torch.device(place.device)
    if alike:
        _draw(module, torch.device("cpu"))
        module.to(device)
    else:
        module.to(device)
        _draw(module, device)
    tree = {**item.config.trainer, "threads": 0, "deterministic": False}
    trainer = build(tree)(callbacks=[])
    attach(module, trainer)
    return Trained(module, trainer, device)


LARGE = 1 << 20  # numbers of a weight that is not drawn on the host
DRAWS = {"uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "erfinv_"}


class _Undrawn(TorchFunctionMode):
    """Leaves large weights as they were found in memory, where random numbers are asked for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value = args[0] if args else (kwargs or {}).get("tensor")  # as functions of torch.nn.init hand on theirs
        if getattr(func, "__name__", "") in DRAWS and isinstance(value, Tensor) and value.numel() >= LARGE:
            return value
        return func(*args, **(kwargs or {}))


def _draw(module: nn.Module, device: torch.device) -> None:
    """Small random numbers on top of what begins at zero, which would hide what is behind it; large weights are made of them alone."""
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            noise = torch.empty_like(value).normal_(0.0, 0.02, generator=draw)
            value.copy_(noise) if value.numel() >= LARGE else value.add_(noise)
