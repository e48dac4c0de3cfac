"""Which `_target_` a configuration may name, and which keys it takes, read from the source without importing it.

A configuration can come from anywhere, and a `_target_` is a call. So only public classes and functions *defined* in the modules below are
allowed, and the few of `OTHERS`. Reading the source, without torch, answers a typo in less than a second.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from sora.config import own
from sora.config.words import meant
from sora.gate.former_names import current_name
from sora.system.own_modules import named

# A configuration may name the public classes and functions of these modules, each as sora.ROOM.NAME, wherever in its room it is defined.
# Modules that write files, read weights or start processes are not listed: a configuration that came with somebody's run must not reach
# them.
ROOMS: dict[str, tuple[str, ...]] = {
    "patches": ("patches.patchifier",),
    "dit": (
        "dit.dit",
        "dit.blocks.dual",
        "dit.blocks.expert",
        "dit.blocks.lean",
        "dit.blocks.parallel",
        "dit.blocks.plain",
        "dit.blocks.single",
        "dit.layers.clip_shape",
        "dit.layers.mlps",
        "dit.layers.modulation",
        "dit.layers.norms",
        "dit.attention.patterns",
        "dit.layers.registers",
        "dit.layers.rope",
        "dit.mup",
        "dit.layers.rope_scaling",
        "dit.attention.chunked",
        "dit.attention.dense",
        "dit.attention.fastest",
        "dit.attention.flash",
        "dit.attention.flex",
        "dit.attention.per_segment",
        "dit.attention.varlen",
        "dit.published.class_conditional",
        "dit.published.cogvideox",
        "dit.published.dual_and_single",
        "dit.published.latte",
        "dit.published.ltx",
        "dit.published.wan",
        "dit.published.levels",
        "dit.published.network",
        "dit.published.positions",
        "dit.published.texts",
    ),
    "diffusion": (
        "diffusion.density",
        "diffusion.discrete",
        "diffusion.exponential",
        "diffusion.guidance",
        "diffusion.levels",
        "diffusion.objective",
        "diffusion.path",
        "diffusion.prediction",
        "diffusion.samplers",
        "diffusion.stochastic",
        "diffusion.weighting",
    ),
    "vae": ("vae.vae", "vae.losses"),
    "captioner": ("captioner.attributes", "captioner.network", "captioner.objective", "captioner.pixels"),
    "text": ("text.byte", "text.classes", "text.pooled", "text.pretrained"),
    "data": (
        "data.loading.latents",
        "data.loading.loader",
        "data.loading.videos",
        "data.plan.cost",
        "data.plan.crops",
        "data.plan.filling",
        "data.plan.plan",
    ),
    "video": ("video.decoding.decord", "video.decoding.guarded", "video.decoding.pyav", "video.reader", "video.decoding.torchcodec"),
    "world": ("world.attributes", "world.world"),
    "ingest": ("ingest.sources",),
    "curation": (
        "curation.cuts.both",
        "curation.cuts.differences",
        "curation.cuts.fixed",
        "curation.cuts.peaks",
        "curation.cuts.slow",
        "curation.cuts.transnet",
        "curation.cuts.wipes",
        "curation.engines.local",
        "curation.engines.ray",
        "curation.scores.networks",
        "curation.scores.onnx",
        "curation.selecting",
        "curation.steps.transcoding",
        "curation.spans",
    ),
    "web": ("web.limits", "web.pace"),
    "captions": (
        "captions.captioners.chat",
        "captions.captioners.stub",
        "captions.captioners.template",
        "captions.checks.flags",
        "captions.frames",
        "captions.prompts",
    ),
    "metrics": (
        "metrics.extractors.rand3d",
        "metrics.extractors.efficientnet",
        "metrics.extractors.flow_histograms",
        "metrics.extractors.i3d_files",
        "metrics.extractors.motion3d",
        "metrics.extractors.pretrained",
        "metrics.extractors.transnet",
    ),
    "training": (
        "training.optim.ema",
        "training.optim.optimizers",
        "training.activation_checkpointing",
        "training.optim.schedules",
        "training.logging.sinks",
        "training.guard",
        "training.trainers",
    ),
    "cost": ("cost.hardware",),
    "launch": ("launch.slurm",),
}
OTHERS = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.Muon", "torch.optim.SGD")
# Classes that run a given file as a program: only the command line can give its path, see `sora.config.stored`.
PROGRAMS = ("sora.metrics.extractors.i3d_files.I3DScript",)
PACKAGE = Path(__file__).resolve().parent.parent
PACKAGE_NAME = "sora"
BARE = ("nn.Module", "torch.nn.Module", "Module", "Protocol", "ABC", "object")  # base classes without parameters
TARGET = "_target_"
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")


@dataclass(frozen=True)
class Parameter:
    """One settable parameter of a target: its annotation as text (or ""), and whether it is required."""

    annotation: str
    required: bool


@dataclass(frozen=True)
class Definition:
    """The module and syntax of a class or function in a room or in an own module."""

    module: str
    node: ast.ClassDef | ast.FunctionDef


def refuse(target: object, why: str) -> ValueError:
    return ValueError(
        f"_target_: {target} is refused: {why}; a configuration names public classes and functions as sora.ROOM.NAME, with the rooms "
        f"{', '.join(ROOMS)}, or one of {', '.join(OTHERS)}"
    )


def source(module: str) -> Path | None:
    """The file of a module of this package, or None; nothing is imported."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(text_of(path), filename=str(path))


