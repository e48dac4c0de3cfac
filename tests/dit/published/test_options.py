"""What a published network's config.json says, against ours: nothing that shapes a network is passed over, in either direction."""

import inspect
import json
from copy import deepcopy

import diffusers
import pytest
import torch
from omegaconf import OmegaConf

from sora.config.build import build
from sora.dit.published.keys import to_theirs
from sora.dit.published.network import leaves
from sora.dit.published.options import From, Options, refuse_other, written
from tests.dit.published.test_parity import CASES, STEPS, Clip, apart, described, ours_of
from tests.test_configs import node

FILL = {"wan_2_1_1_3b": {"text": {"fill": 512}}, "wan_2_1_14b": {"text": {"fill": 512}}}  # the tests of functions have less, to be quick


def options_of(name) -> Options:
    config, given = described(name)
    with torch.device("meta"):
        dit = build(config, **given)
    return dit.keys(dit).options


def scatter(dit):
    """Random weights of sizes that keep what passes through about as large as it is."""
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)


def small(name, more=None):
    """Our network of random weights, its node, and its leaves."""
    torch.manual_seed(0)
    config, given = described(name, OmegaConf.merge(FILL.get(name, {}), more or {}))
    dit = build(config, **given)
    scatter(dit)
    return dit, config, leaves(dit)


def released(name):
    """The leaves of the option that we ship."""
    config = node("dit", name)
    channels = {"ltx_video": 128, "latte_xl_2": 4, "dit_xl_2": 4}.get(name, 16) * torch.Size(config.patch).numel()
    with torch.device("meta"):
        return leaves(build(config, patch_channels=channels, text_width=1001 if name == "dit_xl_2" else 4096))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_key_of_the_class_is_mapped_or_fixed_or_without_effect(name):
    options = options_of(name)
    signature = inspect.signature(getattr(diffusers, options.names[0]).__init__).parameters
    asked = {key: None if item.default is item.empty else item.default for key, item in signature.items() if key != "self"}
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()} == options.defaults
    mapped = {key for value in options.ours.values() if isinstance(value, From) for key in value.keys.split()}
    assert set(asked) == set(options.defaults) <= mapped | set(options.only) | set(options.unread)
    assert set(options.theirs) <= set(options.defaults) and set(options.shapeless) <= mapped
    assert not mapped & set(options.unread) and not mapped & (set(options.only) & set(options.theirs))


@pytest.mark.parametrize("name", CASES)
def test_the_option_that_we_ship_is_one_that_the_class_can_say(name):
    options, ours = options_of(name), released(name)
    out = written(options, ours)
    refuse_other(options, json.loads(json.dumps(out)), ours, place="x")
    assert set(out) == {"_class_name", *options.defaults}


@pytest.mark.parametrize("name", CASES)
def test_another_value_of_any_key_is_refused_by_it_unless_it_changes_no_prediction(name):
    _, _, ours = small(name)
    options = options_of(name)
    good = written(options, ours)
    for key in options.defaults:
        for value in others(good[key]):
            found = {**good, key: value}
            if key in options.unread:
                refuse_other(options, found, ours, place="x")
            elif (name, key) not in NOWHERE:
                with pytest.raises(ValueError, match=rf"x (says|is of|is damaged).*{key}"):
                    refuse_other(options, found, ours, place="x")


# Keys that count only where positions are waves.
NOWHERE = {("cogvideox_5b", "spatial_interpolation_scale")}


def others(value):
    if isinstance(value, bool):
        return [not value]
    if value is None:
        return [3, "other"]
    return {int: lambda: [value * 3 + 2, str(value)], float: lambda: [value * 1.5 + 1e-3], str: lambda: [f"{value}s"]}.get(
        type(value), lambda: [[*value[:-1], value[-1] + 2]]
    )()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "LTXVideoTransformer3DModel"}, "says _class_name=LTXVideoTransformer3DModel, this dit is _class_name=Wan"),
        ({"_class_name": "WanModel"}, r"says _class_name=WanModel.*Wan's own repository.*from_single_file"),
        ({"window_size": [-1, -1]}, r"says window_size=\[-1, -1\], and what that changes"),
        ({"quantization_config": {"bits": 8}}, "quantization_config: its weights are quantised"),
        ({"eps": 0.01}, "eps=0.01 means dit.block.eps=0.01 and not 1e-06, .*; set dit.block.eps=0.01 dit.final.norm.eps=0.01 "),
        ({"image_dim": 1280}, r"image_dim=1280 \(here None\)"),
        ({"num_layers": "3"}, "damaged: num_layers='3' is nothing"),
        ({"num_layers": 3}, "num_layers=3 means dit.depth=3 and not 2; set dit.depth=3$"),
        ({"ffn_dim": None}, "ffn_dim=None is nothing"),
        ({"num_attention_heads": 0}, "num_attention_heads=0.* of which no network can be made"),
        ({"in_channels": 36}, "latent channels 36, and vae= here gives 3"),
    ],
)
def test_what_differs_is_said_in_the_words_to_set(changes, said):
    _, _, ours = small("wan_2_1_1_3b")
    options = options_of("wan_2_1_1_3b")
    with pytest.raises(ValueError, match=said) as error:
        refuse_other(options, {**written(options, ours), **changes}, ours, place="x")
    assert "\n" not in str(error.value)


