"""Train a VAE, a denoising network or a captioner; a run is one folder, and goes on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sora.assembly.resume import enter, opened, record, settle, standing
from sora.system.terminal import counted

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.assembly.job import Job
    from sora.config.compose import Composed
    from sora.runs.checkpoint import TrainingState
    from sora.runs.run import Run
    from sora.training.callbacks.clock import StepTimer
    from sora.training.faults.peers import Peers
    from sora.training.logging.goodput import Goodput
    from sora.training.module import TrainingModule

EXAMPLES = (
    "sora train experiment=quickstart_vae data.folders=[data/world] output=outputs/vae",
    "sora train experiment=quickstart data.folders=[data/world] vae=outputs/vae output=outputs/dit",
    "sora train resume=outputs/dit",
)


def main(composed: Composed) -> int:
    """Train; the exit code is 0 when the run is complete, 128 + the signal's number when one asked it to stop (and it has saved)."""
    from sora.assembly import first_weights
    from sora.assembly.training import JOBS, finish_vae
    from sora.config.build import build
    from sora.config.command_line.commands import command
    from sora.parallel.mesh import seat
    from sora.runs.run import open_run, owned
    from sora.system import distributed as ranks
    from sora.system import files as storage
    from sora.system import global_rng as rng
    from sora.system.processes import own
    from sora.training.callbacks.clock import StepTimer
    from sora.training.faults.peers import Peers
    from sora.training.faults.signals import StopFlag
    from sora.training.faults.watchdog import Watchdog
    from sora.training.launching import take_seats, told
    from sora.training.logging.goodput import Goodput, Phases, age

    asked, folder, changed = settle(composed.config, composed.said)
    typed = None if composed.config.resume == "auto" else composed.said
    trainer = build(asked.trainer)(callbacks=[])
    take_seats(trainer)
    ranks.say(told(trainer))
    config = asked if changed is None else standing(asked, open_run(folder), typed)
    phases = Phases(before=age() if own() else 0.0)
    with StopFlag() as flag:
        first_weights.foresee(config, going_on=changed is not None)
        rng.seed(config.seed)
        job = JOBS[config.kind](config, folder)
        taken = first_weights.begin(config, job) if changed is None else None
        if changed is None:
            job.steps.plan.at(0).share(ranks=seat(trainer).readers, rank=seat(trainer).reader)  # ranks that do not divide the packs
        run, state = enter(config, folder, going_on=changed is not None, job=job)
        with alone(owned, run):
            if state is None or state.step < config.steps:
                record(asked, config, run, state, changed, job=job)
            phases.step = state.step if state else 0
            goodput = Goodput(run.folder, phases, first=phases.step) if ranks.first() else None
            watchdog = Watchdog(phases, folder=run.folder, rank=ranks.mine(), **config.watchdog)
            if taken is not None and ranks.first():
                storage.write_json(run.init_file, taken.record())
            with Peers() as peers, watchdog:
                if state is None and changed is not None:
                    taken = first_weights.begin(config, job, run.began_with)  # it was stopped before its first checkpoint
                around = {"flag": flag, "clock": StepTimer(phases, goodput), "peers": peers}
                module = train_whole(config, run, state, job=job, alike=agreed(asked, job, taken), **around)
                phases.enter("end", module.counters.step)
                stopped = bool(flag) and module.counters.step < config.steps
                if config.kind == "vae" and not stopped and ranks.first():
                    finish_vae(config, run, module, job)
                ranks.together()  # launchers take a rank that ends while others work for one that died
            tell_of_time(goodput, steps=config.steps, complete=not stopped)
            tell_of_bad(run)
            if stopped:
                goes_on = command("train", resume=run.folder)
                ranks.say(f"stopped and saved at step {module.counters.step} of {config.steps}; go on with: {goes_on}")
                return flag.exit_code
    ranks.say(f"trained {counted(module.counters.step, 'step')} on {counted(module.counters.samples, 'clip')}; the run is {run.folder}")
    tell_of_next(config, run)
    return 0


