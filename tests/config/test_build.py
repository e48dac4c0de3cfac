"""`build` makes what a node names and nothing that a configuration must not reach; all is checked before anything is made."""

import functools
import json

import pytest
from omegaconf import OmegaConf

from sora.config.build import build

NET = {"_target_": "sora.toyroom.Net", "width": 8, "sizes": [1, [2, 3]]}
HOSTILE = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "eval",
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "shutil.rmtree",
    "pickle.loads",
    "functools.partial",
    "importlib.import_module",
    "pathlib.Path.write_text",
    "sora.system.files.write_text",
    "sora.system.files.shutil.rmtree",
    "sora.cli.run",
    "sora.config.build.build",
    "sora.training.logging.tracker.Tracker",
    "sora.training.trackers",
    "sora.toyrooms.Net",
    "sora.system.files",
    "sora.toyroom.os.system",
    "sora.toyroom.system",
    "sora.toyroom.clear",
    "sora.toyroom.alias",
    "sora.toyroom._hidden",
    "sora.toyroom.Net.__init__",
    "sora.toyroom.Net.__init__.__globals__",
    "sora.toyroom.__builtins__.eval",
    "sora.toyroom",
    "sora.toyroom.",
    "sora..toyroom.Net",
    "sora.toyroom.Nett",
    "sora.toyroom.nowhere.Net",
    "sora/toyroom/Net",
    "",
    None,
    3,
    ["os.system"],
    "sora.toyroom.Net\n",
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_hostile_targets_are_refused_by_name_at_any_depth(toy, target, depth):
    node = {"_target_": target, "command": "touch pwned"}
    for _ in range(depth):
        node = NET | {"part": {"_target_": "sora.toyroom.Part", "depth": 1, "weights": {"x": [node]}}}
    with pytest.raises(ValueError, match="refused"):
        build(OmegaConf.create(node))


def test_a_class_is_made_of_its_keys_and_of_the_programs_values(toy):
    net = build(OmegaConf.create({key: value for key, value in NET.items() if key != "width"}), width=5)
    assert (net.width, net.rate, net.sizes) == (5, 0.5, (1, (2, 3)))


def test_a_function_is_bound_and_not_called(toy):
    heun = build(OmegaConf.create({"_target_": "sora.toyroom.heun", "steps": 3}))
    assert isinstance(heun, functools.partial) and heun(1, 2) == (1, 2, 3)


def test_nested_nodes_are_made_first_and_mappings_stay_mappings(toy):
    part = {"_target_": "sora.toyroom.Part", "depth": 3, "weights": {"short": 0.25}}
    net = build(OmegaConf.create(NET | {"part": part}))
    assert net.part.depth == 3 and net.part.weights == {"short": 0.25}


def test_whole_numbers_become_floats_where_floats_are_wanted(toy):
    assert isinstance(build(OmegaConf.create(NET | {"rate": 1})).rate, float)
    assert isinstance(build(OmegaConf.create(NET | {"width": 1e3})).width, int)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widht": 1}, "did you mean 'width'"),
        ({"width": "a"}, "wrong kind"),
        ({"width": True}, "wrong kind"),
        ({"width": 1.5}, "wrong kind"),
        ({"width": None}, "wrong kind"),
        ({"width": [8]}, "wrong kind"),
        ({"width": {"of": 8}}, "wrong kind"),
        ({"act": None}, "wrong kind: it takes a function"),
        ({"act": "relu"}, "wrong kind: it takes a function"),
        ({"act": [NET]}, "wrong kind: it takes a function"),
        ({"part": {"_target_": "sora.toyroom.Part"}}, "needs depth"),
    ],
)
def test_wrong_keys_and_kinds_are_refused(toy, change, said):
    with pytest.raises(ValueError, match=said):
        build(OmegaConf.create(NET | change))


@pytest.mark.parametrize("node", [{"width": 8}, {}, {"_target": "sora.toyroom.Net"}], ids=str)
def test_what_names_nothing_is_refused(toy, node):
    with pytest.raises(ValueError, match="has no _target_: choose an option"):
        build(node)


def test_what_the_program_gives_cannot_also_be_set(toy):
    with pytest.raises(ValueError, match="worked out by the program"):
        build(OmegaConf.create(NET), width=3)
    with pytest.raises(ValueError, match="does not take 'patch_channels'|does not take patch_channels"):
        build(OmegaConf.create(NET), patch_channels=3)


def test_an_object_where_a_plain_value_belongs_is_refused(toy):
    with pytest.raises(ValueError, match=r"width takes int, not an object"):
        build(OmegaConf.create(NET | {"width": {"_target_": "sora.toyroom.Part", "depth": 1}}))


def test_nothing_is_made_when_anything_is_refused(toy):
    import sora.toyroom as room

    made = []
    room.Part.__post_init__ = lambda self: made.append(self)
    bad = {"_target_": "os.system", "command": "touch pwned"}
    node = NET | {"part": {"_target_": "sora.toyroom.Part", "depth": 1}, "name": bad}
    with pytest.raises(ValueError, match="refused"):
        build(OmegaConf.create(node))
    assert not made


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.create:{}}", "a ${now:%Y} b", "${hydra:run.dir}"])
def test_resolvers_are_refused_even_where_a_reference_leads_to_one(toy, text):
    with pytest.raises(ValueError, match="resolver"):
        build(OmegaConf.create(NET | {"name": text}))
    root = OmegaConf.create({"hidden": text, "net": NET | {"name": "${hidden}"}})
    with pytest.raises(ValueError, match="resolver"):
        build(root.net)


