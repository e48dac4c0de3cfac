"""DiT (Peebles & Xie 2023), conditioned on ImageNet classes; the network of SiT (Ma et al. 2024) is the same."""

from __future__ import annotations

from functools import partial
from operator import floordiv, itemgetter, mul

from sora.dit.blocks.plain import PlainBlock
from sora.dit.dit import LayerNorm, Parts
from sora.dit.published.keys import Key, KeyMap, keys
from sora.dit.published.network import PublishedDiT
from sora.dit.published.options import OLDER, From, Options, with_variances
from sora.dit.published.wan import ATTENTION, MLP, SIX, TIME, TWO

OPTIONS = Options(
    names=("DiTTransformer2DModel", "Transformer2DModel"),  # the second is the older name, found in the released checkpoints
    defaults={
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": None,
        "num_layers": 28,
        "dropout": 0.0,
        "norm_num_groups": 32,
        "attention_bias": True,
        "sample_size": 32,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "upcast_attention": False,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-5,
    },
    only=OLDER
    | {
        "dropout": 0.0,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "cross_attention_dim": None,
        "caption_channels": None,
    },
    unread=("norm_num_groups", "upcast_attention"),
    shapeless=("num_attention_heads", "attention_head_dim", "sample_size", "norm_eps"),
    ours={
        "width": From("num_attention_heads attention_head_dim", mul),
        "depth": From("num_layers"),
        "heads": From("num_attention_heads"),
        "patch": From("patch_size", lambda size: [1, size, size]),
        "mlp._target_": "sora.dit.gelu_tanh",
        "mlp_ratio": 4.0,
        "level._target_": "sora.dit.level_and_label",
        "level.waves": 256,
        "text._target_": "sora.dit.unread_text",
        "by_frame": True,
        "position._target_": "sora.dit.sines_2d",
        "position.rows": From("sample_size patch_size", floordiv),
        "position.density": 1.0,
        "norm._target_": "sora.dit.layer_norm",
        "norm.eps": 1e-6,
        "qk_norm._target_": "sora.dit.no_norm",
        "modulation._target_": "sora.dit.ZeroModulation",
        "pattern._target_": "sora.dit.full_attention",
        "block._target_": "sora.dit.class_conditional_block",
        "block.eps": From("norm_eps"),
        "final._target_": "sora.dit.projected_final",
        "final.norm._target_": "sora.dit.layer_norm",
        "final.norm.eps": 1e-6,
        "latent_channels": From("in_channels"),
        "out_channels": From("in_channels out_channels", with_variances),
        "text_width": From("num_embeds_ada_norm", lambda classes: classes + 1),
    },
    theirs={
        "num_attention_heads": "heads",
        "attention_head_dim": From("width heads", floordiv),
        "in_channels": "latent_channels",
        "out_channels": "latent_channels",
        "num_layers": "depth",
        "sample_size": From("position.rows patch", lambda rows, patch: rows * patch[1]),
        "patch_size": From("patch", itemgetter(1)),
        "num_embeds_ada_norm": From("text_width", lambda width: width - 1),
        "norm_eps": "block.eps",
    },
)


def class_conditional_block(number: int, parts: Parts, *, eps: float) -> PlainBlock:
    """Build a `PlainBlock`, for dit.block. eps: epsilon of the layer norm before the MLP: 1e-6 in the paper's code, 1e-5 in diffusers."""
    block = PlainBlock(number, parts)
    block.norm2 = LayerNorm(eps)
    return block


def dit_class_to_image(dit: PublishedDiT) -> KeyMap:
    """Key map of DiTTransformer2DModel, for dit.keys. Its checkpoints hold a copy of the embedding of levels and classes in every block."""
    return KeyMap(OPTIONS, partial(_keys, dit), dit.patch)


def _keys(dit: PublishedDiT) -> dict[str, Key]:
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
    return found
