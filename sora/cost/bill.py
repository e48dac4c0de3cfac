"""The predicted cost of a run, as numbers and as readable lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sora.cost.hardware import Cluster
from sora.cost.roofline import StepTime

TOLD = 2**10  # bytes; smaller messages of a step are not printed


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device. gradients: when all exist. kept: activations that a forward pass saves for its backward. largest: the peak of
    everything.

    room: what training may fill. budget: the tokens of a pack at which it is full, with everything else unchanged; 0 for none. counted:
    what `budget` counts.
    """

    weights: int
    average: int
    moments: int
    gradients: int
    kept: int
    largest: int
    room: float
    budget: int
    counted: str


@dataclass(frozen=True, kw_only=True)
class Bill:
    """The cost of one run. flops: model FLOPs of a step, without recomputation and padding. executed: FLOPs of a step on all ranks, with
    both.

    tokens, clips: per step, without padding. sent: bytes that each rank sends per step, by axis of the mesh. saved: bytes of a checkpoint.
    host: bytes of a node's memory while its processes create the weights. epochs: None if an epoch has no end.
    """

    cluster: Cluster
    mesh: str
    precision: str
    steps: int
    numbers: int
    tokens: float
    clips: float
    flops: float
    executed: float
    memory: Memory
    sent: Mapping[str, float]
    time: StepTime
    saved: int
    checkpoints: int
    host: int
    epochs: float | None
    assumed: str
    warnings: Sequence[str]

    @property
    def hours(self) -> float:
        return self.steps * self.time.whole / 3600

    @property
    def device_hours(self) -> float:
        return self.hours * self.cluster.devices

    @property
    def money(self) -> float:
        return self.device_hours * self.cluster.price

    @property
    def mfu(self) -> float:
        """Model FLOPs over what all devices could compute in that time (MFU)."""
        return self.flops / (self.time.whole * self.cluster.devices * self.cluster.peak(bf16=self.precision.startswith("bf16")))

    @property
    def figures(self) -> dict[str, float | None]:
        """The numbers as a flat mapping."""
        memory = {
            f"memory_{name}": float(getattr(self.memory, name))
            for name in ("weights", "average", "moments", "gradients", "kept", "largest")
        }
        return {
            "parameters": self.numbers,
            "flops_per_token": self.flops / self.tokens,
            "flops_per_step": self.flops,
            "executed_per_step": self.executed,
            "tokens_per_step": self.tokens,
            **memory,
            "memory_room": self.memory.room,
            "largest_budget": self.memory.budget,
            **{f"sent_{axis.replace(' x ', '_')}": size for axis, size in self.sent.items()},
            "seconds_per_step": self.time.whole,
            "tokens_per_second": self.tokens / self.time.whole,
            "utilisation": self.cluster.utilisation,
            "mfu": self.mfu,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "money": self.money,
            "epochs": self.epochs,
            "checkpoint_bytes": self.saved,
        }

    def lines(self) -> list[str]:
        cluster, memory, time = self.cluster, self.memory, self.time
        always = " + ".join(f"{name} {_bytes(getattr(memory, name))}" for name in ("weights", "average", "moments", "gradients"))
        sending = ", ".join(f"{axis} {_bytes(size)} in {_seconds(time.sending[axis])}" for axis, size in self.sent.items() if size >= TOLD)
        spent = (
            f"{_seconds(time.computing)} computing, {_seconds(time.updating)} updating, {_seconds(time.waiting)} waiting for the slowest"
        )
        costs = f"{self.hours:,.1f} hours, {self.device_hours:,.0f} GPU-hours, ${self.money:,.0f} at ${cluster.price:g} each"
        told = {
            "cluster": f"{cluster.devices:,} x {cluster.device}, {cluster.per_node} to a node; {self.mesh}",
            "precision": f"{self.precision}: {self.cluster.peak(bf16=self.precision.startswith('bf16')) / 1e12:,.0f} TFLOP/s of a device",
            "network": f"{_count(self.numbers)} parameters",
            "the model's": f"{_operations(self.flops / self.tokens)} a token, {_operations(self.flops)} a step of {self.clips:,.1f} clips "
            f"and {self.tokens:,.0f} tokens",
            "executed": f"{self.executed / self.flops:.2f} times the model's: padding, and what is computed again",
            "a device holds": always,
            "and at most": f"{_bytes(memory.largest)} of {_bytes(memory.room)} to fill; {_bytes(memory.kept)} of it for the backward",
            "largest budget": f"{memory.budget:,} {memory.counted} fit" if memory.budget else "nothing fits",
            "a rank sends": sending or "nothing",
            "a step": f"{_seconds(time.whole)}: {spent}; bound by {time.bound}",
            "assumed": self.assumed,
            "speed": f"{self.tokens / time.whole:,.0f} tokens a second; MFU {self.mfu:.1%}",
            "the run": f"{self.steps:,} steps: {costs}" + (f", {self.epochs:,.2f} epochs" if self.epochs is not None else ""),
            "a checkpoint": f"{_bytes(self.saved)}, kept: {self.checkpoints}",
            "to begin": f"a node's processes fill {_bytes(self.host)} of its memory with weights",
        }
        return [*(f"WARNING          {warning}" for warning in self.warnings), *(f"{name:<17}{text}" for name, text in told.items())]


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def _bytes(number: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 2**10:.1f} KiB"


def _operations(number: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e6:.2f} MFLOP"


def _seconds(number: float) -> str:
    return f"{number:.2f} s" if number >= 1 else f"{1e3 * number:.3g} ms"