def test_a_config_without_a_key_has_the_default_of_the_class():
    _, _, ours = small("wan_2_1_1_3b", {"block": {"eps": 1e-2}, "norm": {"eps": 1e-2}, "qk_norm": {"eps": 1e-2}})
    ours["final.norm.eps"] = 1e-2
    options = options_of("wan_2_1_1_3b")
    config = written(options, ours)
    assert config.pop("eps") == 1e-2
    with pytest.raises(ValueError, match="eps=1e-06 means"):
        refuse_other(options, config, ours, place="x")


def test_configurations_that_older_versions_wrote_are_read():
    """As facebook/DiT-XL-2-256 and maxin-cn/Latte-1 have them, of the class's former name and with keys that are gone."""
    older = {"double_self_attention": False, "num_vector_embeds": None, "only_cross_attention": False, "use_linear_projection": False}
    shared = {
        **older,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_num_groups": 32,
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "out_channels": 8,
        "patch_size": 2,
        "upcast_attention": False,
        "_diffusers_version": "0.12.0.dev0",
    }
    named = {
        "dit_xl_2": {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "norm_type": "ada_norm_zero", "sample_size": 32},
        "latte_xl_2": {
            "_class_name": "LatteTransformer3DModel",
            "attention_type": "default",
            "caption_channels": 4096,
            "cross_attention_dim": 1152,
            "norm_eps": 1e-6,
            "norm_type": "ada_norm_single",
            "sample_size": 64,
            "video_length": 16,
        },
    }
    for name, own in named.items():
        ours = released(name)
        if name == "dit_xl_2":
            with pytest.raises(ValueError, match="norm_eps=1e-05 means dit.block.eps=1e-05 and not 1e-06; set dit.block.eps=1e-05"):
                refuse_other(options_of(name), shared | own, ours, place="x")
            ours["block.eps"] = 1e-5
        refuse_other(options_of(name), shared | own, ours, place="x")


# ---- out: the same predictions, or a refusal by key

PARTS = {  # other parts than a published network has, of each kind
    "mlp": [{"_target_": "sora.dit.gelu"}, {"_target_": "sora.dit.swiglu"}],
    "norm": [
        {"_target_": "sora.dit.layer_norm", "eps": 1e-6},
        {"_target_": "sora.dit.rms_norm", "eps": 1e-6},
        {"_target_": "sora.dit.affine_layer_norm", "eps": 1e-5},
    ],
    "qk_norm": [
        {"_target_": "sora.dit.no_norm"},
        {"_target_": "sora.dit.rms_per_head", "eps": 1e-6},
        {"_target_": "sora.dit.rms_across_heads", "eps": 1e-6},
        {"_target_": "sora.dit.layer_norm_per_head", "eps": 1e-6},
    ],
    "pattern": [
        {"_target_": "sora.dit.full_attention"},
        {"_target_": "sora.dit.factorised_attention"},
        {"_target_": "sora.dit.causal_attention", "frames": 0},
    ],
    "text": [
        {"_target_": "sora.dit.linear_text"},
        {"_target_": "sora.dit.two_layer_text", "fill": 0},
        {"_target_": "sora.dit.unread_text"},
    ],
    "level": [
        {"_target_": "sora.dit.published_level", "waves": 256, "before": 0},
        {"_target_": "sora.dit.narrow_level", "level_width": 20, "before": 0},
    ],
    "modulation": [
        {"_target_": "sora.dit.SingleModulation"},
        {"_target_": "sora.dit.ZeroModulation"},
        {"_target_": "sora.dit.LoRAModulation", "rank": 2},
    ],
    "block": [
        {"_target_": "sora.dit.cross_block"},
        {"_target_": "sora.dit.plain_block"},
        {"_target_": "sora.dit.parallel_block"},
        {"_target_": "sora.dit.normed_cross_block", "eps": 1e-6},
    ],
    "position": [None, {"_target_": "sora.dit.sines_3d", "stretch": 1.0}],
    "rope": [None],
}
SHAPES = ("width", "depth", "heads", "patch", "rope.axes", "rope.width", "rope.heads")  # which go together; see TOGETHER
TOGETHER = {
    "wan_2_1_1_3b": [
        {"heads": 3, "rope": {"axes": [8, 4, 4]}},
        {"heads": 3},
        {"rope": {"axes": [4, 10, 10]}},
        {"depth": 1},
        {"patch": [2, 2, 2]},
        {"patch": [1, 1, 3]},
        {"rope": {"stretch": {"_target_": "sora.dit.ntk_rope", "factors": [2.0, 1.0, 1.0]}}},
    ],
    "ltx_video": [
        {"heads": 1, "rope": {"heads": 1}},
        {"patch": [1, 2, 2]},
        {"patch": [1, 2, 2], "rope": {"scales": [1.0, 64.0, 64.0]}},
        {"patch": [2, 1, 1]},
    ],
    "latte_xl_2": [{"depth": 2}, {"depth": 3}, {"heads": 3}, {"patch": [1, 3, 3]}, {"position": {"rows": 64, "density": 2.0}}],
    "dit_xl_2": [{"depth": 1}, {"heads": 3}, {"patch": [1, 3, 3]}, {"patch": [2, 2, 2]}],
    "cogvideox_2b": [{"depth": 1}, {"heads": 1}, {"patch": [1, 1, 1]}],
    "cogvideox_5b": [{"heads": 1, "rope": {"axes": [8, 12, 12]}}, {"rope": {"axes": [8, 4, 4]}}],
    "hunyuan_video": [
        {"rope": {"axes": [16, 8, 8]}},
        {"heads": 1, "rope": {"axes": [16, 24, 24]}},
        {"patch": [2, 1, 1]},
        {"patch": [1, 2, 1]},
        {"depth": 2},
        {"mlp_ratio": 2.67},
        {"width": 48, "rope": {"axes": [8, 8, 8]}, "mlp_ratio": 1.9},
    ],
    "flux_dev": [{"rope": {"axes": [16, 8, 8]}}, {"patch": [1, 1, 1]}, {"patch": [1, 4, 4]}, {"depth": 4}],
}


