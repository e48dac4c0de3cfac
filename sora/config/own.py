"""A user's own modules: `own=[my_lab.blocks, ./notes/my block.py]` names them on the command line, `_target_: MODULE.NAME` uses them.

Only the command line and the variable SORA_OWN can name one. A configuration can call only the public functions and classes that a named
module itself defines, whoever wrote the configuration.
"""

from __future__ import annotations

import ast
import importlib
import keyword
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType, ModuleType
from typing import Any

from sora.config.words import listed, meant
from sora.gate import credentials
from sora.system import own_modules
from sora.system.own_modules import OWN, is_path, module_name, named, source

KEY = "own"
# A configuration may call nothing of these libraries except what sora itself names: they load pickles, run programs and write files.
LIBRARIES = (
    *("torch", "torchvision", "numpy", "scipy", "pandas", "lightning", "pytorch_lightning", "hydra", "omegaconf", "yaml", "transformers"),
    *("diffusers", "huggingface_hub", "safetensors", "pyarrow", "fsspec", "PIL", "av", "decord", "torchcodec", "wandb", "tensorboard"),
    *(
        "matplotlib",
        "jinja2",
        "rich",
        "einops",
        "jaxtyping",
        "webdataset",
        "torchmetrics",
        "joblib",
        "cloudpickle",
        "dill",
        "pytest",
        "pip",
    ),
)
UNCALLED = {*sys.stdlib_module_names, *LIBRARIES, "sora"}
Defined = ast.ClassDef | ast.FunctionDef


def names_of(value: str) -> list[str]:
    """The modules and files that `own=VALUE` names. Raises ValueError if it is neither a text nor a list of texts."""
    from sora.config.command_line.grammar import Leaf, tree

    credentials.refuse(value, said_by=f"{KEY}=")
    found = tree(value)
    items = found if isinstance(found, list) else [found]
    texts = [item.text.strip() for item in items if isinstance(item, Leaf)]
    if len(texts) < len(items) or any(not text or "\n" in text for text in texts):
        raise ValueError(f"{KEY}={value} names no module: it takes modules and files of Python, {KEY}=[my_lab.blocks, ./notes/block.py]")
    return texts


@contextmanager
def naming(words: Sequence[str]) -> Iterator[None]:
    """A context in which the named modules, and those of the environment, may be used by this process and by those that it starts.

    Raises:
        ValueError: a module or file does not exist, cannot be a module's name, or has the name of another module.
    """
    before = os.environ.get(OWN)
    said = [*words, *(line.strip() for line in (before or "").splitlines() if line.strip())]
    if not said:
        yield
        return
    places = {os.path.realpath(place) if is_path(place) else place: place for place in map(_place, reversed(said))}
    os.environ[OWN] = "\n".join(reversed(places.values()))
    own_modules.install()
    try:
        try:
            _check(list(reversed(places.values())))
        except ValueError as error:
            raise ValueError(str(error) if words else f"{error} (the variable {OWN} names it)") from None
        yield
    finally:
        os.environ.pop(OWN) if before is None else os.environ.__setitem__(OWN, before)


def _place(word: str) -> str:
    return os.path.abspath(os.path.expanduser(word)) if is_path(word) else word


def _check(places: Sequence[str]) -> None:
    """Raise ValueError for a module or file that cannot be imported."""
    homes: dict[str, str] = {}
    for place in places:
        _refuse_path(Path(place)) if is_path(place) else _refuse_word(place)
        name = module_name(place) if is_path(place) else place
        if name in homes:
            raise ValueError(f"{KEY}=[{homes[name]}, {place}] are both the module {name!r}; rename one of them")
        homes[name] = place
    for name, file in named().items():
        _refuse_taken(name, file) if file is not None else _refuse_absent(name)
        if file is not None and _other_file(sys.modules.get(name), file):  # imported by an earlier command in this process
            del sys.modules[name]


def _other_file(module: ModuleType | None, file: Path) -> bool:
    return module is not None and not _same(getattr(module, "__file__", None), file)


def _same(found: str | None, file: Path) -> bool:
    return found is not None and os.path.realpath(found) == os.path.realpath(file)


def _refuse_path(file: Path) -> None:
    name = module_name(file)
    if file.is_dir():
        inside = [path.name for path in sorted(file.glob("*.py"))]
        raise ValueError(f"{KEY}={file} is a folder; name a file in it ({listed(inside)}), or the module as Python imports it")
    if not file.is_file():
        near = [path.name for path in sorted(file.parent.glob("*.py"))] if file.parent.is_dir() else []
        raise ValueError(f"{KEY}={file} does not exist{meant(file.name, near)}; name a file of Python or a module that can be imported")
    if file.suffix != ".py":
        raise ValueError(f"{KEY}={file} is no file of Python: its name does not end in .py")
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise ValueError(
            f"{KEY}={file} would be the module {name!r}, which is no name that a configuration can say; rename the file so that it begins "
            "with a letter, as in my_block.py"
        )


def _refuse_word(word: str) -> None:
    parts = word.split(".")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise ValueError(f"{KEY}={word} is neither the name of a module, as in my_lab.blocks, nor the path of a file, as in ./blocks.py")
    if parts[0] == "sora":
        raise ValueError(f"{KEY}={word} is sora's own, whose parts need no {KEY}=; name a module of yours")
    if parts[0] in UNCALLED:
        raise ValueError(f"{KEY}={word} is of Python or of a library, which no configuration calls; name a module of yours that calls it")


