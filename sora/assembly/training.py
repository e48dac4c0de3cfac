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


def vae_job(config: DictConfig, folder: Path) -> Job:
    """Frames, crops and a VAE."""
    from sora.assembly.data import vae_plan
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


def diffusion_job(config: DictConfig, folder: Path) -> Job:
    """Clips, packs, captions and the network. The run takes its VAE along, and refuses latents or captions of another."""
    from sora.assembly.data import captions_told, diffusion_plan, online_encoder
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


JOBS = {"vae": vae_job, "diffusion": diffusion_job}
