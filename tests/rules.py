"""Rules of the house whose exceptions may only become fewer: what is counted, and the list of what is left. `make house` prints it.

`tests/rules.json` holds today's exceptions. `make house ARGS=write` writes it anew where there are fewer; it refuses more.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import sora

ROOT = Path(sora.__file__).parent
LIST = Path(__file__).parent / "rules.json"
FULL = 15  # files of a folder
LIBRARIES = ("torch", "hydra", "omegaconf", "lightning", "pytorch_lightning")
AT_THE_DOOR = ("assembly", "config", "configs")  # rooms that turn configurations into objects; verbs do, too
REACH = {"sora.dit.dit": 4, "sora.generation.generator": 20, "sora.training.module": 30, "sora.train": 130}

OFFERS = ("from sora.system.lazy_names import lazy_names", "__getattr__, __dir__ = lazy_names(__name__, __file__)")

Exceptions = dict[str, dict[str, int]]

COMMANDS = "commands"
LAYERS = (
    {"gate"},
    {"system"},
    {"tokens"},
    {"patches"},
    {"diffusion"},
    {"vae", "text", "dit", "video", "captioner"},
    {"metrics"},
    {"world"},
    {"data", "web"},
    {"ingest", "safety"},
    {"captions", "curation", "generation"},
    {"runs"},
    {"parallel"},
    {"training"},
    {"config"},
    {"assembly"},
    {"evaluation", "cost"},
    {"launch", "report"},
    {COMMANDS},
)


def room(path: Path) -> str:
    """The room a file stands in; modules beside the rooms are commands, except those of the first layers."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return first if any(first in layer for layer in LAYERS) else COMMANDS


def layer(name: str) -> int:
    """How high a room stands: it imports those below."""
    return next(index for index, names in enumerate(LAYERS) if name in names)


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def source(name: str) -> Path | None:
    """The file of a module of the package."""
    file = ROOT.joinpath(*name.split(".")[1:])
    return next((path for path in (file.with_suffix(".py"), file / "__init__.py") if path.is_file()), None)


def verbs() -> list[Path]:
    return [path for path in sorted(ROOT.glob("*.py")) if "EXAMPLES =" in path.read_text(encoding="utf-8")]


@cache
def imports(path: Path) -> frozenset[Path]:
    """The files of the package that a file imports, lazily or not, those of packages that do more than say what they are among them."""
    package = ".".join(path.parent.relative_to(ROOT.parent).parts)
    found: set[Path] = set()
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if source(f"{base}.{alias.name}") else base for alias in node.names]
        for name in names:
            parts = name.split(".")
            steps = (source(".".join(parts[:end])) for end in range(2, len(parts) + 1)) if parts[0] == "sora" else ()
            found.update(file for file in steps if file is not None and not lists_only(file))
    return frozenset(found)


def lists_only(path: Path) -> bool:
    """Whether a file is that of a package that says what it is, and at most offers the names of its stub, which are looked up by name."""
    return path.name == "__init__.py" and all(ast.unparse(node) in OFFERS for node in parsed(path).body[1:])


def reached(start: Path) -> set[Path]:
    """Every file that is read when this one is, itself included."""
    seen: set[Path] = set()
    ahead = [start]
    while ahead:
        path = ahead.pop()
        if path not in seen:
            seen.add(path)
            ahead += imports(path)
    return seen


def far() -> dict[str, int]:
    """Files that reach more others than they should."""
    found = {name: len(reached(file)) for name in REACH if (file := source(name)) is not None}
    return {name: count for name, count in found.items() if count > REACH[name]}


def full() -> dict[str, int]:
    """Folders with too many files."""
    counts: defaultdict[str, int] = defaultdict(int)
    for path in files():
        if path.name != "__init__.py" and path.parent != ROOT:
            counts[place(path.parent)] += 1
    return {folder: count for folder, count in counts.items() if count > FULL}


def astray() -> dict[str, int]:
    """Files beside the rooms that are neither a verb nor the vocabulary."""
    kept = {ROOT / "cli.py", ROOT / "tokens.py", ROOT / "__init__.py", ROOT / "__main__.py", *verbs()}
    return {place(path): 1 for path in sorted(ROOT.glob("*.py")) if path not in kept}


