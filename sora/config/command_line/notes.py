"""The comments after the keys of YAML files, which `--help` shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

KEY = re.compile(r"^(\s*)([A-Za-z_]\w*):(.*)$")


def comments(files: Sequence[Path], chosen: Mapping[str, str | None]) -> dict[str, str]:
    """The comment after each key of YAML files, by dotted key of the composition; later files win."""
    found: dict[str, str] = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        group = path.parent.name
        prefix = f"{group}." if group in chosen and "@package _global_" not in text else ""
        stack: list[tuple[int, str]] = []
        for line in text.splitlines():
            match = KEY.match(line)
            if not match:
                continue
            indent, key, rest = len(match[1]), match[2], match[3]
            stack = [*(item for item in stack if item[0] < indent), (indent, key)]
            _, mark, note = rest.partition(" # ")
            if mark or rest.lstrip().startswith("# "):
                found[prefix + ".".join(name for _, name in stack)] = (note or rest.lstrip()[2:]).strip()
    return found
