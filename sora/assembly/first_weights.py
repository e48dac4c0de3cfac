"""The first weights of a new run with `init`: those of a run, of a VAE, or of a published checkpoint.

All weights of a run are taken. A difference from that run that changes what its weights mean is refused unless `init_allow` names it. Then
tensors of the network without a counterpart of the same name and shape are initialised as in a new network, and tensors of the source
without a counterpart are not used. Both are printed and recorded in init.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system.terminal import counted

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from sora.assembly.job import Job
    from sora.dit.published.checkpoints import Taken

# Keys that determine what weights mean, by kind of run; the hashes of the VAE and the text encoder do so too.
CAPTIONER = ("captioner_net", "patches", "attributes", "kinds", "pixels")
COMPARED = {"diffusion": ("dit", "patches", "path", "objective.prediction"), "vae": ("vae",), "captioner": CAPTIONER}
FREE = ("dit.attention",)  # changes how a network is computed, not its result
MEASURED = ("vae.shift", "vae.scale")  # a VAE's whitening, measured at the end of its training


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run or a VAE gave to a new run. step: None for a finished VAE. new: tensors initialised as in a new network. left:
    tensors of the source that were not used. config: the config.json of the published network that the source started from."""

    source: Path
    step: int | None
    ema: bool | float | str
    hash: str
    allowed: Sequence[str] = ()
    new: Sequence[str] = ()
    left: Sequence[str] = ()
    config: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        of = f"step {self.step:,} of {self.source}, init_ema={self.ema}" if self.step is not None else f"{self.source}"
        told = f"began with the weights of {of}"
        if not self.allowed:
            return told
        return (
            f"{told}, from which {', '.join(self.allowed)} differs on purpose: {_told(self.new, 'begin as in a new network')}; "
            f"{_told(self.left, 'of that run are left behind')}"
        )

    def record(self) -> dict[str, Any]:
        """The content of the run's init.json."""
        facts = {"weights": str(self.source.absolute()), "step": self.step, "ema": self.ema, "hash": self.hash}
        return {**facts, "allowed": list(self.allowed), "new": list(self.new), "left": list(self.left), "config": self.config}


def foresee(config: DictConfig, *, going_on: bool) -> None:
    """Raise ValueError for an `init` that cannot be used, as far as configurations and file names tell, before data are opened. A run that
    continues (`going_on`) has its weights, and is not checked."""
    from sora.assembly.network import given_of, outline
    from sora.config.build import build
    from sora.dit.published import checkpoints
    from sora.vae import artefact

    if going_on:
        return
    if config.init is None:
        for key in ("init_allow", "init_step", "init_ema"):
            if config.get(key) not in (None, []):
                raise ValueError(f"{key}={config[key]} has no effect without init=; leave it out")
        return
    if _own(Path(config.init)):
        _foresee_own(config)
        return
    for key in ("init_step", "init_ema"):
        if config.get(key) is not None:
            raise ValueError(f"{key}={config[key]} is for the runs of sora, and init={config.init} is none; leave it out")
    if config.kind == "captioner":
        raise ValueError(f"init={config.init} is no run of sora; name the folder of a run of task=captioner")
    if config.kind == "vae":
        raise ValueError(f"init={config.init} is no run and no VAE of sora; name the folder of a run of task=vae, or of its vae/")
    card, patch = artefact.read_card(artefact.folder_of(config.vae)), tuple(config.patches.size)
    dit = outline(config.dit, given_of(build(config.patches), card["settings"]["latent_channels"], build(config.text)))
    checkpoints.foresee(dit, Path(config.init), patch=patch, allowed=config.get("init_allow", ()))


def begin(config: DictConfig, job: Job, noted: Mapping[str, Any] | None = None) -> Taken | InitialWeights | None:
    """Load the weights that `init` names into the network, print which, and return what was taken; None without `init`.

    noted: init.json of a run that was stopped before its first checkpoint, and starts from the same weights again.
    """
    from sora.dit.published import checkpoints
    from sora.system import distributed as ranks

    if config.init is None:
        return None
    source, allowed = Path(config.init), list(config.get("init_allow", ()))
    if _own(source):
        taken = _begin_own(config, job, source, noted)
    else:
        taken = checkpoints.begin_from(job.task.dit, source, patch=tuple(config.patches.size), allowed=allowed)
    ranks.say(str(taken))
    return taken


def _own(source: Path) -> bool:
    """Whether a path leads to something that sora trained: a run, one of its checkpoints, or a VAE."""
    from sora.runs.run import run_of
    from sora.vae.artefact import CARD

    return (source / CARD).is_file() or (run_of(source)[0] / "run.json").is_file()


