"""requirements.lock: every package with a hash, and every one that sora asks for at a version that it takes."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:[0-9a-f]{64}")


def test_every_line_has_a_hash_and_every_requirement_a_line_that_it_takes():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    pinned = {canonicalize_name(match["name"]): match["version"] for match in found if match}
    assert len(pinned) == len(lines) > 100
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"], *project["optional-dependencies"]["tensorboard"]]
    wanted += [line for line in (ROOT / "requirements-nodeps.txt").read_text().splitlines() if line and not line.startswith("#")]
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} and {version}"
