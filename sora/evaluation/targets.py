"""What to generate: prompts with sizes, drawn anew from the built-in world or taken from the captions of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sora import storage

if TYPE_CHECKING:
    from sora.data.index import Index
    from sora.generation.generator import Request

WORLD = "sora.data.sources.WorldSource"


@dataclass(frozen=True)
class Target:
    """What to generate, and the `Facts` it must show; None where they cannot be checked."""

    prompt: str
    frames: int
    height: int
    width: int
    fps: float
    facts: Any


def plan_targets(index: Index, *, n: int, split: str, caption: str, seed: int) -> list[Target]:
    """n prompts with sizes: drawn anew from the built-in world if the dataset is one, else the captions of the split's clips in turn."""
    if n < 2:
        raise ValueError(f"n={n}: scores need at least 2 clips")
    if (world := world_of(index)) is not None:
        return world_targets(world, n=n, split=split, caption=caption, seed=seed)
    targets = []
    for number in range(n):
        row = index.row(number % len(index))
        if not row.captions:
            raise ValueError(f"clip {row.key} of {index.folder} has no caption to prompt with; caption the dataset first")
        text = next((item.text for item in row.captions if item.kind == caption), row.captions[0].text)
        targets.append(Target(text, row.frames, row.height, row.width, row.fps, None))
    return targets


def world_of(index: Index) -> Mapping[str, Any] | None:
    """The recipe of the built-in world that a dataset was drawn from; None for any other."""
    source = index.described["about"].get("config", {}).get("source", {})
    return source["world"] if source.get("_target_") == WORLD else None


def world_targets(recipe: Mapping[str, Any], *, n: int, split: str, caption: str, seed: int) -> list[Target]:
    """Prompts of the world that a dataset was drawn from, of combinations that its split holds."""
    from sora.configs.build import build
    from sora.data.world import parse

    prompts = build(recipe).prompts(n, split="heldout" if split == "heldout" else "train", seed=seed)
    texts = [prompt.text_short if caption == "short" else prompt.text_dense for prompt in prompts]
    # What the text says is what can be asked for: a short caption leaves facts out.
    return [Target(text, item.frames, item.size[0], item.size[1], item.fps, parse(text)) for text, item in zip(texts, prompts, strict=True)]


def lengthened(targets: Sequence[Target], frames: int, *, stride: int, time: int) -> list[Target]:
    """Targets just long enough that `frames` at a stride can be taken of them: 1 + a multiple of the VAE's `time` stride."""
    needed = (frames - 1) * stride + 1
    return [replace(target, frames=1 + -(-(needed - 1) // time) * time) for target in targets]


def to_request(target: Target, number: int, *, seed: int) -> Request:
    from sora.generation.generator import Request

    return Request(target.prompt, target.frames, target.height, target.width, fps=target.fps, seed=seed, sample=number)


def prompts_protocol(targets: Sequence[Target], *, caption: str) -> dict[str, Any]:
    """What a protocol says of prompts: how many of which shapes, and a hash of all of them."""
    shapes = Counter(f"{target.frames}x{target.height}x{target.width}@{target.fps:g}" for target in targets)
    texts = "\n".join(target.prompt for target in targets)
    return {"caption": caption, "n": len(targets), "shapes": dict(sorted(shapes.items())), "sha256": storage.text_hash(texts)}
