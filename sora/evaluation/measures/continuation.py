"""metrics=[continuation]: compares continuations of clips with the clips' true futures, pair by pair, without the context.

Files are paired by names: CLIP.mp4, or CLIP-0.mp4, CLIP-1.mp4, … for several continuations, continue CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from sora.evaluation.bench import bar, named
from sora.evaluation.words import CONTINUATION as WORD
from sora.system.terminal import counted

if TYPE_CHECKING:
    from torch import Tensor

    from sora.evaluation.bench import Bench
    from sora.evaluation.settings import Continuation, EvaluationSettings
    from sora.evaluation.videos.clips import Clips

NUMBERED = re.compile(r"(.+?)[-_. ]?(\d+)")  # CLIP-0
LEAST_ALIKE = 25.0  # dB between contexts; with less they are hardly the same frames


@dataclass(frozen=True)
class Pair:
    """The numbers of a scored clip (`other`) and of the real one that it continues (`true`)."""

    other: int
    true: int


def check_continuation(settings: EvaluationSettings, words: Sequence[str], *, alone: bool) -> None:
    """Raise ValueError, before any work, if the context of clips or the videos that they continue are not given."""
    if WORD not in words:
        return
    context = settings.continuation.context
    if context is None:
        raise ValueError(
            f"metrics=[{WORD}]: say how many first frames the model was given, which are left out: continuation.context=1 (0: none)"
        )
    if context < 0:
        raise ValueError(f"continuation.context={context}: give 0 or more frames")
    if alone:
        raise ValueError(f"metrics=[{WORD}]: statistics= alone holds no videos; name those that are continued: data=FOLDER")


def pairs_of(real: Clips, clips: Clips) -> list[Pair]:
    """Each scored clip with the one that it continues, by name. Raises ValueError for a clip that continues none, or for clips with
    different numbers of continuations, which have no common best of n."""
    stems = {stem(real.name(number)): number for number in range(len(real))}
    if len(stems) < len(real):
        raise ValueError(f"{real.videos.place}: several clips have one name, so that nothing says which is continued; rename them")
    found, none = [], []
    for number in range(len(clips)):
        name = stem(clips.name(number))
        counted = NUMBERED.fullmatch(name)
        whose = name if name in stems else counted[1] if counted and counted[1] in stems else None
        found += [] if whose is None else [Pair(number, stems[whose])]
        none += [clips.name(number)] if whose is None else []
    if none:
        raise ValueError(
            f"metrics=[{WORD}]: {named(none)} of {clips.videos.place} continue no clip of {real.videos.place}; what continues "
            "CLIP is called CLIP, or CLIP-0, CLIP-1, … where there are several"
        )
    counts = {pair.true: sum(one.true == pair.true for one in found) for pair in found}
    if len(set(counts.values())) > 1:
        few, many = (choose(counts, key=lambda true: counts[true]) for choose in (min, max))
        raise ValueError(
            f"metrics=[{WORD}]: {real.name(few)} is continued {counts[few]} times and {real.name(many)} {counts[many]} times; a "
            "best of n is of one n: leave some out"
        )
    return found


def stem(name: str) -> str:
    """A file's name without suffix and folders, but with the number of a window's first frame."""
    path, at, first = name.rpartition("@") if name.rpartition("@")[2].isdigit() else (name, "", "")
    return PurePosixPath(path).stem + at + first


def continued(
    bench: Bench, real: Clips, clips: Clips, settings: EvaluationSettings
) -> tuple[dict[str, float], list[dict[str, Any]], list[str], dict[str, Any]]:
    """The figures; a row for each scored clip with the clip that it continues; cautions; and the protocol's entry."""
    said, pairs = settings.continuation, pairs_of(real, clips)
    frames = [_lengths(pair, real, clips, said) for pair in pairs]
    with bar(bench.share, "measuring continuations") as progress:
        rows = bench.share.rows(len(pairs), lambda place: _scored(bench, pairs[place], real, clips, said), progress)
    trues = list(dict.fromkeys(pair.true for pair in pairs))
    samples = len(pairs) // len(trues)
    bench.share.say(
        f"{counted(len(pairs), 'continuation')} of {counted(len(trues), 'different clip')}, {samples} of each, over "
        f"{counted(min(frames), 'frame')} after the context"
    )
    told = []
    if left := len(real) - len(trues):
        told.append(f"{left} of the {len(real)} real clips are not continued, and have no part in continuation")
    apart = [row["of"] for row in rows if row.get("context_psnr", LEAST_ALIKE) < LEAST_ALIKE]
    if apart:
        told.append(
            f"beware: the context of {named(apart)} is not that of the real clip (below {LEAST_ALIKE:g} dB); other frames, or "
            "another crop? See continuation.context and real.start"
        )
    by_true = {true: [row for pair, row in zip(pairs, rows, strict=True) if pair.true == true] for true in trues}
    videos = [real.video(true) for true in trues]
    figures = figures_of(list(by_true.values()), videos, bootstrap=settings.bootstrap, seed=settings.seed)
    about = {
        "context": said.left_out,
        "shown": said.shown,
        "samples": samples,
        "clips": len(trues),
        "masks": "Physics-IQ, running mean 0.3, 10 of 255",
    }
    return figures, rows, told, about


