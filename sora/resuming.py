"""Which run `sora train` goes on with, and with what configuration: nothing of it changes silently."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.configs.words import meant

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.jobs import Job
    from sora.training.checkpoint import TrainingState
    from sora.training.run import Run

# What may differ between the parts of one run: where and how fast it runs, and what is told of it. Everything else makes it another run.
FREE = (
    "output",
    "resume",
    "resume_allow",
    "workers",
    "guard.patience",
    "guard.most",
    "guard.returns",
    "log_every",
    "checkpoint",
    "tracker",
    "logger",
    "launcher",
    "watchdog",
    "trainer._target_",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.nodes",
    "trainer.replicate",
    "trainer.shard",
    "trainer.context",
    "trainer.tensor",
    "trainer.sharded",
    "trainer.threads",
    "data.cache_mb",
    "data.shard_vae",
    "data.shard_text",
    "data.hash_every_read",
    "data.max_bad_share",
    "recompute",
    "compile",
)
DEPENDS = "depends."  # before what is no key: the hashes of data, VAE and text encoder, in resume_allow
FREE_OF = {"vae": FREE, "diffusion": (*FREE, "vae", "evaluation")}  # the VAE's path: that it is the same VAE is seen from its hash


def settle(config: DictConfig, said: Sequence[str] = ()) -> tuple[DictConfig, Path, Mapping[str, Any] | None]:
    """The configuration to train with, the run's folder, and what has changed since it began: None if it has yet to begin.

    With `resume=RUN` it is the stored one, and on top what this command line says differently from the defaults or names itself (`said`:
    keys and groups); what may not change is refused by name.
    """
    from omegaconf import OmegaConf

    from sora.configs.check import flatten
    from sora.training.run import changes, open_run, refuse_changes

    output = Path(config.output or f"outputs/{config.kind}")
    if config.resume in (None, "auto"):
        require_given(config, "train")
    if config.resume is None or (config.resume == "auto" and not (output / "run.json").exists()):
        keep_numerics(config, {})
        return config, output, None
    if config.resume == "auto":
        asked = config
        run = open_run(output)
    else:
        run = open_run(Path(config.resume))
        asked = laid_over(OmegaConf.create(run.config), config, said)
        asked.resume_allow = config.resume_allow  # what was allowed at another resume is not now
    keep_numerics(asked, run.config)
    now: Any = OmegaConf.to_container(asked, resolve=False)
    allowed = tuple(config.resume_allow)
    refuse_unknown([name for name in allowed if not name.startswith(DEPENDS)], {**flatten(run.config), **flatten(now)})
    return asked, run.folder, refuse_changes(changes(run.config, now, free=FREE_OF[asked.kind]), allowed=allowed)


def keep_numerics(config: DictConfig, stored: Mapping[str, Any]) -> None:
    """Fill in what a trainer that takes what is there computes with: as the run has it, or, in a new one, as this machine would."""
    from sora.training.trainers import numerics

    known = {**numerics(config.trainer.get("accelerator")), **stored.get("trainer", {})}
    for key in ("precision", "deterministic"):
        if config.trainer.get(key, known[key]) is None:
            config.trainer[key] = known[key]


def refuse_unknown(allowed: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError for names in resume_allow that nothing has: one who mistypes a key believes that it is allowed."""
    if unknown := [name for name in allowed if not any(key == name or key.startswith(f"{name}.") for key in known)]:
        raise ValueError(f"resume_allow names {unknown[0]}, which this run has not{meant(unknown[0], known)}")


def require_given(config: DictConfig, verb: str) -> None:
    """Raise ValueError that lists the keys which have no default and were not given, and for a run of no steps."""
    from omegaconf import OmegaConf

    if config.steps < 1:
        raise ValueError(f"steps={config.steps} must be at least 1: the optimiser steps of the whole run")

    if missing := [key for key in ("data.folders", "vae") if OmegaConf.select(config, key) is None]:
        raise ValueError(f"needs {' '.join(f'{key}=…' for key in missing)}; see sora {verb} --help")


def laid_over(stored: DictConfig, config: DictConfig, said: Sequence[str]) -> DictConfig:
    """A run's configuration with what `config` says otherwise: values that no command line that only names the task has, and all of `said`.

    A key said with the default's value counts too, and a group is replaced whole, so that nothing of the other option stays behind.
    """
    from omegaconf import MISSING, OmegaConf

    from sora.configs.check import flatten
    from sora.configs.compose import compose

    plain, flat = flatten(compose("train", [f"task={config.kind}"]).config), flatten(config)
    for key, value in flat.items():
        if value != MISSING and (key not in plain or plain[key] != value):
            OmegaConf.update(stored, key, value)
    for name in said:
        if any(key == name or key.startswith(f"{name}.") for key in flat):  # an experiment or a task is no part of the configuration
            OmegaConf.update(stored, name, OmegaConf.select(config, name), merge=False)
    return stored


