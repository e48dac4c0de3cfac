"""Which run `sora train` continues, and with which configuration; no key changes unless it is free to or resume_allow names it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.config import own
from sora.config.check import refuse_unmeasured, require_given
from sora.config.words import meant
from sora.gate.forms import Named, fitting, text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.assembly.job import Job
    from sora.runs.checkpoint import TrainingState
    from sora.runs.run import Run

# Keys that may change when a run is resumed: where and how fast it runs, and what is logged. Any other change makes it another run.
FREE = (
    "output",
    "resume",
    "resume_allow",
    "data.folders",
    "data.sets",
    "workers",
    "guard.patience",
    "guard.most",
    "guard.max_rollbacks",
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
# (least, most). workers: processes, 0 loads in this one; plan.budget: tokens of a pack; level_bins: each bin is a number in every log line
BOUNDS = {"workers": (0, 1024), "plan.budget": (1, 1 << 30), "level_bins": (1, 10_000)}
DEPENDS = "depends."  # in resume_allow, the prefix of names that are no keys: the hashes of data, VAE and text encoder
# Paths and sets are free, because hashes show whether the same clips with the same captions, and the same VAE, lie there.
FREE_OF = {"vae": FREE, "diffusion": (*FREE, "vae", "evaluation"), "captioner": (*FREE, "vae", "evaluation")}
OF_LATENTS = ("diffusion", "captioner")  # kinds whose runs read captions, and have a VAE


def settle(config: DictConfig, said: Sequence[str] = ()) -> tuple[DictConfig, Path, Mapping[str, Any] | None]:
    """The configuration to train with, the run's folder, and the keys that have changed since it started; None instead for a new run.

    With `resume=RUN` it is the stored configuration. Over it go values of this command line that differ from the defaults, and those of the
    keys and groups that it names (`said`). A change that is not allowed is refused, naming the key.
    """
    from omegaconf import OmegaConf

    from sora.config import own_runs, stored
    from sora.config.check import flatten
    from sora.runs.run import changes, open_run, refuse_changes

    refuse_sizes(config)
    if "kind" in said:
        raise ValueError(
            f"kind={config.kind} is not chosen by itself, it follows from the task; leave it out and say task=diffusion, vae or captioner"
        )
    output = Path(config.output or f"outputs/{config.kind}")
    refuse_read_only(config.resume, output)
    if config.resume in (None, "auto"):
        require_given(config, "train")
    if config.resume is None or (config.resume == "auto" and not (output / "run.json").exists()):
        stored.refuse_programs(config, said)
        keep_numerics(config, {})
        return config, output, None
    if config.resume == "auto":
        asked = config
        run = open_run(output)
        own_runs.require(run)
    else:
        run = open_run(Path(config.resume))
        own_runs.require(run)
        if "task" in said and config.kind != run.info["kind"]:
            raise ValueError(
                f"task={config.kind}, and {run.folder} is a run of task={run.info['kind']}, which no resume changes; leave task= out, or "
                "begin another run with output="
            )
        asked = laid_over(kept(run), config, said)
        refuse_half_an_evaluation(asked, run)
        stored.refuse_unsaid(run, asked, said)
        asked.resume_allow = config.resume_allow  # a permission holds for one resume only
    stored.refuse_programs(asked, said)
    refuse_sizes(asked)
    keep_numerics(asked, run.config)
    refuse_unmeasured(asked)
    now: Any = OmegaConf.to_container(asked, resolve=False)
    allowed = tuple(config.resume_allow)
    refuse_unknown([name for name in allowed if not name.startswith(DEPENDS)], {**flatten(run.config), **flatten(now)})
    return asked, run.folder, refuse_changes(changes(run.config, now, free=FREE_OF[asked.kind]), allowed=allowed)


def refuse_sizes(config: DictConfig) -> None:
    """Raise ValueError for sizes that no machine trains with, such as a million processes that load data."""
    from omegaconf import OmegaConf

    for key, (least, most) in BOUNDS.items():
        if (found := OmegaConf.select(config, key)) is None:
            continue
        if found > most:
            raise ValueError(f"{key}={found:,} is above {most:,}, the most that is trained with; lower {key}")
        if found < least:
            raise ValueError(f"{key}={found:,} is below {least:,}, the least that is trained with; raise {key}")


def refuse_half_an_evaluation(config: DictConfig, run: Run) -> None:
    """Raise ValueError for an `evaluation` that lacks keys of every option of the group: a stored one may have been edited, or be old."""
    from sora.config.compose import compose

    evaluation: Any = config.get("evaluation")
    option: Any
    if evaluation is None or ("every" in evaluation and evaluation.every is None):
        return
    if config.kind == "captioner":
        option = compose("train", ["task=captioner", "evaluation=captions"]).config.evaluation
        if lacking := [f"evaluation.{key}" for key in option if key not in evaluation]:
            raise ValueError(
                f"{run.config_file} has no {', '.join(lacking)}; write it there, or choose evaluation=none or evaluation=captions"
            )
        return
    videos = evaluation.get("videos")
    option = compose("train", ["task=diffusion", f"evaluation={'loss' if videos is None else 'videos'}"]).config.evaluation
    lacking = [key for key in option if key not in evaluation]
    if videos is not None:
        inner = videos if isinstance(videos, Mapping) else ()
        lacking += [f"videos.{key}" for key in option.videos if key not in inner]
    if lacking:
        named = ", ".join(f"evaluation.{key}" for key in lacking)
        raise ValueError(
            f"{run.config_file} has no {named}; write it there, or choose evaluation=none, evaluation=loss or evaluation=videos"
        )


def refuse_read_only(resume: str | None, output: Path) -> None:
    """Raise ValueError, before the data are planned, if the run's folder is read-only, or a new one lies within another run or dataset."""
    from sora.system import files as storage

    if resume in (None, "auto"):
        storage.refuse_read_only(output, f"output={output}")
        if not (output / "run.json").exists():
            storage.refuse_within(output)
    elif Path(resume).is_dir():
        advice = "a run goes on in its own folder: copy it to another place, or change its permissions"
        storage.refuse_read_only(Path(resume), f"resume={resume}", advice=advice)


