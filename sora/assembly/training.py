"""The kinds of training: the network, data and plan of each, from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.assembly.captioning import captioner_job
from sora.assembly.job import Job
from sora.gate.sizes import bounded
from sora.system.distributed import say
from sora.system.started import started
from sora.system.terminal import counted

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from sora.dit.mup import Scale
    from sora.runs.run import Run
    from sora.training.diffusion_task import DiffusionTask
    from sora.training.module import TrainingModule
    from sora.training.vae_task import VaeTask


def vae_job(config: DictConfig, folder: Path) -> Job:
    """The job of training a VAE on crops of frames."""
    from sora.assembly.data import vae_plan
    from sora.data.loading.caption_checks import selections_told
    from sora.system.files import called

    data, plan = vae_plan(config)
    task = vae_task(config)
    for line in (*selections_told(data.indexes), *plan.lines([called(index.folder) for index in data.indexes])):
        say(line)
    return Job(
        task=task,
        steps=data.batches(plan, quarantine=folder / "quarantine.jsonl"),
        depends=data.depends,
        unit="clips",
    )


def finish_vae(config: DictConfig, run: Run, module: TrainingModule, job: Job) -> None:
    """Measure the whitening of the newest checkpoint's averaged weights and write the finished VAE, unless that was done before."""
    from sora.config.build import build
    from sora.runs.run import code_version
    from sora.training.state import weights
    from sora.vae import artefact, whitening

    if run.vae.exists():
        artefact.load(run.vae)
        return
    vae = build(config.vae)  # a new one: the trained one may be sharded over the ranks
    vae.load_state_dict(weights(run.folder, part="vae"))
    vae.to(module.device).eval()
    whitening.whiten(vae, (pack.frames for step in range(config.whitening_steps) for pack in job.steps[step]))
    artefact.save(vae, run.vae, config={"run": run.info["id"], "step": module.counters.step, "code": code_version(), **job.depends})
    say(f"the VAE is {run.vae}")


def diffusion_job(config: DictConfig, folder: Path) -> Job:
    """The job of training a network on packs of clips with captions. Its VAE is copied to the run; latents of another are refused."""
    from sora.assembly.data import captions_told, diffusion_plan, online_encoder
    from sora.assembly.usual import usual_of
    from sora.data.loading.caption_checks import selections_told
    from sora.vae import artefact

    planned = diffusion_plan(config)
    data, plan, encoder = planned.data, planned.plan, planned.encoder
    plan.remember(folder / "plan.cache")
    vae = artefact.load(planned.vae)
    for line in selections_told(data.indexes):
        say(line)
    for reason, count in plan.skipped.items():
        say(f"left out: {counted(count, 'clip')} ({reason})")
    for line in captions_told(config, planned):
        say(line)
    encode = online_encoder(planned, vae, near=started().near) if planned.online else None
    task, scales = diffusion_task(config, planned.given, encoder.text_module, encode=encode)
    return Job(
        task=task,
        steps=data.batches(plan, quarantine=folder / "quarantine.jsonl"),
        depends={**data.depends, "vae": planned.identity, "text": encoder.fingerprint},
        unit="tokens",
        vae=planned.vae,
        scales=scales,
        usual=usual_of(planned, stride=vae.stride),
        sets=[index.sets.hashes for index in data.indexes],
    )


# ---- the modules that are trained


def vae_task(config: DictConfig) -> VaeTask:
    """A VAE and its loss."""
    from sora.config.build import build
    from sora.training.vae_task import VaeTask

    with bounded(None, "the VAE", advice="lower vae.widths or vae.blocks"):
        vae = build(config.vae)
    return VaeTask(vae=vae, objective=build(config.objective), seed=config.seed)


def diffusion_task(
    config: DictConfig, given: Mapping[str, int], text: Callable[[], nn.Module], *, encode: Any, counted: bool = True
) -> tuple[DiffusionTask, Mapping[str, Scale]]:
    """A denoising network with its loss, and the learning-rate scales of its weights, by their names in the task.

    given: see `sora.assembly.network.given_of`. text: makes the trained text module; called after the network is made, because both draw
    weights. encode: makes batches of frames; None for latents. counted: whether the FLOPs of each batch are counted.
    """
    from sora.assembly.network import flops_of, objective_of, trainable
    from sora.dit.mup import named
    from sora.training.diffusion_task import DiffusionTask

    dit, scales = trainable(config, given)
    shared = {"objective": objective_of(config), "seed": config.seed, "bins": config.level_bins}
    flops = flops_of(config.dit, given) if counted else None
    return DiffusionTask(dit=dit, text=text(), encode=encode, flops=flops, **shared), named(scales, "dit.")


def training_module(
    config: DictConfig, task: nn.Module, *, scales: Mapping[str, Scale] | None = None, stop: Callable[[], bool] = lambda: False
) -> TrainingModule:
    """A task with its optimiser, schedule, averages and guard. scales: learning-rate scales of weights. stop: whether this rank asks to
    stop."""
    from sora.config.build import build
    from sora.training.module import TrainingModule

    return TrainingModule(
        task=task,
        optimizer=build(config.optimizer, **({"scales": scales} if scales else {})),
        schedule=build(config.schedule, steps=config.steps),
        average=build(config.ema),
        max_grad_norm=config.max_grad_norm,
        guard=build(config.guard),
        stop=stop,
    )


def traced_module(config: DictConfig, given: Mapping[str, int], text: Callable[[], nn.Module], depth: int | None = None) -> TrainingModule:
    """The training module for `sora.cost` to trace: attention saves as much as flash attention, and nothing is compiled.

    depth: number of blocks instead of the network's own; activation checkpointing treats them as in the whole network.
    """
    from omegaconf import OmegaConf

    from sora.assembly.network import outline

    config = config.copy()
    OmegaConf.update(config, "dit.attention", {"_target_": "sora.dit.attention_shapes"}, merge=False)
    config.compile = False
    if depth is not None:
        if above := config.recompute.get("above", 0):
            numbers = sum(value.numel() for value in outline(config.dit, given).parameters())
            name = "recompute_all_but_attention" if numbers > above else "recompute_none"
            OmegaConf.update(config, "recompute", {"_target_": f"sora.training.{name}"}, merge=False)
        config.dit.depth = depth
    task, scales = diffusion_task(config, given, text, encode=None, counted=False)
    return training_module(config, task, scales=scales)


JOBS = {"vae": vae_job, "diffusion": diffusion_job, "captioner": captioner_job}
