"""The two kinds of training: what each one's network, data and plan are, from a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import bounded
from sora.system.distributed import say
from sora.system.started import started
from sora.system.terminal import counted

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.runs.run import Run
    from sora.training.module import TrainingModule


@dataclass(frozen=True)
class Job:
    """What one kind of training brings: the module's task, the steps to train on, what they depend on, and how the run ends.

    scales: of the rates of single parameters, by their names in the task (`sora.dit.mup`). usual: what clips are trained on, for who
    samples later (`sora.assembly.usual`).
    """

    task: Any
    steps: Any
    depends: Mapping[str, str]
    unit: str
    vae: Path | None = None
    scales: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)


def vae_plan(config: DictConfig) -> tuple[Any, Any]:
    """The frames that a VAE is trained on, and the crops of every step."""
    from sora.config.build import build

    data = build(config.data, reader=build(config.reader))
    return data, build(config.plan, indexes=data.indexes, weights=data.weights, seed=config.seed)


def vae_job(config: DictConfig, folder: Path) -> Job:
    """Frames, crops and a VAE."""
    from sora.config.build import build
    from sora.system.files import called
    from sora.training.vae_task import VaeTask

    data, plan = vae_plan(config)
    with bounded(None, "the VAE", advice="lower vae.widths or vae.blocks"):
        vae = build(config.vae)
    task = VaeTask(vae=vae, objective=build(config.objective), seed=config.seed)
    for line in plan.lines([called(index.folder) for index in data.indexes]):
        say(line)
    return Job(
        task=task,
        steps=data.batches(plan, quarantine=folder / "quarantine.jsonl"),
        depends=data.depends,
        unit="clips",
    )


def finish_vae(config: DictConfig, run: Run, module: TrainingModule, job: Job) -> None:
    """Measure the whitening of the newest checkpoint's averaged weights and write the artefact, unless that was done before."""
    from sora.config.build import build
    from sora.runs.run import code_version
    from sora.training.state import weights
    from sora.vae import artefact, whitening

    if run.vae.exists():
        artefact.load(run.vae)
        return
    vae = build(config.vae)  # another than the one that trained, which may lie in shards on every rank
    vae.load_state_dict(weights(run.folder, part="vae"))
    vae.to(module.device).eval()
    whitening.whiten(vae, (pack.frames for step in range(config.whitening_steps) for pack in job.steps[step]))
    artefact.save(vae, run.vae, config={"run": run.info["id"], "step": module.counters.step, "code": code_version(), **job.depends})
    say(f"the VAE is {run.vae}")


@dataclass(frozen=True)
class Planned:
    """The clips that a network is trained on and the packs of every step, with what both depend on. vae: the artefact's folder.

    online: whether they are frames, which the VAE encodes while the network trains.
    """

    data: Any
    plan: Any
    encoder: Any
    patchifier: Any
    vae: Path
    identity: str
    online: bool


def diffusion_plan(config: DictConfig) -> Planned:
    """Latents or videos and their plan, made from metadata alone."""
    from sora.config.build import build, resolve
    from sora.data.loading.videos import VideoData
    from sora.system.files import NotEncoded
    from sora.vae import artefact

    source = Path(config.vae)
    source = source / "vae" if (source / "vae" / "vae.json").is_file() else source
    identity = artefact.artefact_hash(source)
    encoder, patchifier = build(config.text), build(config.patches)
    shared = {"text": encoder, "patchifier": patchifier, "seed": config.seed}
    online = resolve(config.data._target_) is VideoData
    try:
        if online:
            data = build(config.data, **shared, stride=artefact.read_card(source)["stride"], reader=build(config.reader))
        else:
            data = build(config.data, **shared, vae_hash=identity)
    except NotEncoded as error:
        raise ValueError(f"{error}: {encode_command(config, error.folder)}") from error
    plan = build(config.plan, clips=data.clips, weights=data.weights, width=config.dit.width, seed=config.seed)
    return Planned(data, plan, encoder, patchifier, source, identity, online)


def encode_command(config: DictConfig, folder: Path) -> str:
    """The `sora encode` that makes the latents and the caption states which a diffusion run reads of a dataset."""
    from sora.config.command_line.commands import command, option_words
    from sora.config.compose import config_dir, groups

    text = option_words("text", config.text, groups([config_dir()])["text"])
    return command("encode", *text, vae=config.vae, data=folder)


def captions_told(config: DictConfig, planned: Planned) -> list[str]:
    """What a run has to know of its captions before it starts."""
    from sora.assembly.load import fill_of
    from sora.data.loading.caption_checks import texts_told

    data = planned.data
    return texts_told(data.indexes, data.captions, encoder=planned.encoder, caches=data.texts, fill=fill_of(config))


def diffusion_job(config: DictConfig, folder: Path) -> Job:
    """Clips, packs, captions and the network. The run takes its VAE along, and refuses latents or captions of another."""
    from sora.assembly.network import flops_of, trainable
    from sora.assembly.usual import usual_of
    from sora.config.build import build
    from sora.dit.mup import named
    from sora.training.diffusion_task import DiffusionTask
    from sora.vae import artefact

    planned = diffusion_plan(config)
    data, plan, encoder = planned.data, planned.plan, planned.encoder
    plan.remember(folder / "plan.cache")
    vae = artefact.load(planned.vae)
    for reason, count in plan.skipped.items():
        say(f"left out: {counted(count, 'clip')} ({reason})")
    for line in captions_told(config, planned):
        say(line)
    objective = build(config.objective, path=build(config.path), density=build(config.density))
    given = {"patch_channels": planned.patchifier.channels(vae.latent_channels), "text_width": encoder.width}
    dit, scales = trainable(config, **given)
    task = DiffusionTask(
        dit=dit,
        text=encoder.text_module(),
        objective=objective,
        seed=config.seed,
        bins=config.level_bins,
        encode=online_encoder(planned, vae, near=started().near) if planned.online else None,
        flops=flops_of(config.dit, **given),
    )
    return Job(
        task=task,
        steps=data.batches(plan, quarantine=folder / "quarantine.jsonl"),
        depends={**data.depends, "vae": planned.identity, "text": encoder.fingerprint},
        unit="tokens",
        vae=planned.vae,
        scales=named(scales, "dit."),
        usual=usual_of(planned, stride=vae.stride),
    )


def online_encoder(planned: Planned, vae: Any, *, near: int) -> Any:
    """What makes batches of the frames, for data=videos. near: ranks of a node."""
    from sora.training.online_encoding import OnlineEncoder

    data, plan = planned.data, planned.plan
    return OnlineEncoder(
        vae=vae,
        text=planned.encoder,
        patchifier=planned.patchifier,
        budget=plan.budget,
        max_clips=plan.max_clips,
        text_budget=data.text_budget,
        batch=data.vae_batch,
        shard_vae=data.shard_vae,
        shard_text=data.shard_text,
        near=near,
    )


JOBS = {"vae": vae_job, "diffusion": diffusion_job}
