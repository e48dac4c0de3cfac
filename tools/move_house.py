"""Move the files of sora/ and of its tests as moves.tsv says, and rewrite every name of them.

    python tools/move_house.py            # in a clean tree; then look at what it prints, run ruff and pyright, and commit

It may be run again, after a merge of what was written against the old names: files that lie where they lay are moved, and old names are
rewritten. Names that are private to files (`_target_`s, former names, results of before) are left as they are. Needs git and ruff alone.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from house_plan import DESCRIBED, EXPORTED, LAYERS, PACKAGES, ROOT, dotted, git, homeless, table, tests_of

OURS = ("tools/house_plan.py", "tools/move_house.py", "tools/moves.tsv")
# In these, names that are no imports are a matter of the past, or of tests of names.
IMPORTS_ONLY = {
    "sora/gate/former_names.py",
    "tests/config/test_targets.py",
    "tests/test_house.py",
    *OURS,
}
UNTOUCHED = ("CHANGELOG.md", "data/", "tests/stored/", "tests/golden/", *OURS)
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".sbatch", ".j2", ".cff", ""}
LONGEST = 140


def move(moves: dict[str, str]) -> int:
    """Move what lies at its old place; packages that come to be say what they are."""
    moved = 0
    if not any((ROOT / path).is_file() for path in moves):
        return 0
    for old, new in PACKAGES.items():
        first = ROOT / "sora" / old / "__init__.py"
        if first.is_file() and new:
            (ROOT / "sora" / new).mkdir(parents=True, exist_ok=True)
            git("mv", f"sora/{old}/__init__.py", f"sora/{new}/__init__.py")
        elif first.is_file():
            git("rm", "-q", f"sora/{old}/__init__.py")
    for old, new in moves.items():
        if not (ROOT / old).is_file():
            continue
        if (ROOT / new).exists():
            sys.exit(f"{old} and {new} are both there; join them by hand")
        (ROOT / new).parent.mkdir(parents=True, exist_ok=True)
        git("mv", old, new)
        moved += 1
    for new in {Path(new).parent for new in moves.values()}:
        for folder in [new, *new.parents][:-1]:
            first = ROOT / folder / "__init__.py"
            if not first.is_file():
                name = folder.as_posix().removeprefix("sora/")
                first.write_text(f'"""{DESCRIBED[name]}"""\n' if folder.parts[0] == "sora" else "")
                git("add", str(first))
    for folder in sorted({(ROOT / old).parent for old in moves} | {ROOT / "sora" / old for old in PACKAGES}, reverse=True):
        if (
            folder.is_dir()
            and folder.name not in ("sora", "tests")
            and not [p for p in folder.rglob("*") if p.suffix != ".pyc" and p.is_file()]
        ):
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            folder.rmdir()
        elif folder.is_dir() and not list(folder.glob("*.py")) and list(folder.rglob("*.py")) and not (folder / "__init__.py").exists():
            print(f"{folder.relative_to(ROOT)} has no __init__.py")
    both = [
        path for path in git("ls-files", "sora", "tests").split("\n") if path.endswith(".py") and (ROOT / path).with_suffix("").is_dir()
    ]
    if both:
        sys.exit(f"a module and a folder of one name: {', '.join(both)}")
    return moved


class Names:
    """Old names to new ones."""

    def __init__(self, moves: dict[str, str], *, first: bool) -> None:
        self.new_of = {dotted(old): dotted(new) for old, new in moves.items()}
        self.new_of |= {f"sora.{old.replace('/', '.')}": f"sora.{new.replace('/', '.')}" for old, new in PACKAGES.items() if new}
        self.new_of |= {
            "tests.configs": "tests.config",
            "tests.data.decoding": "tests.video.decoding",
            "tests.data.planning": "tests.data.plan",
        }
        self.paths = moves
        moved = [(Path(old).name, new) for old, new in moves.items() if old.startswith("tests/") and Path(old).name != Path(new).name]
        self.renamed_tests = dict(moved)
        self.known = {dotted(path) for path in git("ls-files", "sora", "tests").split("\n") if path.endswith(".py")}
        self.packages = {name.rpartition(".")[0] for name in self.known}
        self.first = first
        self.targets = targets()

    def whole(self, name: str) -> str:
        """A dotted name of a module, package or of something in it, by the longest part of it that is known."""
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            part = ".".join(parts[:end])
            if part in self.known and part not in self.new_of:
                return name
            if part in self.new_of:
                return ".".join([self.new_of[part], *parts[end:]])
        return name

    def mentioned(self, name: str) -> str:
        """As `whole`, of a name in a text; what configurations name is no module, and a new package of an old module's name is meant so."""
        if name in self.targets or (not self.first and name in self.packages):
            return name
        return self.whole(name)

    def imported(self, base: str, names: list[tuple[str, str | None]]) -> list[tuple[str, list[tuple[str, str | None]]]]:
        """`from base import names` as one such for each place where they are now."""
        found: dict[str, list[tuple[str, str | None]]] = {}
        for name, alias in names:
            module = f"{base}.{name}"
            if module in self.new_of and not (module in self.known and self.is_of_new(base)):
                place, _, leaf = self.new_of[module].rpartition(".")
                found.setdefault(place, []).append((leaf, alias or (name if leaf != name else None)))
            elif module in self.known:
                found.setdefault(base, []).append((name, alias))
            elif name in EXPORTED.get(base, {}):
                found.setdefault(self.whole(EXPORTED[base][name]), []).append((name, alias))
            else:
                found.setdefault(self.new_of.get(base, base) if base in self.new_of else self.whole(base), []).append((name, alias))
        return list(found.items())

    def is_of_new(self, base: str) -> bool:
        return base in self.packages and base in self.new_of