def record(config: DictConfig, run: Run, state: TrainingState | None, changed: Mapping[str, Any] | None, *, job: Job) -> None:
    """Note a resume, and keep the configuration that it goes on with, and what it depends on from now on."""
    from omegaconf import OmegaConf

    from sora import storage
    from sora.training import ranks
    from sora.training.run import code_version

    if changed is None or not ranks.first():
        return
    other = {f"{DEPENDS}{name}": pair for name, pair in differing(run, job).items()}
    told: dict[str, Any] = {"changed": {key: [str(before), str(after)] for key, (before, after) in {**changed, **other}.items()}}
    if (code := code_version()) != (began := run.info.get("code")):
        told["code"] = code
        print(f"the run began with the code {began}, and goes on with {code}")
    run.event("resumed", step=state.step if state else 0, **told)
    storage.write_text(run.config_file, OmegaConf.to_yaml(config, resolve=False))
    if other:
        run.depend_on(job.depends, vae=job.vae)


def differing(run: Run, job: Job) -> dict[str, tuple[str, str]]:
    """What the run depended on and this job does not, as {name: (before, now)}."""
    was = run.info["depends"]
    return {name: (str(was.get(name)), value) for name, value in job.depends.items() if was.get(name) != value}


def _brief(known: str) -> str:
    """A hash by its beginning, words as they are."""
    return known if " " in known else known[:12]


def enter(config: DictConfig, folder: Path, *, going_on: bool, job: Job) -> tuple[Run, TrainingState | None]:
    """Make the run's folder, or open it and read its newest checkpoint; what it depends on must be what it was."""
    from omegaconf import OmegaConf

    from sora.training import checkpoint, ranks
    from sora.training.run import create, open_run

    if not going_on:
        if ranks.first():
            info = {"kind": config.kind, "depends": dict(job.depends)}
            return create(folder, config=OmegaConf.to_yaml(config, resolve=False), info=info, vae=job.vae), None
        return wait_for(folder), None
    run = open_run(folder)
    if "exported" in run.info:
        raise ValueError(f"{folder} was exported to sample from: it holds no optimiser to go on with; resume the run that it came from")
    refuse_unknown([name for name in config.resume_allow if name.startswith(DEPENDS)], [f"{DEPENDS}{name}" for name in job.depends])
    for name, (before, now) in differing(run, job).items():
        if f"{DEPENDS}{name}" not in config.resume_allow:
            raise ValueError(
                f"{name} is not what {folder} was trained with: it is {_brief(now)}, the run's is {_brief(before)}; "
                f"put the old one back, or say so on purpose with resume_allow=[{DEPENDS}{name}]"
            )
    # whether its files are there at all; sizes and every byte are looked at when the ranks can share that out
    newest = checkpoint.newest(
        run.checkpoints, look=lambda path: (checkpoint.outline(path, sizes=()), checkpoint.load(path, verified=True))
    )
    if newest is None and (first := run.info.get("saved")) is not None:
        raise ValueError(
            f"{run.checkpoints} holds no checkpoint, but this run has saved some, the first at step {first}: mount it or put them back. "
            f"To start again from step 0, choose another output=FOLDER"
        )
    return run, None if newest is None else opened(newest, job)


def opened(path: Path, job: Job) -> TrainingState:
    """A checkpoint, not read yet, if it is one of this job's network."""
    from sora.training import checkpoint
    from sora.training.state import refuse_other

    if missing := {"model", "optimizer", "rng"} - checkpoint.kinds(path):
        raise ValueError(f"{path} holds no {' and no '.join(sorted(missing))}, so nothing can be trained on from it")
    state = checkpoint.load(path, verified=True)
    refuse_other(job.task, state, source=path)
    return state


def wait_for(folder: Path, *, seconds: float = 120.0) -> Run:
    """The run that the first rank is making.

    Raises:
        ValueError: it is not to be seen from here. Network file systems take up to a minute to show what another machine made.
    """
    import time

    from sora.started import started
    from sora.training.run import open_run

    end = time.monotonic() + seconds
    while not (folder / "run.json").exists():
        if time.monotonic() > end:
            raise ValueError(
                f"{folder}, which rank 0 makes, cannot be seen from here after {seconds:.0f} s; "
                "name an output=FOLDER on a file system that all nodes share and have mounted, and see that rank 0 was started: "
                f"this is rank {started().rank}, by {started().by}"
            )
        time.sleep(0.1)
    return open_run(folder)
