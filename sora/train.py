"""Train a VAE or a denoising network; a run is one folder, and goes on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.configs.compose import Composed
    from sora.jobs import Job
    from sora.training.checkpoint import TrainingState
    from sora.training.guards import Clock
    from sora.training.module import TrainingModule
    from sora.training.peers import Peers
    from sora.training.run import Run

EXAMPLES = (
    "sora train experiment=quickstart_vae data.folders=[data/world] output=outputs/vae",
    "sora train experiment=quickstart data.folders=[data/world] vae=outputs/vae output=outputs/dit",
    "sora train resume=outputs/dit",
)
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
FREE_OF = {"vae": FREE, "diffusion": (*FREE, "vae", "evaluation")}  # the VAE's path: that it is the same VAE is seen from its hash


def main(composed: Composed) -> int:
    """Train; the exit code is 0 when the run is complete, 128 + the signal's number when one asked it to stop (and it has saved)."""
    from sora.jobs import JOBS, finish_vae
    from sora.processes import own
    from sora.training import ranks, rng
    from sora.training.guards import Clock
    from sora.training.peers import Peers
    from sora.training.phases import Goodput, Phases, age
    from sora.training.run import owned
    from sora.training.signals import StopFlag
    from sora.training.watchdog import Watchdog

    config, folder, changed = settle(composed.config, composed.said)
    phases = Phases(before=age() if own() else 0.0)
    with StopFlag() as flag:
        rng.seed(config.seed)
        job = JOBS[config.kind](config, folder)
        if changed is None:
            begin(config, job)
        run, state = enter(config, folder, going_on=changed is not None, job=job)
        with alone(owned, run):
            if state is None or state.step < config.steps:
                record(config, run, state, changed)
            phases.step = state.step if state else 0
            goodput = Goodput(run.folder, phases, first=phases.step) if ranks.first() else None
            watchdog = Watchdog(phases, folder=run.folder, rank=ranks.mine(), **config.watchdog)
            with Peers() as peers, watchdog:
                if state is None and changed is not None:
                    begin(config, job)  # it was stopped before its first checkpoint
                module = train_whole(config, run, state, job=job, flag=flag, clock=Clock(phases, goodput), peers=peers)
                phases.enter("end", module.counters.step)
                stopped = bool(flag) and module.counters.step < config.steps
                if config.kind == "vae" and not stopped and ranks.first():
                    finish_vae(config, run, module, job)
                ranks.together()  # launchers take a rank that ends while others work for one that died
            if goodput is not None and goodput.first < config.steps:  # a look at a finished run is no part of it
                goodput.write()
                print(goodput.told())
            tell_of_bad(run)
            if stopped:
                ranks.say(f"stopped and saved at step {module.counters.step} of {config.steps}; go on with: sora train resume={run.folder}")
                return flag.exit_code
    ranks.say(f"trained {module.counters.step} steps on {module.counters.samples:,} clips; the run is {run.folder}")
    return 0


def tell_of_bad(run: Run) -> None:
    """Say how many clips could not be read so far, if any: others stood in for them, and the run went on."""
    from sora.training import ranks

    listed = run.folder / "quarantine.jsonl"
    if listed.exists():
        lines = listed.read_text(encoding="utf-8").splitlines()
        held = sum('"sample_id"' in line for line in lines)
        told = [
            f"{count} clips {why}"
            for count, why in ((len(lines) - held, "could not be read"), (held, "had losses that are not finite"))
            if count
        ]
        ranks.say(f"{' and '.join(told)}, others stood in for them; {listed} says which and why")


# ---- which run, and with what configuration


