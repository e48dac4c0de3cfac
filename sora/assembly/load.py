"""Loads trained models: a run's networks with the weights of one of its checkpoints, built from the run's own configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.assembly.network import given_of, network, objective_of
from sora.config import own_runs
from sora.config.build import build, plain
from sora.gate.forms import Named, fitting
from sora.gate.forms import text as text_form
from sora.gate.sizes import bounded
from sora.gate.tensors import refuse_not_finite
from sora.system import files as storage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sora.diffusion.objective import Objective
    from sora.patches.patchifier import Patchifier
    from sora.runs.run import Run
    from sora.vae.vae import VideoVAE


OWN, LAST = "own", "last"  # choices of `ema`, besides a number: the relative width of an average


@dataclass(frozen=True)
class LoadedVae:
    """A VAE and its identity. step: of the checkpoint; None for a finished VAE."""

    vae: VideoVAE
    config: dict[str, Any]
    step: int | None
    hashes: dict[str, str]


@dataclass(frozen=True)
class LoadedDiffusion:
    """The networks of a run and all else that sampling needs. ema: which weights, see `weights_of`. encoder: maps captions to token states.
    text: the trained module after the encoder, or the identity."""

    run: Path
    step: int
    ema: bool | float | str
    config: dict[str, Any]
    dit: nn.Module
    encoder: Any
    text: nn.Module
    vae: VideoVAE
    patchifier: Patchifier
    objective: Objective
    hashes: dict[str, str]
    code: dict[str, str]


def run_kind(folder: Path) -> str:
    """The kind of a folder: "diffusion", or "vae" for a VAE run and for a finished VAE."""
    from sora.runs.run import open_run, run_of
    from sora.vae.artefact import CARD

    return "vae" if (Path(folder) / CARD).exists() else open_run(run_of(folder)[0]).info["kind"]


def load_diffusion(
    folder: Path, step: int | None = None, *, ema: bool | float | str = OWN, stretch: Mapping[str, Any] | None = None
) -> LoadedDiffusion:
    """The networks of a diffusion run, in eval mode on the CPU.

    step: of the checkpoint; None for the newest whole one. ema: which weights, see `weights_of`. stretch: of rotary positions, a node that
    names a function of `sora.dit.layers.rope_scaling`; None for the run's own.

    Raises:
        ValueError: it is no diffusion run, has no such checkpoint, or a file of it is damaged or does not fit; the message names it.
    """
    from sora.runs.places import placed
    from sora.runs.run import NETWORKS, NODE, open_run, run_of
    from sora.vae import artefact

    folder, step = run_of(folder, step)
    run = open_run(folder)
    info, config = run.info, run.config
    if info["kind"] != "diffusion":
        raise ValueError(f"{folder} is a run of kind {info['kind']}; sampling wants the run of `sora train task=diffusion`")
    fitting(config, dict.fromkeys(NETWORKS["diffusion"], NODE), str(run.config_file))
    own_runs.require(run, *NETWORKS["diffusion"])
    fitting(info, dict.fromkeys(("code", "depends"), Named(text_form)), str(run.info_file))
    found, tensors, reached, hashed = run_weights(run.folder, step, ema=ema)
    vae = artefact.load(run.vae)
    patchifier = build(config["patches"])
    config["text"] = placed(run, config["text"], "text")
    encoder = build(config["text"])
    identity = artefact.artefact_hash(run.vae)
    for name, value in (("vae", identity), ("text", encoder.fingerprint)):
        if info["depends"].get(name) not in (None, value):
            raise ValueError(
                f"{folder} was trained with another {name}: {info['depends'][name][:12]} in run.json, {value[:12]} here; put it back"
            )
    if stretch is not None:
        config["dit"] = stretched(config["dit"], plain(stretch))
    with room_for(tensors, part="dit", source=found):
        dit = network(config["dit"], given_of(patchifier, vae.latent_channels, encoder))
    text = encoder.text_module()
    fill(dit, tensors, part="dit", source=found)
    fill(text, tensors, part="text", source=found)
    hashes = {
        "checkpoint": hashed,
        "vae": identity,
        "text": encoder.fingerprint,
        "config": storage.file_hash(run.config_file),
    }
    return LoadedDiffusion(
        run=run.folder,
        step=reached,
        ema=ema,
        config=config,
        dit=dit.eval(),
        encoder=encoder,
        text=text.eval(),
        vae=vae.eval(),
        patchifier=patchifier,
        objective=objective_of(config),
        hashes=hashes,
        code=info["code"],
    )


def fill_of(config: Mapping[str, Any]) -> int:
    """The number of text tokens to which a run's network pads captions; 0 for no padding."""
    text = config["dit"].get("text")
    return int(text.get("fill") or 0) if isinstance(text, Mapping) else 0