def targets() -> set[str]:
    """What configurations may name: no module, whatever it looks like."""
    found = set()
    for room, modules in rooms()[1].items():
        for module in modules:
            path = ROOT / "sora" / f"{module.replace('.', '/')}.py"
            path = path if path.is_file() else ROOT / table().get(f"sora/{module.replace('.', '/')}.py", "")
            nodes = ast.parse(path.read_text()).body
            found |= {f"sora.{room}.{node.name}" for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return found


def rooms() -> tuple[ast.AnnAssign, dict[str, tuple[str, ...]], Path]:
    """ROOMS of the targets: which modules hold what configurations may name."""
    path = next(path for path in (ROOT / "sora/config/targets.py", ROOT / "sora/configs/targets.py") if path.is_file())
    node = next(
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ROOMS"
    )
    assert node.value is not None
    return node, eval(compile(ast.Expression(node.value), str(path), "eval"), {"tuple": tuple}), path


def rewrite_rooms(names: Names) -> None:
    node, values, path = rooms()
    new = {room: tuple(names.whole(f"sora.{module}").removeprefix("sora.") for module in modules) for room, modules in values.items()}
    if new == values:
        return
    lines = path.read_text().splitlines(keepends=True)
    body = "".join(f"    {room!r}: {modules!r},\n" for room, modules in new.items())
    lines[node.lineno - 1 : node.end_lineno] = [f"ROOMS: dict[str, tuple[str, ...]] = {{\n{body}}}\n"]
    path.write_text("".join(lines))


IN_TEXT = re.compile(
    r"from (?P<base>(?:sora|tests)(?:\.\w+)*) import (?P<names>\w+(?: as \w+)?(?:, \w+(?: as \w+)?)*)"
    r"|(?<![\w./])(?P<dotted>(?:sora|tests)(?:\.[A-Za-z_]\w*)+)|(?<![\w.])(?P<path>(?:sora|tests)/[\w/]+\.py)"
)


def as_text(parts: list[tuple[str, list[tuple[str, str | None]]]], joint: str) -> str:
    return joint.join(
        f"from {base} import {', '.join(name + (f' as {alias}' if alias else '') for name, alias in names)}" for base, names in parts
    )


def in_text(text: str, names: Names) -> str:
    """Names in strings, comments and prose."""

    def changed(match: re.Match[str]) -> str:
        if match["base"]:
            wanted = [(name.split(" as ")[0], (*name.split(" as "), None)[1]) for name in match["names"].split(", ")]
            parts = names.imported(match["base"], wanted)
            return match[0] if parts == [(match["base"], wanted)] else as_text(parts, "; ")
        if match["path"]:
            return names.paths.get(match["path"], match["path"])
        return names.mentioned(match["dotted"])

    text = IN_TEXT.sub(changed, text)
    return re.sub(r"`(test_\w+\.py)`", lambda match: f"`{names.renamed_tests.get(match[1], match[1])}`", text)


def in_python(text: str, package: str, names: Names, *, mentioned: bool) -> str:
    """Imports by the syntax tree, all else as text."""
    data = text.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    spans = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] in ("sora", "tests"):
                assert node.end_lineno is not None and node.end_col_offset is not None
                spans.append((starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset, node, base))
    done, place = [], 0
    gap = (lambda part: in_text(part, names)) if mentioned else (lambda part: part)
    for start, end, node, base in sorted(spans, key=lambda span: span[0]):
        done.append(gap(data[place:start].decode()))
        own = data[start:end].decode()
        wanted = [(alias.name, alias.asname) for alias in node.names]
        parts = names.imported(base, wanted)
        if parts == [(base, wanted)]:
            done.append(own)
        else:
            if "#" in own:
                print(f"a comment inside an import is lost: {own.splitlines()[0]}")
            done.append(as_text(parts, "\n" + " " * node.col_offset))
        place = end
    done.append(gap(data[place:].decode()))
    return "".join(done)


def rewrite(names: Names) -> int:
    changed = 0
    for path in git("ls-files").split("\n"):
        file = ROOT / path
        if not path or path.startswith(UNTOUCHED) or Path(path).suffix not in SUFFIXES or not file.is_file() or file.is_symlink():
            continue
        text = file.read_text(encoding="utf-8")
        if path.endswith(".py"):
            new = in_python(text, dotted(path).rpartition(".")[0], names, mentioned=path not in IMPORTS_ONLY)
        elif path.endswith((".yaml", ".yml")):
            lines = text.splitlines(keepends=True)
            new = "".join(line if "_target_" in line else in_text(line, names) for line in lines)
        else:
            new = in_text(text, names)
        if new != text:
            file.write_text(new, encoding="utf-8")
            changed += 1
    return changed


