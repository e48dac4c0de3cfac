"""Which `_target_` a configuration may name, and which keys it takes, read from the source without importing it.

A configuration can come from anywhere, and a `_target_` is a call; so the only names allowed are public classes and functions
*defined* in the rooms below, and the few of `OTHERS`. Reading the source keeps a typo's answer under a second (no torch).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sora.configs.words import listed, meant

# Whole rooms where every module is mathematics; of rooms that also write files or start processes, the modules whose classes may be
# options: a configuration that came with somebody's run must not reach the others.
ROOMS = (
    *("patches", "dit", "diffusion", "vae.vae", "vae.losses", "text.byte", "text.classes", "text.pooled", "text.pretrained"),
    *("data.latent_batches", "data.loading", "data.planning", "data.sources", "data.video_batches", "data.world"),
    *(f"data.decoding.{name}" for name in ("decord", "guarded", "pyav", "reader", "torchcodec")),
    *("metrics.extractors", "metrics.rand3d", "cluster.hardware", "cluster.slurm"),
    *(f"training.{name}" for name in ("ema", "optimizers", "recompute", "schedules", "sinks", "soundness", "trainers")),
)
OTHERS = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.Muon", "torch.optim.SGD")
# Classes that run a file which they are given, as a program: its path is taken from the command line alone, see `sora.configs.stored`.
PROGRAMS = ("sora.metrics.extractors.i3d_files.I3DScript",)
PACKAGE = Path(__file__).resolve().parent.parent
TARGET = "_target_"
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")


@dataclass(frozen=True)
class Parameter:
    """One settable value of a target: its annotation as written (or ""), and whether it must be given."""

    annotation: str
    required: bool


@dataclass(frozen=True)
class Definition:
    """Where a class or function of a room is defined."""

    module: str
    node: ast.ClassDef | ast.FunctionDef


def refuse(target: object, why: str) -> ValueError:
    return ValueError(
        f"_target_: {target} is refused: {why}; a configuration names public classes and functions defined in "
        f"{', '.join(f'sora.{room}' for room in ROOMS)}, or one of {', '.join(OTHERS)}"
    )


def source(module: str) -> Path | None:
    """The file of a module of this package, or None; nothing is imported."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def allowed(target: object) -> str:
    """`target` if its name may be looked up at all; else ValueError. What it resolves to is checked by `find` and `build`."""
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise refuse(target, "it is not a dotted name without leading underscores")
    if target in OTHERS:
        return target
    if not in_rooms(target.rpartition(".")[0]):
        raise refuse(target, f"it is outside the rooms that a configuration may name (ROOMS of {__name__})")
    return target


def in_rooms(module: str) -> bool:
    """Whether a module is one of `ROOMS`, or lies in one."""
    return any(f"{module}.".startswith(f"sora.{room}.") for room in ROOMS)


def find(target: str) -> Definition | None:
    """The definition that an allowed target names, following re-exports within the rooms; None for those of `OTHERS`."""
    if allowed(target) in OTHERS:
        return None
    module, _, name = target.rpartition(".")
    path = source(module)
    if path is None:
        raise refuse(target, f"there is no module {module}")
    public = {}
    for node in syntax(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            public[node.name] = Definition(module, node)
        if isinstance(node, ast.ImportFrom) and path.name == "__init__.py":
            origin = _origin(module, node)
            public |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    if name not in public:
        ours = [key for key, value in public.items() if isinstance(value, Definition)]
        raise refuse(target, f"{module} defines no public class or function {name!r}{meant(name, ours)} (it defines {listed(ours)})")
    found = public[name]
    return find(found) if isinstance(found, str) else found


def _origin(package: str, node: ast.ImportFrom) -> str:
    """The absolute module that a `from … import` of a package's `__init__` names."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def parameters(definition: Definition) -> dict[str, Parameter] | None:
    """What a definition can be given by name, or None where the source alone does not say (`build` still checks)."""
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip=0)
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return _of_function(inner, skip=1)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list) and not node.bases:
        return _of_dataclass(node)
    return None


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
