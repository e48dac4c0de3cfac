"""Frame-wise networks on videos: which frames to encode, and the features of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.metrics.extractors.pixels import Preparation
from sora.system.terminal import counted


@runtime_checkable
class FrameFeatures(Protocol):
    """A network that encodes single frames: features of every frame of uint8 or float [0, 1] videos, B T H W 3."""

    @property
    def name(self) -> str: ...
    def encode_frames(self, videos: Tensor) -> Float[Tensor, "B T D"]: ...


@runtime_checkable
class TextFeatures(FrameFeatures, Protocol):
    """An image-text model, whose captions' embeddings lie in the space of its frames' embeddings."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "B D"]: ...


def evenly(videos: Tensor, frames: int | None) -> Tensor:
    """`frames` evenly spaced frames of each video (B, T, ...), with the first and the last; all for None. ValueError if there are fewer."""
    given = videos.shape[1]
    if frames is None or frames == given:
        return videos
    if frames < 1 or given < frames:
        raise ValueError(f"videos of {counted(given, 'frame')}; extractor.frames={frames} wants at least as many, and none is repeated")
    places = torch.linspace(0, given - 1, frames, dtype=torch.float32).round().long() if frames > 1 else torch.tensor([(given - 1) // 2])
    return videos[:, places.to(videos.device)]


@torch.no_grad()
def over_frames(network: nn.Module, preparation: Preparation, videos: Tensor, batch: int) -> Float[Tensor, "B T D"]:
    """The network's features of every frame by itself, `batch` frames at once, in fp32."""
    network = network.to(videos.device)
    with torch.autocast(videos.device.type, enabled=False):
        found = torch.cat([network(preparation(part[:, None]).squeeze(2)) for part in videos.flatten(0, 1).split(batch)])
    return found.unflatten(0, videos.shape[:2])
