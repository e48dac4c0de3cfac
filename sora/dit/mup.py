"""Scaling of learning rates with the width of a network: none, or the maximal update parametrisation (muP).

    parametrization(network, make) -> {name of a weight: Scale}

In muP (Yang & Hu 2021; Yang et al. 2022, "Tensor Programs V") the size of activations, and of their change in one step, does not depend on
the width, so that the learning rate tuned for a narrow network is also best for a wide one. Weights whose fan-in grows with the width get
smaller learning rates, and all weights get a suitable initial scale. A network of the base width is not changed.
Wider networks have more heads, not wider ones, and queries and keys are normalised per head. So scores keep their size, and muP's factor
1 / d in place of 1 / sqrt(d) is not needed: it would be a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import NamedTuple

import torch
from torch import nn


class Scale(NamedTuple):
    """Factors for the optimiser settings of a weight. adam, muon: factors of Adam's and of Muon's learning rate. decay: factor of the
    weight decay, which keeps Adam's product of learning rate and weight decay unchanged."""

    adam: float
    muon: float
    decay: float


def standard_scale(network: nn.Module, make: Callable[..., nn.Module]) -> Mapping[str, Scale]:
    """Standard parametrisation, for the key parametrization: one learning rate for all weights at every width."""
    return {}


@torch.no_grad()
def mup_scale(network: nn.Module, make: Callable[..., nn.Module], *, base_width: int) -> Mapping[str, Scale]:
    """muP, for the key parametrization: for Adam (Yang et al. 2022, table 3) and for Muon (Yang, Simon & Bernstein 2023, condition 1).

    Rescales the network's freshly initialised weights in place, and returns the factors of their learning rates and weight decay.
    network: has attributes width and heads. make: (width=, heads=) -> the same network at another width; called on the meta device.
    base_width: the width at which the learning rates were tuned.

    Raises:
        ValueError: the base width is not a multiple of the width of a head.
    """
    width, heads = int(network.width), int(network.heads)  # pyright: ignore[reportArgumentType]
    head = width // heads
    if base_width % head:
        raise ValueError(
            f"parametrization.base_width={base_width} does not divide into heads of {head} channels, as dit.width={width} does"
        )
    with torch.device("meta"):
        base = make(width=base_width, heads=base_width // head)
    scales = {}
    for (name, layer), other in zip(_linears(network).items(), _linears(base).values(), strict=True):
        (fan_out, fan_in), (base_out, base_in) = layer.weight.shape, other.weight.shape
        into, out = fan_in / base_in, fan_out / base_out
        layer.weight *= sqrt((fan_in + fan_out) / (base_in + base_out)) / sqrt(into)
        scales[f"{name}.weight"] = Scale(
            adam=1 / into,
            muon=sqrt(out / into) * sqrt(max(1.0, base_out / base_in) / max(1.0, fan_out / fan_in)),
            decay=into,
        )
    return {name: scale for name, scale in scales.items() if scale != Scale(1.0, 1.0, 1.0)}


def _linears(network: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}


def named(scales: Mapping[str, Scale], prefix: str) -> dict[str, Scale]:
    """Scales with `prefix` before every name, for a network that is a submodule."""
    return {f"{prefix}{name}": scale for name, scale in scales.items()}


def scale_of(scales: Mapping[str, Scale] | None, name: str) -> Scale:
    """Scale of a parameter; factors of 1 if it has none."""
    return (scales or {}).get(name, Scale(1.0, 1.0, 1.0))
