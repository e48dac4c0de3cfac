"""CogVideoX (Yang et al. 2024): expert blocks; waves for positions in the 2B model, rotations in the 5B one."""

from __future__ import annotations

from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.wan import ATTENTION, MLP, TIME, TWO

ATTENTION_NORMS = {
    "norm_q.weight": "q_norm.gain",
    "norm_q.bias": "q_norm.bias",
    "norm_k.weight": "k_norm.gain",
    "norm_k.bias": "k_norm.bias",
}
# Published: shift, scale, gate of patches and then of words; one projection for attention, another for the MLP.
FIRST = "{0}[1/6] {0}[0/6] {0}[2/6] text_{0}[1/6] text_{0}[0/6] text_{0}[2/6]"
SECOND = "{0}[4/6] {0}[3/6] {0}[5/6] text_{0}[4/6] text_{0}[3/6] text_{0}[5/6]"


def text_to_video(dit: PublishedDiT) -> KeyMap:
    """dit.keys: CogVideoXTransformer3DModel of the first generation (not 1.5, whose patches span two frames in another order)."""
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
    turning = dit.rope is not None
    config = {
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.width // dit.heads,
        "in_channels": dit.latent_channels,
        "out_channels": dit.latent_channels,
        "time_embed_dim": dit.embed_level.width,
        "text_embed_dim": dit.text_width,
        "num_layers": len(dit.blocks),
        "patch_size": dit.patch[1],
        "use_rotary_positional_embeddings": turning,
    } | ({} if turning else {"spatial_interpolation_scale": dit.embed_position.stretch})
    return KeyMap("CogVideoXTransformer3DModel", config, found, dit.patch)