def kept(run: Run) -> DictConfig:
    """The complete stored configuration of a run: keys that its version lacked get today's values, and are printed."""
    from sora.config import kept as configs
    from sora.system.distributed import say

    kind = run.info["kind"]
    if run.config.get("kind") != kind:
        raise ValueError(f"{run.config_file} is damaged: kind is not {kind}, as {run.info_file.name} says")
    config, lacking = configs.kept("train", run.config, [f"task={kind}"], str(run.config_file))
    if lacking:
        say(f"{run.config_file} has no {', '.join(lacking)}, as it is of another version; as it stands today is what holds")
    return config


def keep_numerics(config: DictConfig, stored: Mapping[str, Any]) -> None:
    """Fill in the precision and determinism that the trainer leaves open: those of the stored run, or in a new one this machine's."""
    from sora.system.devices import numerics

    known = {**numerics(config.trainer.get("accelerator")), **stored.get("trainer", {})}
    for key in ("precision", "deterministic"):
        if config.trainer.get(key, known[key]) is None:
            config.trainer[key] = known[key]


def standing(asked: DictConfig, run: Run, said: Sequence[str] | None) -> DictConfig:
    """The configuration of a run that continues, with resolved paths. Paths that this command line named (`said`: keys and groups; None:
    all) are relative to the working directory; others lie where the run knows them; the VAE is the one stored in the run."""
    from os.path import abspath

    from omegaconf import OmegaConf

    from sora.runs import places
    from sora.system.distributed import say
    from sora.vae.artefact import CARD

    def named_here(key: str, path: Any) -> bool:
        typed = said is None or any(key == name or key.startswith(f"{name}.") for name in said)
        return typed and Path(str(path)).exists()

    from sora.assembly.data import pinned

    refuse_exported(run)
    config, stored = asked.copy(), run.config
    known = (stored.get("data") or {}).get("folders") or ()
    folders = asked.data.folders
    if OmegaConf.is_list(folders):  # any other type is refused where it is opened
        lost = [name for name in folders if not named_here("data.folders", name) and (said is None or name in known)]
        config.data.folders = [places.dataset_of(run, name) if name in lost else abspath(name) for name in folders]
        for name, found in zip(folders, config.data.folders, strict=True):
            if name in lost and found not in (name, abspath(name)):
                say(f"data.folders: {name} is read from {found}")
    if config.kind in OF_LATENTS and OmegaConf.is_list(folders):
        typed, again = "data.sets" in (said or ()), f"{DEPENDS}data" in asked.resume_allow
        config.data.sets = pinned(run, asked.data.get("sets"), list(config.data.folders), typed=typed, again=again)
    has_vae = config.kind in OF_LATENTS and config.vae is not None
    if has_vae and not named_here("vae", config.vae) and (said is None or config.vae == stored.get("vae")):
        config.vae = str(run.vae.absolute()) if (run.vae / CARD).is_file() else places.path_of(run, "vae", str(config.vae))
    if config.get("init") is not None and not named_here("init", config.init):
        config.init = places.path_of(run, "init", str(config.init))
    for name in ("text", "evaluation"):
        if OmegaConf.is_dict(asked.get(name)):
            config[name] = places.placed(run, OmegaConf.to_container(asked[name], resolve=False), name, here=named_here)
    return config


