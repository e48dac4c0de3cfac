"""The denoising network that a configuration names: its weights and their rates, its objective, and what it costs.

given: what is no key of its node, see `given_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import bounded

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from sora.diffusion.objective import Objective
    from sora.dit.flops import Flops
    from sora.dit.mup import Scale
    from sora.patches import Patchifier


def given_of(patchifier: Patchifier, latent_channels: int, encoder: Any) -> dict[str, int]:
    """The sizes that a network is made for: by its patches, the VAE's channels and the text encoder."""
    return {"patch_channels": patchifier.channels(latent_channels), "text_width": encoder.width}


def network(dit: DictConfig | Mapping[str, Any], given: Mapping[str, int], **others: Any) -> nn.Module:
    """The network of a node `dit`. others: keys of the node that are others than it says."""
    from sora.config.build import build

    return build(dit, **given, **others)


def objective_of(config: DictConfig | Mapping[str, Any]) -> Objective:
    """What the network learns, on the path and at the noise levels of a configuration."""
    from sora.config.build import build

    return build(config["objective"], path=build(config["path"]), density=build(config["density"]))


def trainable(config: DictConfig, given: Mapping[str, int]) -> tuple[nn.Module, Mapping[str, Scale]]:
    """The network with its first weights, as config has it trained, and how the rates of single weights differ.

    Raises:
        ValueError: the network is a published one, for patches of another size.
    """
    size = list(config.patches.size)
    if list(config.dit.get("patch", size)) != size:
        raise ValueError(f"dit.patch={list(config.dit.patch)} and patches.size={size} differ; choose the patches that it was made for")
    from sora.config.build import build, plain
    from sora.training.compiling import compile_blocks

    with bounded(None, "the network", advice="lower dit.width or dit.depth"):
        dit, tree = network(config.dit, given), plain(config.dit)
    scales = build(config.parametrization)(dit, lambda **sizes: network({**tree, **sizes}, given))
    build(config.recompute)(dit)
    if config.compile:
        compile_blocks(dit, words=config.data.text_budget is None, levels=config.objective.max_levels is None)
    return dit, scales


def flops_of(dit: DictConfig | Mapping[str, Any], given: Mapping[str, int]) -> Flops:
    """The operations of a network, whoever computes its attention; it is made without memory for its weights."""
    from sora.config.build import plain
    from sora.dit.flops import Flops

    tree = {key: value for key, value in plain(dit).items() if key != "attention"}
    return Flops.of(lambda attention: network(tree, given, attention=attention), pooled_width=tree.get("level", {}).get("pooled_width"))


def outline(dit: DictConfig, given: Mapping[str, int]) -> Any:
    """The network, or a VAE, without memory for its weights: how it is put together."""
    import torch

    with torch.device("meta"):
        return network(dit, given)


def peak_of(trainer: Any) -> float:
    """Floating-point operations a second that the devices of a trainer could make together, in the precision it multiplies in."""
    import torch

    from sora.system.devices import peak

    dtype = torch.bfloat16 if trainer.precision.startswith("bf16") else torch.float32
    return peak(trainer.strategy.root_device, dtype) * trainer.world_size
