"""Small runs as training leaves them, without the training: random weights behind real configurations."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from sora.config.build import build
from sora.config.compose import config_dir
from sora.data.index.index import Caption, ClipFacts, DatasetWriter
from sora.runs import checkpoint, run
from sora.runs.checkpoint import TrainingState
from sora.vae import artefact
from sora.video.files import encode

WORLD = {"sizes": [[24, 24], [24, 32]], "seconds": [1.0], "rates": [8], "motions": ["linear"], "objects": [1], "image_share": 0.0}


def stored_artefacts(folder: Path) -> Path:
    """What code of November 2026 made, unpacked into a folder: see tests/stored/README.md."""
    with tarfile.open(Path(__file__).parent / "stored/2026_11.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def option(group: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml"))


def vae_artefact(folder: Path) -> Path:
    torch.manual_seed(0)
    artefact.save(build(option("vae", "toy")), folder, config={})
    return folder


def diffusion_run(
    folder: Path, *, vae: Path, data: Path, steps: tuple[int, ...] = (5, 10), dit: dict[str, Any] | None = None, text: str = "byte"
) -> Path:
    """A run with a checkpoint at each of `steps`; averaged weights differ from the last ones. dit: its configuration, if not dit=toy."""
    torch.manual_seed(1)
    names = {"patches": "1x2x2", "text": text, "dit": "toy", "objective": "velocity", "path": "straight", "density": "logit_normal"}
    config = {
        "kind": "diffusion",
        **{group: option(group, name) for group, name in names.items()},
        "data": {**option("data", "latents"), "folders": [str(data)]},
    }
    config["dit"] = dit or config["dit"]
    encoder, patches = build(config["text"]), build(config["patches"])
    network = build(config["dit"], patch_channels=patches.channels(artefact.load(vae).latent_channels), text_width=encoder.width)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.1)
    info = {"kind": "diffusion", "depends": {"vae": artefact.artefact_hash(vae), "text": encoder.fingerprint}}
    made = run.create(folder, config=OmegaConf.to_yaml(OmegaConf.create(config)), info=info, vae=vae)
    parts = {"dit": network, "text": encoder.text_module()}
    model = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    tensors = {"model": model, "ema": {name: value * 1.5 for name, value in model.items() if value.is_floating_point()}}
    for step in steps:
        checkpoint.save(made.checkpoints, TrainingState(step=step, samples=0, tokens=0, tensors=tensors), keep=9)
    return folder


def world_dataset(folder: Path, *, clips: int) -> Path:
    """Clips of the world, half of them held out, with the recipe in dataset.json as `sora prepare source=world` writes it."""
    recipe = {**option("source", "world")["world"], **WORLD}
    world = build(recipe)
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=1 << 30) as writer:
        for index in range(clips):
            split = ("train", "heldout")[index % 2]
            clip = world.clip(index, split=split)
            frames, height, width, _ = clip.frames.shape
            captions = tuple(Caption(kind, text, "world") for kind, text in clip.captions.items())
            writer.write(
                ClipFacts(clip.key, frames, clip.fps, height, width, captions, split), encode(clip.frames, clip.fps, lossless=True)
            )
        writer.finish({"command": "prepare", "config": {"source": {"_target_": "sora.ingest.WorldSource", "world": recipe}}})
    return folder


def plain_dataset(folder: Path, *, captioned: bool = True) -> Path:
    """Four held-out clips of noise from anywhere, of a size that no stride fits."""
    draw = np.random.default_rng(0)
    with DatasetWriter(folder, licence="unknown", max_bytes=1 << 30) as writer:
        for index in range(4):
            frames = draw.integers(0, 256, (7, 18, 22, 3), dtype=np.uint8)
            captions = (Caption("dense", f"noise number {index}", "someone"),) if captioned else ()
            writer.write(ClipFacts(f"clip-{index}", 7, 10.0, 18, 22, captions, "heldout"), encode(frames, 10.0, lossless=True))
        writer.finish({})
    return folder
