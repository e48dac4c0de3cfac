"""A curation on a Ray cluster of this machine: the bytes of one process, whatever becomes of machines; and one line where it goes away."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from sora.curation.engines.ray import INSTALL, RayEngine
from sora.curation.steps.finding import Cuts
from sora.video.files import write
from tests.curation.faulty import Faulty
from tests.curation.material import content, curation, folder_of_videos, shot

LIMITS = {"seconds": 20.0, "memory_gb": 8.0}


@contextmanager
def cluster(*, cores=1):
    """A head node that works and another node; both are processes of this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    try:
        yield made, made.add_node(num_cpus=cores)
    finally:
        made.shutdown()


@contextmanager
def engine(address, **limits):
    made = RayEngine(address=address, **LIMITS | limits)
    try:
        yield made
    finally:
        made.close()


class Losing:
    """An engine that calls `lose` once it has given `when` outcomes, which is among the cuts, after inputs and probes."""

    def __init__(self, engine, when, lose):
        self.engine, self.when, self.lose, self.given = engine, when, lose, 0

    def __call__(self, function, items):
        for done in self.engine(function, items):
            self.given += 1
            if self.given == self.when:
                self.lose()
            yield done

    def close(self):
        pass


@pytest.mark.long
@pytest.mark.timeout(180)
def test_two_nodes_make_the_bytes_of_one_process_also_if_one_of_them_is_lost(tmp_path):
    videos = folder_of_videos(tmp_path / "videos", 6)
    slow = {"cuts": Cuts(Faulty(0.5, faults=False), trim_frames=1, least_seconds=0.5, most_seconds=1.5)}
    quick = {"cuts": Cuts(Faulty(faults=False), trim_frames=1, least_seconds=0.5, most_seconds=1.5)}
    curation(videos, tmp_path / "one/work", **quick).run()
    with cluster() as (nodes, second), engine(nodes.address) as ray:
        curation(videos, tmp_path / "two/work", engine=ray, **quick).run()
        assert content(tmp_path / "two/work") == content(tmp_path / "one/work")
        losing = Losing(ray, 16, lambda: nodes.remove_node(second, allow_graceful=False))
        done = curation(videos, tmp_path / "three/work", engine=losing, **slow).run()
        assert done.funnel is not None and losing.given > 20
    assert content(tmp_path / "three/work") == content(tmp_path / "one/work")


@pytest.mark.long
@pytest.mark.timeout(180)
def test_what_crashes_or_hangs_its_decoder_is_refused_alone(tmp_path):
    pytest.importorskip("ray")
    videos = tmp_path / "videos"
    videos.mkdir()
    for frames in (16, 17, 18, 19, 20, 21, 22):
        write(videos / f"{frames}.mp4", np.asarray(shot(frames, frames, level=100)), 8.0, lossless=False)
    cuts = {"cuts": Cuts(Faulty(), trim_frames=1, least_seconds=0.5, most_seconds=None)}
    with engine(None, seconds=3.0) as ray:
        ray.start(cores=2)
        done = curation(videos, tmp_path / "work", engine=ray, **cuts).run()
    assert {one.source for one in done.lost} == {"19.mp4", "20.mp4"}
    assert all("crashed, twice" in one.reason or "took over 3 seconds" in one.reason for one in done.lost)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("whole", [True, False], ids=["machine", "service"])
def test_a_cluster_that_goes_away_ends_the_command_with_one_line_and_another_engine_goes_on(tmp_path, whole):
    videos = folder_of_videos(tmp_path / "videos", 10)
    command = [sys.executable, "-m", "sora.curate", f"input={videos}", "output=work", "cuts=none", "spans.least_seconds=0.5"]
    command += ["transcode.size=null", "transcode.multiple=2"]
    for name in ("serial", "ray"):
        (tmp_path / name).mkdir()
    subprocess.run([*command, "engine=serial"], cwd=tmp_path / "serial", check=True, capture_output=True)
    with cluster() as (nodes, _):
        words = [*command, "engine=ray", f"engine.address={nodes.address}"]
        process = subprocess.Popen(words, cwd=tmp_path / "ray", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list((tmp_path / "ray").glob("work/cuts-*/*.parquet")) and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        if whole:
            nodes.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        else:
            for one in nodes.head_node.all_processes["gcs_server"]:
                os.kill(one.process.pid, signal.SIGKILL)
        begun = time.monotonic()
        said = process.communicate(timeout=90)[1]
    assert time.monotonic() - begun < 60
    ours = [line for line in said.splitlines() if line.startswith("sora ")]
    assert process.returncode == 2 and len(ours) == 1 and "engine=process" in ours[0] and "Traceback" not in said, said
    subprocess.run([*command, "engine=process"], cwd=tmp_path / "ray", check=True, capture_output=True)
    assert content(tmp_path / "ray/work") == content(tmp_path / "serial/work")


def test_an_address_that_nobody_answers_and_one_that_is_none_are_told_at_once():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(ValueError, match=rf"engine\.address={address} does not answer; start the head node"):
        RayEngine(address=address, **LIMITS).start()
    with pytest.raises(ValueError, match=r"is no HOST:PORT, such as"):
        RayEngine(address="10.0.0.1", **LIMITS).start()
    assert time.monotonic() - begun < 20


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError) as told:
        RayEngine(address=None, **LIMITS).start()
    assert str(told.value) == INSTALL and "sora[ray]" in INSTALL
