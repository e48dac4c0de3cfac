"""What the networks of conf/dit cost, computed: `python -m experiments.sizes` writes docs/sizes.md.

Nothing is run but shapes: every weight and activation lies on the meta device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from sora.assembly.network import flops_of
from sora.config.build import build, plain
from sora.config.compose import config_dir
from sora.dit.flops import TRAINING, nothing
from sora.system.files import write_text
from sora.tokens import Grid

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sizes.md"
CHANNELS, TEXT, WORDS = 16, 4096, 512  # of latents; of the captions' states, as T5-XXL makes them; in a caption
SIZES = ("s_2", "b_2", "l_2", "xl_2", "1b", "2b", "5b", "8b", "14b")
SHORT, LONG = Grid(5, 16, 16), Grid(21, 30, 52)  # 17 frames of 256 x 256 and 81 of 480 x 832, in patches 1x2x2 of strides (4, 8, 8)
PATCHES = (2, 4, 8)
STATE = 4 + 4 + 8 + 4  # bytes of a weight: itself, its gradient, two moments of AdamW, its average


class Size(NamedTuple):
    """Of one network. flops: of a training step, per token, in the short and the long clip. kept: bytes for the backward pass per token."""

    name: str
    width: int
    depth: int
    heads: int
    weights: int
    flops: tuple[float, float]
    kept: float


def option(name: str) -> dict[str, Any]:
    return plain(OmegaConf.load(config_dir() / "dit" / f"{name}.yaml"))  # pyright: ignore[reportArgumentType]


def size(name: str) -> Size:
    tree, given = option(name), {"patch_channels": CHANNELS * 4, "text_width": TEXT}
    flops = flops_of(tree, given)
    with torch.device("meta"):
        network = build(tree, **given)
    per_token = tuple(TRAINING * flops.clip(grid, WORDS) / grid.tokens for grid in (SHORT, LONG))
    weights = sum(value.numel() for value in network.parameters())
    return Size(name, tree["width"], tree["depth"], tree["heads"], weights, per_token, kept(tree, given))  # pyright: ignore[reportArgumentType]


def kept(tree: dict[str, Any], given: dict[str, int]) -> float:
    """Bytes per token that a bf16 forward pass of the long clip keeps; a block's share is the same in each, so two blocks tell of all."""
    one, two = (_kept(build_at(tree, given, depth)) for depth in (1, 2))
    return (one + (tree["depth"] - 1) * (two - one)) / LONG.tokens


def build_at(tree: dict[str, Any], given: dict[str, int], depth: int) -> nn.Module:
    shallow = {key: value for key, value in tree.items() if key != "attention"} | {"depth": depth}
    with torch.device("meta"):
        return build(shallow, attention=_attend, **given).to(torch.bfloat16)


def _kept(network: nn.Module) -> int:
    """Bytes of the storages that the graph holds, each once, without the weights."""
    weights = {value.untyped_storage()._cdata for value in network.parameters()}
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = (storage.nbytes(), value)  # held, so that no other storage gets its address
        return value

    tokens, levels, text = nothing(network, (LONG,), (WORDS,), levels=LONG.t, segments=2, pooled_width=None)
    tokens, text = tokens.with_patches(tokens.patches.bfloat16()), type(text)(text.states.bfloat16(), text.segments)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        network(tokens, levels, text)
    return sum(size for size, _ in seen.values())


class _Attention(torch.autograd.Function):
    """Keeps what flash attention keeps: queries, keys, values, the output, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, q_segments: Any, k_segments: Any, mask: Any = None) -> Tensor:
    out = _Attention.apply(q, k, v)
    assert isinstance(out, Tensor)
    return out


def by_patch(name: str) -> list[tuple[int, int]]:
    """Tokens and operations of a forward pass over the short clip, for each size of patches."""
    found = []
    for side in PATCHES:
        grid = Grid(SHORT.t, SHORT.h * 2 // side, SHORT.w * 2 // side)
        flops = flops_of(option(name), {"patch_channels": CHANNELS * side * side, "text_width": TEXT})
        found.append((grid.tokens, flops.clip(grid, WORDS)))
    return found


def row(name: str) -> str:
    item = size(name)
    shape = f"| `{name}` | {item.width} | {item.depth} | {item.heads} | {_count(item.weights)} |"
    operations = " | ".join(map(_operations, item.flops))
    return f"{shape} {operations} | {item.weights * STATE / 2**30:.1f} GiB | {item.kept / 2**20:.2f} MiB |"


def patch_row(name: str) -> str:
    return f"| `{name}` | " + " | ".join(_operations(flops) for _, flops in by_patch(name)) + " |"


def page() -> str:
    rows, patches = "\n".join(map(row, SIZES)), "\n".join(map(patch_row, SIZES[:4]))
    tokens = " | ".join(f"`patches=1x{side}x{side}`: {count:,}" for side, (count, _) in zip(PATCHES, by_patch("s_2"), strict=True))
    return f"""# Sizes of networks

Computed by `python -m experiments.sizes`, not typed; a test compares. Captions of {WORDS} tokens of width {TEXT:,}, latents of {CHANNELS}
channels at strides (4, 8, 8), patches 1x2x2. *Short*: 17 frames of 256 × 256, {SHORT.tokens:,} tokens. *Long*: 81 frames of 480 × 832,
{LONG.tokens:,} tokens. Operations are those of the model in a training step (forward and backward, nothing done twice), per token of a
clip, with the clip's attention in them. *State*: weight, gradient, both moments of AdamW and the average in fp32, over all devices
together. *Kept*: what a bf16 forward pass over the long clip keeps for the backward pass, per token, when nothing is computed again.

| `dit=` | width | depth | heads | weights | short, per token | long, per token | state | kept per token |
|---|---|---|---|---|---|---|---|---|
{rows}

## By size of patches

`s_2 … xl_2` are named after DiT-S/2 … DiT-XL/2 of Peebles & Xie (2023): `dit=b_2 patches=1x4x4` is DiT-B/4. Operations of one
forward pass over the short clip and its caption:

| `dit=` | {tokens} |
|---|---|---|---|
{patches}
"""


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _operations(number: float) -> str:
    return f"{number / 1e12:.2f} TFLOP" if number >= 1e12 else f"{number / 1e9:.2f} GFLOP"


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
