"""The denoising network that a configuration names: its weights and their rates, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from sora.dit.flops import Flops
    from sora.dit.scaling import Scale


def network_of(config: DictConfig, *, patch_channels: int, text_width: int) -> tuple[nn.Module, Mapping[str, Scale]]:
    """The network with its first weights, and how the rates of single weights differ; by config.dit and config.parametrization."""
    from sora.configs.build import build, plain

    given = {"patch_channels": patch_channels, "text_width": text_width}
    dit, tree = build(config.dit, **given), plain(config.dit)
    return dit, build(config.parametrization)(dit, lambda **sizes: build({**tree, **sizes}, **given))


def flops_of(dit: DictConfig | Mapping[str, Any], *, patch_channels: int, text_width: int) -> Flops:
    """The operations of a network, whoever computes its attention; it is made without memory for its weights."""
    from sora.configs.build import build, plain
    from sora.dit.flops import Flops

    tree = {key: value for key, value in plain(dit).items() if key != "attention"}
    given = {"patch_channels": patch_channels, "text_width": text_width}
    return Flops.of(lambda attention: build(tree, attention=attention, **given), pooled_width=tree.get("level", {}).get("pooled_width"))
