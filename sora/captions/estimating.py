"""What a recaptioning will take, from a few of its clips: they are asked for in earnest, and their answers are kept for the job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sora.captions.asking import AskedClip
from sora.captions.journal import AnswerJournal
from sora.captions.recaptioning import CaptionWork, Recaption

CLIPS = 32


@dataclass(frozen=True, kw_only=True)
class CaptionEstimate:
    """An estimate for all clips of a job. looked: clips that were asked for, failed: of these, without a caption. requests, tokens_in,
    tokens_out: of the whole job. hours: at the rate of these clips, None if their answers were all known. cost: None without prices."""

    clips: int
    looked: int
    failed: int
    requests: int
    tokens_in: int
    tokens_out: int
    hours: float | None
    cost: float | None


def cost_of(tokens_in: float, tokens_out: float, price: Mapping[str, float | None]) -> float | None:
    """The cost of tokens. price: of a million of them, `input` and `output`; None if neither is known."""
    if price.get("input") is None and price.get("output") is None:
        return None
    return (tokens_in * (price.get("input") or 0.0) + tokens_out * (price.get("output") or 0.0)) / 1e6


def estimate(job: Recaption, *, price: Mapping[str, float | None], count: int = CLIPS) -> CaptionEstimate:
    """Ask for clips that are spread evenly over the dataset, and multiply. A clip that fails counts with what it took."""
    total = len(job.index)
    rows = np.unique(np.linspace(0, total - 1, count).round().astype(int)).tolist()
    settled: list[AskedClip] = []
    journal, began = AnswerJournal(job.journal_folder), time.monotonic()
    try:
        work = CaptionWork(job, journal, settled=settled.append)
        work.run(rows)
    finally:
        journal.close()
    seconds, results = time.monotonic() - began, [one for clip in settled for one in clip.answers.values()]
    share = total / max(len(settled), 1)
    tokens_in, tokens_out = (sum(getattr(one, name) for one in results) * share for name in ("tokens_in", "tokens_out"))
    return CaptionEstimate(
        clips=total,
        looked=len(settled),
        failed=sum(bool(clip.why()) for clip in settled),
        requests=round(sum(one.attempts for one in results) * share),
        tokens_in=round(tokens_in),
        tokens_out=round(tokens_out),
        hours=seconds * share / 3600 if work.asked else None,
        cost=cost_of(tokens_in, tokens_out, price),
    )
