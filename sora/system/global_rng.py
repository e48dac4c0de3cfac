"""The global random states, to and from tensors. They only serve dropout and the like: draws that matter are counter-based
(`sora.system.draws`)."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sora.system import draws


def seed(value: int, *, rank: int = 0) -> None:
    """Seed python, numpy and torch; every rank of a run gets different streams."""
    draw = draws.generator("global", seed=value, epoch=0, sample=rank)
    random.seed(int(draw.integers(2**63)))
    np.random.seed(int(draw.integers(2**32)))  # noqa: NPY002 - libraries use the global state, so we must own it
    torch.manual_seed(int(draw.integers(2**63)))


def capture() -> dict[str, Tensor]:
    """The states of python, numpy and torch, and of the present device if it has one."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Restore the states of `capture`; those of a device that this machine lacks are ignored."""
    version, *words = states["python"].tolist()
    has, gauss = states["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss if has else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, states["numpy_gauss"].item()))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
