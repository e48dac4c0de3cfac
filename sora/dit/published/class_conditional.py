"""DiT (Peebles & Xie 2023) of ImageNet's classes; SiT's network (Ma et al. 2024) is the same."""

from __future__ import annotations

from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.wan import ATTENTION, MLP, SIX, TIME, TWO


def class_to_image(dit: PublishedDiT) -> KeyMap:
    """dit.keys: DiTTransformer2DModel. In its checkpoints every block has a copy of the one embedding of levels and classes."""
    table = {
        "pos_embed.proj.weight": Key("embed.weight", "d (t h w c) -> d c (t h) w"),
        "pos_embed.proj.bias": "embed.bias",
        "proj_out_1.*": TWO.format("final.project.*"),
        "proj_out_2.*": Key("out.*", halved=True),
    }
    found = keys(table)
    for number in range(len(dit.blocks)):
        ours, theirs = f"blocks.{number}.", f"transformer_blocks.{number}."
        found |= keys(TIME, theirs=f"{theirs}norm1.emb.timestep_embedder.", ours="embed_level.time.")
        found |= keys({f"{theirs}norm1.emb.class_embedder.embedding_table.weight": Key("embed_level.label.weight", "d k -> k d")})
        found |= keys({"weight": SIX.format("own.up.weight"), "bias": SIX.format("table")}, theirs=f"{theirs}norm1.linear.", ours=ours)
        found |= keys(ATTENTION, theirs=f"{theirs}attn1.", ours=f"{ours}attention.")
        found |= keys(MLP, theirs=f"{theirs}ff.", ours=f"{ours}mlp.")
    config = {
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.width // dit.heads,
        "in_channels": dit.latent_channels,
        "out_channels": dit.latent_channels,
        "num_layers": len(dit.blocks),
        "sample_size": dit.embed_position.rows * dit.patch[1],
        "patch_size": dit.patch[1],
        "num_embeds_ada_norm": dit.text_width - 1,
        "norm_eps": 1e-6,
    }
    return KeyMap("DiTTransformer2DModel", config, found, dit.patch)
