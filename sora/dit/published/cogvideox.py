"""CogVideoX (Yang et al. 2024): expert blocks; sinusoidal positions in the 2B model, rotary positions in the 5B model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import floordiv, itemgetter, mul
from typing import Any

from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.options import From, Options
from sora.dit.published.wan import ATTENTION, MLP, TIME, TWO

ATTENTION_NORMS = {
    "norm_q.weight": "q_norm.gain",
    "norm_q.bias": "q_norm.bias",
    "norm_k.weight": "k_norm.gain",
    "norm_k.bias": "k_norm.bias",
}
# Published order: shift, scale and gate of patches, then of words; in one projection for attention and another for the MLP.
FIRST = "{0}[1/6] {0}[0/6] {0}[2/6] text_{0}[1/6] text_{0}[0/6] text_{0}[2/6]"
SECOND = "{0}[4/6] {0}[3/6] {0}[5/6] text_{0}[4/6] text_{0}[3/6] text_{0}[5/6]"


def _turned(value: Any) -> Callable[..., Any]:
    """Function for `From`: `value`, or its result if it is a function of the other keys, for rotary positions; None for sinusoidal ones."""
    return lambda turning, *others: (value(*others) if callable(value) else value) if turning else None


def _waved(value: Any) -> Callable[..., Any]:
    """As `_turned`, but for sinusoidal positions; None for rotary ones."""
    return lambda turning, *others: None if turning else (value(*others) if callable(value) else value)


def _axes(head: int) -> list[int]:
    """Rotary channels of frames, rows and columns: a quarter and twice three eighths of a head, as in the pipeline of diffusers."""
    return [head // 4, head // 8 * 3, head // 8 * 3]


TURNING = "use_rotary_positional_embeddings"
OPTIONS = Options(
    names=("CogVideoXTransformer3DModel",),
    defaults={
        "num_attention_heads": 30,
        "attention_head_dim": 64,
        "in_channels": 16,
        "out_channels": 16,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "time_embed_dim": 512,
        "ofs_embed_dim": None,
        "text_embed_dim": 4096,
        "num_layers": 30,
        "dropout": 0.0,
        "attention_bias": True,
        "sample_width": 90,
        "sample_height": 60,
        "sample_frames": 49,
        "patch_size": 2,
        "patch_size_t": None,
        "temporal_compression_ratio": 4,
        "max_text_seq_length": 226,
        "activation_fn": "gelu-approximate",
        "timestep_activation_fn": "silu",
        "norm_elementwise_affine": True,
        "norm_eps": 1e-5,
        "spatial_interpolation_scale": 1.875,
        "temporal_interpolation_scale": 1.0,
        TURNING: False,
        "use_learned_positional_embeddings": False,
        "patch_bias": True,
    },
    only={
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "ofs_embed_dim": None,
        "dropout": 0.0,
        "attention_bias": True,
        "patch_size_t": None,
        "activation_fn": "gelu-approximate",
        "timestep_activation_fn": "silu",
        "norm_elementwise_affine": True,
        "temporal_interpolation_scale": 1.0,
        "use_learned_positional_embeddings": False,
        "patch_bias": True,
    },
    # default sizes of its pipeline's videos, and the maximum number of words
    unread=("sample_width", "sample_height", "sample_frames", "temporal_compression_ratio", "max_text_seq_length"),
    shapeless=("num_attention_heads", "norm_eps", "spatial_interpolation_scale", TURNING),
    ours={
        "width": From("num_attention_heads attention_head_dim", mul),
        "depth": From("num_layers"),
        "heads": From("num_attention_heads"),
        "patch": From("patch_size", lambda size: [1, size, size]),
        "mlp._target_": "sora.dit.gelu_tanh",
        "mlp_ratio": 4.0,
        "level._target_": "sora.dit.narrow_level",
        "level.level_width": From("time_embed_dim"),
        "level.before": 1,
        "text._target_": "sora.dit.linear_text",
        "rope._target_": From(TURNING, _turned("sora.dit.AxialRope")),
        "rope.axes": From(f"{TURNING} attention_head_dim", _turned(_axes)),
        "rope.time_scale": From(TURNING, _turned(1.0)),
        "rope.theta": From(TURNING, _turned(10000.0)),
        "by_frame": True,
        "position._target_": From(TURNING, _waved("sora.dit.sines_3d")),
        "position.stretch": From(f"{TURNING} spatial_interpolation_scale", _waved(float)),
        "norm._target_": "sora.dit.affine_layer_norm",
        "norm.eps": From("norm_eps"),
        "qk_norm._target_": "sora.dit.layer_norm_per_head",
        "qk_norm.eps": 1e-6,
        "modulation._target_": "sora.dit.ZeroModulation",
        "pattern._target_": "sora.dit.full_attention",
        "block._target_": "sora.dit.expert_block",
        "final._target_": "sora.dit.normed_projected_final",
        "final.norm._target_": "sora.dit.affine_layer_norm",
        "final.norm.eps": From("norm_eps"),
        "final.eps": From("norm_eps"),
        "latent_channels": From("in_channels"),
        "out_channels": From("out_channels"),
        "text_width": From("text_embed_dim"),
    },
    theirs={
        "num_attention_heads": "heads",
        "attention_head_dim": From("width heads", floordiv),
        "in_channels": "latent_channels",
        "out_channels": "latent_channels",
        "time_embed_dim": "level.level_width",
        "text_embed_dim": "text_width",
        "num_layers": "depth",
        "patch_size": From("patch", itemgetter(1)),
        "max_text_seq_length": "words",
        "norm_eps": "norm.eps",
        TURNING: From("rope._target_", lambda kind: kind is not None),
        "spatial_interpolation_scale": "position.stretch",
    },
)


def cogvideox_text_to_video(dit: PublishedDiT) -> KeyMap:
    """Key map of CogVideoXTransformer3DModel 1.0, for dit.keys (not 1.5, whose patches span two frames in another order)."""
    return KeyMap(OPTIONS, partial(_keys, dit), dit.patch)


def _keys(dit: PublishedDiT) -> dict[str, Key]:
    table = {
        "patch_embed.proj.weight": Key("embed.weight", "d (t h w c) -> d c (t h) w"),
        "patch_embed.proj.bias": "embed.bias",
        "patch_embed.text_proj.*": "embed_text.project.0.*",
        "norm_final.*": "final.before.*",
        "norm_out.linear.*": TWO.format("final.project.*"),
        "norm_out.norm.weight": "final.norm.gain",
        "norm_out.norm.bias": "final.norm.bias",
        "proj_out.weight": Key("out.weight", "(t h w c) d -> (c t h w) d"),
        "proj_out.bias": Key("out.bias", "(t h w c) -> (c t h w)"),
    }
    found = keys(table) | keys(TIME, theirs="time_embedding.", ours="embed_level.time.")
    for number in range(len(dit.blocks)):
        ours, theirs = f"blocks.{number}.", f"transformer_blocks.{number}."
        found |= keys(ATTENTION | ATTENTION_NORMS, theirs=f"{theirs}attn1.", ours=f"{ours}attention.")
        found |= keys(MLP, theirs=f"{theirs}ff.", ours=f"{ours}mlp.")
        for norm, order in (("norm1", FIRST), ("norm2", SECOND)):
            linear = {"weight": order.format("own.up.weight"), "bias": order.format("table")}
            found |= keys(linear, theirs=f"{theirs}{norm}.linear.", ours=ours)
            found |= keys({"weight": "gain", "bias": "bias"}, theirs=f"{theirs}{norm}.norm.", ours=f"{ours}{norm}.")
    return found
