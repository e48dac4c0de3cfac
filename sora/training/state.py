"""Copies a training module to and from a `TrainingState`: weights, averages, optimiser states by name, counters, random states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sora.gate.tensors import finite
from sora.runs import checkpoint
from sora.runs.checkpoint import TrainingState
from sora.runs.shards import Stored, boxes, place
from sora.system import distributed as ranks
from sora.system import global_rng as rng
from sora.training.module import Counters, TrainingModule


def capture(module: TrainingModule, facts: Mapping[str, Any]) -> TrainingState:
    """Return everything that the next step depends on. The tensors are not copied: write or copy them before training goes on.

    facts: JSON values to store beside the counters. Every rank must call this.
    """
    counters = module.counters
    tensors = {"model": module.task.state_dict(), "optimizer": _optimizer_tensors(module), "rng": _all_random_states()}
    tensors |= {kind: dict(found) for kind, found in module.average.kinds().items()}
    told = {"counters": asdict(counters), "losses": list(module.guard.losses), **facts}
    if widths := module.average.widths():
        told["profiles"] = widths
    return TrainingState(step=counters.step, samples=counters.samples, tokens=counters.tokens, tensors=tensors, facts=told)


def restore(module: TrainingModule, state: TrainingState, *, source: Path) -> None:
    """Restore a captured state, except for the random states.

    Raises:
        ValueError: the checkpoint is of another model or optimiser; the message names `source` and the first tensor that does not fit.
    """
    _fill(module.task.state_dict(), state.tensors["model"], source=source / "model.safetensors")
    _fill_averages(module, state, source=source)
    _fill_optimizers(module, state.tensors["optimizer"], source=source / "optimizer.safetensors")
    module.counters = Counters(**state.facts["counters"])
    module.guard.losses = list(state.facts.get("losses", []))


def restore_finished(module: TrainingModule, state: TrainingState, *, source: Path) -> None:
    """Restore the weights and averages of a run that has no steps left; neither optimisers nor a Trainer are needed."""
    module.begin()
    _fill(module.task.state_dict(), state.tensors["model"], source=source / "model.safetensors")
    _fill_averages(module, state, source=source)
    module.counters = Counters(**state.facts["counters"])


def restore_random(state: TrainingState, *, rank: int) -> bool:
    """Restore this rank's random states; return False if the run had fewer ranks, so that the caller must seed a new stream."""
    prefix, saved = f"{rank}.", state.tensors["rng"]
    mine = {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}  # other ranks' states are not read
    if mine:
        rng.restore(mine)
    return bool(mine)


