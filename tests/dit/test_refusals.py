"""Numbers that no network can be made of are refused by their keys, and not found out by what it predicts."""

import pytest
import torch
from omegaconf import OmegaConf

from sora.config.build import build
from tests.test_configs import node

NAN, INF = float("nan"), float("inf")
NOT_ABOVE = (0.0, -1.0, NAN, INF)
REFUSED = {
    "toy": {
        "mlp_ratio": NOT_ABOVE,
        "rope.theta": NOT_ABOVE,
        "rope.time_scale": NOT_ABOVE,
        "position.time_scale": NOT_ABOVE,
        "position.count": (0, -1),
        "norm.eps": NOT_ABOVE,
        "qk_norm.eps": NOT_ABOVE,
    },
    "wan_2_1_1_3b": {"level.waves": (-2, 0, 2, 5), "level.before": (-1, 2), "text.fill": (-1,), "block.eps": NOT_ABOVE},
    "cogvideox_2b": {"level.level_width": (0, -1), "position.stretch": NOT_ABOVE, "final.eps": NOT_ABOVE, "norm.eps": NOT_ABOVE},
    "latte_xl_2": {"position.rows": (0, -1), "position.density": NOT_ABOVE, "final.norm.eps": NOT_ABOVE},
    "hunyuan_video": {"text.depth": (-1,), "level.guidance": (-1.0, NAN, INF), "level.pooled_width": (0, -1)},
    "ltx_video": {
        "rope.theta": NOT_ABOVE,
        "rope.scales": ([1.0], [0.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, NAN]),
        "rope.extents": ([], [0.0, 1.0, 1.0], [1.0, INF, 1.0]),
    },
}
CASES = [(option, key, value) for option, keys in REFUSED.items() for key, values in keys.items() for value in values]


@pytest.mark.parametrize(("option", "key", "value"), CASES, ids=lambda value: str(value))
def test_a_number_that_fits_no_network_is_refused_by_its_key(option, key, value):
    config = OmegaConf.merge(node("dit", option), {"depth": 4 if option == "latte_xl_2" else 2})
    if option == "hunyuan_video":
        config.block.dual = 1
    OmegaConf.update(config, key, value)
    said = key.removeprefix("final.") if key == "final.norm.eps" else key
    with torch.device("meta"), pytest.raises(ValueError, match=said.replace(".", r"\.")):
        build(config, patch_channels=12, text_width=10)


@pytest.mark.parametrize(
    ("group", "changes", "said"),
    [
        ("norm", {"_target_": "sora.dit.rms_norm", "eps": -1.0}, r"norm\.eps"),
        ("norm", {"_target_": "sora.dit.affine_layer_norm", "eps": -1.0}, r"norm\.eps"),
        ("qk_norm", {"_target_": "sora.dit.rms_across_heads", "eps": 0.0}, r"qk_norm\.eps"),
        ("qk_norm", {"_target_": "sora.dit.layer_norm_per_head", "eps": NAN}, r"qk_norm\.eps"),
        ("position", {"_target_": "sora.dit.learned_positions", "count": 4, "time_scale": -1.0}, r"position\.time_scale"),
        ("position", {"_target_": "sora.dit.learned_positions", "count": 0, "time_scale": 1.0}, r"position\.count"),
        ("clip_shape", {"_target_": "sora.dit.clip_shape", "count": 0}, r"clip_shape\.count"),
        ("pattern", {"_target_": "sora.dit.windowed_attention", "frames": -2, "rows": 1, "columns": 1}, r"dit\.pattern reaches"),
        ("pattern", {"_target_": "sora.dit.causal_attention", "frames": -2}, r"dit\.pattern reaches"),
    ],
)
def test_so_it_is_in_the_siblings(group, changes, said):
    with torch.device("meta"), pytest.raises(ValueError, match=said):
        build(OmegaConf.merge(node("dit", "toy"), {group: None}, {group: changes}), patch_channels=12, text_width=10)
