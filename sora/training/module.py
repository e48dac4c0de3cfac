"""The Lightning module: one optimiser step over the packs of a step. It contains no mathematics; the task does.

A task is an `nn.Module` that holds everything that is trained. It prepares the packs of a step and returns each pack's summed loss. This
module divides by the step's total count over packs and ranks, clips gradients, checks for finite numbers, steps, averages weights, and
counts.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from sora.parallel import summing
from sora.parallel.mesh import MeshStrategy, Seat, ordered, seat
from sora.system import distributed as ranks
from sora.training.guard import NOT_FINITE, Guard
from sora.training.optim import clipping
from sora.training.optim.ema import Averaging

Numbers = float | list[float]
NOTES = frozenset({"_current_fx_name", "report", "preparing", "on_gradients"})  # attributes of the module that are set at every step


@dataclass(frozen=True)
class Loss:
    """The loss of one pack, as sums that are not yet divided by a count.

    total: the differentiable sum over the pack's `count` elements. parts: (sum, count) pairs for the log by name, each a 0-d or 1-d tensor.
    by_sample: returns the loss of each sample, (G,); called only to find samples whose loss is not finite.
    """

    total: Tensor
    parts: Mapping[str, tuple[Tensor, Tensor]]
    by_sample: Callable[[], Tensor]


@runtime_checkable
class Prepared(Protocol):
    """One pack, ready for the network.

    count: the number of elements that its loss is summed over. samples, tokens: the clips and tokens in it. flops: floating-point
    operations of a training step on it; 0 where they are not counted.
    """

    @property
    def count(self) -> Tensor: ...
    @property
    def samples(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def flops(self) -> float: ...
    @property
    def sample_ids(self) -> Sequence[int]: ...


@runtime_checkable
class Task(Protocol):
    """An `nn.Module` that prepares packs and returns their losses."""

    def prepare(self, batch: Any, device: torch.device) -> Sequence[Prepared]: ...
    def __call__(self, prepared: Any) -> Loss: ...


@dataclass
class Counters:
    """The progress of a run.

    step: steps of the plan that are done, skipped ones included. samples, tokens: totals over the steps that updated the weights. returns:
    how often the run went back to an earlier checkpoint; the last time it went from step `returned_at` to step `returned_to`.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    returns: int = 0
    returned_to: int = 0
    returned_at: int = 0


