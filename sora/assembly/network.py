"""The denoising network that a configuration names: its weights and their learning rates, its objective, and its FLOPs.

given: the sizes that are no keys of the network's node, see `given_of`.
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
    """The sizes that a network gets from the patches, the VAE's channels and the text encoder."""
    return {"patch_channels": patchifier.channels(latent_channels), "text_width": encoder.width}


def network(dit: DictConfig | Mapping[str, Any], given: Mapping[str, int], **others: Any) -> nn.Module:
    """The network of a node `dit`. others: keys that override those of the node."""
    from sora.config.build import build

    return build(dit, **given, **others)


def objective_of(config: DictConfig | Mapping[str, Any]) -> Objective:
    """The objective, with the path and the density of noise levels of a configuration."""
    from sora.config.build import build

    return build(config["objective"], path=build(config["path"]), density=build(config["density"]))


def trainable(config: DictConfig, given: Mapping[str, int]) -> tuple[nn.Module, Mapping[str, Scale]]:
    """The network with its first weights, prepared for training, and the learning-rate scales of single weights.

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
    """The FLOPs of a network, whichever kernel computes its attention; the network is built on the meta device."""
    from sora.config.build import plain
    from sora.dit.flops import Flops

    tree = {key: value for key, value in plain(dit).items() if key != "attention"}
    return Flops.of(lambda attention: network(tree, given, attention=attention), pooled_width=tree.get("level", {}).get("pooled_width"))


def outline(dit: DictConfig, given: Mapping[str, int]) -> Any:
    """The network, or a VAE, on the meta device, where weights take no memory."""
    import torch

    with torch.device("meta"):
        return network(dit, given)


def peak_of(trainer: Any) -> float:
    """Peak FLOP/s of all devices of a trainer together, in the precision of its matrix products."""
    import torch

    from sora.system.devices import peak

    dtype = torch.bfloat16 if trainer.precision.startswith("bf16") else torch.float32
    return peak(trainer.strategy.root_device, dtype) * trainer.world_size