def tell_of_next(config: DictConfig, run: Run) -> None:
    """Print the commands for which a finished run is there."""
    from sora.config.command_line.commands import command
    from sora.config.command_line.following import after_captioner, after_diffusion, after_vae
    from sora.system import distributed as ranks

    ranks.say(f"its page: {command('report', run.folder)}")
    follow = {
        "vae": lambda: after_vae(run.folder, config.data.folders),
        "diffusion": lambda: after_diffusion(run.folder),
        "captioner": lambda: after_captioner(run.folder, config.data.folders),
    }
    ranks.say(f"next: {follow[config.kind]()}")


def tell_of_time(goodput: Goodput | None, *, steps: int, complete: bool) -> None:
    """Write and say where the time of this run went; a look at a finished run is no part of it."""
    if goodput is not None and goodput.first < steps:
        goodput.write(complete=complete)
        print(goodput.told())


def tell_of_bad(run: Run) -> None:
    """Say how many clips could not be read so far, if any: others stood in for them, and the run went on."""
    from sora.data.loading.quarantine import LINE
    from sora.runs import jsonl as metrics
    from sora.system import distributed as ranks

    listed = run.folder / "quarantine.jsonl"
    if listed.exists():
        lines = metrics.read(listed, LINE)
        held = sum("sample_id" in line for line in lines)
        told = [
            f"{counted(count, 'clip')} {why}"
            for count, why in ((len(lines) - held, "could not be read"), (held, "had losses that are not finite"))
            if count
        ]
        ranks.say(f"{' and '.join(told)}, others stood in for them; {listed} says which and why")


# ---- training


def alone(owned: Any, run: Run) -> Any:
    """The lock of the run, which the first rank holds for all."""
    from contextlib import nullcontext

    from sora.system import distributed as ranks

    return owned(run) if ranks.first() else nullcontext()


def train_whole(config: DictConfig, run: Run, state: TrainingState | None, *, job: Job, clock: StepTimer, **around: Any) -> TrainingModule:
    """`train`, from an older checkpoint where the ranks find that the newest is damaged."""
    from sora.runs.agreement import Elsewhere
    from sora.runs.checkpoint import folder_of

    while True:
        try:
            return train(config, run, state, job=job, clock=clock, **around)
        except Elsewhere as other:
            state = opened(folder_of(run.checkpoints, other.step), job)
            clock.phases.step = other.step
            if clock.goodput is not None:
                clock.goodput.begin_at(other.step)


def train(
    config: DictConfig, run: Run, state: TrainingState | None, *, job: Job, alike: Any, flag: Any, clock: StepTimer, peers: Peers
) -> Any:
    """Make the steps that the run still lacks; the module. alike: what all ranks must have alike, beside the step."""
    from functools import partial

    from sora.assembly.captioner_validation import evaluations_of
    from sora.assembly.network import peak_of
    from sora.assembly.training import training_module
    from sora.config.build import build
    from sora.data.loading.loader import step_loader
    from sora.evaluation.while_training import scorer
    from sora.parallel.mesh import seat
    from sora.runs.agreement import confirmed
    from sora.training.callbacks.checkpoints import Checkpoints
    from sora.training.callbacks.clock import Alike
    from sora.training.callbacks.journal import Journal
    from sora.training.faults.peers import PeerConnection
    from sora.training.guard import Suspects
    from sora.training.state import restore_finished

    first = state.step if state else 0
    module = training_module(config, job.task, scales=job.scales, stop=lambda: bool(flag))
    peak = (lambda: peak_of(trainer)) if job.unit == "tokens" else None
    tracker = tracker_of(config, run, first=first)
    shown = {"every": config.log_every, "steps": config.steps, "unit": job.unit, "tracker": tracker, "peak": peak}
    suspects = Suspects(partial(hold, job), state.facts.get("suspects", ()) if state else ())
    journal = Journal(run, **shown, resumed=state, phases=clock.phases, suspects=suspects, goodput=clock.goodput and clock.goodput.share)
    kept = {"seed": config.seed, "flag": flag, "journal": journal, "phases": clock.phases, "resumed": state}
    saver = Checkpoints(run, **config.checkpoint, steps=config.steps, **kept)
    beside = {"journal": journal, "phases": clock.phases, "tracker": tracker, "stop": lambda: bool(flag)}
    measured = evaluations_of(config.kind)(config, job, run, scorer=scorer, widths=module.average.widths(), **beside)
    alone = [Alike({**alike, "the step": str(first)}), PeerConnection(peers)]
    trainer = build(config.trainer)(callbacks=[*alone, journal, saver, *measured, clock])
    # planned up to here before workers are forked, so that none walks there by itself; ranks that do not divide the packs are refused
    mine = {"ranks": (place := seat(trainer)).readers, "rank": place.reader}
    job.steps.plan.at(first).share(**mine)
    hands = {**mine, "workers": config.workers, "lost": partial(worker_lost, run, flag), "ahead": job.task.ahead}
    loader = step_loader(job.steps, first=first, last=config.steps, **hands)
    if state is not None and first >= config.steps:
        confirmed(run.checkpoints, first, device=module.device)
        restore_finished(module, state, source=run.checkpoints)
        journal.close()
        return module
    try:
        trainer.fit(module, loader)
    except SystemExit:  # Lightning makes this of KeyboardInterrupt
        if flag.unsaved:
            raise KeyboardInterrupt from None
        raise
    finally:
        journal.close()
    return module


