"""The plot and the table of docs/checkpoints.md, of experiments/benchmarks/soak.json: `python experiments/soak_page.py`.

A test holds the page to what this makes of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND, PAGE, PLOT = ROOT / "experiments/benchmarks/soak.json", ROOT / "docs/checkpoints.md", ROOT / "docs/soak.svg"
BETWEEN = re.compile(r"(<!-- from soak\.json -->\n).*?(<!-- end -->)", re.DOTALL)
TOLD = {
    "memory_mb": "memory of all processes, MB",
    "descriptors": "open files",
    "threads": "threads",
    "children": "child processes",
    "shared_mb": "/dev/shm, MB",
}


def section(found: Mapping[str, Any]) -> str:
    """The words of the page."""
    figures = found["figures"]
    lines = [
        f"`make soak-long`: {found['steps']:,} steps of a small run with two loader workers, a tracker, a held-out loss and a checkpoint",
        f"every 25 steps, looked at from outside. Exit code {found['code']}, {found['left_behind']} processes left behind.",
        "",
        "![what a run holds, by step](soak.svg)",
        "",
        "| all its processes together | after a quarter of the steps | at the end |",
        "|---|---|---|",
    ]
    lines += [f"| {told} | {figures[f'{name}_first']:.4g} | {figures[f'{name}_last']:.4g} |" for name, told in TOLD.items()]
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Any]) -> str:
    """Everything over its value after a quarter of the steps, as an SVG file."""
    from sora.report.plots import curves

    rows = [row for row in found["rows"] if row["children"]]  # when its children are gone a run is at its end
    steps = [row["step"] for row in rows]
    series = {
        told: (steps, [row[name] / (found["figures"][f"{name}_first"] or 1.0) for row in rows]) for name, told in reversed(TOLD.items())
    }  # memory last, above the others
    drawn = curves(series, across="step", up="over that of a quarter of the steps")
    return drawn.replace("currentColor", "#606060") + "\n"  # a picture of its own has no page to take it from


def main() -> None:
    found = json.loads(FOUND.read_text(encoding="utf-8"))
    text = BETWEEN.sub(lambda match: f"{match[1]}{section(found)}{match[2]}", PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    PLOT.write_text(plot(found), encoding="utf-8")
    print(PAGE, PLOT)


if __name__ == "__main__":
    main()
