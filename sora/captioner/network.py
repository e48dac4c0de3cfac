"""The captioning network: an encoder of clips with a vector for each attribute, heads for their values, a decoder, and a text tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sora.captioner.layers import MLP, PaddedAttention, PaddedBlock, PaddedClips, PlaceWaves, padded
from sora.captioner.text_layers import TextTower, WordDecoder
from sora.tokens import PackedTokens

SHARPNESS = 12.0  # of the contrastive softmax, at the start of training


@dataclass(frozen=True)
class SeenClips:
    """What the encoder makes of G clips.

    answers: by attribute, the logits of its values, (G, V). memory: (G, M, D), what the decoder attends to. real: (G, M), which rows of it
    are no padding. whole: (G, D), of unit length, for the comparison with captions.
    """

    answers: Mapping[str, Float[Tensor, "G _"]]
    memory: Float[Tensor, "G M D"]
    real: Bool[Tensor, "G M"]
    whole: Float[Tensor, "G D"]

    def rows(self, chosen: Int[Tensor, "R"]) -> tuple[Float[Tensor, "R M D"], Bool[Tensor, "R M"]]:
        """The memory of some clips, in the order in which they are named."""
        return self.memory[chosen], self.real[chosen]


class CaptionNetwork(nn.Module):
    """Says what a clip shows.

    Tokens of a clip attend to one another; a learned query for each attribute, and one for the clip as a whole, then collect a vector each.
    Linear heads answer from them. The decoder writes a caption word by word; it sees these vectors, the answers as mixtures of learned
    vectors of the values, and, with `tokens_seen`, the tokens. The text tower reads a whole caption for the contrastive loss.

    patch_channels: numbers of a patch. words: size of the vocabulary. attributes: number of values of each attribute; empty for none.
    depth, decoder_depth, text_depth: blocks of each part. waves: keys `count`, `least`, `most` of `PlaceWaves`, for places of tokens.
    """

    def __init__(
        self,
        *,
        patch_channels: int,
        words: int,
        attributes: Mapping[str, int],
        width: int,
        depth: int,
        decoder_depth: int,
        text_depth: int,
        heads: int,
        mlp_ratio: float,
        tokens_seen: bool,
        waves: Mapping[str, float],
    ) -> None:
        super().__init__()
        if min(width, depth, decoder_depth, text_depth, heads) < 1:
            raise ValueError("captioner_net: width, depth, decoder_depth, text_depth and heads must be at least 1")
        self.tokens_seen, self.attributes = tokens_seen, tuple(attributes)
        self.embed = nn.Linear(patch_channels, width)
        self.places = PlaceWaves(3, width, count=int(waves["count"]), least=waves["least"], most=waves["most"])
        self.blocks = nn.ModuleList(PaddedBlock(width, heads, mlp_ratio, memory=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(0.5 * torch.randn(len(attributes) + 1, width))
        self.collect = nn.ModuleDict({"norm": nn.LayerNorm(width), "attention": PaddedAttention(width, heads)})
        self.refine = nn.Sequential(nn.LayerNorm(width), MLP(width, 2.0))
        self.heads = nn.ModuleDict({_of(name): nn.Linear(width, count) for name, count in attributes.items()})
        self.values = nn.ModuleDict({_of(name): nn.Embedding(count, width) for name, count in attributes.items()})
        self.norm_memory = nn.LayerNorm(width)
        self.decoder = WordDecoder(words, width, heads, mlp_ratio, depth=decoder_depth)
        self.text = TextTower(words, width, heads, mlp_ratio, depth=text_depth)
        self.whole = nn.Linear(width, width)
        self.log_sharpness = nn.Parameter(torch.tensor([log(SHARPNESS)]))  # FSDP cuts no scalar

    def see(self, tokens: PackedTokens, *, kept: Bool[Tensor, "N"] | None = None) -> SeenClips:
        """The encoder's view of each clip of a pack. kept: which tokens are shown (None: all); each clip must have at least one."""
        clips = padded(tokens)
        real = clips.real if kept is None else clips.real & padded(tokens.with_patches(kept[:, None].float())).patches[..., 0].bool()
        return self._see(clips, real)

    def _see(self, clips: PaddedClips, real: Bool[Tensor, "G L"]) -> SeenClips:
        x = self.embed(clips.patches) + self.places(clips.places)
        for block in self.blocks:
            x = block(x, seen=real)
        x = self.norm(x)
        asked = self.queries.expand(len(x), -1, -1)
        slots = asked + self.collect["attention"](self.collect["norm"](asked), x, seen=real)
        slots = slots + self.refine(slots)
        answers = {name: self.heads[_of(name)](slots[:, number]) for number, name in enumerate(self.attributes)}
        told = [answers[name].softmax(-1) @ self.values[_of(name)].weight for name in self.attributes]
        memory = slots + F.pad(torch.stack(told, 1), (0, 0, 0, 1)) if told else slots
        shown = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
        if self.tokens_seen:
            memory, shown = torch.cat((memory, x), 1), torch.cat((shown, real), 1)
        return SeenClips(answers, self.norm_memory(memory), shown, F.normalize(self.whole(slots[:, -1]), dim=-1))

    def write(self, words: Int[Tensor, "R L"], seen: SeenClips, clips: Int[Tensor, "R"]) -> Float[Tensor, "R L W"]:
        """Logits of the word after each of the given ones. clips: which clip each row is about."""
        memory, real = seen.rows(clips)
        return self.decoder(words, memory, real)

    def read(self, words: Int[Tensor, "R L"]) -> Float[Tensor, "R D"]:
        """Captions as vectors of unit length; words of id PADDING do not count."""
        return self.text(words)

    @property
    def sharpness(self) -> Float[Tensor, "1"]:
        """The factor on cosines in the contrastive softmax, at most 100 as in CLIP (Radford et al. 2021)."""
        return self.log_sharpness.clamp(max=log(100.0)).exp()


def _of(attribute: str) -> str:
    """The name of an attribute's part of a ModuleDict, which cannot have parts called as its own methods are, such as "type"."""
    return f"of_{attribute}"
