"""The time of a step, from what it computes and sends and the speed of the machines (Williams et al. 2009, "Roofline").

step = max(executed FLOPs / (utilisation x peak), messages that overlap with computation) + messages that do not overlap
     + bytes that the optimiser and the average touch / memory bandwidth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sora.cost.hardware import Cluster

# Gathering weights and reducing gradients overlap with computation; messages within a layer do not.
EXPOSED = {"context", "tensor", "context x tensor"}


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds. sending: by axis of the mesh, overlapped or not. waiting: of the mean rank for the slowest."""

    computing: float
    sending: Mapping[str, float]
    updating: float
    waiting: float

    @property
    def hidden(self) -> float:
        return sum(seconds for axis, seconds in self.sending.items() if axis not in EXPOSED)

    @property
    def whole(self) -> float:
        return max(self.computing, self.hidden) + sum(self.sending.values()) - self.hidden + self.updating + self.waiting

    @property
    def bound(self) -> str:
        return "the network" if self.hidden > self.computing else "computing"


def step_time(
    cluster: Cluster,
    *,
    flops: float,
    slowest: float,
    bf16: bool,
    sent: Mapping[str, float],
    layout: Mapping[str, tuple[int, int]],
    touched: float,
) -> StepTime:
    """The time of a step. flops: executed by the mean rank. slowest: the slowest rank's over the mean, at least 1. sent: bytes by axis.

    layout: for each axis, the size of a group and the distance of its ranks. touched: bytes that the update reads and writes.
    """
    computing = flops / (cluster.utilisation * cluster.peak(bf16=bf16))
    sending = {axis: size / cluster.rate(size=layout[axis][0], stride=layout[axis][1]) for axis, size in sent.items()}
    return StepTime(computing=computing, sending=sending, updating=touched / (cluster.bandwidth * 1e9), waiting=computing * (slowest - 1))
