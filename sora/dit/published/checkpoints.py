"""Load published checkpoints in the format of diffusers into our networks, and save our networks in that format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sora.dit.published import files
from sora.dit.published.keys import KeyMap, fitting, to_ours, to_theirs
from sora.dit.published.network import PublishedDiT, leaves
from sora.dit.published.options import refuse_other, said, written
from sora.gate.tensors import write_tensors
from sora.system import files as storage


@dataclass(frozen=True)
class Taken:
    """Record of a loaded checkpoint. config: its config.json, None if there was none; then `unseen` holds the values that could not be
    compared. other: keys in which our network is allowed to differ."""

    weights: Path
    config: Mapping[str, Any] | None
    unseen: Mapping[str, Any]
    other: Sequence[str] = ()

    def __str__(self) -> str:
        told = f"began with the weights of {self.weights}"
        if self.config is not None:
            return f"{told}, whose config.json is of this network" + (f" but for {', '.join(self.other)}" if self.other else "")
        values = ", ".join(f"{key}={value}" for key, value in self.unseen.items())
        return f"{told}; there is no config.json beside it, so what no tensor tells was not compared: taken for {values}"

    def record(self) -> dict[str, Any]:
        """JSON-serialisable summary that a run stores."""
        return {"weights": str(self.weights.absolute()), "bytes": self.weights.stat().st_size, "config": self.config}


def begin_from(network: nn.Module | None, source: Path, *, patch: tuple[int, ...], allowed: Sequence[str] = ()) -> Taken:
    """Call `load` for a network that is to be trained on patches of size `patch`.

    Raises:
        ValueError: as `load`; or `network` is not a published network, or has another patch size.
    """
    return load(_of_patches(network, source, patch=patch), source, allowed=allowed)


def foresee(network: nn.Module | None, source: Path, *, patch: tuple[int, ...], allowed: Sequence[str] = ()) -> None:
    """Raise ValueError for what `begin_from` would refuse, except for faults in the values of tensors, which are not read. The network may
    be on the meta device."""
    dit = _of_patches(network, source, patch=patch)
    place, *_ = _compared(dit, source, allowed)
    fitting(dit.keys(dit), _named(files.outline(place.weights), dit.keys(dit), place), dit.state_dict())


def _of_patches(network: nn.Module | None, source: Path, *, patch: tuple[int, ...]) -> PublishedDiT:
    if not isinstance(network, PublishedDiT):
        raise ValueError(f"init={source} is for published networks, such as dit=wan_2_1_1_3b; leave it out, or choose one")
    if patch != network.patch:
        raise ValueError(f"init={source} has patches of {list(network.patch)}, and patches.size={list(patch)}; make them equal")
    return network


def load(dit: PublishedDiT, source: Path, *, allowed: Sequence[str] = ()) -> Taken:
    """Load the weights of a published checkpoint into `dit`.

    source: a safetensors file, an index, a folder with one of them, or the folder of a diffusers pipeline.
    allowed: keys in which the networks may differ, such as dit.text.fill.

    Raises:
        ValueError: there is no checkpoint, or several, it is damaged, or its config.json or its tensors do not fit `dit`; the message names
            the keys or tensors that differ.
    """
    map_ = dit.keys(dit)
    place, config, told = _compared(dit, source, allowed)
    tensors = _named(files.read(place.weights), map_, place)
    state = dit.state_dict()
    state.update(to_ours(map_, tensors, state))
    dit.load_state_dict(state)
    unseen = {} if config is not None else {key: told[key] for key in map_.options.shapeless}
    return Taken(place.weights, config, unseen, list(allowed))


def _compared(dit: PublishedDiT, source: Path, allowed: Sequence[str]) -> tuple[files.Place, Any, Any]:
    """Find the checkpoint, its config.json (None if there is none), and the configuration it is assumed to have, and compare it with `dit`.

    Raises ValueError if the configuration differs from that of `dit`.
    """
    place, options, ours = files.locate(Path(source)), dit.keys(dit).options, leaves(dit)
    config: Any = None if place.config is None else storage.read_json(place.config)
    told: Any = said(options, ours) if place.config is None else config  # without a config.json, assume that of `dit`
    named = f"init={source}" if place.config is None else str(place.config)
    refuse_other(options, told, ours, place=named, allowed=[name.removeprefix("dit.") for name in allowed], parts=place.parts)
    return place, config, told


def _named(held: Mapping[str, Tensor], map_: KeyMap, place: files.Place) -> dict[str, Tensor]:
    """Tensors of a checkpoint by their names in diffusers. Raises ValueError that names the origin of tensors with the names of another
    repository, which helps more than a list of missing tensors."""
    tensors = files.bared(held, list(map_.keys))
    if len(map_.keys.keys() - tensors.keys()) * 2 > len(map_.keys) and (whose := files.makers(list(tensors), parts=place.parts)):
        raise ValueError(f"{place.weights} holds other tensors than {map_.kind}'s in diffusers: {whose}")
    return tensors


def save(
    dit: PublishedDiT,
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
    words: int | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Save `dit` in the format of diffusers to a new folder, atomically, in files of at most `shard_bytes` (or of one tensor).

    words: maximum number of tokens of a caption. beside: the config.json that the network was initialised from, if any.

    Raises:
        ValueError: the folder exists, a tensor is not finite, or the config.json of the class cannot describe the network.
    """
    map_ = dit.keys(dit)
    config = written(map_.options, leaves(dit, words=words), beside=beside)
    tensors = {name: tensor.to(dtype) for name, tensor in to_theirs(map_, dict(dit.state_dict())).items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds numbers that are not finite in {dtype}; nothing was written")
    shards = _shards(tensors, shard_bytes)
    with storage.whole_folder(folder) as staging:
        count = len(shards)
        names = [files.WEIGHTS] if count == 1 else [f"{files.STEM}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        for name, shard in zip(names, shards, strict=True):
            write_tensors(shard, staging / name, {"format": "pt"})
        if count > 1:
            size = sum(tensor.nbytes for tensor in tensors.values())
            places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            storage.write_json(staging / files.INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
        storage.write_json(staging / files.CONFIG, config)


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
