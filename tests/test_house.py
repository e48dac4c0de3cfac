"""The house's own rules, as laws: which way imports run, how large things grow, what is imported when, what never appears."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sora
from tests import rules
from tests.rules import COMMANDS, parsed, room

ROOT = Path(sora.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FORBIDDEN_NAMES = {"utils.py", "util.py", "common.py", "misc.py", "helpers.py", "helper.py", "base.py"}
LONGEST_FILE, LONGEST_FUNCTION, FILES_OF_THE_MODEL = 400, 60, 4


def module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(path)))


@cache
def imported(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, lazily or not, with its line; `from a import b` gives `a.b` where that is a module."""
    package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}" if source(f"{base}.{alias.name}") else base) for alias in node.names)


def source(name: str) -> Path | None:
    if not name.startswith("sora."):
        return ROOT / "__init__.py" if name == "sora" else None
    place = ROOT.joinpath(*name.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def verbs() -> list[str]:
    return [path.stem for path in ROOT.glob("*.py") if "EXAMPLES =" in path.read_text()]


def test_every_name_is_defined():
    """Ruff and pyright may not look, as the letters of jaxtyping's shapes are names to them; these stand in strings, and names do not."""
    asked = [sys.executable, "-m", "ruff", "check", "--select=F821", "--output-format=json", "sora", "experiments", "tests"]
    told = subprocess.run(asked, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    unknown: dict[Path, set[tuple[int, int]]] = {}
    for row in json.loads(told.stdout):
        unknown.setdefault(Path(row["filename"]), set()).add((row["location"]["row"], row["location"]["column"] - 1))
    assert len(unknown) > 10  # it does look
    meant = {"NowhereAtAll"}  # of the tests of annotations that cannot be judged
    names = [(path, node) for path in unknown for node in nodes(path) if isinstance(node, ast.Name) and node.id not in meant]
    wrong = [f"{path}:{node.lineno}: {node.id}" for path, node in names if (node.lineno, node.col_offset) in unknown[path]]
    assert not wrong, "\n".join(wrong)


def test_imports_run_one_way():
    """Those that do not stand in a list that may only become shorter (`tests/rules.py`)."""
    known = rules.listed()["against the order"]
    wrong = [told for told in rules.upward() if told not in known]
    assert not wrong, "\n".join(wrong)


def test_the_import_reader_sees_lazy_and_relative_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "sora")
    (tmp_path / "sora/vae").mkdir(parents=True)
    (tmp_path / "sora/data").mkdir()
    for name in ("vae/__init__.py", "data/__init__.py", "data/video.py"):
        (tmp_path / "sora" / name).touch()
    spy = tmp_path / "sora/vae/net.py"
    spy.write_text("def f():\n    from ..data import video\n    import sora.data.video\n    from sora import data\n")
    assert [name for _, name in imported(spy)] == ["sora.data.video", "sora.data.video", "sora.data"]


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("lightning", {"system", "parallel", "training", COMMANDS}),
        ("pytorch_lightning", {"system", "parallel", "training", COMMANDS}),
        ("hydra", {"config", COMMANDS}),
        ("omegaconf", {"config", "assembly", "evaluation", "cost", "launch", COMMANDS}),
    ],
)
def test_only_some_rooms_may_import(package, rooms):
    wrong = [
        f"{path}:{line}" for path in FILES for line, name in imported(path) if name.split(".")[0] == package and room(path) not in rooms
    ]
    assert not wrong, f"{package} is imported by {wrong}"


def test_reading_the_model_takes_few_files():
    start = source("sora.dit.dit")
    assert start is not None, "sora/dit/dit.py is gone"
    seen, ahead = set(), [start]
    while ahead:
        path = ahead.pop()
        if path not in seen:
            seen.add(path)
            ahead += [found for _, name in imported(path) if (found := source(name)) is not None]
    # an __init__ that only says what its room is needs no reading
    read = {path for path in seen if path.name != "__init__.py" or len(parsed(path).body) > 1}
    assert len(read - {ROOT / "__init__.py"}) <= FILES_OF_THE_MODEL, sorted(str(path.relative_to(ROOT)) for path in read)


def test_files_and_functions_are_short():
    wrong = []
    for path in FILES:
        text = path.read_text()
        if len(text.splitlines()) > LONGEST_FILE:
            wrong.append(f"{path.relative_to(ROOT)} has {len(text.splitlines())} lines")
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.body[0].lineno - node.lineno) + (node.end_lineno or 0) - first.lineno + 1
                if lines > LONGEST_FUNCTION:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_no_file_has_a_name_that_says_nothing():
    assert not [str(path) for path in FILES if path.name in FORBIDDEN_NAMES]


def test_every_module_and_public_class_says_what_it_is():
    silent = []
    for path in FILES:
        tree = parsed(path)
        silent += [] if ast.get_docstring(tree) or not tree.body else [str(path.relative_to(ROOT))]
        silent += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
        ]
    assert not silent, "\n".join(silent)


def test_nothing_loads_pickles_or_asks_what_a_thing_has():
    """`torch.load` runs what a file says, unless it is held to weights; `hasattr` hides which interface is meant; eval and exec need no
    reason."""
    wrong = []
    forbidden = ("hasattr", "eval", "exec", "torch.load", "numpy.load", "os.system")
    weights = "weights_only=True"  # written out: tensors of others' files, nothing else of them
    for path in FILES:
        wrong += [f"{path}:{line} imports {name}" for line, name in imported(path) if name.split(".")[0] in ("pickle", "dill", "joblib")]
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and ast.unparse(node.func) in forbidden:
                if ast.unparse(node.func) == "torch.load" and weights in map(ast.unparse, node.keywords):
                    continue
                wrong.append(f"{path}:{node.lineno} calls {ast.unparse(node.func)}")
    assert not wrong, "\n".join(wrong)


def test_no_function_swallows_misspelt_keywords():
    """`**kwargs` may be passed on whole, never be picked from."""
    wrong = []
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef) and node.args.kwarg:
                name = node.args.kwarg.arg
                picked = (f"{name}.pop", f"{name}.get")
                wrong += [
                    f"{path}:{node.lineno}" for call in ast.walk(node) if isinstance(call, ast.Call) and ast.unparse(call.func) in picked
                ]
    assert not wrong, wrong


def test_importing_the_commands_imports_nothing_heavy():
    heavy = ["torch", "lightning", "transformers", "av", "pyarrow", "matplotlib", "wandb", "torchmetrics", "scipy"]
    code = (
        f"import sys, json, sora.cli, {', '.join(f'sora.{verb}' for verb in verbs())}\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert json.loads(done.stdout) == []


def asserts(node: ast.AST) -> bool:
    """Whether it is an assertion, or calls what by its name makes one."""
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Assert)
    name = ast.unparse(node.func).rpartition(".")[2]
    return name in ("raises", "warns", "check") or name.startswith("assert_")


@pytest.mark.slow
def test_every_test_asserts_in_its_own_body():
    """By an assert, or a helper whose name says that it does."""
    silent = []
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        tests = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        silent += [f"{path.name}:{test.lineno} {test.name}" for test in tests if not any(map(asserts, ast.walk(test)))]
    assert not silent, "\n".join(silent)


@pytest.mark.parametrize("verb", [name.removesuffix("_command") for name in verbs()])
def test_every_command_has_one_line_and_three_examples(verb):
    from sora.config.command_line.verbs import verbs as known

    assert 10 < len(known()[verb].line) < 110
    assert len(known()[verb].examples) == 3
    assert all(example.startswith(f"sora {verb}") for example in known()[verb].examples)
