"""The configurations of conf/dit have the sizes that were published: those of the classes' own defaults, or of the papers."""

import diffusers
import pytest
import torch

from sora.config.build import build
from sora.dit.published.keys import to_theirs
from sora.dit.published.network import leaves
from sora.dit.published.options import written
from tests.test_configs import node

pytestmark = pytest.mark.slow
# Channels of a latent, width of the text, and what the class needs beside its defaults to be the released network.
RELEASED = {
    "wan_2_1_14b": (16, 4096, {}),
    "wan_2_1_1_3b": (16, 4096, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "ltx_video": (128, 4096, {}),
    "cogvideox_2b": (16, 4096, {}),
    "cogvideox_5b": (16, 4096, {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}),
    "hunyuan_video": (16, 4096, {}),
    "flux_dev": (16, 4096, {"guidance_embeds": True}),
    "dit_xl_2": (4, 1001, {}),
}
PARAMETERS = {"wan_2_1_14b": 14.29e9, "wan_2_1_1_3b": 1.42e9, "flux_dev": 11.90e9, "hunyuan_video": 12.82e9, "dit_xl_2": 0.675e9}


@pytest.mark.parametrize("name", RELEASED)
def test_shapes_are_those_of_the_released_network(name):
    channels, text_width, changes = RELEASED[name]
    with torch.device("meta"):
        config = node("dit", name)
        dit = build(config, patch_channels=channels * torch.Size(config.patch).numel(), text_width=text_width)
        keys = dit.keys(dit)
        model = getattr(diffusers, keys.kind)(**changes)
    found = {key: tuple(value.shape) for key, value in to_theirs(keys, dict(dit.named_parameters())).items()}
    assert found == {key: tuple(value.shape) for key, value in model.named_parameters()}
    for key, value in written(keys.options, leaves(dit)).items():  # what shapes do not tell; of norm_eps see README.md there
        if (name, key) != ("dit_xl_2", "norm_eps") and key != "_class_name" and model.config[key] is not None:
            assert model.config[key] == (tuple(value) if isinstance(model.config[key], tuple) else value), key
    if name in PARAMETERS:
        assert sum(value.numel() for value in dit.parameters()) == pytest.approx(PARAMETERS[name], rel=0.01)
