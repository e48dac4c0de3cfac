"""Weight files that others made: located, identified by their hashes, and read without running code from them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sora.gate.files import opened
from sora.gate.tensors import load, refuse_not_finite

PART = 1 << 20


@dataclass(frozen=True)
class Hashes:
    """Hashes of a file's bytes: sha256, and blob, the SHA-1 of git, by which a repository's listing identifies the file."""

    sha256: str
    blob: str


@cache
def hashes(path: Path) -> Hashes:
    """The hashes of a file, read once a process."""
    plain, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while part := file.read(PART):
            plain.update(part)
            blob.update(part)
    return Hashes(plain.hexdigest(), blob.hexdigest())


def given_file(path: str | None, *, wanted: str) -> Path:
    """The file that extractor.path names; ValueError says which file to get (`wanted`) and how to name it."""
    if path is None or not Path(path).is_file():
        told = "extractor.path is not set" if path is None else f"extractor.path={path} does not exist"
        raise ValueError(f"{told}; this extractor needs {wanted}. Download it where there is a network and set extractor.path=FILE")
    return Path(path)


def package_file(package: str, name: str, *, install: str) -> Path:
    """A file that an installed package ships; the package is located, not imported. Raises ValueError that says how to install it."""
    spec = importlib.util.find_spec(package) if re.fullmatch(r"[A-Za-z_]\w*", package) else None
    home = Path(spec.submodule_search_locations[0]) if spec is not None and spec.submodule_search_locations else None
    if home is None or not (home / name).is_file():
        raise ValueError(f"this extractor's weights ship in the package {package}, which is not installed: {install}")
    return home / name


def read_state(path: Path, *, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state dict whose names begin with `prefix`, which is removed; from safetensors, or from a PyTorch file, of which
    only tensors are unpickled."""
    if path.suffix == ".safetensors":
        found = load(path)
    else:
        try:
            with opened(path) as file:
                found = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises many types for files that are no state dicts
            raise ValueError(f"{path} is no state dict of tensors alone: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} is no state dict: it holds {type(found).__name__}; give the weights alone, a tensor a name")
    refuse_not_finite(found, path)
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def fill(network: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state into a network, frozen and in evaluation mode; ValueError names missing, unknown or misshapen tensors."""
    wanted = network.state_dict()
    # Some files have batch normalisation's count of batches; nothing depends on it.
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in sorted(needed - set(state))]
    wrong += [f"{name} is unknown" for name in sorted(set(state) - needed)]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(needed & set(state))
        if state[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"{path} does not hold this network's weights: {'; '.join(wrong[:3])}{'; and more' if len(wrong) > 3 else ''}")
    network.float()  # pixels are fp32, whatever torch's default was when the network was built
    network.load_state_dict(state, strict=False)
    network.eval().requires_grad_(False)
