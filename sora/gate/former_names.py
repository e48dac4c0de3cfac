"""Former names of targets and keys: a stored configuration that uses one is read with the present name.

Until November 2026 a target named a file, as in `sora.dit.patterns.full`; now it names a room, as in `sora.dit.full_attention`.
"""

from __future__ import annotations

from typing import Any

# Files that targets could name, by the room that has their names now.
FORMER_FILES = {
    "patches": "patches patches.patchifier",
    "dit": (
        "dit.dit dit.dual dit.expert dit.lean dit.parallel dit.plain dit.single dit.clips dit.mlps dit.modulation dit.norms "
        "dit.patterns dit.registers dit.rope dit.scaling dit.stretch dit.attention dit.attention.chunked dit.attention.dense "
        "dit.attention.fastest dit.attention.flash dit.attention.flex dit.attention.per_segment dit.attention.varlen "
        "dit.published.class_conditional dit.published.cogvideox dit.published.dual_and_single dit.published.latte "
        "dit.published.ltx dit.published.wan dit.published.levels dit.published.network dit.published.positions "
        "dit.published.texts"
    ),
    "diffusion": (
        "diffusion.density diffusion.discrete diffusion.guidance diffusion.objective diffusion.path diffusion.prediction "
        "diffusion.samplers diffusion.shift diffusion.weighting"
    ),
    "vae": "vae.vae vae.losses",
    "text": "text.byte text.classes text.pooled text.pretrained",
    "data": (
        "data.latent_batches data.loading data.video_batches data.planning data.planning.cost data.planning.crops "
        "data.planning.filling data.planning.plan"
    ),
    "video": "data.decoding.decord data.decoding.guarded data.decoding.pyav data.decoding.reader data.decoding.torchcodec",
    "world": "data.world data.world.world",
    "ingest": "data.sources",
    "metrics": (
        "metrics.rand3d metrics.extractors.efficientnet metrics.extractors.flow_histograms metrics.extractors.i3d_files "
        "metrics.extractors.motion3d metrics.extractors.pretrained "
        "metrics.extractors.transnet"
    ),
    "training": (
        "training.ema training.optimizers training.recompute training.schedules training.sinks training.soundness training.trainers"
    ),
    "cost": "cluster.hardware",
    "launch": "cluster.slurm",
}
# Names that changed when the file's name, which had explained them, was dropped.
RENAMED = {
    "dit.clips": {"shape": "clip_shape", "measured": "measured_shapes"},
    "dit.modulation": {"Projection": "LowRankProjection", "Single": "SingleModulation", "Zero": "ZeroModulation", "LoRA": "LoRAModulation"},
    "dit.published.texts": {"linear": "linear_text", "two_layers": "two_layer_text", "unread": "unread_text", "refined": "refined_text"},
    "dit.published.levels": {"Waves": "LevelWaves", "level": "published_level"},
    "dit.published.class_conditional": {"plain": "class_conditional_block", "class_to_image": "dit_class_to_image"},
    "dit.published.cogvideox": {"text_to_video": "cogvideox_text_to_video"},
    "dit.published.latte": {"text_to_video": "latte_text_to_video", "spatial_and_temporal": "spatial_temporal_block"},
    "dit.published.ltx": {"text_to_video": "ltx_text_to_video"},
    "dit.published.wan": {"text_to_video": "wan_text_to_video", "normed_cross": "normed_cross_block"},
    "dit.published.network": {"table": "table_final", "projected": "projected_final", "normed_projected": "normed_projected_final"},
    "dit.published.positions": {"sines": "sines_1d"},
    "dit.dit": {"cross": "cross_block"},
    "dit.dual": {"dual": "dual_block"},
    "dit.expert": {"expert": "expert_block"},
    "dit.lean": {"lean": "lean_block"},
    "dit.parallel": {"parallel": "parallel_block"},
    "dit.plain": {"plain": "plain_block"},
    "dit.single": {"single": "single_block", "dual_then_single": "dual_then_single_block"},
    "dit.norms": {"none": "no_norm"},
    "dit.patterns": {
        "full": "full_attention",
        "factorised": "factorised_attention",
        "windowed": "windowed_attention",
        "causal": "causal_attention",
    },
    "dit.attention.chunked": {"chunked": "chunked_attention"},
    "dit.attention.dense": {"dense": "dense_attention"},
    "dit.attention.flash": {"flash": "flash_attention"},
    "dit.attention.flex": {"flex": "flex_attention"},
    "dit.attention.per_segment": {"per_segment": "per_segment_attention"},
    "dit.attention.varlen": {"varlen": "varlen_attention", "shapes": "attention_shapes"},
    "dit.attention.fastest": {"attend": "fastest_attention"},
    "dit.registers": {"registers": "register_tokens"},
    "dit.rope": {"waves": "wave_positions", "learned": "learned_positions"},
    "dit.scaling": {"standard": "standard_scale", "mup": "mup_scale"},
    "dit.stretch": {"interpolated": "interpolated_rope", "ntk": "ntk_rope", "yarn": "yarn_rope"},
    "diffusion.shift": {"constant": "constant_shift", "by_tokens": "shift_by_tokens"},
    "diffusion.weighting": {
        "constant": "constant_weight",
        "min_snr": "min_snr_weight",
        "cosine_map": "cosine_map_weight",
        "as_velocity": "velocity_weight",
    },
    "diffusion.prediction": {
        "velocity": "velocity_prediction",
        "noise": "noise_prediction",
        "clean": "clean_prediction",
        "v": "v_prediction",
    },
    "training.ema": {"constant": "constant_decay", "power": "power_decay"},
    "training.recompute": {
        "none": "recompute_none",
        "full": "recompute_all",
        "every_n": "recompute_every_n",
        "save_attention": "recompute_all_but_attention",
        "by_size": "recompute_by_size",
    },
    "training.schedules": {"constant": "constant_schedule", "cosine": "cosine_schedule", "linear_tail": "linear_tail_schedule"},
    "training.trainers": {"auto": "auto_trainer", "single": "single_trainer", "mesh": "mesh_trainer"},
    "data.planning.cost": {"fitted": "fitted_cost"},
}
# Keys that changed, by the target of their node; "" for keys of the configuration itself.
FORMER_KEYS = {
    "": {"clip": "max_grad_norm"},
    "sora.diffusion.Objective": {"per_frame": "frame_level_share"},
    "sora.training.Guard": {"returns": "max_rollbacks"},
}
ROOM_OF = {file: room for room, files in FORMER_FILES.items() for file in files.split()}
TARGET = "_target_"


