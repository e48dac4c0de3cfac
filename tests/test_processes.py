"""Signals that ask a run to stop reach its children too, from the moment they exist; none may die of them."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sora.data.decoding.guarded import GuardedReader
from sora.data.video import PYAV
from sora.processes import ASKING, born_deaf, own
from sora.training.sinks import Csv
from sora.training.tracker import Tracker
from tests.data.making import counting, muxed


@pytest.fixture
def bombarded(monkeypatch):
    """Every process gets all asking signals at once when it is born, as under Slurm; the children."""
    children, start = [], subprocess.Popen

    def started(*arguments, **settings):
        child = start(*arguments, **settings)
        for number in ASKING:
            child.send_signal(number)
        children.append(child)
        return child

    monkeypatch.setattr(subprocess, "Popen", started)
    return children


def test_a_process_that_is_not_born_deaf_dies_of_a_signal_before_it_can_say_that_it_ignores_it(bombarded):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert -child.wait(30) in ASKING


def test_a_process_born_deaf_lives_and_its_parent_hears_again_afterwards(bombarded):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with born_deaf():
            code = "from sora.processes import ignore_asking; ignore_asking(); print(input())"
            child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            signal.raise_signal(signal.SIGUSR1)
            assert not heard
        assert heard == [signal.SIGUSR1]
        for number in ASKING:
            child.send_signal(number)
        assert child.communicate("alive", timeout=60)[0] == "alive\n"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert child.returncode == 0
    assert not set(ASKING) & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_process_that_decodes_is_born_deaf(bombarded):
    content = muxed(counting(3))
    reader = GuardedReader(reader=PYAV, seconds=30, memory_gb=2, restart_after=100)
    try:
        assert (reader.read(content).frames == PYAV.read(content).frames).all()
        assert len(bombarded) == 1
    finally:
        reader.close()


def test_the_tracker_is_born_deaf(bombarded, tmp_path):
    tracker = Tracker(Csv(), folder=tmp_path, identity="one", config={}, first=0, patience=30, room=10)
    tracker.log(1, {"loss": 0.5})
    tracker.close()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,loss", "1,0.5"]
    assert tracker.problem is None


@pytest.mark.parametrize(
    ("module", "script", "found"),
    [("sora.train", "x", True), ("sora.cli", "x", True), (None, "/bin/sora", True), ("pytest", "sora", False), (None, "mine.py", False)],
)
def test_a_process_of_our_own_is_told_from_one_that_calls_a_command(monkeypatch, module, script, found):
    main = SimpleNamespace(__spec__=module and SimpleNamespace(name=module))
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [script])
    assert own() is found
