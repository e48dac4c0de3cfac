"""Sizes that no text encoder has are refused by their keys before anything is loaded."""

import pytest
from omegaconf import OmegaConf

from sora.config.build import build
from tests.test_configs import node


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        *(("byte", key, value) for key, value in (("width", 0), ("width", 7), ("reach", 0), ("max_tokens", 0), ("depth", -1))),
        ("classes", "count", 0),
        *(("umt5_xxl", key, value) for key in ("max_tokens", "batch") for value in (0, -1)),
        *(("umt5_xxl", key, -1) for key in ("crop", "skip")),
        *(("flux", f"whole.{key}", 0) for key in ("max_tokens", "batch")),
        ("flux", "states.precision", "float16"),
    ],
)
def test_a_size_of_nothing_is_refused_by_its_key(option, key, value):
    config = node("text", option)
    OmegaConf.update(config, key, value)
    with pytest.raises(ValueError, match=rf"{key.rpartition('.')[2]}={value}"):
        build(config)
