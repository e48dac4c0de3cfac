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

import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
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
    "jaxtyping",
    "safetensors",
    "pyarrow",
    "lightning",
    "torchmetrics",
    "av",
    "rich",
)
OPTIONAL = ("diffusers", "flash_attn", "transformers", "triton")  # sections say what they leave out without them


def main(words: Sequence[str]) -> int:
    try:
        said = read(words)
        unpacked(Path(said["wheels"]))
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise ValueError(
                f"missing here: {', '.join(missing)}; run make gpu-wheels where there is a network, and bring {said['wheels']}"
            )
        return check(said)
    except ValueError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2


def read(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words over their defaults.

    Raises:
        ValueError: an unknown key, or minutes that are no number above 0.
    """
    said = dict(KEYS)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise ValueError(f"{word!r} is none of {' '.join(f'{name}=…' for name in KEYS)}")
        said[key] = value
    try:
        whole = float(said["minutes"])
    except ValueError:
        whole = -1.0
    if not 0 < whole < 1e4:
        raise ValueError(f"minutes={said['minutes']} must be a number above 0, such as minutes=8")
    if said["device"] not in ("cuda", "cpu"):
        raise ValueError(f"device={said['device']} must be cuda or cpu")
    return said


def unpacked(folder: Path) -> None:
    """Make the packages of a folder of wheels importable, behind those that are here; a wheel that does not fit this Python is told."""
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not wheels:
        return
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    fitting, target = set(sys_tags()), Path(tempfile.mkdtemp(prefix="gpu-wheels-"))
    for wheel in wheels:
        if not fitting & parse_wheel_filename(wheel.name)[3]:
            print(f"{wheel.name} is of another Python or system than {sys.version.split()[0]} here: left out")
            continue
        with zipfile.ZipFile(wheel) as file:
            file.extractall(target)
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(target)])


def check(said: dict[str, str]) -> int:
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.gpu.processes import forked
    from tests.gpu.record import Place, Record, run
    from tests.gpu.sections import SECTIONS

    names = [name for name in said["only"].split(",") if name]
    if unknown := sorted(set(names) - {section.name for section in SECTIONS}):
        raise ValueError(f"only={said['only']}: there is no {', '.join(unknown)}; sections: {', '.join(each.name for each in SECTIONS)}")
    toy, count = said["device"] == "cpu", devices()
    if not toy and not count:
        raise ValueError(f"no CUDA device here (torch {torch.__version__}); device=cpu runs the same at toy sizes")
    if toy:
        torch.set_num_threads(1)
    path = Path(said["output"]) if said["output"] else (Path(tempfile.gettempdir()) / "gpu-cpu.json" if toy else HERE / "gpu.json")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        known = about(said)
        place = Place(said["device"], toy, Path(folder), math.inf if toy else memory_of(str(known["device"])))
        record = Record(path, about=known, sections=SECTIONS, keep=bool(names))
        for name in OPTIONAL:
            if find_spec(name) is None:
                record.tell(f"{name} is not here; what needs it is left out")
        chosen = [section for section in SECTIONS if not names or section.name in names]
        left = float(said["minutes"]) - (time.monotonic() - BEGAN) / 60
        run(chosen, place, record, minutes=left, runner=forked)
    states = {name: entry["status"] for name, entry in record.data["sections"].items()}
    failed = [name for name, status in states.items() if status not in ("ran", "not run")]
    print(
        f"{sum(status == 'ran' for status in states.values())} of {len(states)} sections ran, {', '.join(failed) or 'none'} failed: {path}"
    )
    print("next: python experiments/gpu_page.py, which writes docs/gpu.md from it")
    return 0


def devices() -> int:
    """How many CUDA devices there are, asked of another process: one that has asked may not fork any more."""
    ask = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return int(ran.stdout.strip() or 0) if ran.returncode == 0 else 0


def memory_of(told: str) -> float:
    """GiB of a device, by what `about` tells of it; 0 where it could not be asked."""
    found = re.search(r"(\d+) GiB$", told)
    return float(found[1]) if found else 0.0


def about(said: dict[str, str]) -> dict[str, object]:
    """Machine, versions, commit and time."""
    import torch

    ask = "import torch; p = torch.cuda.get_device_properties(0); print(f'{p.name}, {p.total_memory / 2**30:.0f} GiB')"
    ran = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False) if said["device"] == "cuda" else None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": ran.stdout.strip() if ran is not None else "cpu, toy sizes: the figures say nothing",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda},
        "commit": commit or os.environ.get("SORA_COMMIT", ""),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "asked": said,
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