def _refuse_taken(name: str, file: Path) -> None:
    """Raise ValueError if a file has the name of a module that can be imported from elsewhere."""
    if name in UNCALLED:
        raise ValueError(f"{KEY}={file} is called as the module {name!r} of Python or of a library; rename the file")
    here = (os.getcwd(), "")
    places = [place for place in sys.path if place not in here]
    finders = [each for each in sys.meta_path if each not in (own_modules.OwnFiles, own_modules.OwnFolder, PathFinder)]
    found = PathFinder.find_spec(name, places) or next((spec for each in finders if (spec := each.find_spec(name, None))), None)
    if found is not None and found.origin is not None and not _same(found.origin, file):
        raise ValueError(f"{KEY}={file} is called as the installed module {name!r} ({found.origin}); rename the file")


def _refuse_absent(name: str) -> None:
    if source(name) is not None:
        return
    above, _, last = name.rpartition(".")
    if inside := [module.name for module in iter_modules(own_modules.folders(name))]:
        raise ValueError(
            f"{KEY}={name} is a folder without __init__.py; name a module in it: {listed(f'{name}.{each}' for each in inside)}"
        )
    if above and (folders := own_modules.folders(above)):
        near = [module.name for module in iter_modules(folders)]
        raise ValueError(f"{KEY}={name}: {above} has no module {last!r}{meant(last, near)}; it has {listed(near)}")
    here = [module.name for module in iter_modules([os.getcwd()])]
    raise ValueError(
        f"{KEY}={name}: no such module can be imported from Python source{meant(name.partition('.')[0], here)}; install it, put its folder "
        f"into PYTHONPATH, or name a file: {KEY}=[./{last}.py]"
    )


# ---- the definitions in them


def module_of(target: str) -> str | None:
    """The named module that defines a target; None for any other target."""
    module, _, name = target.rpartition(".")
    return module if module in named() and name.isidentifier() and not name.startswith("_") else None


def syntax(module: str) -> ast.Module:
    """The syntax tree of a named module, without importing it. Raises ValueError, with file and line, for a syntax error."""
    path = source(module)
    if path is None:
        raise ValueError(f"{KEY}={_said(module)} is gone; name another")
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{KEY}={_said(module)} does not import: {_syntax_error(error, path)}; mend it") from error


def definitions(module: str) -> dict[str, list[Defined]]:
    """The public classes and functions of a named module; for each name, all of its definitions."""
    found: dict[str, list[Defined]] = {}
    for node in syntax(module).body:
        if isinstance(node, Defined) and not node.name.startswith("_"):
            found.setdefault(node.name, []).append(node)
    return found


def defined(module: str, name: str) -> Defined:
    """A class or function of a named module. Raises ValueError if it has none or several definitions of that name."""
    known = definitions(module)
    if len(found := known.get(name, [])) == 1:
        return found[0]
    if found:
        lines = " and ".join(str(node.lineno) for node in found)
        raise ValueError(f"{source(module)} defines {name!r} {len(found)} times, in lines {lines}; rename one of them")
    told = f"; it defines {listed(known)}"
    for node in syntax(module).body:
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            told = f", it imports it in line {node.lineno}; name the module that defines it"
        elif isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets):
            told = f", it sets it in line {node.lineno}; write it as def or class"
    why = f"{source(module)} defines no function or class {name!r}{meant(name, known)}{told}"
    raise ValueError(f"_target_: {module}.{name} is refused: {why}")


def refusal(target: str) -> str:
    """The message for a target outside sora's rooms: why it is refused, and how to name its module if it is the user's own."""
    module = target.rpartition(".")[0]
    why = "it is none of sora's, and of other modules only those are called which the command line names"
    if module.partition(".")[0] in UNCALLED or not module:
        return why
    return f"{why}; if that is code of yours, add {KEY}=[{module}], or {KEY}=[FILE.py] for a single file"


# ---- importing them


def load(module: str) -> ModuleType:
    """Import a named module. Raises ValueError with the module's error and the line that raised it."""
    assert module in named(), module
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, of a script that ends itself
        raise ValueError(f"{KEY}={_said(module)} does not import: {_import_error(error, module)}") from error


def _said(module: str) -> str:
    return str(named().get(module) or module)


def _import_error(error: BaseException, module: str) -> str:
    path = source(module)
    if isinstance(error, SyntaxError):
        return f"{_syntax_error(error, path)}; mend it"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = next((place for place, frame in enumerate(frames) if path is not None and _same(frame.filename, path)), 0)
    shown = frames[own:][-3:]
    lines = ", ".join(f"{frame.filename}:{frame.lineno}{f' ({frame.line})' if frame.line else ''}" for frame in shown)
    text = " ".join(str(error).split())
    advice = "mend it"
    if isinstance(error, ModuleNotFoundError) and error.name and path is not None:
        beside = path.parent / f"{error.name}.py"
        advice = f"name that file, too: {KEY}=[{beside}]" if beside.is_file() else f"install {error.name}"
    return f"{type(error).__name__}{f': {text}' if text else ''}, in {lines}; {advice} (SORA_TRACEBACK=1 shows the whole traceback)"


def _syntax_error(error: SyntaxError | ValueError, path: Path | None) -> str:
    if not isinstance(error, SyntaxError):
        return f"{path}: {' '.join(str(error).split())}"
    line = f" ({error.text.strip()})" if error.text else ""
    place = f"{error.filename or path}:{error.lineno}{line}" if error.lineno else path
    return f"{type(error).__name__}: {error.msg}, in {place}"


# ---- recording them


def in_use() -> list[str]:
    """The named modules that this command has imported."""
    return [name for name in named() if own_modules.loaded(name)]


def record() -> dict[str, Any]:
    """The record in run.json of the named modules that this command has imported."""
    return own_modules.record(in_use())


def words_for(names: Sequence[str], known: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """The words of `own=` for these modules: a file by its path, as named now or as recorded by a run (`known`)."""
    return [str(named().get(name) or known.get(name, {}).get("file") or name) for name in names]
