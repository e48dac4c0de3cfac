"""Published checkpoints into our networks and out of them, as diffusers writes and reads them."""

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
    """What was taken over. config: what config.json says; None where there was none, and then `unseen` says what could not be compared.
    other: keys of ours that are another network's on purpose."""

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
        """What a run notes of it."""
        return {"weights": str(self.weights.absolute()), "bytes": self.weights.stat().st_size, "config": self.config}


def begin_from(network: nn.Module | None, source: Path, *, patch: tuple[int, ...], allowed: Sequence[str] = ()) -> Taken:
    """`load`, for a network that is to be trained on patches of size `patch`.

    Raises:
        ValueError: as `load`; or it is no published network, or one of other patches.
    """
    return load(_of_patches(network, source, patch=patch), source, allowed=allowed)


def foresee(network: nn.Module | None, source: Path, *, patch: tuple[int, ...], allowed: Sequence[str] = ()) -> None:
    """Raise ValueError for what `begin` would refuse, but for what only the tensors' numbers tell; the network may be one without memory
    for its weights."""
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
    """Give `dit` the weights of a published checkpoint: a safetensors file, an index, a folder of either, or a pipeline's.

    allowed: keys in which it may be another network on purpose, such as dit.text.fill.

    Raises:
        ValueError: there is no checkpoint, or several, it is damaged, or its config.json or its tensors are of another network; the message
            says by which of its keys and ours, or by which tensors.
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
    """Where the checkpoint is, what its config.json says (None if there is none), and what it is taken for: no other network than `dit`."""
    place, options, ours = files.locate(Path(source)), dit.keys(dit).options, leaves(dit)
    config: Any = None if place.config is None else storage.read_json(place.config)
    told: Any = said(options, ours) if place.config is None else config  # of what stands alone it is known of which class it is
    named = f"init={source}" if place.config is None else str(place.config)
    refuse_other(options, told, ours, place=named, allowed=[name.removeprefix("dit.") for name in allowed], parts=place.parts)
    return place, config, told


def _named(held: Mapping[str, Tensor], map_: KeyMap, place: files.Place) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the names of diffusers. Raises ValueError for those that have the names of somebody else, which says
    more than that all of them are missing."""
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
    """Write `dit` as diffusers loads it, in files of at most `shard_bytes` (or one tensor).

    The folder appears whole or not at all. words: how long captions get. beside: the config.json that it began with, if it did.

    Raises:
        ValueError: the folder exists, a tensor holds numbers that are not finite, or the class cannot say what the network is.
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