@dataclass(frozen=True)
class Report:
    """The result of one step.

    grad_norm: before clipping. samples, tokens, flops: over all ranks. parts: (sum, count) pairs of this rank's loss by name, as numbers or
    lists. reason: why the step was skipped; empty if it was not. suspects: if it was skipped, the ids of all ranks' samples whose own loss
    was not finite (`traced` is then true), or of all the step's samples if there are none.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    taken: bool
    stop: bool
    samples: int
    tokens: int
    flops: float
    parts: Mapping[str, tuple[Numbers, Numbers]] = field(default_factory=dict)
    reason: str = ""
    suspects: Sequence[int] = ()
    traced: bool = False


class TrainingModule(LightningModule):
    """Trains a task, one optimiser step at a time.

    optimizer: maps named parameters to the optimisers that step together. schedule: maps the step to a share of the peak learning rate.
    max_grad_norm: the largest norm of all gradients together. guard: decides which steps update the weights. stop: called once a step; if
    any rank's returns true, all ranks stop.
    """

    def __init__(
        self,
        *,
        task: nn.Module,
        optimizer: Callable[[Mapping[str, nn.Parameter]], list[Optimizer]],
        schedule: Callable[[int], float],
        average: Averaging,
        max_grad_norm: float,
        guard: Guard,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        if max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={max_grad_norm} must be above 0; it is the largest norm of the gradients")
        self.automatic_optimization = False
        self.task = task
        self.average = average
        self.guard = guard
        self.counters = Counters()
        self.report: Report | None = None
        self.preparing = 0.0  # seconds that it took to prepare the packs of the latest step
        # called before gradients are clipped, with the norm of this rank's part of each gradient
        self.on_gradients: Callable[[Mapping[str, nn.Parameter], Tensor], None] | None = None
        self._optimizer, self._schedule = optimizer, schedule
        self.max_grad_norm, self._stop = max_grad_norm, stop
        self._trained: dict[str, nn.Parameter] = {}  # cached: read several times a step, and slow to collect from a deep model
        self._steppers: list[Optimizer] = []
        self._peaks: list[list[float]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute. Lightning sets those in `NOTES` some twenty times a step; they skip torch's search for parameters and
        modules."""
        if name in NOTES:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---- Lightning's hooks

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, MeshStrategy):
            self.trainer.strategy.spread(self.task)

    def configure_optimizers(self) -> list[Optimizer]:
        self._trained = self.trained()
        self._steppers = self._optimizer(self._trained)
        self._peaks = [[group["lr"] for group in stepper.param_groups] for stepper in self._steppers]
        return self._steppers

    def begin(self) -> None:
        """Start the weight average from the present weights, on the device where the strategy has put them."""
        if not self.average.shadow:
            self.average.follow(self.trained())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the task moves what it prepares: noise is drawn on the host

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients, by their names in the task."""
        if self._trained:
            return self._trained
        return {name: value for name, value in self.task.named_parameters() if value.requires_grad}

    @property
    def steppers(self) -> list[Optimizer]:
        return self._steppers

    # ---- one step

    def training_step(self, batch: Any, _: int) -> None:
        began = time.perf_counter()
        packs = self.task.prepare(batch, self.device)  # pyright: ignore[reportCallIssue]
        self.preparing = time.perf_counter() - began
        self.step(packs)

    # Lightning inspects the signature at every step, to see whether the method takes the batch number; a stored one is fast
    training_step.__signature__ = inspect.signature(training_step)  # pyright: ignore[reportFunctionMemberAccess]

    def step(self, packs: Sequence[Prepared]) -> None:
        """Do one optimiser step on this rank's packs."""
        place = seat(self.trainer)
        mine = _sum([pack.count for pack in packs])
        count = ranks.summed(mine if place.first_of_tokens else torch.zeros_like(mine)).clamp(min=1)
        losses = self._learn_all(packs, count, place)
        norm, each = self._norms()
        if self.on_gradients is not None:
            self.on_gradients(self.trained(), each)
        self._conclude(packs, losses, count, norm, place)

    def _learn_all(self, packs: Sequence[Prepared], count: Tensor, place: Seat) -> list[Loss]:
        """Return the losses of this rank's packs and leave the gradients of the mean loss over all ranks' count."""
        losses: dict[int, Loss] = {}
        in_order = ordered(self.trainer)
        # the strategy averages gradients over ranks, unless they are summed in a fixed order; the count is that of all ranks already
        share = (1.0 if in_order else place.averaged) / count

        def learn(number: int) -> None:
            with self._quiet(last=len(losses) == len(packs) - 1):
                losses[number] = self._learn(packs[number], share)

        if in_order:
            summing.learned(self.trained().values(), len(packs), learn)
        else:
            for number in range(len(packs)):
                learn(number)
        if isinstance(self.trainer.strategy, MeshStrategy):
            self.trainer.strategy.sum_up(self.trained())
        return [losses[number] for number in range(len(packs))]

    def _learn(self, pack: Prepared, share: Tensor) -> Loss:
        """Add the gradients of one pack, and free its graph."""
        loss = self._run(pack)
        (loss.total * share).backward()
        return replace(loss, total=loss.total.detach())

    def _run(self, pack: Prepared) -> Loss:
        strategy = self.trainer.strategy
        return strategy.run(self.task, pack) if isinstance(strategy, MeshStrategy) else self.task(pack)

    def _quiet(self, *, last: bool) -> AbstractContextManager[None]:
        """A context without gradient exchange, except for the last pack of a step."""
        strategy = self.trainer.strategy
        if last or not ranks.several() or not isinstance(strategy, ParallelStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _norms(self) -> tuple[Tensor, Tensor]:
        """The norm of all gradients together, and the norm of this rank's part of each gradient."""
        found = [value.grad for value in self.trained().values() if value.grad is not None]
        each = clipping.each_norm(found)
        return clipping.total_norm(found, each), each

    def _conclude(self, packs: Sequence[Prepared], losses: Sequence[Loss], count: Tensor, norm: Tensor, place: Seat) -> None:
        """Agree with all ranks on the loss, on whether the step is sound and on stopping; then update the weights or skip the step."""
        numbers, parts = fetched((*[loss.total for loss in losses], norm, count), _added([loss.parts for loss in losses]))
        own_losses, (own_norm, counted) = numbers[:-2], numbers[-2:]
        sound = math.isfinite(sum(own_losses)) and math.isfinite(own_norm)
        size = [sum(pack.samples for pack in packs), sum(pack.tokens for pack in packs), sum(pack.flops for pack in packs)]
        size = size if place.first_of_packs else [0, 0, 0]
        by_pack = [0.0] * (len(own_losses) * place.readers)
        if place.first_of_tokens:
            by_pack[place.reader :: place.readers] = own_losses
        facts = [not sound, own_norm / self.trainer.world_size, self._stop(), *size, *by_pack]
        if ranks.several():
            facts = ranks.summed(torch.tensor(facts, dtype=torch.float64, device=self.device)).tolist()
        unsound, total_norm, stop, samples, tokens, flops, *by_pack = facts
        # Losses are summed pack by pack, so that the sum's bits do not depend on which rank had which pack. The count is at least 1, except
        # when `sora.cost.tally` traces a step without numbers, where it is 0.
        loss = summing.exact(by_pack) / max(counted, 1.0)
        reason = self.guard.judge(loss, finite=unsound == 0)
        taken = not reason
        rate = self._schedule(self.counters.step)
        if taken:
            self._update(rate, total_norm)
        for stepper in self._steppers:
            stepper.zero_grad(set_to_none=True)
        counters = self.counters
        counters.step += 1
        if taken:
            counters.samples += int(samples)
            counters.tokens += int(tokens)
            counters.skipped_in_a_row = 0
        else:
            counters.skipped += 1
            counters.skipped_in_a_row += 1
        found, traced = ((), False) if taken else everyones_suspects(packs, losses, self.device)
        self.report = Report(
            step=counters.step,
            loss=loss,
            grad_norm=total_norm,
            lr=rate * self._peaks[0][0],
            taken=taken,
            stop=stop > 0,
            samples=int(samples),
            tokens=int(tokens),
            flops=flops,
            parts=parts,
            reason=reason,
            suspects=found,
            traced=traced and reason == NOT_FINITE,
        )

    def _update(self, rate: float, norm: float) -> None:
        trained = self.trained()
        if norm > self.max_grad_norm:
            clipping.scale([value.grad for value in trained.values() if value.grad is not None], self.max_grad_norm / norm)
        for stepper, peaks in zip(self._steppers, self._peaks, strict=True):
            for group, peak in zip(stepper.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            stepper.step()
        self.counters.updates += 1
        self.average.update(trained, self.counters.updates)

    @property
    def at_its_end(self) -> bool:
        """Whether so many steps in a row were skipped that training cannot go on with these weights."""
        return self.counters.skipped_in_a_row >= self.guard.patience

    def refuse_to_go_on(self) -> None:
        """Raise ValueError if more steps were skipped than the guard allows, in a row or altogether."""
        counters, guard = self.counters, self.guard
        told = "The samples are listed in events.jsonl; lower optimizer.lr or max_grad_norm, or remove the samples, and resume"
        if self.at_its_end:
            raise ValueError(
                f"{guard.patience} steps in a row up to step {counters.step} had a loss or gradients that are not finite, or stand out;"
                f" the weights are those from before. {told}"
            )
        if counters.skipped > guard.most:
            raise ValueError(
                f"{counters.skipped} steps up to step {counters.step} were left out, more than guard.most={guard.most} allows. {told}"
            )


def fetched(values: Sequence[Tensor], parts: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[list[float], dict[str, tuple[Numbers, Numbers]]]:
    """Copy 0-d tensors, and the pairs of `parts`, to Python numbers in one transfer, so that the device is waited for once."""
    tensors = [*values, *(value for pair in parts.values() for value in pair)]
    flat = [(value if value.dtype == torch.float32 else value.double()).detach().flatten() for value in tensors]
    numbers = iter(torch.cat(flat).tolist())
    taken: list[Numbers] = [next(numbers) if value.ndim == 0 else list(islice(numbers, value.numel())) for value in tensors]
    pairs = zip(taken[len(values) :: 2], taken[len(values) + 1 :: 2], strict=True)
    return taken[: len(values)], dict(zip(parts, pairs, strict=True))  # pyright: ignore[reportReturnType]


def everyones_suspects(packs: Sequence[Prepared], losses: Sequence[Loss], device: torch.device) -> tuple[list[int], bool]:
    """The ids of all ranks' samples whose own loss is not finite, and True; if there are none, all ids of the step, and False."""
    traced = _unique(ranks.joined(suspects(packs, losses), device))
    if traced:
        return traced, True
    return _unique(ranks.joined([sample for pack in packs for sample in pack.sample_ids], device)), False


def _sum(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum()


def _unique(everyone: Sequence[Sequence[int]]) -> list[int]:
    """All ranks' sample ids, each once: ranks that share a pack list the same ones."""
    return list(dict.fromkeys(sample for each in everyone for sample in each))


def suspects(packs: Sequence[Prepared], losses: Sequence[Loss]) -> list[int]:
    """The ids of this rank's samples whose own loss is not finite."""
    found = []
    for pack, loss in zip(packs, losses, strict=True):
        bad = ~torch.isfinite(loss.by_sample().detach().float())
        found += [sample for sample, is_bad in zip(pack.sample_ids, bad.tolist(), strict=True) if is_bad]
    return found


def _added(parts: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> Mapping[str, tuple[Tensor, Tensor]]:
    if len(parts) == 1:
        return dict(sorted(parts[0].items()))
    names = {name for each in parts for name in each}
    return {
        name: (
            torch.stack([each[name][0].detach().float() for each in parts if name in each]).sum(0),
            torch.stack([each[name][1].detach().float() for each in parts if name in each]).sum(0),
        )
        for name in sorted(names)
    }
