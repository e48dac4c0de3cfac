"""The scores of single clips in `scores.json`, keyed by the clip, so that two files can be compared clip by clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sora.evaluation.words import CONTINUATION, NEEDS

# Protocol fields that must be equal for the clips of two files to be the same.
OF_ORIGINALS = ("dataset", "real", "generated", "pixels", "measures")
OF_PROMPTS = ("prompts", "generated", "pixels", "seed")
VAE = "_vae_"  # between the names of a dataset and of a figure
NO_SCORES = ("dataset", "key", "frames", "height", "width", "file", "videos", "exact_frames")  # fields of a row that are no scores

Clip = tuple[Any, ...]


OF_FUTURES = ("dataset", "real", "pixels", "measures")


def alike(name: str) -> tuple[str, ...]:
    """The protocol fields that must agree for a figure to be compared clip by clip: those of originals for a VAE's figures, those of
    futures for continuations, else those of prompts, and the extractor for figures that name it."""
    if name.startswith(f"{CONTINUATION}_"):
        return OF_FUTURES
    return OF_ORIGINALS if VAE in name else (*OF_PROMPTS, *(("extractor",) if "/" in name else ()))


def of_clips(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[Clip, float]]:
    """The values of single clips (0 or 1 for verdicts) for each figure that is a mean over clips. Clips without a prompt or key are
    skipped."""
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
        seen[clip] += 1  # a prompt may occur several times, each with other noise
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
