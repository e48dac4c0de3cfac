"""The scores of single clips in `scores.json`, told apart by what each clip is: so that two files can be set side by side clip by clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sora.evaluation.words import CONTINUATION, NEEDS

# Fields of a protocol that make the clips of two files the same ones.
OF_ORIGINALS = ("dataset", "real", "generated", "pixels", "measures")
OF_PROMPTS = ("prompts", "generated", "pixels", "seed")
VAE = "_vae_"  # between a dataset's name and a figure's
NO_SCORES = ("dataset", "key", "frames", "height", "width", "file", "videos", "exact_frames")  # of a reconstruction's row

Clip = tuple[Any, ...]


OF_FUTURES = ("dataset", "real", "pixels", "measures")


def alike(name: str) -> tuple[str, ...]:
    """The fields in which two protocols must agree for a figure to be compared clip by clip: those of originals for a VAE's, the encoder's
    for one that is named by it."""
    if name.startswith(f"{CONTINUATION}_"):
        return OF_FUTURES
    return OF_ORIGINALS if VAE in name else (*OF_PROMPTS, *(("extractor",) if "/" in name else ()))


def of_clips(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[Clip, float]]:
    """For each figure that is a mean over clips, the clips' own values: verdicts are 0 or 1. Clips without a prompt or a key have none."""
    found: dict[str, dict[Clip, float]] = {}
    seen: Counter[Clip] = Counter()
    for row in rows:
        if CONTINUATION in row:
            clip, values = (CONTINUATION, row["of"]), {f"{CONTINUATION}_{name}": value for name, value in row[CONTINUATION].items()}
            found |= {name: {**found.get(name, {}), (*clip, seen[clip] + 1): float(value)} for name, value in values.items()}
            seen[clip] += 1
        clip, values = _reconstructed(row) if "key" in row else _prompted(row)
        if None in clip:
            continue
        seen[clip] += 1  # a prompt may be asked for several times, with other noise each time
        for name, value in values.items():
            found.setdefault(name, {})[*clip, seen[clip]] = float(value)
    return found


def _reconstructed(row: Mapping[str, Any]) -> tuple[Clip, dict[str, float]]:
    values = {f"{row['dataset']}{VAE}{name}": value for name, value in row.items() if name not in NO_SCORES}
    return (row["dataset"], row["key"], row["frames"]), values


def _prompted(row: Mapping[str, Any]) -> tuple[Clip, dict[str, float]]:
    values: dict[str, Any] = {}
    for word in NEEDS:
        told = dict(row.get(word) or {})
        if word == "adherence" and told:
            from sora.world.judge.adherence import together

            told = {f"adherence_{name}": verdict for name, verdict in {**told, **together(told)}.items()}
        values |= told
    return tuple(row.get(name) for name in ("prompt", "frames", "height", "width")), {
        name: value for name, value in values.items() if value is not None
    }
