"""Find and read the files of a published checkpoint: safetensors, one file or shards with an index, and a config.json beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sora.dit.published.options import anew
from sora.gate.files import opened
from sora.gate.forms import Fields, Named, beside, fitting
from sora.gate.tensors import header, load
from sora.gate.texts import LIST, read_json

if TYPE_CHECKING:
    from torch import Tensor

STEM = "diffusion_pytorch_model"
WEIGHTS, INDEX, CONFIG = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json", "config.json"
FORM = Fields({"weight_map": Named(beside)})  # form of the index: the file name of each tensor
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$", re.IGNORECASE)
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # by their names in safetensors
# First bytes of files that are not safetensors files, and their descriptions.
BEGINNINGS = {
    b"GGUF": "a GGUF file, whose weights are quantised",
    b"PK\x03\x04": "a file of torch.save, no safetensors file",
    b"\x80\x02": "a pickle, no safetensors file",
    b"version https://git-lfs": "a pointer of git-lfs and not the file itself: git lfs pull",
    b"<!DOCTYPE": "a web page: what was downloaded is not the file",
}


@dataclass(frozen=True)
class Place:
    """Paths of a checkpoint. weights: the safetensors file or the index. config: the config.json beside it; None if there is none."""

    weights: Path
    config: Path | None

    @property
    def parts(self) -> bool:
        """Whether the weights are several files with an index."""
        return _is_index(self.weights.name)


def locate(source: Path) -> Place:
    """Find the only checkpoint in `source`: a file, an index, a folder, or a pipeline's folder with a transformer/ subfolder.

    Raises:
        ValueError: there is none, or there are several; the message names them.
    """
    if source.is_file():
        if SHARD.search(source.name):
            raise ValueError(f"init={source} is one part of several; name their folder, or their index")
        return _place(source)
    if not source.is_dir():
        raise ValueError(f"init={source} does not exist")
    if (source / "run.json").is_file():
        raise ValueError(
            f"init={source} is a run of ours; go on with it by resume=, or export it as diffusers loads it, by sora export checkpoint="
        )
    found = _within(source)
    for folder in sorted(path for path in source.iterdir() if path.is_dir() and path.name.startswith("transformer")):
        found += _within(folder)
    if len(found) > 1:
        named = ", ".join(f"init={path}" for path in found[:6]) + (", …" if len(found) > 6 else "")
        raise ValueError(f"init={source} holds {len(found)} checkpoints, and which is meant is yours to say: {named}")
    if not found:
        raise ValueError(f"init={source} is neither a safetensors file nor a folder with {WEIGHTS} or {INDEX}{_instead(source)}")
    return _place(found[0])


def _within(folder: Path) -> list[Path]:
    """Unsharded safetensors files and index files of a folder."""
    names = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in names if _is_whole(path.name) or _is_index(path.name)]


def _is_whole(name: str) -> bool:
    return name.lower().endswith(".safetensors") and not SHARD.search(name)


def _is_index(name: str) -> bool:
    return ".safetensors.index" in name.lower() and name.lower().endswith(".json")


def _place(weights: Path) -> Place:
    config = weights.parent / CONFIG
    return Place(weights, config if config.is_file() else None)


def _instead(folder: Path) -> str:
    """End of an error message for a folder without a checkpoint: the files in it that may have been meant."""
    for inside in (folder, folder / "transformer"):
        names = sorted(path.name for path in inside.iterdir() if path.is_file()) if inside.is_dir() else []
        if shards := [name for name in names if SHARD.search(name)]:
            return f": of {shards[0]} and its like the index is missing"
        if others := [name for name in names if name.lower().endswith((".bin", ".pt", ".pth", ".ckpt", ".gguf"))]:
            return f": {inside / others[0]} is no safetensors file; let diffusers write it anew: from_pretrained(…).save_pretrained(FOLDER)"
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return f": it has the folders {', '.join(parts[:8])}" if parts else ""


# ---- tensors


def read(place: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of the files that an index names, to the CPU.

    Raises:
        ValueError: a file is missing, damaged, or of another kind, the index does not match its files, or weights are not finite or not
            floats of 16 bits or more; the message names the file and the tensor.
    """
    outline(place)
    tensors = _held(place, _file)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{place} is damaged: {name} holds numbers that are not finite")
    return tensors


def outline(place: Path) -> dict[str, Tensor]:
    """The tensors of `read` on the meta device, from the files' headers only, which is fast.

    Raises:
        ValueError: as `read`, except for values that are not finite.
    """
    return _held(place, _header)


