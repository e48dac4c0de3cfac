"""The first quarter of an hour on a GPU: `make gpu-check ARGS="minutes=8 only=attention,speed"` writes gpu.json and gpu.log here.

It needs Python, a torch of 2.10 or later with CUDA, and no installation: what a machine without a network lacks comes from a folder of
wheels that `make gpu-wheels` made where there is one (wheels=FOLDER, outputs/gpu-wheels). Sections run in order of worth, each in a
process and with a clock of its own; what fails or is cut off is recorded and passed over, and everything is written as it is found.

    minutes=8        for everything, the start included
    only=a,b         these sections; the rest of an earlier file stays as it is
    device=cuda      or cpu: the same at toy sizes, whose figures say nothing
    output=FILE      where figures go
    wheels=FOLDER
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

BEGAN = time.monotonic()
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEYS = {"minutes": "8", "only": "", "device": "cuda", "output": "", "wheels": str(ROOT / "outputs" / "gpu-wheels")}
NEEDED = (
    "torch",
    "numpy",
    "einops",
    "hydra",
    "omegaconf",
    "yaml",
    "jaxtyping",
    "safetensors",
    "lightning",
    "torchmetrics",
    "packaging",
    "rich",
)
OPTIONAL = ("pyarrow", "av", "PIL", "diffusers", "flash_attn", "triton")  # sections say what they leave out without them
ASKED = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
found = {"count": count}
if count:
    about = torch.cuda.get_device_properties(0)
    free, _ = torch.cuda.mem_get_info(0)
    found |= {"name": about.name, "total": about.total_memory / 2**30, "free": free / 2**30}
print(json.dumps(found))
"""


def main(words: Sequence[str]) -> int:
    try:
        if sys.version_info < (3, 11):  # noqa: UP036  a bare machine has what it has
            raise ValueError(f"this is Python {sys.version.split()[0]}, and 3.11 or later is needed; name one: make gpu-check GPU_PYTHON=…")
        said = read(words)
        unpacked(Path(said["wheels"]))
        refuse_lacking(said["wheels"])
        return check(said)
    except ValueError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2


