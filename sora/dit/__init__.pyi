from sora.dit.attention.chunked import chunked_attention as chunked_attention
from sora.dit.attention.dense import allowed as allowed
from sora.dit.attention.dense import dense_attention as dense_attention
from sora.dit.attention.fastest import fastest as fastest
from sora.dit.attention.fastest import fastest_attention as fastest_attention
from sora.dit.attention.flash import flash_attention as flash_attention
from sora.dit.attention.flex import block_mask_of as block_mask_of
from sora.dit.attention.flex import flex_attention as flex_attention
from sora.dit.attention.flex import mask_mod as mask_mod
from sora.dit.attention.patterns import (
    causal_attention as causal_attention,
)
from sora.dit.attention.patterns import (
    factorised_attention as factorised_attention,
)
from sora.dit.attention.patterns import (
    full_attention as full_attention,
)
from sora.dit.attention.patterns import (
    windowed_attention as windowed_attention,
)
from sora.dit.attention.per_segment import per_segment_attention as per_segment_attention
from sora.dit.attention.varlen import (
    attention_shapes as attention_shapes,
)
from sora.dit.attention.varlen import (
    longest as longest,
)
from sora.dit.attention.varlen import (
    refuse_elsewhere as refuse_elsewhere,
)
from sora.dit.attention.varlen import (
    takes as takes,
)
from sora.dit.attention.varlen import (
    varlen_attention as varlen_attention,
)
from sora.dit.blocks.dual import DualBlock as DualBlock
from sora.dit.blocks.dual import dual_block as dual_block
from sora.dit.blocks.expert import ExpertBlock as ExpertBlock
from sora.dit.blocks.expert import expert_block as expert_block
from sora.dit.blocks.lean import LeanBlock as LeanBlock
from sora.dit.blocks.lean import lean_block as lean_block
from sora.dit.blocks.parallel import ParallelBlock as ParallelBlock
from sora.dit.blocks.parallel import parallel_block as parallel_block
from sora.dit.blocks.plain import PlainBlock as PlainBlock
from sora.dit.blocks.plain import plain_block as plain_block
from sora.dit.blocks.single import (
    SingleBlock as SingleBlock,
)
from sora.dit.blocks.single import (
    dual_then_single_block as dual_then_single_block,
)
from sora.dit.blocks.single import (
    single_block as single_block,
)
from sora.dit.dit import (
    Block as Block,
)
from sora.dit.dit import (
    Context as Context,
)
from sora.dit.dit import (
    CrossAttention as CrossAttention,
)
from sora.dit.dit import (
    DiT as DiT,
)
from sora.dit.dit import (
    GainedLayerNorm as GainedLayerNorm,
)
from sora.dit.dit import (
    GeluMlp as GeluMlp,
)
from sora.dit.dit import (
    HeadNorm as HeadNorm,
)
from sora.dit.dit import (
    LayerNorm as LayerNorm,
)
from sora.dit.dit import (
    LevelEmbedding as LevelEmbedding,
)
from sora.dit.dit import (
    Modulation as Modulation,
)
from sora.dit.dit import (
    Parts as Parts,
)
from sora.dit.dit import (
    Projection as Projection,
)
from sora.dit.dit import (
    SelfAttention as SelfAttention,
)
from sora.dit.dit import (
    Stream as Stream,
)
from sora.dit.dit import (
    as_weights as as_weights,
)
from sora.dit.dit import (
    begin as begin,
)
from sora.dit.dit import (
    cross_block as cross_block,
)
from sora.dit.dit import (
    gelu as gelu,
)
from sora.dit.dit import (
    layer_norm as layer_norm,
)
from sora.dit.dit import (
    modulations as modulations,
)
from sora.dit.dit import (
    one_on_scales as one_on_scales,
)
from sora.dit.dit import (
    refuse_sizes as refuse_sizes,
)
from sora.dit.dit import (
    rms_per_head as rms_per_head,
)
from sora.dit.layers.clip_shape import ClipShape as ClipShape
from sora.dit.layers.clip_shape import clip_shape as clip_shape
from sora.dit.layers.clip_shape import measured_shapes as measured_shapes
from sora.dit.layers.mlps import SwiGluMlp as SwiGluMlp
from sora.dit.layers.mlps import TanhGeluMlp as TanhGeluMlp
from sora.dit.layers.mlps import gelu_tanh as gelu_tanh
from sora.dit.layers.mlps import swiglu as swiglu
from sora.dit.layers.modulation import (
    LoRAModulation as LoRAModulation,
)
from sora.dit.layers.modulation import (
    LowRankProjection as LowRankProjection,
)
from sora.dit.layers.modulation import (
    SingleModulation as SingleModulation,
)
from sora.dit.layers.modulation import (
    ZeroModulation as ZeroModulation,
)
from sora.dit.layers.norms import (
    AcrossHeads as AcrossHeads,
)
from sora.dit.layers.norms import (
    AffineLayerNorm as AffineLayerNorm,
)
from sora.dit.layers.norms import (
    HeadLayerNorm as HeadLayerNorm,
)
from sora.dit.layers.norms import (
    RmsNorm as RmsNorm,
)
from sora.dit.layers.norms import (
    affine_layer_norm as affine_layer_norm,
)
from sora.dit.layers.norms import (
    layer_norm_per_head as layer_norm_per_head,
)
from sora.dit.layers.norms import (
    no_norm as no_norm,
)
from sora.dit.layers.norms import (
    rms_across_heads as rms_across_heads,
)
from sora.dit.layers.norms import (
    rms_norm as rms_norm,
)
from sora.dit.layers.registers import Registers as Registers
from sora.dit.layers.registers import Widened as Widened
from sora.dit.layers.registers import register_tokens as register_tokens
from sora.dit.layers.rope import (
    AxialRope as AxialRope,
)
from sora.dit.layers.rope import (
    Learned as Learned,
)
from sora.dit.layers.rope import (
    Rope as Rope,
)
from sora.dit.layers.rope import (
    Waves as Waves,
)
from sora.dit.layers.rope import (
    learned_positions as learned_positions,
)
from sora.dit.layers.rope import (
    positive as positive,
)
from sora.dit.layers.rope import (
    rotate as rotate,
)
from sora.dit.layers.rope import (
    wave_positions as wave_positions,
)
from sora.dit.layers.rope_scaling import interpolated_rope as interpolated_rope
from sora.dit.layers.rope_scaling import ntk_rope as ntk_rope
from sora.dit.layers.rope_scaling import yarn_rope as yarn_rope
from sora.dit.mup import Scale as Scale
from sora.dit.mup import mup_scale as mup_scale
from sora.dit.mup import named as named
from sora.dit.mup import scale_of as scale_of
from sora.dit.mup import standard_scale as standard_scale
from sora.dit.published.class_conditional import (
    class_conditional_block as class_conditional_block,
)
from sora.dit.published.class_conditional import (
    dit_class_to_image as dit_class_to_image,
)
from sora.dit.published.cogvideox import cogvideox_text_to_video as cogvideox_text_to_video
from sora.dit.published.dual_and_single import flux as flux
from sora.dit.published.dual_and_single import hunyuan_video as hunyuan_video
from sora.dit.published.latte import (
    TemporalBlock as TemporalBlock,
)
from sora.dit.published.latte import (
    latte_text_to_video as latte_text_to_video,
)
from sora.dit.published.latte import (
    spatial_temporal_block as spatial_temporal_block,
)
from sora.dit.published.levels import (
    LevelAndLabel as LevelAndLabel,
)
from sora.dit.published.levels import (
    LevelAndPooled as LevelAndPooled,
)
from sora.dit.published.levels import (
    LevelVector as LevelVector,
)
from sora.dit.published.levels import (
    LevelWaves as LevelWaves,
)
from sora.dit.published.levels import (
    level_and_label as level_and_label,
)
from sora.dit.published.levels import (
    level_and_pooled as level_and_pooled,
)
from sora.dit.published.levels import (
    narrow_level as narrow_level,
)
from sora.dit.published.levels import (
    published_level as published_level,
)
from sora.dit.published.levels import (
    told as told,
)
from sora.dit.published.ltx import WideRope as WideRope
from sora.dit.published.ltx import ltx_text_to_video as ltx_text_to_video
from sora.dit.published.network import (
    ProjectedFinal as ProjectedFinal,
)
from sora.dit.published.network import (
    PublishedDiT as PublishedDiT,
)
from sora.dit.published.network import (
    Remembering as Remembering,
)
from sora.dit.published.network import (
    TableFinal as TableFinal,
)
from sora.dit.published.network import (
    extents as extents,
)
from sora.dit.published.network import (
    leaves as leaves,
)
from sora.dit.published.network import (
    normed_projected_final as normed_projected_final,
)
from sora.dit.published.network import (
    projected_final as projected_final,
)
from sora.dit.published.network import (
    table_final as table_final,
)
from sora.dit.published.positions import (
    Sines2d as Sines2d,
)
from sora.dit.published.positions import (
    Sines3d as Sines3d,
)
from sora.dit.published.positions import (
    sines_1d as sines_1d,
)
from sora.dit.published.positions import (
    sines_2d as sines_2d,
)
from sora.dit.published.positions import (
    sines_3d as sines_3d,
)
from sora.dit.published.texts import (
    ProjectedText as ProjectedText,
)
from sora.dit.published.texts import (
    RefinedText as RefinedText,
)
from sora.dit.published.texts import (
    RefinerBlock as RefinerBlock,
)
from sora.dit.published.texts import (
    Unread as Unread,
)
from sora.dit.published.texts import (
    filled as filled,
)
from sora.dit.published.texts import (
    linear_text as linear_text,
)
from sora.dit.published.texts import (
    refined_text as refined_text,
)
from sora.dit.published.texts import (
    two_layer_text as two_layer_text,
)
from sora.dit.published.texts import (
    unread_text as unread_text,
)
from sora.dit.published.wan import (
    NormedCrossBlock as NormedCrossBlock,
)
from sora.dit.published.wan import (
    normed_cross_block as normed_cross_block,
)
from sora.dit.published.wan import (
    wan_text_to_video as wan_text_to_video,
)
