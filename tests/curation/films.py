"""Small films for tests: shots of slowly drifting patterns, joined by the composer of the benchmark."""

import numpy as np

from experiments.composed_films import Film, Known


def shot(seed, count, size=(54, 96), drift=0.03):
    """A pattern of smooth waves that drifts, about `drift` pixels a frame; another seed is another scene."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32) * (54 / size[0])
    frames = np.zeros((count, *size, 3), np.float32)
    level, amount = draw.uniform(70, 190, 3), draw.uniform(10, 22, (6, 3))
    for wave in range(6):
        x, y, phase = *draw.uniform(-0.35, 0.35, 2), draw.uniform(0, 6)
        moved = (x * rows + y * columns)[None] + phase + drift * x * np.arange(count)[:, None, None]
        frames += amount[wave] * np.sin(moved)[..., None]
    return np.clip(frames + level, 0, 255).astype(np.uint8)


def joined_shots(kinds, *, alone=40, length=16, size=(54, 96), wipe=(0, 0), seed=0):
    """A film whose shots stand alone for `alone` frames, joined by transitions of these kinds, gradual ones of `length` frames."""
    out = (length - length // 5) // 2
    shares = {"hard": (0, 0), "dissolve": (length, length), "wipe": (length, length), "fade": (out, length - length // 5 - out)}
    shots, known, begin = [], [], 0
    for place in range(len(kinds) + 1):
        lead = shares[kinds[place - 1]][1] if place else 0
        tail = shares[kinds[place]][0] if place < len(kinds) else 0
        shots.append(shot(seed * 100 + place, lead + alone + tail, size))
        if place < len(kinds):
            first = begin + alone
            begin = first + (0 if kinds[place] == "hard" else length)
            known.append(Known(kinds[place], first, begin))
    return Film(tuple(shots), tuple(known), (), (wipe,) * len(kinds))
