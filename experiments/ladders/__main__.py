"""Damage real clips rung by rung and write what every offline distance makes of it: docs/ladders.md, its plot, and results.json here.

python -m experiments.ladders          # measures (some five minutes of a core) and writes
python -m experiments.ladders pages    # writes the page and the plot of results.json anew
"""

from __future__ import annotations

import sys

from experiments.ladders.page import RESULTS, write
from sora.system.files import write_json


def main() -> None:
    if sys.argv[1:] not in ([], ["pages"]):
        raise SystemExit(f"{' '.join(sys.argv[1:])}: say nothing, or pages")
    if not sys.argv[1:]:
        from experiments.ladders.measured import measured

        write_json(RESULTS, measured())
    for path in write():
        print(path)


if __name__ == "__main__":
    main()
