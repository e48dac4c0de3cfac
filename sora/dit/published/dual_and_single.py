"""HunyuanVideo (Kong et al. 2024) and FLUX.1: dual-stream blocks followed by single-stream blocks, and a pooled caption vector."""

from __future__ import annotations

from functools import partial
from operator import add, floordiv, itemgetter, mul, sub

from sora.dit.blocks.dual import DualBlock
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.options import From, Options, Told, as_int
from sora.dit.published.wan import ATTENTION, MLP, QK_NORMS, SIX, TEXT, TIME

ADDED = {
    "add_q_proj.*": "qkv.*[0/3]",
    "add_k_proj.*": "qkv.*[1/3]",
    "add_v_proj.*": "qkv.*[2/3]",
    "to_add_out.*": "out.*",
    "norm_added_q.weight": "q_norm.gain",
    "norm_added_k.weight": "k_norm.gain",
}
SINGLE = {
    "attn.to_q.*": "attention.qkv.*[0/3]",
    "attn.to_k.*": "attention.qkv.*[1/3]",
    "attn.to_v.*": "attention.qkv.*[2/3]",
    "attn.norm_q.weight": "attention.q_norm.gain",
    "attn.norm_k.weight": "attention.k_norm.gain",
    "norm.linear.weight": "own.up.weight[1/3] own.up.weight[0/3] own.up.weight[2/3]",
    "norm.linear.bias": "table[1/3] table[0/3] table[2/3]",
    "proj_mlp.*": "mlp.up.*",
    "proj_out.weight": Key("attention.out.weight mlp.down.weight", axis=1),
    "proj_out.bias": Key("attention.out.bias mlp.down.bias", added=True),
}


# Entries that both networks have in common.
OURS = {
    "width": From("num_attention_heads attention_head_dim", mul),
    "depth": From("num_layers num_single_layers", add),
    "heads": From("num_attention_heads"),
    "mlp._target_": "sora.dit.gelu_tanh",
    "level._target_": "sora.dit.level_and_pooled",
    "level.waves": 256,
    "level.pooled_width": From("pooled_projection_dim"),
    "level.guidance": From("guidance_embeds", lambda told: Told() if told else None),
    "rope._target_": "sora.dit.AxialRope",
    "rope.time_scale": 1.0,
    "by_frame": True,
    "norm._target_": "sora.dit.layer_norm",
    "norm.eps": 1e-6,
    "qk_norm._target_": "sora.dit.rms_per_head",
    "qk_norm.eps": 1e-6,
    "modulation._target_": "sora.dit.ZeroModulation",
    "pattern._target_": "sora.dit.full_attention",
    "block._target_": "sora.dit.dual_then_single_block",
    "block.dual": From("num_layers"),
    "final._target_": "sora.dit.projected_final",
    "final.norm._target_": "sora.dit.layer_norm",
    "final.norm.eps": 1e-6,
}
THEIRS = {
    "num_attention_heads": "heads",
    "attention_head_dim": From("width heads", floordiv),
    "num_layers": "block.dual",
    "num_single_layers": From("depth block.dual", sub),
    "pooled_projection_dim": "level.pooled_width",
    "guidance_embeds": From("level.guidance", lambda scale: scale is not None),
}
HUNYUAN = Options(
    names=("HunyuanVideoTransformer3DModel",),
    defaults={
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "num_layers": 20,
        "num_single_layers": 40,
        "num_refiner_layers": 2,
        "mlp_ratio": 4.0,
        "patch_size": 2,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": True,
        "text_embed_dim": 4096,
        "pooled_projection_dim": 768,
        "rope_theta": 256.0,
        "rope_axes_dim": [16, 56, 56],
        "image_condition_type": None,
    },
    only={"qk_norm": "rms_norm", "image_condition_type": None},
    unread=(),
    shapeless=("rope_theta", "rope_axes_dim"),
    ours=OURS
    | {
        "patch": From("patch_size_t patch_size", lambda frames, side: [frames, side, side]),
        "mlp_ratio": From(
            "mlp_ratio num_attention_heads attention_head_dim", lambda ratio, heads, head: int(heads * head * ratio) / (heads * head)
        ),
        "text._target_": "sora.dit.refined_text",
        "text.depth": From("num_refiner_layers"),
        "rope.axes": From("rope_axes_dim"),
        "rope.theta": From("rope_theta"),
        "latent_channels": From("in_channels"),
        "out_channels": From("out_channels"),
        "text_width": From("text_embed_dim"),
    },
    theirs=THEIRS
    | {
        "in_channels": "latent_channels",
        "out_channels": "latent_channels",
        "num_refiner_layers": "text.depth",
        "mlp_ratio": From("mlp_ratio width", as_int),
        "patch_size": From("patch", itemgetter(1)),
        "patch_size_t": From("patch", itemgetter(0)),
        "text_embed_dim": "text_width",
        "rope_theta": "rope.theta",
        "rope_axes_dim": "rope.axes",
    },
)
FLUX = Options(
    names=("FluxTransformer2DModel",),
    defaults={
        "patch_size": 1,
        "in_channels": 64,
        "out_channels": None,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": False,
        "axes_dims_rope": [16, 56, 56],
    },
    only={"patch_size": 1},
    unread=(),
    shapeless=("axes_dims_rope",),
    ours=OURS
    | {
        "patch": [1, 2, 2],  # the pipeline makes these patches; for the class they are channels
        "mlp_ratio": 4.0,
        "text._target_": "sora.dit.linear_text",
        "rope.axes": From("axes_dims_rope"),
        "rope.theta": 10000.0,
        "latent_channels": From("in_channels", lambda channels: channels / 4),
        "out_channels": From("in_channels out_channels", lambda channels, out: (out or channels) / 4),
        "text_width": From("joint_attention_dim"),
    },
    theirs=THEIRS
    | {
        "in_channels": From("latent_channels", lambda channels: 4 * channels),
        "joint_attention_dim": "text_width",
        "axes_dims_rope": "rope.axes",
    },
)