def current_name(target: str) -> str:
    """The present name of a class or function that a configuration names; other text is returned unchanged."""
    package, _, rest = target.partition(".")
    file, _, name = rest.rpartition(".")
    if package != "sora" or file not in ROOM_OF:
        return target
    reexported = next((names[name] for known, names in RENAMED.items() if known.startswith(f"{file}.") and name in names), name)
    return f"sora.{ROOM_OF[file]}.{RENAMED.get(file, {}).get(name, reexported)}"


def with_current_names(tree: Any, *, inner: bool = False) -> Any:
    """A stored configuration (plain mappings and lists) with the present names of its targets and keys. inner: `tree` lies inside one."""
    if isinstance(tree, dict):
        tree = {key: current_name(value) if key == TARGET and isinstance(value, str) else value for key, value in tree.items()}
        keys = FORMER_KEYS.get(str(tree.get(TARGET, "inner" if inner else "")), {})
        return {keys.get(key, key): with_current_names(value, inner=True) for key, value in tree.items()}
    return [with_current_names(item, inner=True) for item in tree] if isinstance(tree, list) else tree


def current_key(key: str) -> str:
    """The present name of a key, dotted or not, if it was renamed in any node; another key is returned unchanged."""
    place, _, last = key.rpartition(".")
    now = next((names[last] for names in FORMER_KEYS.values() if last in names), last)
    return f"{place}.{now}" if place else now