def weights(source: Path, *, part: str, averaged: bool = True) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint ("dit", "text" or "vae") for `load_state_dict`; averaged ones if there are any.

    source: a checkpoint folder, or a run folder, of which the newest whole checkpoint is taken.

    Raises:
        ValueError: there is no whole checkpoint, or it has no such part.
    """
    source = Path(source)
    if checkpoint.step_of(source) is None:
        found = checkpoint.newest(source / "checkpoints")
        if found is None:
            raise ValueError(f"{source} has no checkpoint yet")
        source = found
    kept = {"model", "ema"} if averaged else {"model"}
    state = checkpoint.load(source, only=kept & checkpoint.kinds(source))
    merged = {**state.tensors["model"], **state.tensors.get("ema", {})}
    prefix = f"{part}."
    found = {name.removeprefix(prefix): value for name, value in merged.items() if name.startswith(prefix)}
    if not found:
        parts = sorted({name.split(".")[0] for name in merged})
        raise ValueError(f"{source} holds no weights of {part}; it holds {', '.join(parts)}")
    return found


def _fill_averages(module: TrainingModule, state: TrainingState, *, source: Path) -> None:
    here, there = module.average.kinds(), {kind for kind in state.tensors if kind.startswith("ema")}
    if there != set(here):
        raise ValueError(
            f"{source} holds {len(there)} averaged weights of each parameter, and this run keeps {len(here)}; choose the ema= that it was"
            " trained with"
        )
    for kind, shadow in here.items():
        _fill(shadow, state.tensors[kind], source=source / f"{kind}.safetensors")


def _optimizer_tensors(module: TrainingModule) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {value: name for name, value in module.trained().items()}
    return {
        f"{names[value]}:{key}": item
        for stepper in module.steppers
        for value, slots in stepper.state.items()
        for key, item in slots.items()
    }


def _fill_optimizers(module: TrainingModule, saved: Mapping[str, Tensor], *, source: Path) -> None:
    owners = {value: stepper for stepper in module.steppers for group in stepper.param_groups for value in group["params"]}
    trained = module.trained()
    for full in saved:
        name, _, key = full.rpartition(":")
        if name not in trained or trained[name] not in owners:
            raise ValueError(f"{source}: {name} is not a parameter of this model; the checkpoint is of another model or optimizer")
        value, (shape, _) = trained[name], _facts(saved, full)
        if shape and shape != tuple(value.shape):
            raise ValueError(f"{source}: {full} is {shape} but the parameter is {tuple(value.shape)}; it is of another model")
        found = _like(saved, full, value) if shape else saved[full].to(value.device)
        owners[value].state[value][key] = _sound(found, f"{source}: {full}")


def refuse_other(task: nn.Module, state: TrainingState, *, source: Path) -> None:
    """Raise ValueError, naming the first tensor that does not fit, if the checkpoint is of another model than `task`."""
    _compare(task.state_dict(), state.tensors["model"], source=source / "model.safetensors")


def _compare(target: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, source: Path) -> None:
    if differing := sorted(set(target) ^ set(saved)):
        name = differing[0]
        where = "the checkpoint has it, this model does not" if name in saved else "this model has it, the checkpoint does not"
        raise ValueError(f"{source} is of another model: {len(differing)} tensors differ, first {name} ({where})")
    for name, value in target.items():
        shape, dtype = _facts(saved, name)
        if tuple(value.shape) != shape or value.dtype != dtype:
            came, fits = f"{shape} {dtype}", f"{tuple(value.shape)} {value.dtype}"
            raise ValueError(f"{source} is of another model: {name} is {came} in it but {fits} here")


def _facts(saved: Mapping[str, Tensor], name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and dtype of a saved tensor, without reading its numbers."""
    if isinstance(saved, Stored):
        return saved.shape(name), saved.dtype(name)
    return tuple(saved[name].shape), saved[name].dtype


@torch.no_grad()
def _fill(target: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, source: Path) -> None:
    _compare(target, saved, source=source)
    for name, value in target.items():
        value.copy_(_sound(_like(saved, name, value), f"{source}: {name}"))


def _like(saved: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """A saved tensor on the device of `like`, sharded in the same way; only this rank's box is read from the checkpoint's files."""
    if not isinstance(like, DTensor):
        return saved[name].to(like.device)
    shape, offset = place(like)
    box = saved.part(name, offset, shape) if isinstance(saved, Stored) else saved[name][tuple(map(_span, offset, shape))]
    local = box.to(like.device)
    found = DTensor.from_local(local, like.device_mesh, boxes(like), run_check=False, shape=like.shape, stride=like.stride())
    return found.redistribute(placements=like.placements)


def _sound(value: Tensor, named: str) -> Tensor:
    """Return the tensor, or raise ValueError if this rank's part of it is not finite."""
    if not finite(value.to_local() if isinstance(value, DTensor) else value):
        raise ValueError(f"{named} holds numbers that are not finite; use another checkpoint")
    return value


def _span(begin: int, length: int) -> slice:
    return slice(begin, begin + length)


def _all_random_states() -> dict[str, Tensor]:
    """Every rank's random states, named by rank. They are gathered as bytes, because those of all ranks are equally long."""
    states = rng.capture()
    if not ranks.several():
        return {f"0.{name}": value for name, value in states.items()}
    device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    everyone = {name: ranks.gathered(value.to(device)) for name, value in states.items()}
    return {f"{rank}.{name}": value.cpu() for name, each in everyone.items() for rank, value in enumerate(each)}
