"""Scores of single clips, and figures over all clips. A word of `metrics=` is a key of MEASURES."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sora.evaluation.words import needs_extractor

if TYPE_CHECKING:
    from numpy import ndarray

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """A clip and its prompt. frames: uint8 (T, H, W, 3). facts: of a prompt of the built-in world, else None. device: for networks."""

    frames: ndarray
    fps: float
    prompt: str | None
    facts: Any
    extractor: Any
    device: str = "cpu"


@dataclass(frozen=True)
class ClipMeasure:
    """of_clip: returns one clip's scores as plain JSON. of_all: returns figures from the rows of all clips."""

    of_clip: Callable[[Seen], Row]
    of_all: Callable[[Sequence[Row]], dict[str, float]]


# ---- the built-in world


def adherence(seen: Seen) -> Row:
    """Verdicts on colour, shape, direction, count, event and steadiness; None where the prompt does not ask."""
    from sora.world.judge.adherence import judge
    from sora.world.language import PALETTE

    return judge([seen.frames], [seen.fps], [seen.facts], palette=PALETTE)[0]


def adherence_figures(rows: Sequence[Row]) -> dict[str, float]:
    """The shares of clips that show what their prompt asks, each with its 95 % interval."""
    from sora.metrics.statistics import wilson
    from sora.world.judge.adherence import ALL, ASPECTS, counted, shares

    hits, asked = counted(rows)
    of = dict(zip((*ASPECTS, *ALL), asked.tolist(), strict=True))
    found = shares(hits, asked)
    n = found.pop("n")
    figures = {f"adherence_{name}": share for name, share in found.items()}
    for name, share in found.items():
        low, high = wilson(share, of[name])
        figures |= {f"adherence_{name}_low": low, f"adherence_{name}_high": high}
    return {**figures, "adherence_n": n}


def physics(seen: Seen) -> Row:
    """gravity_deviation of a clip with a bounce in its prompt, permanence of one with an object that hides."""
    from sora.metrics.local import alone
    from sora.world.judge.observation import observe
    from sora.world.judge.physics import Physics
    from sora.world.language import PALETTE

    if seen.facts.event not in ("bounces", "hides"):
        return {}
    metric = alone(Physics())
    metric.update([observe(seen.frames, seen.fps, PALETTE)], [seen.facts.event], [seen.fps], [float(min(seen.frames.shape[1:3]))])
    return {name: value for name, value in metric.compute().items() if not name.endswith("_clips")}


def physics_figures(rows: Sequence[Row]) -> dict[str, float]:
    """The means over the clips whose prompts ask for it, and the numbers of these clips."""
    from sora.metrics.statistics import wilson

    means = _means(rows)
    if "permanence" in means:
        low, high = wilson(means["permanence"], sum("permanence" in row for row in rows))
        means |= {"permanence_low": low, "permanence_high": high}
    counts = {f"{name.partition('_')[0]}_clips": float(sum(name in row for row in rows)) for name in ("gravity_deviation", "permanence")}
    return {**means, **counts}


# ---- any videos


def quality(seen: Seen) -> Row:
    """VBench's scores that need no motion network, and the consistency of frames if the extractor takes single frames."""
    import torch

    from sora.metrics.clips.quality import VideoQuality
    from sora.metrics.extractors.frames import FrameFeatures
    from sora.metrics.local import alone

    encoders: dict[str, FrameFeatures] = {"frame": seen.extractor} if isinstance(seen.extractor, FrameFeatures) else {}
    metric = alone(VideoQuality(encoders=encoders))
    metric.update(torch.from_numpy(seen.frames)[None].to(seen.device), fps=seen.fps)
    return {name: value for name, value in metric.compute().items() if name != "n"}


def cautions(figures: Mapping[str, float]) -> list[str]:
    """Cautions about figures of quality, if there are any."""
    from sora.metrics.clips.quality import FLATTERED

    told = [name for name in figures if name in FLATTERED or "_consistency/" in name]
    beware = "get better when videos are blurred, compressed or frozen: a better score is a better video only where"
    return [f"{', '.join(told)} {beware} sharpness, noise_level and dynamic_degree_lite are alike"] if told else []


def text(seen: Seen) -> Row:
    """The mean over frames of the cosine between frame and caption in an image-text model's space (CLIPSIM)."""
    import torch

    from sora.metrics.clips.quality import text_similarity

    states = seen.extractor.encode_frames(torch.from_numpy(seen.frames)[None].to(seen.device)).cpu()
    captions = seen.extractor.encode_texts([seen.prompt]).cpu()
    return {f"text_similarity/{seen.extractor.name}": float(text_similarity(states, captions))}


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each score over the clips that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(values) / len(values) for name in names if (values := [row[name] for row in rows if name in row])}


MEASURES = {
    "adherence": ClipMeasure(adherence, adherence_figures),
    "physics": ClipMeasure(physics, physics_figures),
    "quality": ClipMeasure(quality, _means),
    "text": ClipMeasure(text, _means),
}


def conventions(words: Sequence[str]) -> dict[str, int]:
    """For protocols: the version of each word whose figures were computed differently before."""
    from sora.metrics.clips import quality
    from sora.world.judge import adherence

    return {word: module.VERSION for word, module in (("adherence", adherence), ("quality", quality)) if word in words}


def reads_extractor(word: str, extractor: Any) -> bool:
    """Whether a word's figures depend on the extractor; those of quality do if it takes single frames."""
    from sora.metrics.extractors.frames import FrameFeatures

    if word == "quality":
        return isinstance(extractor, FrameFeatures)
    return needs_extractor([word])


def check_extractor(words: Sequence[str], extractor: Any) -> None:
    """Raise ValueError, before hours of work, if the extractor lacks what the words need or its weights file is missing."""
    from sora.metrics.extractors.frames import TextFeatures

    if not needs_extractor(words):
        return
    name = extractor.name  # reads the weights: the error for a missing file says what to download
    if "fvd" in words and not extractor.canonical:
        raise ValueError(
            f"metrics=[fvd]: only the I3D weights by which FVD is defined give it, {name} gives frechet; "
            "choose extractor=i3d extractor.path=FILE, or metrics=[frechet]"
        )
    if "inception_score" in words and not extractor.logits:
        raise ValueError(f"metrics=[inception_score]: {name} gives no class logits; choose extractor=i3d or i3d_state")
    if "text" in words:
        if not isinstance(extractor, TextFeatures):
            raise ValueError(f"metrics=[text]: {name} reads no text; choose an image-text model: extractor=clip")
        extractor.encode_texts(["a"])
