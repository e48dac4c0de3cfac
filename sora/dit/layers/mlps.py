"""Alternatives to `sora.dit.gelu` for the MLP of a block: (width, ratio) -> module."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class SwiGluMlp(nn.Module):
    """SwiGLU MLP (Shazeer 2020), a third narrower than `GeluMlp`, so that both have the same number of weights."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = 8 * round(width * ratio * 2 / 3 / 8)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def swiglu(width: int, ratio: float) -> SwiGluMlp:
    """Build a `SwiGluMlp`, for dit.mlp. ratio: hidden width / width of the `GeluMlp` with the same number of weights."""
    return SwiGluMlp(width, ratio)


class TanhGeluMlp(nn.Module):
    """Two linear layers with the tanh form of GELU between (Hendrycks & Gimpel 2016, 2), as in published networks."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, round(width * ratio))
        self.down = nn.Linear(round(width * ratio), width)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def gelu_tanh(width: int, ratio: float) -> TanhGeluMlp:
    """Build a `TanhGeluMlp`, for dit.mlp. ratio: hidden width / width."""
    return TanhGeluMlp(width, ratio)
