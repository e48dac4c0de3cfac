"""Save and load a VAE as a folder with `vae.safetensors` (weights and whitening) and `vae.json` (settings and hashes), without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sora.gate.forms import Fields, Items, digest, fitting, number, real, some, whole
from sora.gate.sizes import bounded
from sora.gate.tensors import header, refuse_not_finite, write_tensors
from sora.gate.tensors import load as tensors_of
from sora.gate.texts import read_json
from sora.system import files as storage
from sora.vae.vae import VideoVAE

WEIGHTS, CARD = "vae.safetensors", "vae.json"
FORMAT = 1
_TRIPLE = Items(whole(1, 64), 3, 3)
_LEVELS = 16
_COUNTS = Items(whole(0, 256), 1, _LEVELS)
SETTINGS = Fields(
    {
        "latent_channels": whole(1, 4096),
        "stem": _TRIPLE,
        "widths": Items(whole(1, 16384), 1, _LEVELS),
        "blocks": _COUNTS,
        "decoder_blocks": _COUNTS,
        "strides": Items(_TRIPLE, 0, _LEVELS),
        "kernels": Items(_TRIPLE, 1, _LEVELS),
        "noise": real(0, above=True),
    },
    closed=True,
)
_WHITENING = {"mean": [number], "std": [real(0, above=True)]}
FORM = Fields(
    {"format": some, "settings": SETTINGS, "stride": _TRIPLE, "whitening": _WHITENING, "weights_sha256": digest, "card_sha256": digest}
)  # form of vae.json


def save(vae: VideoVAE, folder: Path, *, config: dict[str, Any]) -> str:
    """Save the VAE to a new folder atomically, and return its hash (see `artefact_hash`).

    config: JSON-serialisable record of the VAE's origin (run, code version, ...), kept for human readers; `load` does not use it.
    """
    with storage.whole_folder(Path(folder)) as staging:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
        write_tensors(tensors, staging / WEIGHTS)
        card = {
            "format": FORMAT,
            "settings": vae.settings,
            "stride": list(vae.stride),
            "whitening": {"mean": vae.shift.tolist(), "std": vae.scale.tolist()},
            "weights_sha256": storage.file_hash(staging / WEIGHTS),
            "config": config,
        }
        card["card_sha256"] = storage.text_hash(canonical(card))
        storage.write_json(staging / CARD, card)
    return artefact_hash(folder)


def load(folder: Path) -> VideoVAE:
    """Load the VAE of a folder, in eval mode on the CPU. Raises ValueError that names a missing, damaged or mismatched file."""
    folder = Path(folder)
    card = read_card(folder)
    weights = folder / WEIGHTS
    if "scale" not in header(weights, within=folder).tensors:
        raise ValueError(f"{weights} does not fit the settings in {folder / CARD}: it holds no scale of the latents; copy both again")
    if storage.file_hash(weights) != card["weights_sha256"]:
        raise ValueError(f"{weights} is damaged: its bytes do not have the SHA-256 that {CARD} gives; copy it again")
    found = tensors_of(weights, within=folder)
    refuse_not_finite(found, weights)
    if not bool((found["scale"] > 0).all()):
        raise ValueError(f"{weights} holds a scale of the latents that is not above 0: it is damaged; train the VAE again")
    with bounded(sum(value.numel() for value in found.values()), f"the VAE of the settings in {folder / CARD}", advice="copy both again"):
        vae = VideoVAE(**card["settings"])
    try:
        vae.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit the settings in {folder / CARD}: {' '.join(str(error).split())[:500]}") from None
    if list(vae.stride) != card["stride"]:
        raise ValueError(f"{folder / CARD} is damaged: its stride is {card['stride']}, its settings make {list(vae.stride)}; copy it again")
    return vae.eval()


def copy(folder: Path, target: Path) -> None:
    """Copy the two files of a VAE, and no other file of the folder, to the new folder `target`. Raises ValueError if one is missing."""
    storage.copy_files((CARD, WEIGHTS), Path(folder), target)


def folder_of(source: Path | str) -> Path:
    """The folder of the VAE that a path names: the path itself, or, of a run that has finished one, its vae/."""
    inside = Path(source) / "vae"
    return inside if (inside / CARD).is_file() else Path(source)


def artefact_hash(folder: Path) -> str:
    """Hash of the VAE's weights, whitening and settings, which identifies the latents it encodes. It does not depend on `config`."""
    card = read_card(Path(folder))
    return storage.text_hash(canonical({key: card[key] for key in ("format", "settings", "weights_sha256")}))


def read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.exists():
        why = f"it has no {CARD}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"vae={folder} is no VAE: {why}; name what `sora train task=vae` wrote, a run that is whole or its vae/")
    card = read_json(path, within=folder)
    if not isinstance(card, dict) or "card_sha256" not in card:
        raise ValueError(f"{path} is no VAE card; name a folder that `sora train task=vae` wrote")
    rest = {key: value for key, value in card.items() if key != "card_sha256"}
    if storage.text_hash(canonical(rest)) != card["card_sha256"]:
        raise ValueError(f"{path} is damaged or was edited: it does not have the SHA-256 it gives")
    if card.get("format") != FORMAT:
        raise ValueError(f"{path} has format {card.get('format')}, this version reads {FORMAT}; use the code version that wrote it")
    return fitting(card, FORM, str(path), "copy it again")


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
