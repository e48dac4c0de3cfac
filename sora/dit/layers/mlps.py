"""Other MLPs of a block than `sora.dit.gelu`: (width, ratio) -> module."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class SwiGluMlp(nn.Module):
    """A gated MLP (Shazeer 2020), a third narrower than `GeluMlp` so that both have the same number of weights."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = 8 * round(width * ratio * 2 / 3 / 8)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def swiglu(width: int, ratio: float) -> SwiGluMlp:
    """dit.mlp: see `SwiGluMlp`. ratio: hidden width over width, of the ungated MLP with as many weights."""
    return SwiGluMlp(width, ratio)


class TanhGeluMlp(nn.Module):
    """Two layers with the tanh form of GELU between (Hendrycks & Gimpel 2016, 2), as published networks have it."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, round(width * ratio))
        self.down = nn.Linear(round(width * ratio), width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def gelu_tanh(width: int, ratio: float) -> TanhGeluMlp:
    """dit.mlp: see `TanhGeluMlp`. ratio: hidden width over width."""
    return TanhGeluMlp(width, ratio)
