"""Set scores side by side that one protocol measured; others are refused, with the fields that differ.

sora compare A B …        scores.json files, folders that hold one, or runs (their newest evaluation), as a table; what each clip has a
                          score of (held-out losses, reconstructions, adherence) also as its change against the first one's, clip by clip
sora compare SWEEP        the folder of a sweep (sora train -m …) stands for all of its runs: a row for each combination of the swept
                          words, the mean ± over seeds; runs without scores are compared by what they measured while they trained
format=                   text, markdown, latex or csv
differ=[sampling.steps]   fields that may differ on purpose: they become columns
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sora.report.comparison import board
from sora.report.scores import Unlike
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.config.compose import Composed

EXAMPLES = (
    "sora compare outputs/one outputs/two",
    "sora compare outputs/density/* figures=[frechet,kvd] format=latex",
    "sora compare outputs/one/evaluation/step-00001000 outputs/one/evaluation/step-00002000 output=table.csv format=csv",
)
BARE = ("scores",)  # the key that words without KEY= are values of


def main(composed: Composed) -> None:
    """Read the scores, refuse those of different protocols, and print the table or write it."""
    import sys

    from sora.report.tables import FORMATS
    from sora.system import files as storage

    config = composed.config
    if config.format not in FORMATS:
        raise ValueError(f"format={config.format}: choose from {', '.join(FORMATS)}")
    if config.output is not None:
        storage.refuse_no_file(Path(config.output), f"output={config.output}")
    figures = None if config.figures is None else tuple(config.figures)
    try:
        places, over = [str(place) for place in config.scores], tuple(config.over)
        made = board(places, figures=figures, differ=tuple(config.differ), over=over, asked="over" in composed.said)
    except Unlike as unlike:
        print(unlike.table, file=sys.stderr)
        raise
    text = FORMATS[config.format](made.head, made.rows)
    print(*made.notes, sep="\n", end="\n" if made.notes else "", file=sys.stderr if config.output is None else sys.stdout)
    if config.output is None:
        print(text, end="")
        return
    storage.write_text(Path(config.output), text)
    print(f"the table of {counted(len(made.rows), 'row')} is in {config.output}")


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("compare"))