def figures_of(groups: Sequence[Sequence[Mapping[str, Any]]], videos: Sequence[str], *, bootstrap: int, seed: int) -> dict[str, float]:
    """The figures with 95 % intervals over videos. `continuation_NAME`: the mean over clips of the mean over a clip's continuations, and of
    the best of them (`…_best_of_N`) if there are several. `repeat_NAME`: the score of repeating the context's last frame."""
    import torch

    from sora.metrics.clips.continuation import HIGHER, best
    from sora.metrics.distribution.clustered import mean_interval, numbered

    figures: dict[str, float] = {f"{WORD}_clips": float(len(groups))}
    samples, numbers = len(groups[0]), numbered(videos)
    for name in HIGHER:
        for word, key in ((WORD, WORD), ("repeat", "repeat")):
            if not all(name in row.get(key, {}) for rows in groups for row in rows):
                continue
            values = torch.tensor([[row[key][name] for row in rows] for rows in groups], dtype=torch.float64)
            shown = {f"{word}_{name}": values.mean(dim=1)}
            if samples > 1 and word == WORD:
                shown[f"{word}_{name}_best_of_{samples}"] = best(name, values)
            for figure, each in shown.items():
                figures[figure] = float(each.mean())
                if bootstrap and word == WORD and len(set(videos)) > 1:
                    figures[f"{figure}_low"], figures[f"{figure}_high"] = mean_interval(each, numbers, repeats=bootstrap, seed=seed)
    contexts = [row["context_psnr"] for rows in groups for row in rows if "context_psnr" in row]
    return figures | ({"context_psnr": sum(contexts) / len(contexts)} if contexts else {})


def _lengths(pair: Pair, real: Clips, clips: Clips, said: Continuation) -> int:
    """The number of frames to compare. Raises ValueError unless both clips have one length, longer than the context."""
    true, other = real.frames(pair.true), clips.frames(pair.other)
    wanted = true if said.shown else true - said.left_out
    if other != wanted:
        told = "and holds its context, too (continuation.shown=true)" if said.shown else f"less {said.left_out} of context"
        raise ValueError(
            f"{clips.name(pair.other)} has {counted(other, 'frame')} and the real clip {real.name(pair.true)} {true}; a continuation is as "
            f"long as what it continues, {told}: set real.frames, generated.frames or continuation.shown"
        )
    if true <= said.left_out:
        raise ValueError(
            f"{real.name(pair.true)} has {counted(true, 'frame')}, and continuation.context={said.left_out} leaves none to compare"
        )
    rates = [round(side.shape(number).fps, 2) for side, number in ((real, pair.true), (clips, pair.other))]
    if rates[0] != rates[1]:
        raise ValueError(
            f"{clips.name(pair.other)} is at {rates[1]:g} fps and the real clip at {rates[0]:g}: frames of different times; set the strides"
        )
    return true - said.left_out


def _scored(bench: Bench, pair: Pair, real: Clips, clips: Clips, said: Continuation) -> dict[str, Any]:
    from sora.metrics.clips.continuation import continuation_scores

    true, other = (_frames(bench, side, number) for side, number in ((real, pair.true), (clips, pair.other)))
    if true.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"{clips.name(pair.other)} is {other.shape[2]}x{other.shape[1]} and the real clip {true.shape[2]}x{true.shape[1]}; bring both "
            "to one size with size="
        )
    context, future = true[: said.left_out], true[said.left_out :]
    made = other[said.left_out :] if said.shown else other
    row = {"of": real.name(pair.true), WORD: continuation_scores(future, made)}
    if len(context):
        row["repeat"] = continuation_scores(future, context[-1:].expand(len(future), -1, -1, -1).contiguous())
        if said.shown:
            from sora.metrics.clips.reconstruction import psnr

            row["context_psnr"] = float(psnr(context[None], other[None, : said.left_out]))
    return row


def _frames(bench: Bench, side: Clips, number: int) -> Tensor:
    import torch

    return torch.from_numpy(bench.extractor.setting.pictures(side.read(number)))