def read(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words over their defaults.

    Raises:
        ValueError: a key that is unknown or comes twice, or a value that does not fit.
    """
    said: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise ValueError(f"{word!r} is none of {' '.join(f'{name}=…' for name in KEYS)}")
        if key in said:
            raise ValueError(f"{key}= is there twice, {said[key]} and {value}")
        said[key] = value
    if not said.get("only", "x").strip(", "):
        raise ValueError("only= names no section; leave it out for all of them")
    if "wheels" in said and not Path(said["wheels"]).is_dir():
        raise ValueError(f"wheels={said['wheels']} is no folder; make gpu-wheels makes one")
    said = {**KEYS, **said}
    try:
        whole = float(said["minutes"])
    except ValueError:
        whole = -1.0
    if not 0 < whole < 1e4:
        raise ValueError(f"minutes={said['minutes']} must be a number above 0, such as minutes=8")
    if said["device"] not in ("cuda", "cpu"):
        raise ValueError(f"device={said['device']} must be cuda or cpu")
    return said


def fits(wheel: str) -> bool:
    """Whether a wheel of that file name is for this Python and system; not by `packaging`, which is in a wheel itself."""
    pythons, kinds, systems = wheel.removesuffix(".whl").split("-")[-3:]
    here, fitting = f"cp3{sys.version_info.minor}", False
    for python in pythons.split("."):
        number = re.fullmatch(r"cp3(\d+)", python)
        own = python == here and {here, "abi3", "none"} & {*kinds.split(".")}
        older = number and kinds == "abi3" and int(number[1]) <= sys.version_info.minor
        fitting = fitting or python == "py3" or bool(own or older)
    at_home = f"_{platform.machine()}"
    return fitting and any(
        each == "any" or (each.endswith(at_home) and sys.platform in each.replace("many", "")) for each in systems.split(".")
    )


def unpacked(folder: Path) -> None:
    """Make the packages of a folder of wheels importable, behind those that are here; a wheel that does not fit this Python is told."""
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not wheels:
        return
    target = Path(tempfile.mkdtemp(prefix="gpu-wheels-"))
    for wheel in wheels:
        if not fits(wheel.name):
            print(f"{wheel.name} is of another Python or system than {sys.version.split()[0]} on {platform.machine()} here: left out")
            continue
        try:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(target)
        except (zipfile.BadZipFile, OSError) as error:
            print(f"{wheel.name} cannot be unpacked ({error}): left out")
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(target)])


def refuse_lacking(wheels: str) -> None:
    """Raise ValueError where what every section needs is not here."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if "torch" in missing:
        raise ValueError(f"{sys.executable} has no torch; name the Python that has one: make gpu-check GPU_PYTHON=…")
    if missing:
        raise ValueError(
            f"missing here: {', '.join(missing)}; run make gpu-wheels GPU_PYTHON_VERSION=3.{sys.version_info.minor} where there is"
            f" a network, and bring {wheels}"
        )
    try:
        found = version("torch")
    except PackageNotFoundError:
        return
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < (2, 10):
        raise ValueError(f"torch {found} is here, and 2.10 or later is needed")


def place_of(said: dict[str, str], *, toy: bool) -> Path:
    """The file that figures go to.

    Raises:
        ValueError: it cannot be one.
    """
    path = Path(said["output"]) if said["output"] else (Path(tempfile.gettempdir()) / "gpu-cpu.json" if toy else HERE / "gpu.json")
    from sora.system.files import refuse_unwritable

    refuse_unwritable(path, key="output", suffix=".json")
    return path


def check(said: dict[str, str]) -> int:
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.gpu.processes import forked
    from tests.gpu.record import Place, Record, run
    from tests.gpu.sections import SECTIONS

    names = [name.strip() for name in said["only"].split(",") if name.strip()]
    if unknown := sorted(set(names) - {section.name for section in SECTIONS}):
        raise ValueError(f"only={said['only']}: there is no {', '.join(unknown)}; sections: {', '.join(each.name for each in SECTIONS)}")
    toy = said["device"] == "cpu"
    path, found = place_of(said, toy=toy), {} if toy else device()
    if not toy and not found.get("count"):
        raise ValueError(f"no CUDA device here (torch {torch.__version__}{found.get('why', '')}); device=cpu runs the same at toy sizes")
    if toy:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        record = Record(path, about=about(said, found), sections=SECTIONS, keep=bool(names))
        place = Place(said["device"], toy, Path(folder), math.inf if toy else found["free"])
        if not toy and found["free"] < 0.9 * found["total"]:
            record.tell(f"{found['total'] - found['free']:.1f} of {found['total']:.0f} GiB of the device are in others' use")
        for name in OPTIONAL:
            if find_spec(name) is None:
                record.tell(f"{name} is not here; what needs it is left out")
        chosen = [section for section in SECTIONS if not names or section.name in names]
        left = float(said["minutes"]) - (time.monotonic() - BEGAN) / 60
        run(chosen, place, record, minutes=left, runner=forked)
    states = {name: entry["status"] for name, entry in record.data["sections"].items()}
    failed = [name for name, status in states.items() if status not in ("ran", "not run")]
    print(f"{sum(each == 'ran' for each in states.values())} of {len(states)} sections ran, {', '.join(failed) or 'none'} failed: {path}")
    if path == HERE / "gpu.json":
        print("next: python experiments/gpu_page.py, which writes docs/gpu.md from it")
    return 0


def device() -> dict:
    """Count, name and GiB of the CUDA devices, asked of another process: one that has asked may not fork any more."""
    ran = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=False)
    if ran.returncode:
        return {"why": f": {(ran.stderr.strip().splitlines() or ['it ended'])[-1]}"}
    return json.loads(ran.stdout.splitlines()[-1])


def about(said: dict[str, str], found: dict) -> dict[str, object]:
    """Machine, versions, commit and time."""
    import torch

    driver = told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] if found else ""
    commit = told("git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= and changes")
    return {
        "device": f"{found['name']}, {found['total']:.0f} GiB" if found else "cpu, toy sizes: the figures say nothing",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver},
        "commit": commit or os.environ.get("SORA_COMMIT", ""),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "asked": said,
    }


def told(*words: str) -> str:
    """What a command prints; nothing where it is not there or fails."""
    if shutil.which(words[0]) is None:
        return ""
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else ""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
