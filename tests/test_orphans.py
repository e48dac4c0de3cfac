"""No process is left behind by a command, however it ends: verbs x {finish, error, INT, TERM, HUP, QUIT, KILL}.

    python -m tests.test_orphans          all of them, as a table; the suite kills each by force once, which nothing can answer

Whoever loses its parent becomes a child of this process, so that none is missed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trained import diffusion_run, vae_artefact, world_dataset
from tests.training.soak_long import CHILD_SUBREAPER, family

ENDS = ("finish", "error", "INT", "TERM", "HUP", "QUIT", "KILL")
WITHIN, PATIENCE = 15.0, 300.0  # seconds in which all are gone, and in which a command has children or ends
Words = Callable[[Path, Path], list[str]]
SMALL = ["source=world", "source.world.sizes=[[16,16]]", "source.world.seconds=[0.5]", "source.world.rates=[8]"]
TOY = ["experiment=toy", "plan.budget=120", "plan.window=2", "trainer.threads=1", "steps=2000", "workers=2", "logger=csv"]
VERBS: dict[str, Words] = {
    "prepare": lambda home, out: ["prepare", *SMALL, "count=500", "workers=2", f"output={out}"],
    "train": lambda home, out: ["train", *TOY, f"vae={home}/vae", f"data.folders=[{home}/world]", f"output={out}"],
    "train videos": lambda home, out: [*("train", *TOY, "data=videos", f"vae={home}/vae", f"data.folders=[{home}/world]", f"output={out}")],
    "sweep": lambda home, out: ["train", "-m", *TOY, "seed=0,1", f"vae={home}/vae", f"data.folders=[{home}/world]", f"output={out}"],
    "evaluate": lambda home, out: ["evaluate", f"checkpoint={home}/dit", f"data={home}/world", "n=4", "steps=200", f"output={out}"],
    "data check": lambda home, out: ["data", "check", f"{home}/world"],
    "quickstart": lambda home, out: ["quickstart", "scale=toy", f"output={out}"],
}
SHORT = {"prepare": ["count=4"], "train": ["steps=2"], "train videos": ["steps=2"], "sweep": ["steps=2"], "evaluate": ["steps=1"]}


def made(home: Path) -> Path:
    world = world_dataset(home / "world", clips=8)
    vae = vae_artefact(home / "vae")
    subprocess.run([sys.executable, "-m", "sora.encode", f"vae={vae}", f"data={world}", "text=byte"], check=True, capture_output=True)
    diffusion_run(home / "dit", vae=vae, data=world)
    return home


def left_behind(home: Path, verb: str, end: str) -> list[str]:
    """What is left of a command that ended so, by the words of each process; it is ended here then."""
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    before = set(family(os.getpid()))
    words = VERBS[verb](home, Path(tempfile.mkdtemp(dir=home)) / "out")
    words += {"finish": SHORT.get(verb, []), "error": ["no_such_key=1"]}.get(end, [])
    process = subprocess.Popen([sys.executable, "-m", "sora.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if end not in ("finish", "error"):
        began = time.monotonic()
        while process.poll() is None and len(family(process.pid)) < 2 and time.monotonic() < began + PATIENCE:
            time.sleep(0.05)
        time.sleep(0.3)  # they are at work
        process.send_signal(getattr(signal, f"SIG{end}"))
    process.wait(PATIENCE)
    began = time.monotonic()
    while (left := set(family(os.getpid())) - before) and time.monotonic() < began + WITHIN:
        time.sleep(0.1)
    told = [Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120] for one in left if Path(f"/proc/{one}").exists()]
    for one in left:
        os.kill(one, signal.SIGKILL)
    return told


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("orphans"))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["prepare", "train videos", "sweep", "evaluate"])
def test_a_command_that_is_killed_by_force_leaves_no_process(home, verb):
    assert not left_behind(home, verb, "KILL")


def main() -> int:
    found = 0
    with tempfile.TemporaryDirectory(prefix="orphans-") as place:
        home = made(Path(place))
        for verb in VERBS:
            for end in ENDS:
                left = left_behind(home, verb, end)
                found += bool(left)
                print(f"{verb:<13} {end:<7} {'none' if not left else '; '.join(left)}", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    raise SystemExit(main())
