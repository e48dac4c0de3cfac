"""Where the house is going, besides moves.tsv: verbs, packages that move whole, what new rooms are, and which may import which."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERBS = {
    *("cli", "compare", "data_command", "encode", "evaluate", "export", "plan", "prepare", "quickstart", "report_command", "sample"),
    *("tokens", "train"),
}
PACKAGES = {  # folders whose own __init__.py goes along; "" goes
    "configs": "config",
    "data/decoding": "video/decoding",
    "data/planning": "data/plan",
    "data/world": "world",
    "cluster": "",
}
DESCRIBED = {
    "assembly": "From a configuration to objects: networks, data, plans and training, for every command alike.",
    "config/command_line": "Command lines: how a value is written, what follows, what help says, and sweeps over several values.",
    "cost": "What a run asks of a cluster before it starts: memory, time and money.",
    "data/index": "What is known of a dataset's clips without reading them: rows, columns, captions beside them, and latents.",
    "data/loading": "Loading by plan: a step's number in, its packs out.",
    "data/shards": "Tar shards, and where their bytes lie.",
    "dit/blocks": "The blocks of the network, as siblings.",
    "dit/kernels": "Parts of blocks with a backward pass of their own.",
    "dit/layers": "What blocks are made of: norms, MLPs, modulation, positions.",
    "evaluation/measures": "What is measured of videos: distances, scores of single clips, losses, memorisation.",
    "evaluation/videos": "Which videos are scored: sets from anywhere, clips taken of them, and clips that are made first.",
    "ingest": "From others' files to a dataset, and checks of one.",
    "launch": "Starting commands: in a row, and under Slurm.",
    "metrics/clips": "Scores of single clips, with or without a reference.",
    "metrics/distribution": "Distances between sets of features, and what they are worth.",
    "parallel": "Several ranks that train one model: the mesh, and what each axis of it does.",
    "runs": "A run is a folder: its configuration, its checkpoints, its log.",
    "system": "What the machine and the operating system offer: files, processes, ranks, terminals. It knows nothing of video.",
    "training/callbacks": "What happens around training steps: checkpoints, the record, validation, the clock.",
    "training/faults": "Signals, hangs and ranks that die.",
    "training/logging": "What is written of a run while it trains.",
    "training/optim": "Optimisers, schedules, averages of the weights, and norms of gradients.",
    "video": "Files of pixels: read under guard, and written.",
    "video/demuxing": "What packets of a file tell without being decoded: kind, structure, times, where decoding can begin.",
    "world/judge": "What is seen in a clip of the built-in world, and how it is judged.",
}
# What two packages exported in their __init__.py and export no more: the model is to be read in few files, and the world does not know
# who judges it.
EXPORTED = {
    "sora.dit.attention": {
        f"{name}_attention": f"sora.dit.attention.{name}"
        for name in ("chunked", "dense", "fastest", "flash", "flex", "per_segment", "varlen")
    },
    "sora.data.world": {
        **dict.fromkeys(("DIRECTIONS", "PALETTE", "SHAPES", "TURNS", "parse"), "sora.data.world.language"),
        "BACKGROUNDS": "sora.data.world.render",
        "MOTIONS": "sora.data.world.scenes",
        **dict.fromkeys(("Prompt", "World", "WorldClip"), "sora.data.world.world"),
        "Facts": "sora.metrics.adherence",
    },
}
EXPORTED["sora.world"] = EXPORTED["sora.data.world"]  # for who names the new package
LAYERS = """\
LAYERS = (
    {"gate"},
    {"system"},
    {"tokens"},
    {"patches"},
    {"diffusion"},
    {"vae", "text", "dit", "video"},
    {"metrics"},
    {"world"},
    {"data"},
    {"ingest", "captions", "curation", "generation"},
    {"runs"},
    {"parallel"},
    {"training"},
    {"config"},
    {"assembly"},
    {"evaluation", "cost"},
    {"launch", "report"},
    {COMMANDS},
)"""


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def table() -> dict[str, str]:
    rows = [line.split("\t") for line in (ROOT / "tools/moves.tsv").read_text().splitlines() if line and not line.startswith("#")]
    found = {f"sora/{old}": f"sora/{new}" for old, new in rows}
    assert len(found) == len(rows) == len(set(found.values())), "a file is named twice"
    return found


def tests_of(moves: dict[str, str]) -> dict[str, str]:
    """Where tests go: those of a folder that moves as a whole with it, and the test of a module beside the module's new place."""
    here = [path for path in git("ls-files", "tests").split("\n") if path.endswith(".py")]
    whole = {"tests/configs/": "tests/config/", "tests/data/decoding/": "tests/video/decoding/", "tests/data/planning/": "tests/data/plan/"}
    found = {"tests/training/faults.py": "tests/faults.py"}  # the folder beside it is to be called so
    for path in here:
        folder = next((folder for folder in whole if path.startswith(folder)), None)
        if folder:
            found[path] = whole[folder] + path.removeprefix(folder)
            continue
        parent, _, name = path.rpartition("/")
        module = f"sora{parent.removeprefix('tests')}/{name.removeprefix('test_')}"
        if name.startswith("test_") and module in moves:
            new = Path(moves[module])
            there = f"tests/{new.parent.relative_to('sora').as_posix()}/test_{new.name}"
            if there.startswith(f"{parent}/") or not bound(path):
                found[path] = there
    return found


def bound(path: str) -> bool:
    """Whether a test needs its folder: by its place, or by the fixtures of the folder's conftest.py."""
    text = (ROOT / path).read_text()
    conftest = (ROOT / path).parent / "conftest.py"
    fixtures = []
    if conftest.is_file() and conftest.parent != ROOT / "tests":
        tree = ast.parse(conftest.read_text())
        fixtures = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and "fixture" in str(list(map(ast.unparse, node.decorator_list)))
        ]
    return "__file__" in text or any(re.search(rf"\b{name}\b", text) for name in fixtures)


def homeless(moves: dict[str, str]) -> list[str]:
    """Files that lie in a place which is given up, and that no line of the table moves."""
    gone = tuple(f"sora/{folder}/" for folder in PACKAGES)
    return [
        path
        for path in git("ls-files", "sora").split("\n")
        if path.endswith(".py")
        and not path.endswith("__init__.py")
        and path not in moves
        and (
            (path.count("/") == 1 and Path(path).stem not in VERBS)
            or path.startswith(gone)
            or (path.startswith("sora/data/") and path.count("/") == 2)
        )
    ]