def scalars(config, place=()):
    """Each leaf that is no part and no shape, with other values, as what is laid over the node."""
    for key, value in config.items():
        path = (*place, key)
        if isinstance(value, dict):
            yield from scalars(value, path)
        elif ".".join(path) not in SHAPES and key != "_target_" and value is not None:
            for other in (
                [not value] if isinstance(value, bool)
                else [[2 * item for item in value]] if isinstance(value, list)
                else [value * 2, value + 1, 0] if isinstance(value, int)
                else [value * 1.5, value * 100]
            ):  # fmt: skip
                yield nested(path, other)


def nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


def variants(name):
    config, _ = described(name, FILL.get(name))
    for part, options in PARTS.items():
        for option in options:
            if (part in config and (option is None) != (config[part] is None)) or (option and config[part] and option != config[part]):
                yield {part: option}, True
    for more in [*scalars({key: value for key, value in config.items() if key not in ("attention", "keys")}), *TOGETHER[name]]:
        yield more, False


def changed(name, more, whole):
    """The node with other values; `whole`: parts are replaced, not laid over."""
    config, given = described(name, FILL.get(name))
    if whole:
        config = deepcopy(config) | more
    else:
        config, given = described(name, OmegaConf.merge(FILL.get(name, {}), more))
    return config, given


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_a_network_of_any_option_is_exported_as_it_is_or_refused_by_the_key(name):
    call, shapes, _, theirs_only = CASES[name]
    same = refused = 0
    for more, whole in variants(name):
        config, given = changed(name, more, whole)
        torch.manual_seed(0)
        try:
            dit = build(config, **given)
        except (ValueError, TypeError):
            continue  # no network at all
        scatter(dit)
        keys = dit.keys(dit)
        ours = leaves(dit)
        try:
            out = written(keys.options, ours, beside=theirs_only)
        except ValueError as error:
            assert any(f"dit.{key}" in str(error) for key in flat(more)), (more, str(error))
            refused += 1
            continue
        model = getattr(diffusers, keys.kind)(**{key: value for key, value in out.items() if key != "_class_name"}).eval()
        model.load_state_dict(to_theirs(keys, dit.state_dict()))
        clips = [Clip(number, shape, dit, int(name in STEPS)) for number, shape in enumerate(shapes)]
        for clip, found in zip(clips, ours_of(dit, clips), strict=True):
            wanted = filled(clip) if name.startswith("wan") else clip
            assert apart(found, call(model, wanted)) <= 2e-5, more
        same += 1
    assert same >= 3 and refused >= 8


def filled(clip):
    clip.words = torch.nn.functional.pad(clip.words, (0, 0, 0, 512 - len(clip.words)))
    return clip


def flat(more, place=""):
    for key, value in more.items():
        yield f"{place}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{place}{key}.")
