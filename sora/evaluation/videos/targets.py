"""What to generate: prompts with sizes, drawn anew from the built-in world or taken from the captions of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sora.system import files as storage
from sora.system.terminal import counted
from sora.world.dataset import world_of

if TYPE_CHECKING:
    from sora.evaluation.videos.sets import DatasetVideos, FolderVideos
    from sora.generation.generator import Request
    from sora.patches.geometry import Geometry


@dataclass(frozen=True)
class Target:
    """What to generate, and the `Facts` it must show; None where they cannot be checked. kind: of caption that the prompt is."""

    prompt: str
    kind: str
    frames: int
    height: int
    width: int
    fps: float
    facts: Any


def plan_targets(
    videos: DatasetVideos | FolderVideos, geometry: Geometry, *, n: int, split: str, caption: str | None, seed: int, uncaptioned: str
) -> tuple[list[Target], list[str]]:
    """n prompts with sizes: drawn anew from the built-in world if the videos are a dataset of it; else the captions of all that hold a
    patch, in turn, in an order that is spread over them: a set that is sorted by class is not asked for its first classes alone. And the
    names of the clips that were passed over for want of a caption, as uncaptioned="leave_out" asks for; else they are refused.
    """
    from sora.evaluation.bench import named
    from sora.evaluation.videos.clips import spread
    from sora.evaluation.videos.sets import DatasetVideos
    from sora.evaluation.words import check_uncaptioned

    if n < 2:
        raise ValueError(f"n={n}: scores need at least 2 clips")
    if isinstance(videos, DatasetVideos) and (world := world_of(videos.index.described)) is not None:
        return world_targets(world, n=n, split=split, caption=caption, seed=seed), []
    check_uncaptioned(uncaptioned)
    shapes = {number: videos.shape(number) for number in range(len(videos))}
    order = [number for number in spread(len(videos)) if geometry.holds(videos.frames(number), shapes[number].height, shapes[number].width)]
    if not order:
        raise ValueError(f"no clip of {videos.place} is as large as one patch of the run; score it against larger ones")
    with_caption, bare = [], []
    for number in order:
        (bare if videos.prompt(number) is None else with_caption).append(number)
        if len(with_caption) == n:
            break
    names = [videos.name(number) for number in bare]
    if not with_caption or (bare and uncaptioned == "refuse"):
        kind = "" if caption is None or not isinstance(videos, DatasetVideos) else f" of kind {caption}"
        leave = ", or leave such clips out with uncaptioned=leave_out" if with_caption else ""
        raise ValueError(
            f"{named(names)} of {videos.place} without a caption{kind} to prompt with; caption the dataset first, put NAME.txt beside each "
            f"video of a folder{leave}"
        )
    targets = []
    for place in range(n):
        number = with_caption[place % len(with_caption)]
        prompt, shape = str(videos.prompt(number)), shapes[number]
        targets.append(Target(prompt, videos.prompt_kind(number), videos.frames(number), shape.height, shape.width, shape.fps, None))
    return targets, names


def world_targets(recipe: Mapping[str, Any], *, n: int, split: str, caption: str | None, seed: int) -> list[Target]:
    """Prompts of the world that a dataset was drawn from, of combinations that its split holds."""
    from sora.config.build import build
    from sora.world.language import parse

    if caption not in (None, "dense", "short"):
        raise ValueError(f"caption={caption}: the built-in world says dense or short")
    prompts = build(recipe).prompts(n, split="heldout" if split == "heldout" else "train", seed=seed)
    kind = caption or "dense"
    texts = [prompt.text_short if kind == "short" else prompt.text_dense for prompt in prompts]
    # What the text says is what can be asked for: a short caption leaves facts out.
    return [
        Target(text, kind, item.frames, item.size[0], item.size[1], item.fps, parse(text))
        for text, item in zip(texts, prompts, strict=True)
    ]


def fitting(targets: Sequence[Target], geometry: Geometry, *, frames: int | None, stride: int) -> list[Target]:
    """Targets of the sizes that a network makes: as long and large as theirs allow, or, of `frames`, just long enough that those can be
    taken at a stride. Raises ValueError for one that holds no patch."""
    found = []
    for target in targets:
        wanted = target.frames if frames is None else geometry.least_frames((frames - 1) * stride + 1)
        count, height, width = geometry.largest(wanted, target.height, target.width)
        if not count:
            raise ValueError(
                f"a clip of {counted(target.frames, 'frame')} holds no patch of the run; set generated.frames to what it makes"
            )
        found.append(replace(target, frames=count, height=height, width=width))
    return found


def to_request(target: Target, number: int, *, seed: int, negative: str = "") -> Request:
    from sora.generation.generator import Request

    return Request(target.prompt, target.frames, target.height, target.width, fps=target.fps, seed=seed, sample=number, negative=negative)


def prompts_protocol(targets: Sequence[Target]) -> dict[str, Any]:
    """What a protocol says of prompts: of which kinds they are, how many of which shapes, and a hash of all of them."""
    kinds = ", ".join(sorted({target.kind for target in targets}))
    shapes = Counter(f"{target.frames}x{target.height}x{target.width}@{target.fps:g}" for target in targets)
    texts = "\n".join(target.prompt for target in targets)
    return {"caption": kinds, "n": len(targets), "shapes": dict(sorted(shapes.items())), "sha256": storage.text_hash(texts)}
