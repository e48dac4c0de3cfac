"""Published checkpoints as diffusers writes them: safetensors, whole or in shards with an index, and config.json beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sora import storage
from sora.dit.published.keys import to_ours, to_theirs
from sora.dit.published.network import PublishedDiT

STEM = "diffusion_pytorch_model"
WEIGHTS, INDEX, CONFIG = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json", "config.json"


def begin(network: nn.Module | None, source: Path, *, patch: tuple[int, ...]) -> None:
    """`load`, for a network that is to be trained on patches of size `patch`.

    Raises:
        ValueError: as `load`; or it is no published network, or one of other patches.
    """
    if not isinstance(network, PublishedDiT):
        raise ValueError(f"init={source} is for published networks, such as dit=wan_2_1_1_3b; leave it out, or choose one")
    if patch != network.patch:
        raise ValueError(f"init={source} has patches of {list(network.patch)}, and patches.size={list(patch)}; make them equal")
    load(network, source)


def load(dit: PublishedDiT, source: Path) -> None:
    """Give `dit` the weights of a published checkpoint: a safetensors file, its folder, or a pipeline's with transformer/ in it.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or it is of another network; the message says which of its tensors are not ours.
    """
    source = Path(source)
    if source.is_dir():
        source = source / "transformer" if (source / "transformer").is_dir() else source
        _refuse_other(dit, source / CONFIG)
    state = dit.state_dict()
    state.update(to_ours(dit.keys(dit), read(source), state))
    dit.load_state_dict(state)


def _refuse_other(dit: PublishedDiT, config: Path) -> None:
    """What shapes do not tell: which class it is, and how many heads it has."""
    if not config.is_file():
        return
    found, keys = storage.read_json(config), dit.keys(dit)
    if not isinstance(found, dict):
        raise ValueError(f"{config} is damaged: it holds no mapping")
    for key, ours in (("_class_name", keys.kind), ("num_attention_heads", dit.heads)):
        if found.get(key, ours) != ours:
            raise ValueError(f"{config} says {key}={found[key]}, this dit is {key}={ours}; choose the dit that the checkpoint was made of")


def read(source: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of all files of a folder, on the host."""
    if source.is_file():
        return _file(source)
    if (source / WEIGHTS).is_file():
        return _file(source / WEIGHTS)
    if not (source / INDEX).is_file():
        raise ValueError(f"{source} is neither a safetensors file nor a folder with {WEIGHTS} or {INDEX}")
    index = storage.read_json(source / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) and Path(file).name == file for file in places.values()):
        raise ValueError(f"{source / INDEX} is damaged: its weight_map names no files beside it")
    tensors = {name: tensor for file in sorted(set(places.values())) for name, tensor in _file(source / file).items()}
    if missing := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{source / INDEX} promises {len(missing)} tensors that its files do not hold, such as {missing[0]}")
    return tensors


def _file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def save(dit: PublishedDiT, folder: Path, *, dtype: torch.dtype, shard_bytes: int) -> None:
    """Write `dit` as diffusers loads it, in files of at most `shard_bytes` (or one tensor); `folder` appears whole or not at all.

    Raises:
        ValueError: the folder exists, or a tensor holds numbers that are not finite.
    """
    from safetensors.torch import save_file

    keys = dit.keys(dit)
    tensors = {name: tensor.to(dtype) for name, tensor in to_theirs(keys, dict(dit.state_dict())).items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds numbers that are not finite in {dtype}; nothing was written")
    shards = _shards(tensors, shard_bytes)
    with storage.whole_folder(folder) as staging:
        names = [WEIGHTS] if len(shards) == 1 else [f"{STEM}-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
        for name, shard in zip(names, shards, strict=True):
            save_file(shard, staging / name, metadata={"format": "pt"})
        if len(shards) > 1:
            size = sum(tensor.nbytes for tensor in tensors.values())
            places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            storage.write_json(staging / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))})
        storage.write_json(staging / CONFIG, {"_class_name": keys.kind, **keys.config})


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
