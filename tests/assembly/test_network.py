"""The network that a configuration names."""

import pytest
from omegaconf import OmegaConf

from sora.assembly.network import trainable
from tests.test_configs import node


@pytest.mark.parametrize("size", [[1, 4, 4], [1, 1, 1], [2, 2, 1]])
def test_a_published_network_refuses_patches_of_another_size_even_where_channels_divide(size):
    config = OmegaConf.create({"dit": node("dit", "wan_2_1_1_3b"), "patches": {"size": size}})
    with pytest.raises(ValueError, match=r"dit\.patch=\[1, 2, 2\] and patches\.size=.* differ; choose the patches"):
        trainable(config, {"patch_channels": 256, "text_width": 10})