def test_references_stand_for_no_more_than_memory_and_patience_hold(toy):
    """A chain of threes, the worst that references can do, grows as the bound says, and is refused before it is followed."""
    from sora.gate.interpolation_limits import LARGEST, MOST, refuse_growth

    def chain(levels, start="x" * 100):
        return {"a0": start} | {f"a{number + 1}": f"${{a{number}}}" * 3 for number in range(levels)}

    assert len(OmegaConf.create(chain(4))["a4"]) == 100 * 3**4
    for allowed in (chain(MOST // 3), chain(4, "x" * (LARGEST // 3**4 - 200)), chain(0, "x" * (LARGEST + 1))):
        refuse_growth(str(allowed))
    for refused in (chain(MOST // 3 + 1), chain(4, "x" * (LARGEST // 3**4)), {"a": "${b}" * (MOST + 1)}):
        with pytest.raises(ValueError, match="references could stand for very much"):
            refuse_growth(str(refused))
    for root in (OmegaConf.create({**chain(25), "net": NET | {"name": "${a25}"}}), {"net": NET | {"name": "${x}"} | chain(25)}):
        with pytest.raises(ValueError, match="75|76"):
            build(root["net"])
    with pytest.raises(ValueError, match="a reference cannot be read"):
        build(NET | {"name": "${"})


def test_a_reference_cannot_smuggle_a_target(toy):
    root = OmegaConf.create({"word": "os.system", "net": {"_target_": "${word}", "command": "touch pwned"}})
    with pytest.raises(ValueError, match="os.system is refused"):
        build(root.net)


def test_the_resolved_object_counts_not_its_spelling(toy):
    """A module attribute put in place of a public name later is still refused."""
    import os

    import sora.toyroom as room

    room.Net = os.system
    with pytest.raises(ValueError, match="refused"):
        build(OmegaConf.create(NET))


def test_torchs_optimisers_are_bound_by_class(toy):
    import torch

    weight = torch.nn.Parameter(torch.zeros(2))
    made = build(OmegaConf.create({"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": [0.5, 0.9]}), params=[weight])
    assert made.param_groups[0]["betas"] == (0.5, 0.9)


ACTING = {  # public classes and functions of our own that write, delete, or start a process with what they are given
    "sora.training.logging.tracker.Tracker": {
        "sink": {"_target_": "sora.training.Nowhere"},
        "folder": "FOLDER",
        "identity": "x",
        "config": {},
        "patience": 0.1,
        "room": 9,
        "command": ["touch", "FOLDER/pwned"],
    },
    "sora.ingest.index_progress.IndexProgress": {"output": "FOLDER", "settings": {}},
    "sora.data.index.writer.DatasetWriter": {"folder": "FOLDER", "licence": "x", "max_bytes": 9},
    "sora.data.index.columns.ColumnWriter": {"folder": "FOLDER"},
    "sora.data.shards.stores.ShardCache": {"folder": "FOLDER", "max_bytes": 0},
    "sora.data.loading.quarantine.Quarantine": {"path": "FOLDER/pwned", "clips": 1, "max_share": 1.0},
    "sora.text.cache.extend": {"folder": "FOLDER", "shard": 1},
    "sora.text.cache.TextCache": {"folder": "FOLDER", "fingerprint": "12345678"},
    "sora.vae.artefact.save": {"folder": "FOLDER"},
    "sora.metrics.feature_sets.save_features": {"path": "FOLDER/pwned"},
    "sora.runs.checkpoint.undo": {"checkpoints": "FOLDER", "after": -1},
    "sora.runs.run.create": {"folder": "FOLDER/pwned", "config": "", "info": {"kind": "vae"}},
}


@pytest.mark.parametrize("target", ACTING)
@pytest.mark.parametrize("inside", [False, True])
def test_what_writes_or_starts_processes_is_no_option(tmp_path, target, inside):
    """A run's own configuration is built when it is sampled, and runs are passed on."""
    text = json.dumps({"_target_": target, **ACTING[target]}).replace("FOLDER", str(tmp_path))
    node = json.loads(text)
    if inside:
        node = {"_target_": "sora.text.PooledCaptions", "states": node, "whole": node}
    with pytest.raises(ValueError, match=f"{target} is refused: it is outside the rooms"):
        build(OmegaConf.create(node))
    assert not list(tmp_path.iterdir())


def test_a_function_inside_a_tree_lacks_no_key():
    """Nobody could give it later; the message says how to give it on the command line."""
    node = {"_target_": "sora.dit.DiT", "pattern": {"_target_": "sora.dit.windowed_attention", "rows": 1}}
    said = r"windowed_attention needs columns, frames: set it in.* pattern=\{_target_: sora\.dit\.windowed_attention, frames: …\}"
    with pytest.raises(ValueError, match=said):
        build(OmegaConf.create(node))