def refuse_exported(run: Run) -> None:
    """Raise ValueError for an exported run, which can only be sampled from."""
    if "exported" in run.info:
        raise ValueError(f"{run.folder} was exported to sample from: it holds no optimiser to go on with; resume the run that it came from")


def refuse_unknown(allowed: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError for names in resume_allow that nothing has: a user who mistypes a key would believe that it is allowed."""
    if unknown := [name for name in allowed if not any(key == name or key.startswith(f"{name}.") for key in known)]:
        raise ValueError(f"resume_allow names {unknown[0]}, which this run has not{meant(unknown[0], known)}")


def laid_over(stored: DictConfig, config: DictConfig, said: Sequence[str]) -> DictConfig:
    """A run's configuration with the changes of `config`: values that differ from the task's defaults, and all keys and groups in `said`.

    A key in `said` counts even with the default's value. A group is replaced whole, so that no key of the old option remains.
    """
    from omegaconf import MISSING, OmegaConf

    from sora.config.check import flatten
    from sora.config.compose import compose

    plain, flat = flatten(compose("train", [f"task={config.kind}"]).config), flatten(config)
    for key, value in flat.items():
        if value != MISSING and (key not in plain or plain[key] != value):
            OmegaConf.update(stored, key, value)
    for name in said:
        if any(key == name or key.startswith(f"{name}.") for key in flat):  # an experiment or a task is no key of the configuration
            OmegaConf.update(stored, name, OmegaConf.select(config, name), merge=False)
    return stored


def record(
    asked: DictConfig, config: DictConfig, run: Run, state: TrainingState | None, changed: Mapping[str, Any] | None, *, job: Job
) -> None:
    """Record a resume: its event, the configuration that the run continues with, the run's place, and the hashes that it depends on from
    now on.

    asked: the configuration that is stored if the run has not moved. config: the same with resolved paths, which is stored if it has.
    """
    from omegaconf import OmegaConf

    from sora.runs.places import begun_at
    from sora.runs.run import code_version
    from sora.system import distributed as ranks
    from sora.system import files as storage

    if changed is None or not ranks.first():
        return
    mine, place = run.own, begun_at(run.folder, ())["place"]
    kept = asked if run.info.get("place") == place else config
    other = {f"{DEPENDS}{name}": pair for name, pair in differing(run, job).items()}
    before, now = (list(each) for each in ((run.config.get("data") or {}).get("folders") or (), kept.data.folders))
    moved = {"data.folders": (before, now)} if before != now else {}
    pairs = {**changed, **moved, **other}
    told: dict[str, Any] = {"changed": {key: [str(before), str(after)] for key, (before, after) in pairs.items()}}
    if (code := code_version()) != (began := run.info.get("code")):
        told["code"] = code
        print(f"the run began with the code {began}, and goes on with {code}")
    told |= {"own": used} if (used := own.record()) != run.info.get("own", {}) else {}
    run.event("resumed", step=state.step if state else 0, **told)
    storage.write_text(run.config_file, OmegaConf.to_yaml(kept, resolve=False))
    if other:
        run.depend_on(job.depends, vae=job.vae)
    begun = begun_at(run.folder, kept.data.folders, None if "usual" in run.info and not other else job.usual)
    pins = {"sets": list(job.sets)} if job.sets and (other or "sets" not in run.info) else {}
    run.note(**begun, **pins, **{key: value for key, value in told.items() if key == "own"})
    if mine:
        run.seal()


def differing(run: Run, job: Job) -> dict[str, tuple[str, str]]:
    """The dependencies of the run that differ from this job's, as {name: (before, now)}."""
    was = fitting(run.info, {"depends": Named(text)}, str(run.info_file))["depends"]
    return {name: (str(was.get(name)), value) for name, value in job.depends.items() if was.get(name) != value}


def _brief(known: str) -> str:
    """The first digits of a hash; words are returned unchanged."""
    return known if " " in known else known[:12]


def _where(name: str, config: DictConfig) -> str:
    """The path of the data, VAE or encoder that differs."""
    if name == "data":
        return f" (data.folders=[{','.join(config.data.folders)}])"
    return f" (vae={config.vae})" if name == "vae" else ""


def enter(config: DictConfig, folder: Path, *, going_on: bool, job: Job) -> tuple[Run, TrainingState | None]:
    """Create the run's folder, or open it and read its newest checkpoint. Raises ValueError if something it depends on has changed."""
    from omegaconf import OmegaConf

    from sora.runs import checkpoint
    from sora.runs.places import begun_at
    from sora.runs.run import create, open_run
    from sora.system import distributed as ranks

    if not going_on:
        if ranks.first():
            info = {"kind": config.kind, "depends": dict(job.depends), **begun_at(folder, config.data.folders, job.usual)}
            info |= {"own": used} if (used := own.record()) else {}
            info |= {"sets": list(job.sets)} if job.sets else {}
            return create(folder, config=OmegaConf.to_yaml(config, resolve=False), info=info, vae=job.vae, files=job.files), None
        return wait_for(folder), None
    run = open_run(folder)
    refuse_exported(run)
    refuse_unknown([name for name in config.resume_allow if name.startswith(DEPENDS)], [f"{DEPENDS}{name}" for name in job.depends])
    for name, (before, now) in differing(run, job).items():
        if f"{DEPENDS}{name}" not in config.resume_allow:
            raise ValueError(
                f"{name} is not what {folder} was trained with{_where(name, config)}: it is {_brief(now)}, the run's is {_brief(before)}; "
                f"put the old one back, or say so on purpose with resume_allow=[{DEPENDS}{name}]"
            )
    # only whether its files exist: sizes and bytes are checked later, when the ranks can share the work
    newest = checkpoint.newest(
        run.checkpoints, look=lambda path: (checkpoint.outline(path, sizes=()), checkpoint.load(path, verified=True))
    )
    if newest is None and (first := run.info.get("saved")) is not None:
        raise ValueError(
            f"{run.checkpoints} holds no checkpoint, but this run has saved some, the first at step {first}: mount it or put them back. "
            f"To start again from step 0, choose another output=FOLDER"
        )
    state = None if newest is None else opened(newest, job)
    if state is not None and state.step > (steps := run.config.get("steps", state.step)):
        raise ValueError(f"{newest} is of step {state.step:,}, and the run has steps={steps:,}: one of them is damaged")
    return run, state


def opened(path: Path, job: Job) -> TrainingState:
    """A checkpoint whose tensors are not read yet; ValueError if it is of another network than this job's."""
    from sora.runs import checkpoint
    from sora.runs.manifest import TRAINED
    from sora.training.state import refuse_other

    if missing := {"model", "optimizer", "rng"} - checkpoint.kinds(path):
        raise ValueError(f"{path} holds no {' and no '.join(sorted(missing))}, so nothing can be trained on from it")
    state = checkpoint.load(path, verified=True)
    fitting(state.facts, TRAINED, f"{path / checkpoint.STATE}: facts", "use another checkpoint")
    refuse_other(job.task, state, source=path)
    return state


def wait_for(folder: Path, *, seconds: float = 120.0) -> Run:
    """The run that the first rank is creating.

    Raises:
        ValueError: it is not visible from here in time. Network file systems take up to a minute to show files of another machine.
    """
    import time

    from sora.runs.run import open_run
    from sora.system.started import started

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