def unexport() -> None:
    """Leave of two packages' __init__.py what they say."""
    for name in ("sora/dit/attention/__init__.py", "sora/world/__init__.py"):
        path = ROOT / name
        if path.is_file() and (docstring := ast.get_docstring(ast.parse(path.read_text()), clean=False)):
            path.write_text(f'"""{docstring}"""\n')


def rewrite_layers() -> None:
    path = ROOT / "tests/test_house.py"
    text = path.read_text()
    new = re.sub(r"^LAYERS = \(\n.*?^\)$", lambda _: LAYERS, text, flags=re.MULTILINE | re.DOTALL)
    new = new.replace('{"training", COMMANDS}', '{"system", "parallel", "training", COMMANDS}')
    new = new.replace('("hydra", {COMMANDS})', '("hydra", {"config", COMMANDS})')
    above = '{"config", "assembly", "evaluation", "cost", "launch", COMMANDS}'
    new = new.replace('("omegaconf", {COMMANDS})', f'("omegaconf", {above})')
    path.write_text(new)


def refuse_confusion(moves: dict[str, str]) -> None:
    """A module that becomes a folder must not have held what the folder's files are called: an import could mean either."""
    new = {dotted(path) for path in moves.values()}
    for old in moves:
        path = ROOT / old
        if path.is_file() and any(name.startswith(f"{dotted(old)}.") for name in new):
            tree = ast.parse(path.read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
            names |= {
                target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
            }
            both = [name for name in names if f"{dotted(old)}.{name}" in new]
            if both:
                print(f"beware: {old} defines {', '.join(both)}, and a file of the folder that it becomes is called so")


def shorten() -> None:
    """Wrap comments and docstrings that longer names made too long; of other lines ruff tells."""
    while True:
        told = subprocess.run(
            [*ruff(), "check", "--select", "E501", "--output-format", "json", "."], cwd=ROOT, capture_output=True, check=False
        )
        wrapped = 0
        for file in {row["filename"] for row in json.loads(told.stdout)}:
            path = Path(file)
            lines, prose = path.read_text().splitlines(), set[int]()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                    prose |= set(range(node.lineno - 1, node.end_lineno or 0))
            for number in range(len(lines) - 1, -1, -1):
                line = lines[number]
                indent, sign = line[: len(line) - len(line.lstrip())], "# " if line.lstrip().startswith("# ") else ""
                if len(line) > LONGEST and (sign or number in prose):
                    cut = line.rfind(" ", 0, LONGEST + 1)
                    lines[number : number + 1] = [line[:cut], f"{indent}{sign}{line[cut + 1 :]}"]
                    wrapped += 1
            path.write_text("\n".join(lines) + "\n")
        if not wrapped:
            return


def ruff() -> list[str]:
    own = [sys.executable, "-m", "ruff"]
    return own if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0 else ["ruff"]


def upward() -> list[str]:
    """Imports that still run against the order of the rooms, lazy ones too."""
    from reach import imported

    layers = eval(LAYERS.partition(" = ")[2], {"COMMANDS": "commands"})
    rank = {room: number for number, rooms in enumerate(layers) for room in rooms}

    def room(path: Path) -> str:
        first = path.relative_to(ROOT / "sora").parts[0].removesuffix(".py")
        return first if first in rank else "commands"

    files = [path for path in sorted((ROOT / "sora").rglob("*.py")) if path != ROOT / "sora/__init__.py"]
    pairs = [(path, target) for path in files for target in sorted(imported(path)) if target != ROOT / "sora/__init__.py"]
    wrong = [(path, target) for path, target in pairs if room(path) != room(target) and rank[room(target)] >= rank[room(path)]]
    return [f"{path.relative_to(ROOT)} imports {target.relative_to(ROOT)}" for path, target in wrong]


def main() -> int:
    moves = table()
    if lost := homeless(moves):
        print("no line of moves.tsv places:\n  " + "\n  ".join(lost))
        return 1
    refuse_confusion(moves)
    both = {**moves, **tests_of(moves)}
    first = any((ROOT / path).is_file() for path in moves)
    moved = move(both)
    names = Names(both, first=first)
    changed = rewrite(names)
    unexport()
    rewrite_rooms(names)
    rewrite_layers()
    subprocess.run([*ruff(), "check", "-q", "--fix", "--select", "I", "."], cwd=ROOT, check=False)
    subprocess.run([*ruff(), "format", "-q", "."], cwd=ROOT, check=False)
    shorten()
    counts = Counter(
        Path(path).parent.as_posix()
        for path in git("ls-files", "sora").split("\n")
        if path.endswith(".py") and not path.endswith("__init__.py")
    )
    for line in upward():
        print(f"against the order: {line}")
    print(f"{moved} files moved, {changed} rewritten; the fullest folder has {max(counts.values())} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
