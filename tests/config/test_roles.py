"""What a node names must be able to do what its key is for: told by name before anything is made."""

import pytest

from sora.config.build import build
from tests.test_configs import node

GIVEN = {"patch_channels": 12, "text_width": 10}
FULL, GELU = {"_target_": "sora.dit.full_attention"}, {"_target_": "sora.dit.gelu"}
WAVES = {"_target_": "sora.dit.wave_positions", "count": 2, "time_scale": 1.0}
FINAL = {"_target_": "sora.dit.projected_final", "norm": GELU}


def whole(option):
    return dict(node("dit", option).items())


def others():
    """Keys of both networks, and what does not belong there: functions of other arguments, classes and functions in one another's place."""
    for option in ("toy", "wan_2_1_1_3b"):
        for key in ("mlp", "norm", "qk_norm", "block", "attention", "pattern", "position", "rope", "modulation"):
            for wrong in (FULL, GELU, WAVES):
                alike = {"mlp": GELU, "pattern": FULL, "position": WAVES, "norm": WAVES}.get(key)  # a norm is made of a width alone, too
                if wrong is not alike:
                    yield option, key, wrong
    yield from (("wan_2_1_1_3b", key, wrong) for key in ("level", "text", "final", "keys") for wrong in (FULL, GELU, WAVES))
    yield "wan_2_1_1_3b", "final", FINAL
    yield "toy", "modulation", {"_target_": "sora.dit.AxialRope", "axes": [2, 2, 2], "time_scale": 1.0, "theta": 1.0}
    yield "toy", "rope", {"_target_": "sora.dit.SingleModulation"}


@pytest.mark.parametrize(("option", "key", "wrong"), list(others()), ids=lambda value: value if isinstance(value, str) else "")
def test_what_belongs_elsewhere_is_refused_with_the_name_of_its_key(option, key, wrong):
    with pytest.raises(ValueError, match=rf"\.{key}.* takes a .*, and .*(is a function|is one of|is none)"):
        build({**whole(option), key: wrong}, **GIVEN)


@pytest.mark.parametrize("value", ["x", [1], {}, {"a": 1}, True, 3])
@pytest.mark.parametrize("key", ["attention", "pattern", "modulation", "rope", "mlp"])
def test_a_plain_value_where_an_object_belongs_is_refused(key, value):
    for option in ("toy", "wan_2_1_1_3b"):
        with pytest.raises(ValueError, match=rf"{key}=.* is of the wrong kind: it takes a function or an object"):
            build({**whole(option), key: value}, **GIVEN)


@pytest.mark.parametrize("value", ["x", None, True, 4, {"a": 1}, ["a", "b", "c"], [None, 2, 2], [[1], 2, 2], [1.5, 2, 2]], ids=str)
def test_lists_of_numbers_hold_numbers(value):
    with pytest.raises(ValueError, match=r"patch=.* is of the wrong kind: it takes (a list of numbers|int)"):
        build({**whole("wan_2_1_1_3b"), "patch": value}, **GIVEN)
