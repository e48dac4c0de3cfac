"""Runs commands one after another, each in a process forked from one that has imported all that commands import, and does nothing else.

Imports are paid once, so that a trial takes what the command itself takes. The process that forks never uses a thread, and so no pool
of one is lost in its children.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import sora
from tests.attacks.material import TRAIN

STEP = 0.02  # seconds between two looks at a trial
HEAVY = (
    "torch",
    "numpy",
    "pyarrow.parquet",
    "av",
    "PIL.Image",
    "yaml",
    "hydra",
    "safetensors.torch",
    "lightning",
    "jinja2",
    "matplotlib.figure",
)
# What the attacks ask for most, whose parts of conf/ are then composed already: to compose is half of a refusal's work.
ASKED = (
    *((verb,) for verb in ("train", "sample", "evaluate", "encode", "plan", "prepare", "export", "data")),
    *((verb, *TRAIN, "data.folders=[x]", "vae=x", "steps=1") for verb in ("train", "plan")),
    ("train", "task=diffusion"),  # as a resume composes it
    ("report",),
    ("encode", "data=x", "vae=x", "text=byte"),
    *(("prepare", f"source={name}", "output=x") for name in ("folder", "world")),
)


def main() -> None:
    """Serve orders from stdin, a JSON line each, with answers on stdout."""
    warm()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"baseline_mb": _resident(os.getpid())}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_trial(json.loads(line))), file=answers, flush=True)


def warm() -> None:
    """Do here what every trial would do by itself: imports, and what is kept of conf/ and of the source."""
    for name in HEAVY:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(sora.__path__, "sora."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from sora.config.compose import compose

    for verb, *words in ASKED:
        compose(verb, words)
    gc.collect()
    gc.freeze()  # else each child looks for garbage among all of this, and by that takes a copy of it


def _trial(order: dict[str, Any]) -> dict[str, Any]:
    """Fork, and look at the child until it ends, takes too long or takes too much; what it left behind is ended, too."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(order)
    ended, peak, why = False, 0.0, ""
    while not ended:
        done, status, used = os.wait4(child, os.WNOHANG)
        ended = done == child
        if not ended:
            peak = max(peak, _resident(child))
            why = "time" if time.monotonic() - began > order["seconds"] else "memory" if peak > order["memory_mb"] else ""
            if why:
                os.killpg(child, signal.SIGKILL)
                _, status, used = os.wait4(child, 0)
                ended = True
            else:
                time.sleep(STEP)
    left = _left(child)
    code = os.waitstatus_to_exitcode(status)
    return {
        "code": code,
        "seconds": time.monotonic() - began,
        "cpu": used.ru_utime + used.ru_stime,
        "peak_mb": max(peak, used.ru_maxrss / 1024),
        "ended_for": why,
        "left": left,
    }


def _become(order: dict[str, Any]) -> None:
    """The command, in the forked child. Never returns."""
    os.setsid()
    code = 1
    try:
        os.chdir(order["cwd"])
        os.environ.update(order["env"])
        for number, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
            handle = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))
        _watch(order["seen"])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if order["words"][0] == "!make":
            from tests.attacks.material import make

            make(Path(order["words"][1]))
            code = 0
        else:
            from sora.cli import main as command

            code = command(order["words"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(path: str) -> None:
    """Write down every host that is looked up or connected to, and every program that is started."""
    told = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect" and not isinstance(args[1], tuple):
            return  # within this machine
        if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            said = args[1] if event == "socket.connect" else args[0]
            os.write(told, (json.dumps([event, str(said)]) + "\n").encode())

    sys.addaudithook(hook)


def _resident(process: int) -> float:
    """Megabytes that a process holds; 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_bytes().split()[1]) * resource.getpagesize() / 2**20
    except (OSError, IndexError):
        return 0.0


def _left(group: int) -> int:
    """How many processes of a trial are still there a moment after it; they are ended."""
    for _ in range(25):
        left = [one for one in Path("/proc").glob("[0-9]*/stat") if _group(one) == group]
        if not left:
            return 0
        time.sleep(STEP)
    os.killpg(group, signal.SIGKILL)
    return len(left)


def _group(stat: Path) -> int:
    try:
        state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return -1
    return -1 if state == "Z" else int(group)


if __name__ == "__main__":
    main()