def upward() -> dict[str, int]:
    """Imports of a file in a room that is not below the importing file's own."""
    found: dict[str, int] = {}
    for path in files():
        for other in sorted(imports(path)):
            here, there = room(path), room(other)
            if here != there and layer(there) >= layer(here):
                found[f"{place(path)} imports {place(other)}"] = 1
    return found


def circles() -> dict[str, int]:
    """Files that reach one another, as the first of them by name, with how many there are (Tarjan 1972, by sets that are small enough)."""
    whole = {path: reached(path) - {path} for path in files()}
    found: dict[str, int] = {}
    done: set[Path] = set()
    for path, others in whole.items():
        circle = {path, *(other for other in others if path in whole[other])}
        if len(circle) > 1 and path not in done:
            done |= circle
            found[place(path)] = len(circle)
    return found


def twice() -> dict[str, int]:
    """Public classes of one name in several files."""
    homes: defaultdict[str, set[Path]] = defaultdict(set)
    for path in files():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(path)
    return {name: len(paths) for name, paths in sorted(homes.items()) if len(paths) > 1}


def configured() -> dict[str, int]:
    """Functions that take or give a whole configuration, by file, outside the rooms and verbs whose work that is."""
    allowed = {ROOT / "cli.py", *verbs()}
    found: dict[str, int] = {}
    for path in files():
        if path in allowed or place(path).split("/")[0] in AT_THE_DOOR:
            continue
        functions = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        if count := sum("DictConfig" in ast.dump(node.args) + str(node.returns and ast.dump(node.returns)) for node in functions):
            found[place(path)] = count
    return found


def private() -> dict[str, int]:
    """Private names of torch, Hydra and Lightning, by file, where not `system/torch_private.py` alone has them."""
    found: defaultdict[str, int] = defaultdict(int)
    for path in files():
        if place(path) != "system/torch_private.py":
            for name in _names_of_libraries(parsed(path)):
                if any(part.startswith("_") and not part.startswith("__") for part in name.split(".")):
                    found[place(path)] += 1
    return dict(found)


def _names_of_libraries(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in LIBRARIES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            if name.split(".")[0] in LIBRARIES and name.split(".")[-1].startswith("_"):  # once, by its private part
                yield name


def exceptions() -> Exceptions:
    """What there is today, by rule."""
    rules = {"reach": far, "folders": full, "beside the rooms": astray, "circles": circles, "names": twice}
    rules |= {"against the order": upward, "configurations": configured, "private names": private}
    return {rule: dict(sorted(counted().items())) for rule, counted in rules.items()}


def listed() -> Exceptions:
    return json.loads(LIST.read_text(encoding="utf-8"))


def grown(now: Exceptions, before: Exceptions) -> list[str]:
    """What there is more of than the list allows."""
    return [
        f"{rule}: {entry} has {count}, and {before.get(rule, {}).get(entry, 0)} is the most"
        for rule, entries in now.items()
        for entry, count in entries.items()
        if count > before.get(rule, {}).get(entry, 0)
    ]


def table(now: Mapping[str, Mapping[str, int]]) -> str:
    """Every verb's reach, and how many exceptions each rule has."""
    rows = [*(f"sora.{path.stem}" for path in verbs()), *(name for name in REACH if name != "sora.train")]
    lines = [f"{'':28}{'files':>7}{'lines':>9}"]
    for name in rows:
        start = source(name)
        assert start is not None
        read = reached(start)
        lines.append(f"{name:28}{len(read):>7}{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in read):>9,}")
    whole = files()
    lines.append(f"{'sora/':28}{len(whole):>7}{sum(len(path.read_text(encoding='utf-8').splitlines()) for path in whole):>9,}")
    return "\n".join([*lines, "", *(f"{rule:28}{len(entries):>7} to go" for rule, entries in now.items())])


def main(words: list[str]) -> int:
    now = exceptions()
    print(table(now))
    if words == ["write"]:
        if LIST.is_file() and (more := grown(now, listed())):
            print("\n".join(["", *more]), file=sys.stderr)
            return 2
        LIST.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    elif words:
        print(f"{' '.join(words)}: say nothing, or write", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