def stretched(dit: Mapping[str, Any], stretch: Mapping[str, Any]) -> dict[str, Any]:
    """A network's node with another scaling of rotary positions. Raises ValueError for a network that has no rotary positions."""
    if not isinstance(dit.get("rope"), Mapping):
        raise ValueError(f"{dit['_target_']} has no rotary positions (dit.rope) that stretch={stretch['_target_']} could change")
    return {**dit, "rope": {**dit["rope"], "stretch": dict(stretch)}}


def load_vae(folder: Path, step: int | None = None, *, ema: bool | float | str = OWN) -> LoadedVae:
    """The VAE of a finished VAE's folder or of a VAE run. Of a run: the finished VAE, or the checkpoint of `step`, or the newest checkpoint
    while the run still trains."""
    from sora.runs.run import NODE, open_run, run_of
    from sora.vae import artefact

    folder, step = run_of(folder, step)
    if (folder / artefact.CARD).is_file():
        return LoadedVae(artefact.load(folder), {}, None, {"vae": artefact.artefact_hash(folder)})
    run = open_run(folder)
    if step is None and (run.vae / artefact.CARD).is_file():
        return LoadedVae(artefact.load(run.vae), run.config, None, {"vae": artefact.artefact_hash(run.vae)})
    if run.info["kind"] != "vae":
        raise ValueError(f"{folder} is a run of kind {run.info['kind']}, not of a VAE")
    own_runs.require(run, "vae")
    found, tensors, reached, hashed = run_weights(run.folder, step, ema=ema)
    config = run.config
    fitting(config, {"vae": NODE}, str(run.config_file))
    with room_for(tensors, part="vae", source=found):
        vae = build(config["vae"])
    fill(vae, tensors, part="vae", source=found)
    return LoadedVae(vae.eval(), run.config, reached, {"checkpoint": hashed})


TRIES = 5


def run_weights(folder: Path, step: int | None, *, ema: bool | float | str) -> tuple[Path, dict[str, Tensor], int, str]:
    """A checkpoint of a run, its weights as `weights_of` returns them, its step, and the hash of its manifest.

    A run that still trains may remove the checkpoint meanwhile. Its files are therefore held by links until they are read, and if it was
    removed before that, the next whole checkpoint is read, unless `step` is given. Where files cannot be held, and for an average of a
    relative width, which needs many checkpoints, the whole is tried again.
    """
    for _ in range(TRIES):
        with suppress(FileNotFoundError):
            return _held(folder, step, ema=ema)
    raise ValueError(
        f"{folder} lets checkpoints go faster than they are read; make checkpoint.keep of that run larger, or wait for its end"
    )


def _held(folder: Path, step: int | None, *, ema: bool | float | str) -> tuple[Path, dict[str, Tensor], int, str]:
    from sora.runs import checkpoint
    from sora.runs.held import held

    with ExitStack() as stack:
        kept: dict[Path, Path] = {}

        def look(path: Path) -> None:
            with ExitStack() as own:
                kept[path] = own.enter_context(held(path))
                checkpoint.verify(kept[path])
                stack.push(own.pop_all())

        found = _checkpoint(folder, step, look)
        tensors, reached = weights_of(found if isinstance(ema, float) else kept[found], ema=ema, verified=True)
        refuse_not_finite(tensors, found)
        return found, tensors, reached, storage.file_hash(kept[found] / "manifest.json")


