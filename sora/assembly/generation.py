"""A generator of videos, from the sampling keys of a configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sora.config.build import build, plain

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sora.assembly.load import LoadedDiffusion
    from sora.diffusion.levels import Schedule
    from sora.diffusion.objective import Network, Objective
    from sora.diffusion.samplers import Predict, Sampler
    from sora.generation.generator import Generator, Recipe
    from sora.patches import Patchifier
    from sora.tokens import TextTokens
    from sora.vae.vae import VideoVAE


@dataclass(frozen=True)
class Sampling:
    """How videos are made, for any network. shift: of the noise levels; None for the objective's own. nodes: the sampler, its levels,
    guidance and stretch as nodes of the configuration, for the record of how a video was made."""

    sampler: Sampler
    schedule: Schedule
    guidance: Callable[..., Predict]
    steps: int
    shift: float | None
    first: float
    budget: int
    nodes: Mapping[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        return {**self.nodes, "steps": self.steps, "shift": self.shift, "first": self.first}

    def recipe(self, objective: Objective) -> Recipe:
        """The recipe for a network that was trained with this objective."""
        from sora.diffusion.levels import constant_shift
        from sora.generation.generator import Recipe

        shift = objective.shift if self.shift is None else functools.partial(constant_shift, value=float(self.shift))
        return Recipe(sampler=self.sampler, guidance=self.guidance, steps=self.steps, shift=shift, first=self.first, schedule=self.schedule)


def sampling(said: DictConfig) -> Sampling:
    """The sampling settings of a configuration that has these keys."""
    # Evaluations have no stretch, and those of older runs say no levels: theirs are uniform.
    nodes: dict[str, Any] = {key: plain(said[key]) if said.get(key) else None for key in ("sampler", "levels", "guidance", "stretch")}
    nodes["levels"] = nodes["levels"] or {"_target_": "sora.diffusion.uniform_levels"}
    values = {key: said[key] for key in ("steps", "shift", "first", "budget")}
    parts = {"sampler": build(nodes["sampler"]), "schedule": build(nodes["levels"]), "guidance": build(said.guidance)}
    return Sampling(**parts, **values, nodes=nodes)


def generator(
    said: Sampling,
    objective: Objective,
    *,
    dit: Network,
    encode: Callable[[list[str]], list[Tensor]],
    text: Callable[[TextTokens], TextTokens],
    vae: VideoVAE,
    patchifier: Patchifier,
    device: Any,
) -> Generator:
    """A generator for networks that were trained with this objective. encode, text: see `Generator`."""
    from sora.generation.generator import Generator

    return Generator(
        dit=dit,
        encode=encode,
        text=text,
        vae=vae,
        patchifier=patchifier,
        path=objective.path,
        prediction=objective.prediction,
        recipe=said.recipe(objective),
        token_budget=said.budget,
        device=device,
    )


def generator_of(loaded: LoadedDiffusion, said: Sampling, device: str) -> Generator:
    """A generator for the networks of a loaded run."""
    networks = {"dit": loaded.dit.to(device), "text": loaded.text.to(device), "vae": loaded.vae.to(device)}
    return generator(said, loaded.objective, encode=loaded.encoder.encode, patchifier=loaded.patchifier, device=device, **networks)


def described(loaded: LoadedDiffusion, said: Sampling) -> dict[str, Any]:
    """The part of the sidecar that all samples of a command share: the run's networks, and how the samples were made."""
    from sora.config.own import record
    from sora.runs.run import code_version

    return {
        "checkpoint": {"run": str(loaded.run), "step": loaded.step, "ema": loaded.ema, "hashes": loaded.hashes},
        **said.about,
        "code": code_version(),
        "trained_by": loaded.code,
        **({"own": used} if (used := {name: kept["files"] for name, kept in record().items()}) else {}),
    }
