"""Machines and the time of a step on them, in closed forms."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from sora.config.build import build
from sora.config.compose import config_dir
from sora.cost.hardware import Cluster
from sora.cost.roofline import step_time
from sora.system.devices import stated

FILES = sorted((config_dir() / "cluster").glob("*.yaml"))
ONE = Cluster(
    device="one", devices=32, per_node=8, memory=80, spare=0.1, bf16=1000, fp32=50, bandwidth=2000, link=400, network=50, utilisation=0.5,
    price=2,
)  # fmt: skip


def time(**changes):
    given = {"flops": 1e15, "slowest": 1.0, "bf16": True, "sent": {}, "layout": {}, "touched": 0.0}
    return step_time(ONE, **{**given, **changes})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_device_has_one_peak_wherever_it_is_asked(path):
    cluster = build(OmegaConf.load(path))  # pyright: ignore[reportArgumentType]
    assert stated(cluster.device) == cluster.peak(bf16=True)
    assert cluster.peak(bf16=False) < cluster.peak(bf16=True) and cluster.network <= cluster.link


@pytest.mark.parametrize(
    ("size", "stride", "rate"),
    [
        (8, 1, 400),  # a node
        (2, 4, 400),  # two of its devices
        (32, 1, 400),  # over all nodes: eight adapters of 50 carry the ring of eight members of each
        (4, 8, 50),  # one member on each node, which has its own adapter
        (8, 4, 100),  # two members on each of four nodes
        (16, 2, 200),
    ],
)
def test_a_ring_crosses_a_node_with_the_adapters_of_its_members(size, stride, rate):
    assert ONE.rate(size=size, stride=stride) == rate * 1e9


@pytest.mark.parametrize(
    ("devices", "per_node", "size", "stride", "rate"),
    [
        (24, 8, 3, 1, 50),  # the third group has ranks 6, 7 and 8: one adapter carries it over
        (24, 8, 6, 1, 100),
        (6, 8, 3, 1, 400),  # all in one node
        (24, 8, 12, 1, 200),  # eight in one node, four in the next
        (12, 6, 2, 4, 50),  # ranks 2 and 6
        (12, 6, 3, 2, 400),
    ],
)
def test_groups_that_do_not_tile_a_node_are_as_fast_as_the_one_that_is_cut_worst(devices, per_node, size, stride, rate):
    assert replace(ONE, devices=devices, per_node=per_node).rate(size=size, stride=stride) == rate * 1e9


def test_a_step_is_computing_updating_and_what_computing_cannot_hide():
    assert time().whole == time().computing == 1e15 / (0.5 * 1000e12)
    assert time(bf16=False).whole == 1e15 / (0.5 * 50e12)
    assert time(touched=2e12).whole == 2.0 + 1.0
    assert time(slowest=1.25).whole == 2.5
    layout = {"shard": (8, 1), "tensor": (2, 1), "shard x context": (4, 8)}
    assert time(sent={"shard": 400e9}, layout=layout).whole == 2.0  # one second of messages behind two of computing
    assert time(sent={"shard": 1200e9}, layout=layout).whole == 3.0
    assert time(sent={"shard": 1200e9}, layout=layout).bound == "the network"
    assert time(sent={"tensor": 400e9}, layout=layout).whole == 3.0
    assert time(sent={"shard x context": 150e9, "tensor": 400e9}, layout=layout).whole == 4.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": 12}, r"no whole nodes of cluster\.per_node=8; take 8 or 16"),
        ({"devices": 0}, r"cluster\.devices=0 must be above 0"),
        ({"utilisation": 1.2}, r"cluster\.utilisation=1\.2"),
        ({"spare": 1.0}, r"cluster\.spare=1\.0"),
        ({"price": -1.0}, r"cluster\.price=-1\.0"),
    ],
)
def test_machines_that_do_not_exist_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(ONE, **changes)


def test_half_a_node_is_a_cluster_too():
    assert replace(ONE, devices=4).nodes == 1 and replace(ONE, devices=24).nodes == 3