def allowed(target: object) -> str:
    """Return `target` if its name may be looked up at all; else raise ValueError. `find` and `build` check what it resolves to."""
    if isinstance(target, str) and (target in OTHERS or own.module_of(target)):
        return target
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise refuse(target, "it is not a dotted name without leading underscores")
    if not target.startswith(f"{PACKAGE_NAME}."):
        raise ValueError(f"_target_: {target} is refused: {own.refusal(target)}")
    if (now := current_name(target)) != target:
        raise refuse(target, f"it is called {now} now")
    if len(parts := target.split(".")) != 3 or parts[1] not in ROOMS:
        raise refuse(target, "it is outside the rooms")
    return target


def public_names(room: str) -> dict[str, list[Definition]]:
    """Every public class and function of a room's modules, by name."""
    found: dict[str, list[Definition]] = {}
    for module in (f"{PACKAGE_NAME}.{name}" for name in ROOMS[room]):
        path = source(module)
        for node in () if path is None else syntax(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(Definition(module, node))
    return found


def defined(module: str, name: str) -> Definition | None:
    """The class or function with this name in a module; a module whose text lacks the definition is not parsed."""
    return _defined(PACKAGE, module, name)


@lru_cache(maxsize=4096)
def _defined(package: Path, module: str, name: str) -> Definition | None:
    del package  # part of the cache's key: another folder has other modules of that name
    path = source(module)
    if path is None or not re.search(rf"^(class|def) {name}\b", text_of(path), re.MULTILINE):
        return None
    nodes = [node for node in syntax(path).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return next((Definition(module, node) for node in nodes if node.name == name), None)


def find(target: str) -> Definition | None:
    """The definition that an allowed target names; None for those of `OTHERS`."""
    if allowed(target) in OTHERS:
        return None
    if (module := own.module_of(target)) is not None:
        return Definition(module, own.defined(module, target.rpartition(".")[2]))
    _, room, name = target.split(".")
    found = [each for module in ROOMS[room] if (each := defined(f"{PACKAGE_NAME}.{module}", name))]
    if not found:
        known = public_names(room)
        raise refuse(target, f"{PACKAGE_NAME}.{room} defines no public class or function {name!r}{meant(name, known)}")
    if len(found) > 1:
        raise refuse(target, f"{' and '.join(each.module for each in found)} both define it")
    return found[0]


def parameters(definition: Definition) -> dict[str, Parameter] | None:
    """The parameters of a definition that can be given by name; None if the source alone does not tell (`build` still checks)."""
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip=0)
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return _of_function(inner, skip=1)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) and not node.bases:
        return _of_dataclass(node)
    return _of_bases(definition.module, node) if definition.module in named() else None


def _of_bases(module: str, node: ast.ClassDef) -> dict[str, Parameter] | None:
    """The parameters that a class of an own module inherits: from a class beside it, from one of sora's, or from bases without any."""
    body = own.syntax(module).body
    beside = {item.name: item for item in body if isinstance(item, ast.ClassDef) and item is not node}
    homes = {
        alias.asname or alias.name: (item.module or "", alias.name)
        for item in body
        if isinstance(item, ast.ImportFrom)
        for alias in item.names
    }
    for base in map(ast.unparse, node.bases):
        if base in beside:
            return parameters(Definition(module, beside[base]))
        home, name = homes.get(base, ("", base))
        if home.startswith(f"{PACKAGE_NAME}."):
            found = defined(home, name)
            return None if found is None else parameters(found)
        if base not in BARE:
            return None
    return {}


def _of_function(node: ast.FunctionDef, skip: int) -> dict[str, Parameter] | None:
    arguments = node.args
    if arguments.kwarg or arguments.vararg:
        return None
    plain = [*arguments.posonlyargs, *arguments.args]
    first_default = len(plain) - len(arguments.defaults)
    found = {argument.arg: _parameter(argument.annotation, index < first_default) for index, argument in enumerate(plain)}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found[argument.arg] = _parameter(argument.annotation, default is None)
    return dict(list(found.items())[skip:])


def _of_dataclass(node: ast.ClassDef) -> dict[str, Parameter]:
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation, value = ast.unparse(item.annotation), ast.unparse(item.value) if item.value else ""
            if not annotation.startswith("ClassVar") and "init=False" not in value:
                found[item.target.id] = Parameter(annotation, item.value is None)
    return found


def _parameter(annotation: ast.expr | None, required: bool) -> Parameter:
    return Parameter(ast.unparse(annotation) if annotation else "", required)
