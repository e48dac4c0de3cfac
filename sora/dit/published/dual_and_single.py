"""HunyuanVideo (Kong et al. 2024) and FLUX.1: dual-stream blocks, single-stream ones after them, a vector for the whole caption."""

from __future__ import annotations

from sora.dit.dual import DualBlock
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
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
    """dit.keys: HunyuanVideoTransformer3DModel, text to video."""
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
    dual = sum(isinstance(block, DualBlock) for block in dit.blocks)
    config = {
        "in_channels": dit.latent_channels,
        "out_channels": dit.latent_channels,
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.width // dit.heads,
        "num_layers": dual,
        "num_single_layers": len(dit.blocks) - dual,
        "num_refiner_layers": len(dit.embed_text.blocks),
        "mlp_ratio": dit.mlp_ratio,
        "patch_size": dit.patch[1],
        "patch_size_t": dit.patch[0],
        "guidance_embeds": dit.embed_level.guidance is not None,
        "text_embed_dim": dit.text_width,
        "pooled_projection_dim": dit.embed_level.pooled[0].in_features,
    }
    return KeyMap("HunyuanVideoTransformer3DModel", config, found, dit.patch)


def flux(dit: PublishedDiT) -> KeyMap:
    """dit.keys: FluxTransformer2DModel; its tokens are patches of 2 x 2 of an image's latents, channels first."""
    table = {
        "x_embedder.weight": Key("embed.weight", "d (t h w c) -> d (c t h w)"),
        "x_embedder.bias": "embed.bias",
        "context_embedder.*": "embed_text.project.0.*",
        "proj_out.weight": Key("out.weight", "(t h w c) d -> (c t h w) d"),
        "proj_out.bias": Key("out.bias", "(t h w c) -> (c t h w)"),
    }
    dual = sum(isinstance(block, DualBlock) for block in dit.blocks)
    config = {
        "in_channels": dit.patch_channels,
        "num_layers": dual,
        "num_single_layers": len(dit.blocks) - dual,
        "attention_head_dim": dit.width // dit.heads,
        "num_attention_heads": dit.heads,
        "joint_attention_dim": dit.text_width,
        "pooled_projection_dim": dit.embed_level.pooled[0].in_features,
        "guidance_embeds": dit.embed_level.guidance is not None,
    }
    return KeyMap("FluxTransformer2DModel", config, keys(table) | _ends(dit) | _blocks(dit), dit.patch)
