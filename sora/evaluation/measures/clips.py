"""Scores of single clips: what each says of one clip, and the figures of all. A word of `metrics=` is an entry of MEASURES."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """One clip with what was asked for. frames: uint8 (T, H, W, 3). facts: of the built-in world's prompts, else None. device: where
    networks see it."""

    frames: ndarray
    fps: float
    prompt: str | None
    facts: Any
    extractor: Any
    device: str = "cpu"


@dataclass(frozen=True)
class ClipMeasure:
    """of_clip: plain JSON of one clip; of_all: figures, of the rows of all clips. needs: what of "facts", "prompt" and "extractor" it
    looks at; a command that lacks it says so before any work."""

    of_clip: Callable[[Seen], Row]
    of_all: Callable[[Sequence[Row]], dict[str, float]]
    needs: tuple[str, ...] = ()


# ---- the built-in world


def adherence(seen: Seen) -> Row:
    """Verdicts of colour, shape, direction, count, event and steadiness; None where the prompt does not say."""
    from sora.world.judge.adherence import judge
    from sora.world.language import PALETTE

    return judge([seen.frames], [seen.fps], [seen.facts], palette=PALETTE)[0]


def adherence_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of clips that show what their prompt says, each with its 95 % interval."""
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


def wilson(share: float, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927); within [0, 1] for any share."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At either end the formula gives the end itself, but for its rounding.
    return (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))


def physics(seen: Seen) -> Row:
    """gravity_deviation of a clip that was asked to bounce, permanence of one whose thing was asked to hide."""
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
    """Means over the clips that were asked for it, and how many those are."""
    means = _means(rows)
    if "permanence" in means:
        low, high = wilson(means["permanence"], sum("permanence" in row for row in rows))
        means |= {"permanence_low": low, "permanence_high": high}
    counts = {f"{name.partition('_')[0]}_clips": float(sum(name in row for row in rows)) for name in ("gravity_deviation", "permanence")}
    return {**means, **counts}


# ---- any videos


def quality(seen: Seen) -> Row:
    """VBench's figures that need no network of motion; the consistency of frames too, where the extractor sees them one by one."""
    import torch

    from sora.metrics.clips.quality import VideoQuality
    from sora.metrics.extractors.frames import FrameFeatures
    from sora.metrics.local import alone

    encoders: dict[str, FrameFeatures] = {"frame": seen.extractor} if isinstance(seen.extractor, FrameFeatures) else {}
    metric = alone(VideoQuality(encoders=encoders))
    metric.update(torch.from_numpy(seen.frames)[None].to(seen.device), fps=seen.fps)
    return {name: value for name, value in metric.compute().items() if name != "n"}


def cautions(figures: Mapping[str, float]) -> list[str]:
    """What figures of quality cannot tell, if any are among these."""
    from sora.metrics.clips.quality import FLATTERED

    told = [name for name in figures if name in FLATTERED or "_consistency/" in name]
    beware = "get better when videos are blurred, compressed or frozen: a better score is a better video only where"
    return [f"{', '.join(told)} {beware} sharpness, noise_level and dynamic_degree_lite are alike"] if told else []


def text(seen: Seen) -> Row:
    """The cosine between frames and caption in an image-text model's space, a mean over frames (CLIPSIM)."""
    import torch

    from sora.metrics.clips.quality import text_similarity

    states = seen.extractor.encode_frames(torch.from_numpy(seen.frames)[None].to(seen.device)).cpu()
    captions = seen.extractor.encode_texts([seen.prompt]).cpu()
    return {f"text_similarity/{seen.extractor.name}": float(text_similarity(states, captions))}


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Of each score, over the clips that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(values) / len(values) for name in names if (values := [row[name] for row in rows if name in row])}


MEASURES = {
    "adherence": ClipMeasure(adherence, adherence_figures, ("prompt", "facts")),
    "physics": ClipMeasure(physics, physics_figures, ("prompt", "facts")),
    "quality": ClipMeasure(quality, _means, ("extractor",)),
    "text": ClipMeasure(text, _means, ("prompt", "extractor")),
}
# What is measured where metrics= says nothing; adherence only where all prompts are of the built-in world.
USUAL = {"videos": ("frechet", "kvd", "motion"), "diffusion": ("adherence", "frechet", "kvd", "motion"), "vae": ("reconstruction",)}
# What distances between sets are called: the beginnings of their figures.
DISTANCES = {
    "frechet": ("frechet",),
    "fvd": ("fvd", "frechet"),
    "kvd": ("kvd",),
    "jedi": ("jedi_formula",),
    "precision": ("precision", "recall", "density", "coverage"),
    "vendi": ("vendi_real", "vendi_fake"),
    "inception_score": ("inception_score",),
}


def conventions(words: Sequence[str]) -> dict[str, int]:
    """Of the words of `metrics=`, those whose figures were computed otherwise before, with the count of how they are now: for protocols."""
    from sora.metrics.clips import quality
    from sora.world.judge import adherence

    return {word: module.VERSION for word, module in (("adherence", adherence), ("quality", quality)) if word in words}


def of_words(found: Mapping[str, float], words: Sequence[str]) -> dict[str, float]:
    """Of all figures of distances, those that the words of `metrics=` ask for, and how many clips they are over."""
    wanted = [start for word in words for start in DISTANCES.get(word, ())] + ["n_real", "n_fake"]
    starts = tuple(f"{start}{after}" for start in wanted for after in "/_")
    return {name: value for name, value in found.items() if name in wanted or name.startswith(starts)}


def listed(words: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The words of `metrics=`, which may be one word without brackets; None where nothing is said."""
    return (words,) if isinstance(words, str) else None if words is None else tuple(words)


def chosen(words: str | Sequence[str] | None, *, usual: Sequence[str], known: Sequence[str], scored: str) -> tuple[str, ...]:
    """The words of `metrics=`, or the usual ones for None. Raises ValueError for one that does not fit what is scored."""
    given = listed(words)
    names = tuple(usual) if given is None else given
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"metrics={list(names)}: for {scored}, choose from {', '.join(known)}{_elsewhere(unknown)}")
    return names


def _elsewhere(words: Sequence[str]) -> str:
    """What else has words that do not fit what is scored."""
    from sora.evaluation.words import KNOWN

    of = {"videos": "a folder of videos (checkpoint=FOLDER)", "diffusion": "a diffusion run", "vae": "a VAE"}
    told = {word: [of[kind] for kind, known in KNOWN.items() if word in known] for word in words}
    return "".join(f"; {word} is measured of {' and '.join(kinds)}" for word, kinds in told.items() if kinds)


def reads_extractor(word: str, extractor: Any) -> bool:
    """Whether the figures of a word depend on the extractor: of quality only those of one that sees single frames."""
    from sora.metrics.extractors.frames import FrameFeatures

    if word == "quality":
        return isinstance(extractor, FrameFeatures)
    return word in DISTANCES or (word in MEASURES and "extractor" in MEASURES[word].needs)


def needs_extractor(words: Sequence[str]) -> bool:
    """Whether any of the words is measured of an extractor's features; words that are none of this file's are not."""
    return any(word in DISTANCES or (word in MEASURES and "extractor" in MEASURES[word].needs) for word in words)


def check_extractor(words: Sequence[str], extractor: Any) -> None:
    """Refuse, before hours of work, what the extractor cannot give; also a file of weights that is not there."""
    from sora.metrics.extractors.frames import TextFeatures

    if not needs_extractor(words):
        return
    name = extractor.name  # reads the weights: a missing file says what to download
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
