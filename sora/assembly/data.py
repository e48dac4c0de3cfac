"""The data that a configuration names, the plan of packs or crops for every step, and the sets of captions that a run is pinned to.

A run's sets are those that were there when it began, or that `data.sets` named, by name and content: run.json has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.data.index.index import Index
    from sora.runs.run import Run


def vae_plan(config: DictConfig) -> tuple[Any, Any]:
    """The videos that a VAE is trained on, and the plan of the crops of every step."""
    from sora.config.build import build

    data = build(config.data, reader=build(config.reader))
    return data, build(config.plan, indexes=data.indexes, weights=data.weights, seed=config.seed)


@dataclass(frozen=True)
class Planned:
    """The clips that a network is trained on and the plan of every step's packs, with the encoder and patchifier that both depend on.

    vae: the folder of the VAE, with hash `identity`. online: whether the clips are frames, which the VAE encodes while the network trains.
    """

    data: Any
    plan: Any
    encoder: Any
    patchifier: Any
    vae: Path
    identity: str
    online: bool

    @property
    def given(self) -> dict[str, int]:
        """The sizes that a network for these clips needs, see `given_of`."""
        from sora.assembly.network import given_of
        from sora.vae.artefact import read_card

        return given_of(self.patchifier, read_card(self.vae)["settings"]["latent_channels"], self.encoder)


def dataset(config: DictConfig, node: Mapping[str, Any], *, encoder: Any, patchifier: Any, vae: Path, identity: str, seed: int) -> Any:
    """The dataset of latents or videos that a node `data` names. vae: the folder of the VAE, with hash `identity`."""
    from sora.config.build import build
    from sora.vae import artefact

    shared = {"text": encoder, "patchifier": patchifier, "seed": seed}
    if of_frames(node):
        return build(node, **shared, stride=artefact.read_card(vae)["stride"], reader=build(config.reader))
    return build(node, **shared, vae_hash=identity)


def of_frames(node: Mapping[str, Any]) -> bool:
    """Whether a node `data` names videos, which the VAE encodes while the network trains."""
    from sora.config.build import resolve
    from sora.data.loading.videos import VideoData

    return resolve(node["_target_"]) is VideoData


def diffusion_plan(config: DictConfig) -> Planned:
    """The latents or videos of a diffusion run and the plan of its packs, made from metadata alone."""
    from sora.config.build import build
    from sora.system.files import NotEncoded
    from sora.vae import artefact

    source = artefact.folder_of(config.vae)
    identity = artefact.artefact_hash(source)
    encoder, patchifier = build(config.text), build(config.patches)
    try:
        data = dataset(config, config.data, encoder=encoder, patchifier=patchifier, vae=source, identity=identity, seed=config.seed)
    except NotEncoded as error:
        raise ValueError(f"{error}: {encode_command(config, error.folder)}") from error
    plan = build(config.plan, clips=data.clips, weights=data.weights, width=config.dit.width, seed=config.seed)
    return Planned(data, plan, encoder, patchifier, source, identity, of_frames(config.data))


def encode_command(config: DictConfig, folder: Path | str) -> str:
    """The `sora encode` command that writes the latents and caption states of dataset `folder` for a diffusion run."""
    from sora.config.command_line.commands import command, option_words
    from sora.config.compose import config_dir, groups
    from sora.data.index.index import sets_of

    text = option_words("text", config.text, groups([config_dir()])["text"])
    names = [Path(name).resolve() for name in config.data.folders]
    place = Path(folder).resolve()
    mine = sets_of(config.data.folders, config.data.get("sets"))[names.index(place)] if place in names else None
    return command("encode", *text, vae=config.vae, data=folder, **({} if mine is None else {"sets": list(mine)}))


def captions_told(config: DictConfig, planned: Planned) -> list[str]:
    """The lines about its captions that a run prints before it starts."""
    from sora.assembly.load import fill_of
    from sora.data.loading.caption_checks import texts_told

    data = planned.data
    return texts_told(data.indexes, data.captions, encoder=planned.encoder, caches=data.texts, fill=fill_of(config))


def online_encoder(planned: Planned, vae: Any, *, near: int) -> Any:
    """The encoder that makes batches of frames, for data=videos. near: ranks per node."""
    from sora.text.all_captions import AllCaptions
    from sora.training.online_encoding import OnlineEncoder

    data, plan = planned.data, planned.plan
    return OnlineEncoder(
        vae=vae,
        text=None if isinstance(planned.encoder, AllCaptions) else planned.encoder,
        patchifier=planned.patchifier,
        budget=plan.budget,
        max_clips=plan.max_clips,
        text_budget=data.text_budget,
        batch=data.vae_batch,
        shard_vae=data.shard_vae,
        shard_text=data.shard_text,
        near=near,
    )


# ---- the sets of captions of a run


def pinned(run: Run, sets: Any, folders: Sequence[str], *, typed: bool, again: bool) -> Any:
    """`data.sets` of a run that is resumed: the names of its own sets for each dataset, so that one that was added since changes nothing.

    sets: as asked for. typed: whether the command line named the key. again: whether `resume_allow` lets the data differ. Runs that
    recorded no sets, and those that are given others on purpose, take `sets` as it is.

    Raises:
        ValueError: a set of the run is gone or has changed.
    """
    record, stored = run.info.get("sets"), (run.config.get("data") or {}).get("sets")
    if record is None or len(record) != len(folders) or typed or (sets is not None and _plain(sets) != _plain(stored)):
        return sets
    if not again:
        for folder, kept in zip(folders, record, strict=True):
            _refuse_changed(run, Path(folder), kept)
    return [sorted(kept) for kept in record]


def _plain(sets: Any) -> Any:
    return sets if sets is None or isinstance(sets, str) else [_plain(entry) for entry in sets]


def _refuse_changed(run: Run, folder: Path, kept: dict[str, str]) -> None:
    from sora.data.index.index import DATASET, describe
    from sora.data.index.keyed_sets import CAPTION_SETS, CaptionSets

    if not kept or not (folder / DATASET).is_file():  # a missing dataset is told of where it is opened
        return
    advice = "put the old one back, or say so on purpose with data.sets=[…] resume_allow=[depends.data]"
    there, dataset = CAPTION_SETS.names(folder), describe(folder)["fingerprint"]
    for name, was in kept.items():
        if name not in there:
            raise ValueError(f"{run.folder} is trained with the set of captions {name}, and {folder} has no captions-{name}.json; {advice}")
        now = CaptionSets(folder, dataset=dataset, names=[name]).hashes[name]
        if now != was:
            raise ValueError(
                f"{folder / f'captions-{name}.json'} is not the set that {run.folder} is trained with: it is {now[:12]}, the run's is "
                f"{was[:12]}; {advice}"
            )


def known_sets(run: Run, folder: Path | str, number: int | None = None) -> list[str] | None:
    """The names of a run's sets of captions that a dataset has; None for all that are there, if the run recorded none.

    number: which of the run's datasets it is (None: any).
    """
    from sora.data.index.keyed_sets import CAPTION_SETS

    record = run.info.get("sets")
    if record is None or (number is not None and number >= len(record)):
        return None
    names = {name for kept in (record if number is None else [record[number]]) for name in kept}
    return sorted(names & set(CAPTION_SETS.names(folder)))


def as_trained(run: Run, folders: Sequence[Path | str]) -> list[Index] | None:
    """The datasets of folders with the run's sets and selections; None if a folder lacks the selection."""
    from sora.data.index.index import Index
    from sora.data.index.keyed_sets import SELECTIONS

    data = run.config.get("data") or {}
    said = data.get("selection")
    chosen = [said] * len(folders) if said is None or isinstance(said, str) else list(said)
    if len(chosen) != len(folders) or any(name and name not in SELECTIONS.names(path) for name, path in zip(chosen, folders, strict=True)):
        return None
    return [
        Index.open(folder, data.get("split") or "train", sets=known_sets(run, folder, number), selection=chosen[number])
        for number, folder in enumerate(folders)
    ]
