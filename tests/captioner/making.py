"""Small captioners, and packs of random patches with captions of the world's scenes."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from sora.captioner import CaptionNetwork, CaptionObjective, Words, words_of
from sora.patches.packing import pack
from sora.system.draws import normal, sample_id
from sora.text.all_captions import AllCaptions
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid
from sora.training.captioner_task import CaptionerTask, StepPack
from sora.world import World, WorldAttributes

GRIDS = (Grid(2, 3, 2), Grid(1, 2, 2), Grid(3, 1, 2), Grid(2, 2, 2), Grid(1, 3, 3))
CHANNELS = 6
KINDS = ("short", "dense")
WORLD = World(sizes=[[24, 24]], seconds=[1.0], rates=[8])
ATTRIBUTES = WorldAttributes(names=["colour", "shape", "direction"])
STAGES = [
    {"until": 0.3, "contrast": 0.3, "attributes": 0.5},
    {"until": 0.6, "contrast": 0.3, "attributes": 0.5, "short": 1.0},
    {"until": 1.0, "contrast": 0.3, "attributes": 0.5, "short": 1.0, "dense": 2.0},
]


def told(index: int) -> tuple[list[tuple[str, str]], dict]:
    scene = WORLD.scene(index)
    return list(scene.captions.items()), {"facts": asdict(scene.facts)}


def words(count: int = 64) -> Words:
    return words_of((pair for index in range(count) for pair in told(index)[0]), kinds=KINDS, most=500, least=1)


def network(vocabulary: Words, *, attributes=ATTRIBUTES, seed: int = 0, width: int = 16, scrambled: bool = True) -> CaptionNetwork:
    """scrambled: no weight is zero, as none is after a few steps."""
    torch.manual_seed(seed)
    made = CaptionNetwork(
        patch_channels=CHANNELS,
        words=len(vocabulary),
        attributes={name: len(values) for name, values in attributes.values.items()},
        width=width,
        depth=2,
        decoder_depth=2,
        text_depth=1,
        heads=2,
        mlp_ratio=2.0,
        tokens_seen=True,
        waves={"count": 4, "least": 0.2, "most": 3.0},
    )
    if scrambled:
        for value in made.parameters():
            value.data += 0.2 * torch.randn_like(value)
    return made


def batch(clips: list[int], *, max_clips: int = 5, padding: int = 7, epoch: int = 0) -> Batch:
    """The clips of these numbers; a clip's patches and grid follow from its number."""
    grids = [GRIDS[clip % len(GRIDS)] for clip in clips]
    patches = [normal("patches", (grid.tokens, CHANNELS), seed=1, epoch=0, sample=clip) for clip, grid in zip(clips, grids, strict=True)]
    seconds = [0.5 * torch.arange(grid.t) for grid in grids]
    tokens = pack(patches, grids, seconds=seconds, budget=sum(grid.tokens for grid in grids) + padding, max_clips=max_clips)
    text = pack_text([AllCaptions().states(*told(clip)) for clip in clips], budget=None, max_clips=max_clips)
    nothing = torch.zeros(len(tokens.patches), dtype=torch.bool)
    return Batch(tokens, text, nothing, tuple(sample_id(str(clip)) for clip in clips), (epoch,) * len(clips))


def task(*, steps: int, stages=STAGES, hidden_tokens: float = 0.1, scrambled: bool = False) -> CaptionerTask:
    vocabulary = words()
    return CaptionerTask(
        network=network(vocabulary, scrambled=scrambled),
        words=vocabulary,
        attributes=ATTRIBUTES,
        objective=CaptionObjective(stages=stages, hidden_words=0.3, hidden_tokens=hidden_tokens),
        seed=3,
        steps=steps,
        encode=None,
    )


class CaptionShares(torch.utils.data.Dataset):
    """The packs of one of several readers, in turn; one pack has no captions."""

    def __init__(self, readers: int, reader: int) -> None:
        self.readers, self.reader = readers, reader

    def __getitem__(self, step: int) -> list[StepPack]:
        packs = [StepPack(batch(list(range(start, start + 2))), step) for start in (0, 5, 9)]
        return [*packs, StepPack(bare(batch([20, 21, 22])), step)][self.reader :: self.readers]


def bare(pack: Batch) -> Batch:
    """The pack without captions and facts."""
    nothing = [AllCaptions().states([], {})] * len(pack.sample_ids)
    return replace(pack, text=pack_text(nothing, budget=None, max_clips=pack.text.segments.count - 1))


class CaptionSteps(torch.utils.data.Dataset):
    """`packs` packs a step, of unequal sizes; clips come again in every eighth step, in another epoch."""

    def __init__(self, packs: int = 2) -> None:
        self.packs = packs

    def __getitem__(self, step: int) -> list[StepPack]:
        first = [5 * (self.packs * (step % 8) + number) for number in range(self.packs)]
        return [
            StepPack(batch(list(range(start, start + 2 + (step + number) % 3)), epoch=step // 8), step)
            for number, start in enumerate(first)
        ]
