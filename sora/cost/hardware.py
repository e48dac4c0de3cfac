"""Machines to train on: what one device computes, holds and sends, from its maker's data, and what is assumed about it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster of `devices` equal devices, `per_node` of them in a machine.

    device: the name in torch. memory: GB of one device. spare: share of it for what is not traced (the driver's context, NCCL's buffers,
    gaps between blocks). bf16, fp32: TFLOP/s of dense matrix products in that precision. bandwidth: of its memory, GB/s. link, network:
    GB/s that it sends in one direction to another device of its node, and to other nodes. utilisation: share of the peak that a step
    reaches while it computes. price: USD per device and hour. GB are 10^9 bytes.

    Raises:
        ValueError: a number is outside its range.
    """

    device: str
    devices: int
    per_node: int
    memory: float
    spare: float
    bf16: float
    fp32: float
    bandwidth: float
    link: float
    network: float
    utilisation: float
    price: float

    def __post_init__(self) -> None:
        for name in ("devices", "per_node", "memory", "bf16", "fp32", "bandwidth", "link", "network"):
            if getattr(self, name) <= 0:
                raise ValueError(f"cluster.{name}={getattr(self, name)} must be above 0")
        if not 0 < self.utilisation <= 1 or not 0 <= self.spare < 1 or self.price < 0:
            raise ValueError(
                f"cluster.utilisation={self.utilisation} and cluster.spare={self.spare} are shares, in (0, 1] and [0, 1), "
                f"and cluster.price={self.price} is at least 0"
            )
        if self.devices > self.per_node and self.devices % self.per_node:
            raise ValueError(
                f"cluster.devices={self.devices} are no whole nodes of cluster.per_node={self.per_node}; "
                f"take {self.devices // self.per_node * self.per_node} or {-(-self.devices // self.per_node) * self.per_node}"
            )

    @property
    def nodes(self) -> int:
        return -(-self.devices // self.per_node)

    @property
    def room(self) -> float:
        """Bytes of a device that training may fill."""
        return self.memory * 1e9 * (1 - self.spare)

    def peak(self, *, bf16: bool) -> float:
        """Peak FLOP/s of one device."""
        return (self.bf16 if bf16 else self.fp32) * 1e12

    def rate(self, *, size: int, stride: int) -> float:
        """Bytes per second that each rank of a group can send while all groups of its axis send. Ranks of a group are `stride` apart.

        A ring enters and leaves a node once, so the members of a group in a node share its sends to other nodes. The group with the fewest
        members in a node is the slowest.
        """
        inside = min(self._inside(first, size=size, stride=stride) for first in self._firsts(size=size, stride=stride))
        if inside == size:
            return self.link * 1e9
        return min(self.link, inside * self.network) * 1e9

    def _firsts(self, *, size: int, stride: int) -> Iterator[int]:
        """The first rank of each group, up to where the position in nodes repeats."""
        for block in range(0, min(self.devices, math.lcm(size * stride, self.per_node)), size * stride):
            yield from range(block, block + stride)

    def _inside(self, first: int, *, size: int, stride: int) -> int:
        """The fewest members of a group in a node."""
        return min(Counter(rank // self.per_node for rank in range(first, first + size * stride, stride)).values())