def _held(place: Path, of_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of one file or of the files that an index names. of_file: reads the tensors of one file."""
    tensors = _indexed(place, of_file) if place.name.lower().endswith(".json") else of_file(place)
    if not tensors:
        raise ValueError(f"{place} holds no tensors")
    return tensors


def _indexed(index: Path, of_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    places = fitting(read_json(index, limit=LIST), FORM, str(index))["weight_map"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        held = of_file(index.parent / file)
        if stray := sorted(name for name in held if places.get(name) != file):
            raise ValueError(f"{index} knows nothing of {stray[0]} in {file}: they are not of one checkpoint")
        tensors |= held
    if missing := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index} promises {len(missing)} tensors that its files do not hold, such as {missing[0]}")
    return tensors


def _file(path: Path) -> dict[str, Tensor]:
    _refuse_others(path)
    return load(path)


def _header(path: Path) -> dict[str, Tensor]:
    _refuse_others(path)
    held = header(path).tensors
    for name, tensor in held.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{path} has {name} in {tensor.dtype}: its weights are quantised; init= takes weights of 16 or 32 bits")
    return {name: torch.empty(tensor.shape, dtype=FLOATS[tensor.dtype], device="meta") for name, tensor in held.items()}


def _refuse_others(path: Path) -> None:
    """Raise ValueError for a file of a known kind other than safetensors."""
    with opened(path) as file:
        start = file.read(64)
    for beginning, kind in BEGINNINGS.items():
        if start.startswith(beginning) and start[8:9] != b"{":  # a safetensors file with a header of 640 bytes begins like a pickle
            raise ValueError(f"{path} is {kind}; init= takes safetensors files of 16 or 32 bits")


# ---- tensors with the names of other repositories

# By a pattern of tensor names: the origin of such files, and the class of diffusers that converts them, or other advice.
MAKERS = {
    r"lora_(A|B|down|up|unet)": ("of a LoRA, which holds differences to a network and not the network", ""),
    r"^(blocks\.\d+\.self_attn\.|text_embedding\.0\.)": ("of Wan's own repository", "WanTransformer3DModel"),
    r"^(patchify_proj\.|transformer_blocks\.\d+\.attn1\.q_norm\.)": (
        "of LTX-Video's own files",
        "LTXVideoTransformer3DModel",
    ),
    r"^(double_blocks\.\d+\.img_attn_q|txt_in\.individual_token)": (
        "of HunyuanVideo's own repository",
        "HunyuanVideoTransformer3DModel",
    ),
    r"^(double_blocks\.\d+\.img_attn\.|single_blocks\.\d+\.modulation\.lin)": (
        "of FLUX's own repository",
        "FluxTransformer2DModel",
    ),
    r"(^|\.)(transformer\.layers\.\d+\.|mixins\.)": (
        "of CogVideoX's own repository (SAT)",
        "no class of diffusers reads them: take what its makers publish for diffusers, or its scripts/convert_cogvideox_to_diffusers.py",
    ),
    r"^(y_embedder\.|blocks\.\d+\.adaLN_modulation\.)": ("of DiT's, SiT's or Latte's own repository", ""),
    r"^(encoder|decoder|first_stage_model)\.(conv_in|down_blocks|up_blocks|conv1|mid)": ("of a VAE", ""),
    r"^(shared\.weight|encoder\.block\.0\.|text_model\.)": ("of a text encoder", ""),
}
ROOTS = ("model.diffusion_model.", "diffusion_model.", "model.", "module.", "_orig_mod.", "transformer.")


def makers(names: Sequence[str], *, parts: bool = False) -> str:
    """Origin of tensors that do not have the names of diffusers, and advice how to convert them; "" if the origin is unknown.

    parts: whether the tensors are from several files."""
    for pattern, (whose, way) in MAKERS.items():
        for name in names:
            bare = name
            while root := next((root for root in ROOTS if bare.startswith(root) and not re.search(pattern, bare)), ""):
                bare = bare.removeprefix(root)
            if re.search(pattern, bare):
                told = anew(way, parts=parts) if way.isidentifier() else way
                return f"they are {whose} ({name}){f'; {told}' if told else ''}"
    return ""


def bared(tensors: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Tensors without the prefix that all their names share before the names of diffusers, such as `model.diffusion_model.`."""
    if not wanted or any(name in tensors for name in wanted):
        return dict(tensors)
    fronts = {name[: -len(wanted[0])] for name in tensors if name.endswith(f".{wanted[0]}")}
    front = fronts.pop() if len(fronts) == 1 else ""
    everyone = all(name.startswith(front) for name in tensors)
    return {name.removeprefix(front) if everyone else name: tensor for name, tensor in tensors.items()}
