"""Loads a trained captioner: its network with the weights of a checkpoint, its vocabulary, and what it sees with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.assembly.captioning import WORDS, read_words
from sora.assembly.load import OWN, fill, room_for, run_weights
from sora.config import own_runs
from sora.config.build import build
from sora.gate.forms import Named, fitting
from sora.gate.forms import text as text_form
from sora.system import files as storage

if TYPE_CHECKING:
    from sora.captioner.attributes import Attributes
    from sora.captioner.network import CaptionNetwork
    from sora.captioner.words import Words
    from sora.patches.patchifier import Patchifier


@dataclass(frozen=True)
class LoadedCaptioner:
    """The network of a captioner and all else that captioning needs, on the CPU. eyes: the run's VAE, or blocks of pixels."""

    run: Path
    step: int
    ema: bool | float | str
    config: dict[str, Any]
    network: CaptionNetwork
    words: Words
    attributes: Attributes
    eyes: Any
    patchifier: Patchifier
    hashes: dict[str, str]


def load_captioner(folder: Path, step: int | None = None, *, ema: bool | float | str = OWN) -> LoadedCaptioner:
    """A captioner, in eval mode on the CPU. step: of the checkpoint; None for the newest whole one. ema: which weights, see `weights_of`.

    Raises:
        ValueError: it is no captioner's run, has no such checkpoint, or a file of it is damaged or does not fit; the message names it.
    """
    from sora.runs.run import NETWORKS, NODE, open_run, run_of
    from sora.vae import artefact

    if (Path(folder) / "config.json").is_file() and not (Path(folder) / "run.json").is_file():
        raise ValueError(f"{folder} is a model folder of another library and no run of sora train task=captioner; name the folder of a run")
    folder, step = run_of(Path(folder), step)
    run = open_run(folder)
    info, config = run.info, run.config
    if info["kind"] != "captioner":
        raise ValueError(f"{folder} is a run of kind {info['kind']}; captions are written by a run of `sora train task=captioner`")
    fitting(config, dict.fromkeys(NETWORKS["captioner"], NODE), str(run.config_file))
    own_runs.require(run, *NETWORKS["captioner"])
    known = fitting(info, {"depends": Named(text_form)}, str(run.info_file))["depends"]
    found, tensors, reached, hashed = run_weights(run.folder, step, ema=ema)
    words, attributes, patchifier = read_words(run.folder), build(config["attributes"]), build(config["patches"])
    if words.fingerprint != known.get("words"):
        raise ValueError(f"{run.folder / WORDS} is not the vocabulary that {run.folder} was trained with; put it back")
    if config.get("vae") is None:
        eyes = build(config["pixels"])
        identity = eyes.fingerprint
    else:
        eyes, identity = artefact.load(run.vae).eval(), artefact.artefact_hash(run.vae)
    if identity != known.get("vae"):
        raise ValueError(
            f"{folder} was trained with another vae: {known.get('vae', '')[:12]} in run.json, {identity[:12]} here; put it back"
        )
    counts = {name: len(values) for name, values in attributes.values.items()}
    with room_for(tensors, part="network", source=found):
        channels = patchifier.channels(eyes.latent_channels)
        network = build(config["captioner_net"], patch_channels=channels, words=len(words), attributes=counts)
    fill(network, tensors, part="network", source=found)
    hashes = {"checkpoint": hashed, "vae": identity, "words": words.fingerprint, "config": storage.file_hash(run.config_file)}
    return LoadedCaptioner(run.folder, reached, ema, config, network.eval(), words, attributes, eyes, patchifier, hashes)
