"""A VAE on disk: `vae.safetensors` (weights and whitening) and `vae.json` (settings, hashes). No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sora import storage
from sora.vae.vae import VideoVAE

WEIGHTS, CARD = "vae.safetensors", "vae.json"
FORMAT = 1


def save(vae: VideoVAE, folder: Path, *, config: dict[str, Any]) -> str:
    """Write the VAE into a new folder, whole or not at all, and return its hash.

    config: where it comes from (run, code version, ...), JSON-able, kept for readers; loading needs only the VAE's own settings.
    """
    with storage.whole_folder(Path(folder)) as staging:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
        save_file(tensors, staging / WEIGHTS)
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
    """The VAE of a folder, in eval mode on the CPU; ValueError naming the file that is missing, damaged or does not fit."""
    folder = Path(folder)
    card = read_card(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{weights} does not exist")
    if storage.file_hash(weights) != card["weights_sha256"]:
        raise ValueError(f"{weights} is damaged: its bytes do not have the SHA-256 that {CARD} gives; copy it again")
    vae = VideoVAE(**card["settings"])
    try:
        vae.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} does not fit the settings in {folder / CARD}: {error}") from None
    return vae.eval()


def artefact_hash(folder: Path) -> str:
    """One hash of weights, whitening and settings: what latents are keyed by. It does not depend on `config`."""
    card = read_card(Path(folder))
    return storage.text_hash(canonical({key: card[key] for key in ("format", "settings", "weights_sha256")}))


def read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    card = storage.read_json(path)
    if not isinstance(card, dict) or "card_sha256" not in card:
        raise ValueError(f"{path} is no VAE card; name a folder that `sora train task=vae` wrote")
    rest = {key: value for key, value in card.items() if key != "card_sha256"}
    if storage.text_hash(canonical(rest)) != card["card_sha256"]:
        raise ValueError(f"{path} is damaged or was edited: it does not have the SHA-256 it gives")
    if card["format"] != FORMAT:
        raise ValueError(f"{path} has format {card['format']}, this version reads {FORMAT}; use the code version that wrote it")
    return card


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