def _blocks(dit: PublishedDiT) -> dict[str, Key]:
    found = {}
    dual = sum(isinstance(block, DualBlock) for block in dit.blocks)
    for number in range(len(dit.blocks)):
        ours = f"blocks.{number}."
        if number >= dual:
            found |= keys(SINGLE, theirs=f"single_transformer_blocks.{number - dual}.", ours=ours)
            continue
        theirs = f"transformer_blocks.{number}."
        found |= keys(ATTENTION | QK_NORMS, theirs=f"{theirs}attn.", ours=f"{ours}attention.")
        found |= keys(ADDED, theirs=f"{theirs}attn.", ours=f"{ours}text_attention.")
        found |= keys(MLP, theirs=f"{theirs}ff.", ours=f"{ours}mlp.")
        found |= keys(MLP, theirs=f"{theirs}ff_context.", ours=f"{ours}text_mlp.")
        for norm, kind in (("norm1", ""), ("norm1_context", "text_")):
            linear = {"weight": SIX.format(f"{kind}own.up.weight"), "bias": SIX.format(f"{kind}table")}
            found |= keys(linear, theirs=f"{theirs}{norm}.linear.", ours=ours)
    return found


def _ends(dit: PublishedDiT) -> dict[str, Key]:
    found = keys({"norm_out.linear.*": "final.project.*"})
    found |= keys(TIME, theirs="time_text_embed.timestep_embedder.", ours="embed_level.time.")
    found |= keys(TEXT, theirs="time_text_embed.text_embedder.", ours="embed_level.pooled.")
    if dit.embed_level.guidance is not None:
        found |= keys(TIME, theirs="time_text_embed.guidance_embedder.", ours="embed_level.guidance.")
    return found


def hunyuan_video(dit: PublishedDiT) -> KeyMap:
    """Key map of HunyuanVideoTransformer3DModel (text to video), for dit.keys."""
    return KeyMap(HUNYUAN, partial(_hunyuan_keys, dit), dit.patch)


def _hunyuan_keys(dit: PublishedDiT) -> dict[str, Key]:
    table = {
        "x_embedder.proj.weight": Key("embed.weight", "d (t h w c) -> d c t h w"),
        "x_embedder.proj.bias": "embed.bias",
        "proj_out.weight": Key("out.weight", "(t h w c) d -> (c t h w) d"),
        "proj_out.bias": Key("out.bias", "(t h w c) -> (c t h w)"),
        "context_embedder.proj_in.*": "embed_text.project.*",
    }
    found = keys(table) | _ends(dit) | _blocks(dit)
    found |= keys(TIME, theirs="context_embedder.time_text_embed.timestep_embedder.", ours="embed_text.time.")
    found |= keys(TEXT, theirs="context_embedder.time_text_embed.text_embedder.", ours="embed_text.pooled.")
    refiner = {
        "norm1.*": "norm1.*",
        "norm2.*": "norm2.*",
        "norm_out.linear.*": "gates.*",
        "ff.net.0.proj.*": "mlp.0.*",
        "ff.net.2.*": "mlp.2.*",
    }
    for number in range(len(dit.embed_text.blocks)):
        theirs, ours = f"context_embedder.token_refiner.refiner_blocks.{number}.", f"embed_text.blocks.{number}."
        found |= keys(refiner, theirs=theirs, ours=ours) | keys(ATTENTION, theirs=f"{theirs}attn.", ours=ours)
    return found


def flux(dit: PublishedDiT) -> KeyMap:
    """Key map of FluxTransformer2DModel, for dit.keys. Its tokens are 2 x 2 patches of an image's latents, channels first."""
    return KeyMap(FLUX, partial(_flux_keys, dit), dit.patch)


def _flux_keys(dit: PublishedDiT) -> dict[str, Key]:
    table = {
        "x_embedder.weight": Key("embed.weight", "d (t h w c) -> d (c t h w)"),
        "x_embedder.bias": "embed.bias",
        "context_embedder.*": "embed_text.project.0.*",
        "proj_out.weight": Key("out.weight", "(t h w c) d -> (c t h w) d"),
        "proj_out.bias": Key("out.bias", "(t h w c) -> (c t h w)"),
    }
    return keys(table) | _ends(dit) | _blocks(dit)
