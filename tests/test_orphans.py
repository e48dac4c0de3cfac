"""No command leaves a process behind, however and whenever it is ended: verbs x signals x moments x {it alone, its whole group}.

    python -m tests.test_orphans [VERB …]     all of them, or of these verbs, as a table; the suite takes a few

The moments are the start (the interpreter imports), the midst (it has children, or has made its output) and a save (something is staged).
What is asked: nothing of it is there after 5 s, nothing that it says is a traceback, and its exit code is the signal's. Whoever loses its
parent becomes a child of this process, so that none is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sora.system.files import STAGING
from tests.curation.material import folder_of_videos
from tests.trained import diffusion_run, vae_artefact, world_dataset
from tests.training.soak_long import CHILD_SUBREAPER, family

SIGNALS = ("INT", "TERM", "HUP", "QUIT", "KILL")
MOMENTS = ("start", "midst", "save")
WITHIN, PATIENCE = 5.0, 300.0  # seconds in which all are gone, and in which a command comes to a moment or ends
STARTING = (0.1, 2.5)  # seconds after which it is still at its start; before the first, no code of ours has run
Words = Callable[[Path], list[str]]
SMALL = ["source=world", "source.world.sizes=[[24,24]]", "source.world.seconds=[0.5]", "source.world.rates=[8]"]
OFTEN = ["trainer.threads=1", "steps=20000", "workers=2", "logger=csv", "checkpoint.every=3"]
TOY = ["experiment=toy", "plan.budget=120", "plan.window=2", *OFTEN]
VAE = ["experiment=toy_vae", "plan.batch=2", "plan.shapes=[[9,24,24]]", *OFTEN]
VERBS: dict[str, Words] = {
    "prepare": lambda home: ["prepare", *SMALL, "count=2000", "workers=2"],
    "encode": lambda home: ["encode", f"vae={home}/vae", "text=byte", "batch=1", "threads=1"],
    "train": lambda home: ["train", *TOY, f"vae={home}/vae", f"data.folders=[{home}/world]"],
    "train videos": lambda home: ["train", *TOY, "data=videos", "data.areas=[576]", f"vae={home}/vae", f"data.folders=[{home}/world]"],
    "train vae": lambda home: ["train", *VAE, f"data.folders=[{home}/world]"],
    "sweep": lambda home: ["train", "-m", *TOY, "seed=0,1", f"vae={home}/vae", f"data.folders=[{home}/world]"],
    "sample": lambda home: ["sample", f"checkpoint={home}/dit", f"prompt=[{','.join('abcdefgh' * 20)}]", "seconds=1", "size=16x16"],
    "evaluate": lambda home: ["evaluate", f"checkpoint={home}/dit", f"data={home}/world", "n=4", "steps=2000"],
    "evaluate sweep": lambda home: ["evaluate", "-m", f"checkpoint={home}/dit", f"data={home}/world", "n=4", "steps=2000,2001"],
    "curate": lambda home: [
        "curate",
        f"input={home}/videos",
        "engine.workers=2",
        "cuts=none",
        "transcode.size=null",
        "transcode.multiple=2",
    ],
    "data index": lambda home: ["data", "index", f"{home}/tars", "key_with_shard=true", "workers=2"],
    "data check": lambda home: ["data", "check", f"{home}/many"],
    "quickstart": lambda home: ["quickstart", "scale=toy"],
}
SHORT = {
    "prepare": ["count=4"],
    "encode": ["batch=8"],
    "train": ["steps=2"],
    "train videos": ["steps=2"],
    "train vae": ["steps=2"],
    "sweep": ["steps=2"],
    "sample": ["steps=1", "prompt=a"],
    "evaluate": ["steps=1"],
    "evaluate sweep": ["steps=1,2"],
}


@dataclass(frozen=True)
class End:
    """How a command ends: "finish", "error" or a signal, which comes at a `moment`, to it alone or to its `whole` group."""

    by: str
    moment: str = ""
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.by:<6} {self.moment:<5} {('group' if self.whole else 'alone') if self.moment else '':<5}"

    @property
    def codes(self) -> set[int]:
        if not self.moment:
            return {0} if self.by == "finish" else {2}
        number = getattr(signal, f"SIG{self.by}")
        return {-number} if self.by in ("KILL", "QUIT") else {-number, 128 + number}


ENDS = [End("finish"), End("error"), *itertools.starmap(End, itertools.product(SIGNALS, MOMENTS, (False, True)))]


def words(verb: str, home: Path, out: Path) -> list[str]:
    """Of a command that makes `out`, or adds to it as `encode` does."""
    if verb == "encode":
        return [*VERBS[verb](home), f"data={shutil.copytree(home / 'many', out)}"]
    return [*VERBS[verb](home), *([] if verb == "data check" else [f"output={out}"])]


def made(home: Path) -> Path:
    world = world_dataset(home / "world", clips=8)
    many = world_dataset(home / "many", clips=400)
    (home / "tars").mkdir()
    for number in range(4):
        shutil.copy(many / "video-000000.tar", home / f"tars/{number:05d}.tar")
    folder_of_videos(home / "videos", 12)
    vae = vae_artefact(home / "vae")
    subprocess.run([sys.executable, "-m", "sora.encode", f"vae={vae}", f"data={world}", "text=byte"], check=True, capture_output=True)
    diffusion_run(home / "dit", vae=vae, data=world)
    return home


def staged(folder: Path) -> bool:
    return any(name.startswith(STAGING) for _, folders, files in os.walk(folder) for name in (*folders, *files))


def come(process: subprocess.Popen[str], moment: str, out: Path, begun: float) -> None:
    """Wait for a moment of a command that writes to `out` and has not ended."""
    if moment == "start":
        time.sleep(random.uniform(*STARTING))
        return
    there = os.path.lexists(out)  # of what it adds to

    def now() -> bool:
        if moment == "save":
            return staged(out)
        return len(family(process.pid)) > 1 or (os.path.lexists(out) and not there) or (there and staged(out))

    while process.poll() is None and not now() and time.monotonic() < begun + PATIENCE:
        time.sleep(0.002 if moment == "save" else 0.02)
    time.sleep(random.uniform(0, 0.5) if moment == "midst" else 0.0)


def hearing() -> None:
    """In the child: what a shell has started in the background ignores Ctrl-C, and with nohup a hangup, as all do that it starts."""
    for each in SIGNALS[:-1]:
        signal.signal(getattr(signal, f"SIG{each}"), signal.SIG_DFL)


def trouble(home: Path, verb: str, end: End) -> list[str]:
    """What is wrong with how a command ended: its code, a traceback, processes that it left, which are ended here then."""
    ctypes.CDLL(None).prctl(CHILD_SUBREAPER, 1)
    before, out = set(family(os.getpid())), Path(tempfile.mkdtemp(dir=home)) / "out"
    said = [*words(verb, home, out), *{"finish": SHORT.get(verb, []), "error": ["no_such_key=1"]}.get(end.by, [])]
    with tempfile.TemporaryFile("w+") as told:
        begun, over = time.monotonic(), False
        quiet = {"stdout": subprocess.DEVNULL, "stderr": told, "start_new_session": True, "text": True}
        process = subprocess.Popen([sys.executable, "-m", "sora.cli", *said], preexec_fn=hearing, **quiet)
        if end.moment:
            come(process, end.moment, out, begun)
            over = process.poll() is not None
            if not over:
                (os.killpg if end.whole else os.kill)(process.pid, getattr(signal, f"SIG{end.by}"))
        code = process.wait(PATIENCE)
        wrong = [] if code in end.codes and not over else [f"exit code {code}{', before it came to this moment' if over else ''}"]
        stopped = time.monotonic()
        while (left := set(family(os.getpid())) - before) and time.monotonic() < stopped + WITHIN:
            time.sleep(0.05)
        wrong += [f"left behind: {one}" for one in map(words_of, left) if one]
        for one in left:
            with contextlib.suppress(ProcessLookupError):  # just now
                os.kill(one, signal.SIGKILL)
        told.seek(0)
        heard = told.read()
    if "Traceback" in heard or wrong:
        wrong.append(heard[-1500:])
    shutil.rmtree(out.parent, ignore_errors=True)
    return wrong


def words_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:160]
    except OSError:
        return ""


def cases(verb: str) -> Iterator[End]:
    """Those that a verb can come to."""
    for end in ENDS:
        if (verb, end.moment) != ("data check", "save"):  # it writes nothing
            yield end


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("orphans"))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["prepare", "encode", "train videos", "sweep", "sample", "evaluate", "curate"])
@pytest.mark.parametrize(
    "end",
    [End("KILL", "midst"), End("INT", "start", whole=True), End("INT", "save", whole=True)],
    ids=lambda end: "-".join(str(end).split()),
)
def test_a_command_that_is_ended_leaves_no_process_and_no_traceback(home, verb, end):
    assert not trouble(home, verb, end)


def main(verbs: list[str]) -> int:
    found = count = 0
    with tempfile.TemporaryDirectory(prefix="orphans-") as place:
        home = made(Path(place))
        for verb in verbs or VERBS:
            for end in cases(verb):
                wrong = trouble(home, verb, end)
                found, count = found + bool(wrong), count + 1
                print(f"{verb:<14} {end}  {'none' if not wrong else '; '.join(wrong)}", flush=True)
    print(f"{count} commands ended, {found} with trouble")
    return int(found > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
