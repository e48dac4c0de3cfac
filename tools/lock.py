"""Write requirements.lock: every package that an installation of sora has, at one version, with the SHA-256 of its file.

    python tools/lock.py        # what pip would install now, by constraints.txt and requirements-nodeps.txt; nothing is installed

The hashes are those of the files that fit this machine and Python, which the head of the lock names; make one of your own elsewhere.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WANTED = (("-c", "constraints.txt", "-e", ".[dev,tensorboard]"), ("--no-deps", "-r", "requirements-nodeps.txt"))
HEAD = """\
# Every package of an installation, known by its file's hash: made by `make lock` on {machine}, CPython {python}.
# python -m pip install --require-hashes --no-deps -r requirements.lock && python -m pip install --no-deps --no-build-isolation -e .
# torch is its build without CUDA; on a GPU machine make a lock of your own beside the torch that you have.
"""


def resolved(*words: str) -> list[dict[str, Any]]:
    """What pip would install for these words, as its report says."""
    asked = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    done = subprocess.run([*asked, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["install"]


def lines(found: list[dict[str, Any]]) -> list[str]:
    """`name==version --hash=sha256:…` of each package but sora itself. Raises ValueError for one without a hash."""
    pinned = {}
    for item in found:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name == "sora":
            continue
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name} {version} has no hash: it comes from no file; name a released version")
        pinned[name.lower().replace("_", "-")] = f"{name}=={version} --hash=sha256:{digest}"
    return [pinned[name] for name in sorted(pinned)]


def main() -> None:
    found = [item for words in WANTED for item in resolved(*words)]
    head = HEAD.format(machine=f"{platform.system()} {platform.machine()}", python=".".join(platform.python_version_tuple()[:2]))
    (ROOT / "requirements.lock").write_text(head + "".join(f"{line}\n" for line in lines(found)), encoding="utf-8")
    print(f"{len(found)} packages in {ROOT / 'requirements.lock'}")


if __name__ == "__main__":
    main()
