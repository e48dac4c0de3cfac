"""Every command line of the README and of the documents composes: its verb, groups, options and keys are there, and its values fit."""

import re
import shlex
from pathlib import Path

import pytest

from sora.config import own
from sora.config.command_line.flags import parse
from sora.config.command_line.sweep import several
from sora.config.command_line.verbs import verbs, worded
from sora.config.compose import compose

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / room / "README.md" for room in ("data", "experiments", "slurm")),
]
BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"^(?:torchrun .* -m sora\.|sora )(\S.*)$")


def lines() -> list[tuple[str, str]]:
    """(page, what stands behind `sora`) of every line of a block of commands that is one of ours."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        ours = [LINE.match(line.strip()) for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        found += [(page.relative_to(ROOT).as_posix(), line[1]) for line in ours if line]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), lines())
def test_a_command_that_is_written_down_composes(page, line):
    words = [word for word in shlex.split(line, comments=True) if word not in ("…", "...")]
    if not words or words[0].startswith("-") or words[0] == "completion":
        return
    assert words[0] in verbs()
    flags = parse(words[1:])
    flags.overrides = worded(verbs()[words[0]], flags.overrides)
    given = flags.overrides
    if flags.multirun:
        given = [word if "*" in word else several(word)[0] for word in given]
    with own.naming(flags.own):
        compose(words[0], [word.rstrip("…") for word in given], flags.folders)