def _foresee_own(config: DictConfig) -> None:
    differing = _differing(config)
    allowed = list(config.get("init_allow", ()))
    for name in allowed:
        if not any(_covers(name, key) for key in differing):
            raise ValueError(f"init_allow names {name}, in which this run and {config.init} do not differ; leave it out")
    refused = {key: pair for key, pair in differing.items() if not any(_covers(name, key) for name in allowed)}
    if refused:
        lines = "; ".join(f"{key} is {before} there and {now} here" for key, (before, now) in refused.items())
        raise ValueError(
            f"init={config.init} holds weights of another network: {lines}; make them equal, or, if what this changes may begin anew, say "
            f"init_allow=[{','.join(refused)}]"
        )


def _differing(config: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which a new run differs from the one that `init` names, as {key: (value there, value here)}."""
    from sora.assembly.load import run_kind
    from sora.config import kept as configs
    from sora.runs.run import changes, open_run, run_of
    from sora.vae.artefact import CARD, read_card

    source, kind = Path(config.init), config.kind
    if (source / CARD).is_file():
        found = "vae"
    else:
        source, _ = run_of(source)
        found = run_kind(source)
    if found != kind:
        raise ValueError(f"init={config.init} is of task={found}, and this run is of task={kind}; name one of task={kind}")
    if (source / CARD).is_file():
        return changes({"vae": read_card(source)["settings"]}, {"vae": _settings(config)}, free=())
    run = open_run(source)
    stored, _ = configs.kept("train", run.config, [f"task={kind}"], str(run.config_file))
    keys, known, here = list(COMPARED[kind]), run.info.get("depends") or {}, {}
    if kind == "diffusion":
        here, trains = _depends(config)
        keys += ["text"] if trains and known.get("text") == here["text"] else []  # else the encoder's hash covers it
    before, now = ({key: _plain(tree, key) for key in keys} for tree in (stored, config))
    other = {name: (known[name][:12], value[:12]) for name, value in here.items() if known.get(name, value) != value}
    return {**changes(before, now, free=FREE), **other}


def _plain(tree: DictConfig, key: str) -> Any:
    from omegaconf import OmegaConf

    value = OmegaConf.select(tree, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _settings(config: DictConfig) -> dict[str, Any]:
    """The settings on the card of the VAE that a configuration describes."""
    import torch

    from sora.config.build import build

    with torch.device("meta"):
        return build(config.vae).settings


def _depends(config: DictConfig) -> tuple[dict[str, str], bool]:
    """The hashes of the VAE and the text encoder that a new run depends on, and whether a part of that encoder is trained."""
    from sora.config.build import build
    from sora.vae import artefact

    encoder = build(config.text)
    trains = any(True for _ in encoder.text_module().parameters())
    return {"vae": artefact.artefact_hash(artefact.folder_of(config.vae)), "text": encoder.fingerprint}, trains


def _begin_own(config: DictConfig, job: Job, source: Path, noted: Mapping[str, Any] | None) -> InitialWeights:
    from sora.assembly.load import OWN, load_vae, run_weights
    from sora.runs.run import open_run, run_of

    step, ema, allowed = config.get("init_step"), config.get("init_ema"), list(config.get("init_allow", ()))
    ema = OWN if ema is None else ema
    if noted is not None and "hash" in noted:
        step = noted["step"]
    if config.kind == "vae":
        loaded = load_vae(source, step, ema=ema)
        tensors = {f"vae.{name}": value for name, value in loaded.vae.state_dict().items()}
        reached, identity, began = loaded.step, next(iter(loaded.hashes.values())), None
    else:
        folder, step = run_of(source, step)
        _, tensors, reached, identity = run_weights(folder, step, ema=ema)
        began = (open_run(folder).began_with or {}).get("config")
    if noted is not None and noted.get("hash") not in (None, identity):
        raise ValueError(f"init={source} holds other weights than this run began with before; put them back, or choose another output=")
    new, left = take(job.task, tensors, source=source, partly=bool(allowed))
    return InitialWeights(source, reached, ema, identity, allowed, new, left, began)


def take(task: nn.Module, tensors: Mapping[str, Tensor], *, source: Path, partly: bool) -> tuple[list[str], list[str]]:
    """Copy the tensors that have a counterpart of their name and shape in the task. Return the task's names without one, then those of
    `tensors`.

    Raises:
        ValueError: no tensor fits, or not all do and `partly` is false.
    """
    state = task.state_dict()
    held = {name: value for name, value in tensors.items() if name not in MEASURED}
    wanted = [name for name in state if name not in MEASURED]
    fits = {name: held[name] for name in wanted if name in held and held[name].shape == state[name].shape}
    new, left = [name for name in wanted if name not in fits], [name for name in held if name not in fits]
    if not fits or ((new or left) and not partly):
        name = (new or left)[0]
        there, here = (f"{tuple(each[name].shape)}" if name in each else "absent" for each in (held, state))
        raise ValueError(f"{source} does not fit this network: {name} is {there} there and {here} here")
    task.load_state_dict(fits, strict=False)
    return new, left


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _told(names: Sequence[str], what: str) -> str:
    """The number of the tensors, and the name of the first."""
    first = f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
    return f"{counted(len(names), 'tensor')} {what}{first}"