def agreed(asked: DictConfig, job: Job, taken: Any) -> dict[str, str]:
    """What all ranks must have alike, by the name that messages give it: what was asked, not the paths that it leads to. A rank that comes
    when the first has made the run already finds it there, with its paths as the run knows them."""
    from omegaconf import OmegaConf

    from sora.config.own import record
    from sora.runs.run import code_version

    said: Any = OmegaConf.to_container(asked, resolve=False)
    code = {"the code": str(code_version()), "the files of own=": str({name: kept["files"] for name, kept in record().items()})}
    began = {"the weights of init=": hashed} if (hashed := getattr(taken, "hash", None)) else {}
    return {f"{key}=": str(value) for key, value in said.items()} | code | dict(job.depends) | began


def worker_lost(run: Run, flag: Any, told: str) -> None:
    """A loader worker died: say so, and stop once the step is saved, with the exit code that asks a scheduler for another turn."""
    import signal
    import sys

    from sora.system import distributed as ranks

    run.event("worker lost", rank=ranks.mine(), reason=told)
    flag.ask(signal.SIGKILL)
    print(
        f"\nrank {ranks.mine()}: {told}. This process loads the step by itself; it is finished and saved, then the run stops with exit "
        f"code {flag.exit_code}, after which slurm/job.sh starts it again",
        file=sys.stderr,
    )


def hold(job: Job, step: int, samples: Sequence[int], reason: str) -> None:
    """Keep samples from being trained on again."""
    keys = job.steps.keys(step)
    job.steps.quarantine.hold({sample: keys.get(sample, "") for sample in samples}, step=step, reason=reason)


def tracker_of(config: DictConfig, run: Run, *, first: int) -> Any:
    """Where metrics of the steps after `first` go besides the run's folder."""
    from omegaconf import OmegaConf

    from sora.config.build import build
    from sora.runs.jsonl import refuse_other_table
    from sora.system import distributed as ranks
    from sora.training.logging.sinks import Csv, Nowhere
    from sora.training.logging.tracker import NoTracker, Tracker

    sink = build(config.logger)
    if isinstance(sink, Nowhere) or not ranks.first():
        return NoTracker()
    if isinstance(sink, Csv):
        refuse_other_table(run.folder / "metrics.csv")
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    told = {str(key): value for key, value in values.items()}
    # by name: a resumed run's configuration may be a stranger's, and a tracker can be told to start any command
    patience, room = config.tracker.patience, config.tracker.room
    return Tracker(sink, folder=run.folder, identity=run.info["id"], config=told, first=first, patience=patience, room=room)


if __name__ == "__main__":
    from sora.cli import run as run_command

    raise SystemExit(run_command("train"))
