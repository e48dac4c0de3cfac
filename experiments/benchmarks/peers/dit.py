"""The networks of diffusers that `bench-dit` runs beside ours: small ones of the same width, depth and heads, on the same clip."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    CosmosTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor

WIDTH, HEADS, CHANNELS, WORDS = 384, 6, 16, 64
HEAD, PATCH = WIDTH // HEADS, 4 * CHANNELS


def peers(depth: int, frames: int, dtype: torch.dtype) -> dict[str, Callable[[], tuple[torch.nn.Module, Callable[[], Tensor]]]]:
    """diffusers' networks of our width, depth and heads on a clip of `frames` x 16 x 16 patches and 64 words."""
    inputs, makers = peer_inputs(frames, dtype), peer_makers(depth, frames)

    def made(name: str) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
        network, (given, named) = makers[name]().to(dtype), inputs[name]
        return network, lambda: network(*given, **named, return_dict=False)[0]

    return {name: partial(made, name) for name in makers}


def peer_makers(depth: int, frames: int) -> dict[str, Callable[[], torch.nn.Module]]:
    heads = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
    deep, read = {**heads, "num_layers": depth}, {"text_embed_dim": WIDTH}
    shape = {"sample_width": 32, "sample_height": 32, "sample_frames": 4 * frames - 3, "max_text_seq_length": WORDS}
    halves = {"num_layers": depth // 2, "num_single_layers": depth - depth // 2, "num_refiner_layers": 1}
    plain = {"concat_padding_mask": False, "extra_pos_embed_type": None}
    return {
        "wan": partial(WanTransformer3DModel, **deep, text_dim=WIDTH, ffn_dim=4 * WIDTH),
        "ltx": partial(
            LTXVideoTransformer3DModel, **deep, in_channels=PATCH, out_channels=PATCH, cross_attention_dim=WIDTH, caption_channels=WIDTH
        ),
        "cogvideox": partial(CogVideoXTransformer3DModel, **deep, **read, **shape, use_rotary_positional_embeddings=True),
        "hunyuan_video": partial(
            HunyuanVideoTransformer3DModel,
            **{**heads, **halves, **read},
            pooled_projection_dim=WIDTH,
            rope_axes_dim=(16, 24, 24),
            guidance_embeds=False,
        ),
        "mochi": partial(
            MochiTransformer3DModel, **deep, **read, pooled_projection_dim=WIDTH, in_channels=CHANNELS, max_sequence_length=WORDS
        ),
        "cosmos": partial(CosmosTransformer3DModel, **deep, **read, **plain, adaln_lora_dim=WIDTH // 4),
    }


def peer_inputs(frames: int, dtype: torch.dtype) -> dict[str, tuple[tuple, dict]]:
    """What each is called with, by place and by name."""
    video, text = torch.randn(1, CHANNELS, frames, 32, 32).to(dtype), torch.randn(1, WORDS, WIDTH).to(dtype)
    time_, seen = torch.tensor([500]), torch.ones(1, WORDS, dtype=torch.bool)
    tokens = torch.randn(1, frames * 256, PATCH).to(dtype)
    rotations = torch.ones(frames * 256, HEAD), torch.zeros(frames * 256, HEAD)
    return {
        "wan": ((video, time_, text), {}),
        "ltx": ((tokens, text, time_, seen, frames, 16, 16), {}),
        "cogvideox": ((video.transpose(1, 2).contiguous(), text, time_), {"image_rotary_emb": rotations}),
        "hunyuan_video": ((video, time_, text, seen, text.mean(1)), {}),
        "mochi": ((video, text, time_, seen), {}),
        "cosmos": ((video, time_.to(dtype), text), {}),
    }