def settle(config: DictConfig, said: Sequence[str] = ()) -> tuple[DictConfig, Path, Mapping[str, Any] | None]:
    """The configuration to train with, the run's folder, and what has changed since it began: None if it has yet to begin.

    With `resume=RUN` it is the stored one, and on top what this command line says differently from the defaults or names itself (`said`:
    keys and groups); what may not change is refused by name.
    """
    from omegaconf import OmegaConf

    from sora.training.run import changes, open_run, refuse_changes

    output = Path(config.output or f"outputs/{config.kind}")
    if config.resume in (None, "auto"):
        require_given(config, "train")
    if config.resume is None:
        return config, output, None
    if config.resume == "auto":
        if not (output / "run.json").exists():
            return config, output, None
        asked = config
        run = open_run(output)
    else:
        run = open_run(Path(config.resume))
        asked = laid_over(OmegaConf.create(run.config), config, said)
    now = OmegaConf.to_container(asked, resolve=False)
    found = changes(run.config, now, free=FREE_OF[asked.kind])  # pyright: ignore[reportArgumentType]
    return asked, run.folder, refuse_changes(found, allowed=tuple(config.resume_allow))  # pyright: ignore[reportReturnType]


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


def record(config: DictConfig, run: Run, state: TrainingState | None, changed: Mapping[str, Any] | None) -> None:
    """Note a resume, and keep the configuration that it goes on with."""
    from omegaconf import OmegaConf

    from sora import storage
    from sora.training import ranks
    from sora.training.run import code_version

    if changed is None or not ranks.first():
        return
    told: dict[str, Any] = {"changed": {key: [str(before), str(after)] for key, (before, after) in changed.items()}}
    if (code := code_version()) != (began := run.info.get("code")):
        told["code"] = code
        print(f"the run began with the code {began}, and goes on with {code}")
    run.event("resumed", step=state.step if state else 0, **told)
    storage.write_text(run.config_file, OmegaConf.to_yaml(config, resolve=False))


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
    was = run.info["depends"]
    for name, value in job.depends.items():
        if was.get(name) != value and f"depends.{name}" not in config.resume_allow:
            raise ValueError(
                f"{name} is not what {folder} was trained with: it is {_brief(value)}, the run's is {_brief(str(was.get(name)))}; "
                f"put the old one back, or say so on purpose with resume_allow=[depends.{name}]"
            )
    # whether its files are there at all; sizes and every byte are looked at when the ranks can share that out
    newest = checkpoint.newest(
        run.checkpoints, look=lambda path: (checkpoint.outline(path, sizes=()), checkpoint.load(path, verified=True))
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


def begin(config: DictConfig, job: Job) -> None:
    """Give the network the weights of a published checkpoint, if `init` names one."""
    from sora.dit.published import checkpoints
    from sora.training import ranks

    if config.init is not None:
        dit = job.task.dit if config.kind == "diffusion" else None
        checkpoints.begin(dit, Path(config.init), patch=tuple(config.patches.size) if dit is not None else ())
        ranks.say(f"began with the weights of {config.init}")


def wait_for(folder: Path, *, seconds: float = 120.0) -> Run:
    """The run that the first rank is making."""
    import time

    from sora.training.run import open_run

    end = time.monotonic() + seconds
    while not (folder / "run.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    return open_run(folder)


def alone(owned: Any, run: Run) -> Any:
    """The lock of the run, which the first rank holds for all."""
    from contextlib import nullcontext

    from sora.training import ranks

    return owned(run) if ranks.first() else nullcontext()


# ---- training


def train_whole(config: DictConfig, run: Run, state: TrainingState | None, *, job: Job, clock: Clock, **around: Any) -> TrainingModule:
    """`train`, from an older checkpoint where the ranks find that the newest is damaged."""
    from sora.training.checkpoint import folder_of
    from sora.training.choosing import Elsewhere

    while True:
        try:
            return train(config, run, state, job=job, clock=clock, **around)
        except Elsewhere as other:
            state = opened(folder_of(run.checkpoints, other.step), job)
            clock.phases.step = other.step
            if clock.goodput is not None:
                clock.goodput.begin_at(other.step)


def train(config: DictConfig, run: Run, state: TrainingState | None, *, job: Job, flag: Any, clock: Clock, peers: Peers) -> TrainingModule:
    """Make the steps that the run still lacks."""
    from functools import partial

    from omegaconf import OmegaConf

    from sora.configs.build import build
    from sora.data.loading import step_loader
    from sora.during import evaluations
    from sora.network import peak_of
    from sora.training import module as modules
    from sora.training.callbacks import Checkpoints
    from sora.training.choosing import confirmed
    from sora.training.guards import Alike
    from sora.training.journal import Journal
    from sora.training.mesh import seat
    from sora.training.peers import Meeting
    from sora.training.run import code_version
    from sora.training.soundness import Suspects
    from sora.training.state import restore_finished

    first = state.step if state else 0
    module = modules.TrainingModule(
        task=job.task,
        optimizer=build(config.optimizer, **({"scales": job.scales} if job.scales else {})),
        schedule=build(config.schedule, steps=config.steps),
        average=build(config.ema),
        clip=config.clip,
        guard=build(config.guard),
        stop=lambda: bool(flag),
    )
    peak = (lambda: peak_of(trainer)) if job.unit == "tokens" else None
    tracker = tracker_of(config, run)
    shown = {"every": config.log_every, "steps": config.steps, "unit": job.unit, "tracker": tracker}
    goodput = clock.goodput.share if clock.goodput is not None else None
    suspects = Suspects(partial(hold, job), state.facts.get("suspects", ()) if state else ())
    journal = Journal(run, **shown, resumed=state, phases=clock.phases, suspects=suspects, peak=peak, goodput=goodput)
    kept = {"seed": config.seed, "flag": flag, "journal": journal, "phases": clock.phases, "resumed": state}
    saver = Checkpoints(run, **config.checkpoint, steps=config.steps, **kept)
    told = {"the configuration": OmegaConf.to_yaml(config, resolve=False), "the code": str(code_version()), "the step": str(first)}
    beside = {"journal": journal, "phases": clock.phases, "tracker": tracker, "stop": lambda: bool(flag)}
    measured = evaluations(config, job, run, widths=module.average.widths(), **beside)
    trainer = build(config.trainer)(callbacks=[Alike({**told, **job.depends}), Meeting(peers), journal, saver, *measured, clock])
    # planned up to here before workers are forked, so that none walks there by itself; ranks that do not divide the packs are refused
    readers = {"ranks": seat(trainer).readers, "rank": seat(trainer).reader}
    job.steps.plan.at(first).share(**readers)
    loader = step_loader(job.steps, first=first, last=config.steps, workers=config.workers, **readers)
    if state is not None and first >= config.steps:
        confirmed(run.checkpoints, first, device=module.device)
        restore_finished(module, state, source=run.checkpoints)
        journal.close()
        return module
    try:
        trainer.fit(module, loader)
    finally:
        journal.close()
    return module


def hold(job: Job, step: int, samples: Sequence[int], reason: str) -> None:
    """Keep samples from being trained on again."""
    keys = job.steps.keys(step)
    job.steps.quarantine.hold({sample: keys.get(sample, "") for sample in samples}, step=step, reason=reason)


def tracker_of(config: DictConfig, run: Run) -> Any:
    from omegaconf import OmegaConf

    from sora.configs.build import build
    from sora.training import ranks
    from sora.training.sinks import Nowhere
    from sora.training.tracker import NoTracker, Tracker

    sink = build(config.logger)
    if isinstance(sink, Nowhere) or not ranks.first():
        return NoTracker()
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    told = {str(key): value for key, value in values.items()}
    # by name: a resumed run's configuration may be a stranger's, and a tracker can be told to start any command
    patience, room = config.tracker.patience, config.tracker.room
    return Tracker(sink, folder=run.folder, identity=run.info["id"], config=told, patience=patience, room=room)


if __name__ == "__main__":
    from sora.cli import run as run_command

    raise SystemExit(run_command("train"))
