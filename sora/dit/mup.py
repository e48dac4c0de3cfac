"""How rates of learning follow the width of a network: as they are, or by the maximal update parametrisation (muP).

    parametrization(network, make) -> {name of a weight: Scale}

In muP (Yang & Hu 2021; Yang et al. 2022, "Tensor Programs V") activations and what one step changes in them keep their size when
the network grows wider, so that the rate that is best for a narrow network is best for a wide one, too. That takes, for weights whose
inputs grow with the width, smaller rates, and for all a start of the right size; a network of the base width is left as it is.
Networks grow by heads, not by wider ones: queries and keys are normed per head, so that scores keep their size (their 1 / d in place
of 1 / sqrt(d) would be a constant).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import NamedTuple

import torch
from torch import nn


class Scale(NamedTuple):
    """What a weight's settings are multiplied with. adam: the rate of Adam. muon: that of Muon. decay: weight decay, which acts as rate
    times decay and is to stay what it is."""

    adam: float
    muon: float
    decay: float


def standard_scale(network: nn.Module, make: Callable[..., nn.Module]) -> Mapping[str, Scale]:
    """parametrization: one rate for all weights, whatever the width."""
    return {}


@torch.no_grad()
def mup_scale(network: nn.Module, make: Callable[..., nn.Module], *, base_width: int) -> Mapping[str, Scale]:
    """parametrization: muP for Adam (Yang et al. 2022, table 3) and the same for Muon (Yang, Simon & Bernstein 2023, condition 1).

    Changes the network's weights to those of its start at this width. make: (width=, heads=) -> the same network at another
    width; it is made without memory. base_width: the width at which the rates were found. `network` says its own width and heads.

    Raises:
        ValueError: heads of the network's width do not make up the base width.
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
    """The scales of a network that is a part of something larger."""
    return {f"{prefix}{name}": scale for name, scale in scales.items()}


def scale_of(scales: Mapping[str, Scale] | None, name: str) -> Scale:
    """That of one parameter; 1 for what has none."""
    return (scales or {}).get(name, Scale(1.0, 1.0, 1.0))
