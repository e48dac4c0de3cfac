"""The job of training a captioner: its clips, vocabulary and network, from a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import bounded
from sora.system.distributed import say
from sora.system.started import started
from sora.system.terminal import counted

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.assembly.job import Job
    from sora.captioner.attributes import Attributes
    from sora.captioner.words import Words
    from sora.data.index.index import Index
    from sora.training.captioner_task import CaptionerTask

WORDS = "words.json"  # in a run's folder
COUNTED = 100_000  # clips whose captions make the vocabulary, spread over each dataset


@dataclass(frozen=True)
class CaptionClips:
    """The clips of a captioner and what encodes them. source: of the VAE's folder; None for pixels. eyes: the VAE, or blocks of pixels."""

    data: Any
    patchifier: Any
    eyes: Any
    source: Path | None
    identity: str
    online: bool

    @property
    def patch_channels(self) -> int:
        return self.patchifier.channels(self.eyes.latent_channels)

    @property
    def indexes(self) -> Sequence[Index]:
        return self.data.indexes


def caption_clips(config: DictConfig, *, split: str | None = None) -> CaptionClips:
    """The latents or videos that a configuration names, each with all captions of its clips. split: another than data.split.

    Raises:
        ValueError: latents without their VAE, or of another one.
    """
    from sora.assembly.data import dataset, of_frames
    from sora.config.build import build, plain
    from sora.config.command_line.commands import command
    from sora.system.files import NotEncoded
    from sora.text.all_captions import AllCaptions
    from sora.vae import artefact

    node = {**plain(config.data), **({} if split is None else {"split": split, "weights": None})}
    patchifier, online = build(config.patches), of_frames(node)
    if config.vae is None:
        if not online:
            raise ValueError("data=latents are those of a VAE: say which (vae=FOLDER), or let the captioner see pixels (data=videos)")
        eyes = build(config.pixels)
        data = build(node, text=AllCaptions(), patchifier=patchifier, seed=config.seed, stride=eyes.stride, reader=build(config.reader))
        return CaptionClips(data, patchifier, eyes, None, eyes.fingerprint, online)
    source = artefact.folder_of(config.vae)
    identity = artefact.artefact_hash(source)
    shared = {"encoder": AllCaptions(), "patchifier": patchifier, "vae": source, "identity": identity, "seed": config.seed}
    try:
        data = dataset(config, node, **shared)
    except NotEncoded as error:
        raise ValueError(f"{error}: {command('encode', vae=config.vae, data=error.folder)}") from error
    return CaptionClips(data, patchifier, artefact.load(source).eval(), source, identity, online)


def caption_plan(config: DictConfig, clips: CaptionClips) -> Any:
    """The plan of every step's packs."""
    from sora.config.build import build

    return build(config.plan, clips=clips.data.clips, weights=clips.data.weights, width=config.captioner_net.width, seed=config.seed)


def online_encoder_of(clips: CaptionClips, plan: Any) -> Any:
    """What makes batches of frames; None where packs are loaded as batches."""
    from sora.assembly.data import Planned, online_encoder
    from sora.text.all_captions import AllCaptions

    if not clips.online:
        return None
    planned = Planned(clips.data, plan, AllCaptions(), clips.patchifier, clips.source or Path(), clips.identity, clips.online)
    return online_encoder(planned, clips.eyes, near=started().near)


def captioner_job(config: DictConfig, folder: Path) -> Job:
    """The job of training a captioner on packs of clips with captions. The run keeps its vocabulary, and a copy of its VAE."""
    from sora.assembly.job import Job
    from sora.data.loading.caption_checks import selections_told
    from sora.training.captioner_task import NumberedSteps

    clips = caption_clips(config)
    plan = caption_plan(config, clips)
    plan.remember(folder / "plan.cache")
    words = vocabulary(config, folder, clips.indexes)
    for line in selections_told(clips.indexes):
        say(line)
    for reason, count in plan.skipped.items():
        say(f"left out: {counted(count, 'clip')} ({reason})")
    say(f"a vocabulary of {counted(len(words.words), 'word')} for captions of kinds {', '.join(words.kinds)}; others are written in bytes")
    task = captioner_task(config, words, patch_channels=clips.patch_channels, encode=online_encoder_of(clips, plan))
    return Job(
        task=task,
        steps=NumberedSteps(clips.data.batches(plan, quarantine=folder / "quarantine.jsonl")),
        depends={**clips.data.depends, "vae": clips.identity, "words": words.fingerprint},
        unit="clips",
        vae=clips.source,
        sets=[index.sets.hashes for index in clips.indexes],
        files={WORDS: words.to_json()},
    )


def captioner_task(config: DictConfig, words: Words, *, patch_channels: int, encode: Any) -> CaptionerTask:
    """A captioning network with its loss."""
    from sora.config.build import build
    from sora.training.captioner_task import CaptionerTask

    attributes: Attributes = build(config.attributes)
    sizes = {
        "patch_channels": patch_channels,
        "words": len(words),
        "attributes": {name: len(each) for name, each in attributes.values.items()},
    }
    with bounded(None, "the captioner", advice="lower captioner_net.width or captioner_net.depth"):
        network = build(config.captioner_net, **sizes)
    return CaptionerTask(
        network=network,
        words=words,
        attributes=attributes,
        objective=build(config.objective),
        seed=config.seed,
        steps=config.steps,
        encode=encode,
    )


def vocabulary(config: DictConfig, folder: Path, indexes: Sequence[Index]) -> Words:
    """The vocabulary of a run that is there, or of the run that `init` names if it writes the same kinds, or that of the captions."""
    from sora.captioner.words import words_of
    from sora.runs.run import run_of

    if (folder / WORDS).is_file():
        return read_words(folder)
    source = None if config.get("init") is None else run_of(Path(config.init))[0]
    if source is not None and (source / WORDS).is_file() and (words := read_words(source)).kinds == tuple(config.kinds):
        return words
    return words_of(_captions(indexes), kinds=list(config.kinds), most=config.vocabulary.most, least=config.vocabulary.least)


def read_words(folder: Path) -> Words:
    """The vocabulary of a run. ValueError if the file is missing or damaged."""
    from sora.captioner.words import Words
    from sora.gate.forms import fitting, text
    from sora.gate.texts import read_json

    path = folder / WORDS
    if not path.is_file():
        raise ValueError(f"{path} is missing, and without its vocabulary a captioner cannot write; put it back")
    return Words.from_json(fitting(read_json(path, within=folder), {"kinds": [text], "words": [text]}, str(path)))


def _captions(indexes: Sequence[Index]) -> Iterator[tuple[str, str]]:
    import numpy as np

    for index in indexes:
        for row in np.unique(np.linspace(0, len(index) - 1, min(COUNTED, len(index))).astype(int)).tolist():
            yield from ((said.kind, said.text) for said in index.captions(row))
