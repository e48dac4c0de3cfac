"""One own part of each kind that docs/own_code.md tells of, as the smallest thing that is its own."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from sora.diffusion.objective import Objective
from sora.diffusion.path import like
from sora.dit.dit import DiT
from sora.metrics.extractors.pixels import Preparation
from sora.text.byte import ByteEncoder


class Network(DiT):
    """DiT by another name."""


class Bilinear(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.a(x) * self.b(x)


def bilinear(width, ratio, *, gain=1.0):
    return Bilinear(width)


class Scaled(nn.Module):
    def forward(self, x, scale, shift):
        return x * scale + shift


def scaled(width):
    return Scaled()


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


def halved(heads, head_width):
    return Halved()


def own_frame_last(attention, block_number, *, first: int):
    return partial(_whole, attention)


def _whole(attention, q, k, v, layout):
    return attention(q, k, v, layout.segments, layout.segments)


@dataclass(frozen=True)
class Squared:
    power: float = 2.0

    def quantile(self, u):
        return u**self.power


@dataclass(frozen=True)
class Line:
    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def d_alpha(self, t):
        return -torch.ones_like(t)

    def d_sigma(self, t):
        return torch.ones_like(t)


class Doubled(Objective):
    def losses(self, network, batch, noised, text):
        return 2 * super().losses(network, batch, noised, text)


def noise_minus_data(path, t):
    return -torch.ones_like(t), torch.ones_like(t)


def steeper(t, path, prediction, *, slope: float):
    return 1 + slope * t


def no_shift(tokens):
    return 1.0


def sgd(parameters, *, lr):
    return [torch.optim.SGD(list(parameters.values()), lr=lr)]


def falling(step, *, steps):
    return 1 - step / steps


def half(step):
    return 0.5


def recompute_nothing(network):
    pass


class Bytes(ByteEncoder):
    """Bytes by another name."""


def in_one_step(predict, x, levels, *, path, noise):
    return x + like(levels[-1] - levels[0], x) * predict(x, levels[0])


def unguided(ask, *, clips, path):
    return lambda x, t: ask(x, t, ("text",))[0]


class MeanColour(nn.Module):
    name, fingerprint, dimension, minimum_frames = "mean-colour", "0" * 64, 3, 1
    logits, canonical, settings = False, False, {}
    preparation = Preparation(size=None, kernel="none", low=0.0, high=1.0)

    def forward(self, videos):
        return self.preparation(videos).mean(dim=(2, 3, 4))
