"""A picture of the study: for each question, every arm's runs as points and their mean as a bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from statistics import mean
from typing import Any

PANELS = {"loss": "held-out loss (less is better)", "adherence_all": "adherence (more is better)"}


def plot(rows: Sequence[Mapping[str, Any]], questions: Sequence[str], name_of: Callable[[Any, str], str]) -> str:
    """One SVG; rows as `study.results` gives them."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sora", "font.size": 9})
    lines = [(question, row) for question in questions for row in rows if question in row["questions"]]
    panels = {key: words for key, words in PANELS.items() if key == "loss" or any(row.get(key) for row in rows)}
    size = (5 + 3 * len(panels), 1 + 0.3 * len(lines))
    figure, grid = pyplot.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained", squeeze=False)
    axes = grid[0]
    for panel, (key, words) in zip(axes, panels.items(), strict=True):
        for place, (question, row) in enumerate(lines):
            values = row.get(key, [])
            colour = f"C{list(questions).index(question)}"
            panel.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=5)
            if values:
                panel.plot([mean(values)], [place], "|", color=colour, markersize=16, markeredgewidth=2)
        panel.set_xlabel(words)
        panel.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(lines)), [f"{question}: {name_of(row, question)}" for question, row in lines])
    axes[0].invert_yaxis()
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return text.getvalue()