def _checkpoint(folder: Path, step: int | None, look: Callable[[Path], None]) -> Path:
    """The checkpoint of a step, or the newest whole one. look: raises for a damaged one."""
    from sora.runs import checkpoint

    checkpoints = folder / "checkpoints"
    if step is None:
        found = checkpoint.newest(checkpoints, look=look)
        if found is None:
            raise ValueError(f"{folder} has no checkpoint yet; train it first, or wait for the first save")
        return found
    found = checkpoint.folder_of(checkpoints, step)
    try:
        look(found)
    except FileNotFoundError:
        there = ", ".join(str(checkpoint.step_of(path)) for path in checkpoint.listed(checkpoints)) or "none"
        raise ValueError(f"{folder} has no checkpoint of step={step}; it has {there}") from None
    return found


def weights_of(found: Path, *, ema: bool | float | str, verified: bool = False) -> tuple[dict[str, Tensor], int]:
    """The weights of a checkpoint by their names in the task, and its step.

    ema: "own" (or true) for the run's average, if it keeps one; "last" (or false) for the weights of the last step; a number for the
    average whose profile has this relative width, which needs a run with ema=post_hoc. verified: whether the files were checked already.

    Raises:
        ValueError: `ema` is none of these, the run lacks what it needs, or a file is damaged.
    """
    from sora.runs import checkpoint
    from sora.runs import post_hoc_ema as profiles

    own = ema is True or ema == OWN
    if not own and not isinstance(ema, float) and ema not in (False, LAST):
        raise ValueError(f"ema={ema!r} names no weights: choose {OWN}, {LAST}, or a relative width such as 0.08")
    state = checkpoint.load(found, only={"model", "ema"} & checkpoint.kinds(found) if own else {"model"}, verified=verified)
    if (exported := state.facts.get("exported")) is not None and not own:
        if ema != exported["ema"] and (_means(exported) or isinstance(ema, float)):
            raise ValueError(
                f"{found.parent.parent} was exported with ema={exported['ema']} and holds those weights alone, not ema={ema}; leave ema "
                "away, or name the run that it came from"
            )
        return dict(state.tensors["model"]), state.step
    averages = state.tensors.get("ema", {}) if own else profiles.averaged(found, width=ema) if isinstance(ema, float) else {}
    return {**state.tensors["model"], **averages}, state.step


def averaged(run: Run, step: int, *, ema: bool | float | str) -> bool:
    """Whether `weights_of` returns averaged weights of a checkpoint, and not those of its last step."""
    from sora.runs import checkpoint

    if (exported := run.info.get("exported")) is not None:
        return _means(exported)
    return isinstance(ema, float) or (ema in (True, OWN) and "ema" in checkpoint.kinds(checkpoint.folder_of(run.checkpoints, step)))


def _means(exported: Mapping[str, Any]) -> bool:
    """Whether the weights of an exported run are averaged, by its record; older records hold only the `ema` that was asked for."""
    return exported.get("averaged", exported["ema"] not in (False, LAST))


def room_for(tensors: Mapping[str, Tensor], *, part: str, source: Path) -> AbstractContextManager[None]:
    """A context that refuses to build a network with more numbers than the checkpoint's tensors of this part."""
    there = sum(value.numel() for name, value in tensors.items() if name.startswith(f"{part}."))
    return bounded(there, f"{source} does not fit: {part} of the run's config.yaml", advice="one of them is damaged, or another run's")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, part: str, source: Path) -> None:
    prefix = f"{part}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise ValueError(f"{source} does not fit the network that the run's config.yaml describes, {part}: {first}") from None
