"""The denoising network that a configuration names: its weights and their rates, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import bounded

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from sora.dit.flops import Flops
    from sora.dit.mup import Scale


def trainable(config: DictConfig, *, patch_channels: int, text_width: int) -> tuple[nn.Module, Mapping[str, Scale]]:
    """The network with its first weights, as config has it trained, and how the rates of single weights differ.

    Raises:
        ValueError: the network is a published one, for patches of another size.
    """
    size = list(config.patches.size)
    if list(config.dit.get("patch", size)) != size:
        raise ValueError(f"dit.patch={list(config.dit.patch)} and patches.size={size} differ; choose the patches that it was made for")
    from sora.config.build import build, plain
    from sora.training.compiling import compile_blocks

    given = {"patch_channels": patch_channels, "text_width": text_width}
    with bounded(None, "the network", advice="lower dit.width or dit.depth"):
        dit, tree = build(config.dit, **given), plain(config.dit)
    scales = build(config.parametrization)(dit, lambda **sizes: build({**tree, **sizes}, **given))
    build(config.recompute)(dit)
    if config.compile:
        compile_blocks(dit, words=config.data.text_budget is None, levels=config.objective.max_levels is None)
    return dit, scales


def flops_of(dit: DictConfig | Mapping[str, Any], *, patch_channels: int, text_width: int) -> Flops:
    """The operations of a network, whoever computes its attention; it is made without memory for its weights."""
    from sora.config.build import build, plain
    from sora.dit.flops import Flops

    tree = {key: value for key, value in plain(dit).items() if key != "attention"}
    given = {"patch_channels": patch_channels, "text_width": text_width}
    return Flops.of(lambda attention: build(tree, attention=attention, **given), pooled_width=tree.get("level", {}).get("pooled_width"))


def outline(dit: DictConfig, *, patch_channels: int, text_width: int) -> nn.Module:
    """The network without memory for its weights: how it is put together."""
    import torch

    from sora.config.build import build

    with torch.device("meta"):
        return build(dit, patch_channels=patch_channels, text_width=text_width)


def peak_of(trainer: Any) -> float:
    """Floating-point operations a second that the devices of a trainer could make together, in the precision it multiplies in."""
    import torch

    from sora.system.devices import peak

    dtype = torch.bfloat16 if trainer.precision.startswith("bf16") else torch.float32
    return peak(trainer.strategy.root_device, dtype) * trainer.world_size
