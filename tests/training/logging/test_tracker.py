"""Trackers: whatever they do, training neither waits nor fails, and metrics.jsonl has it all."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sora.runs.jsonl import read, refuse_other_table
from sora.runs.run import create
from sora.train import tracker_of
from sora.training.callbacks.journal import Journal
from sora.training.logging.goodput import Phases
from sora.training.logging.sinks import Csv, TensorBoard, Wandb
from sora.training.logging.tracker import NoTracker, Tracker
from tests.training.faults.test_watchdog import ROOT, runs
from tests.training.stand_ins import fit

LONG = 25.0  # seconds: of whatever is to end before those that hang for 60, on a busy machine too


def tracker(folder, sink=None, *, first=0, command=None, patience=20.0, room=1000) -> Tracker:
    given = {"first": first, "patience": patience, "room": room, "command": command}
    return Tracker(sink or Csv(), folder=folder, identity="abc", config={"seed": 0}, **given)


def test_csv_holds_no_rows_and_a_kill_while_it_is_written_anew_leaves_the_file(tmp_path, monkeypatch):
    sink = Csv()
    sink.open(tmp_path, "abc", {}, 0)
    for step in range(500):
        sink.log(step, {"loss": 1.0, **({"later": 2.0} if step > 300 else {})})
    assert sum(len(value) for value in vars(sink).values() if isinstance(value, list | dict)) == 3
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sink.log(500, {"loss": 1.0, "latest": 3.0})
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_csv_copes_with_columns_that_come_later_and_with_a_resume(tmp_path):
    told = [(1, {"loss": 1.0}), (2, {"loss": 0.5, "psnr": 20.0}), (3, {"loss": 0.4}), (5, {"loss": 0.1})]
    for first, rows in ((0, told), (2, [(3, {"loss": 0.3}), (4, {"loss": 0.2})])):
        one = tracker(tmp_path, first=first)
        for step, values in rows:
            one.log(step, values)
        one.close()
        assert one.problem is None
        if not first:
            with open(tmp_path / "metrics.csv", "a") as file:
                file.write("1")  # of step 16
    with open(tmp_path / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["psnr"]) for row in found] == [
        ("1", "1.0", ""),
        ("2", "0.5", "20.0"),
        ("3", "0.3", ""),
        ("4", "0.2", ""),
    ]


@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(60)", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)", "import sys; sys.stdin.readline(); 1/0"],
    ids=["hangs", "refuses", "is killed", "crashes"],
)
def test_a_tracker_that_hangs_or_dies_costs_neither_time_nor_the_run(tmp_path, code, capfd):
    began = time.monotonic()
    one = tracker(tmp_path, command=[sys.executable, "-c", code], patience=0.5, room=50)
    for step in range(500):
        one.log(step, {"loss": 1.0, "padding": "x" * 2000})
    assert time.monotonic() - began < LONG  # waiting once for each would be 250 s
    one.close()
    one.close()
    assert time.monotonic() - began < LONG
    assert one.problem is not None
    with pytest.raises(ProcessLookupError):
        os.kill(one._process.pid, 0)
    assert "metrics.jsonl in the run folder has them all" in capfd.readouterr().out


def test_a_disk_that_is_full_ends_a_tracker_with_one_line(tmp_path, capfd):
    few = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    code = few + f"sys.argv = ['sinks']; runpy.run_path({str(ROOT / 'sora/training/logging/sinks.py')!r}, run_name='__main__')"
    one = tracker(tmp_path, command=[sys.executable, "-c", code])
    for step in range(200):
        one.log(step, {"loss": 1.0, **({"later": 2.0} if step > 5 else {})})
    one.close()
    told = capfd.readouterr()
    assert one.problem == "ended with exit code 1" and "metrics.jsonl in the run folder has them all" in told.out
    assert told.err.strip() == "Csv cannot go on: File too large" and not list(tmp_path.glob(".staging*"))


TABLES = {
    "no table": "hello\n1\n",
    "no step": "loss\n1\n",
    "a column twice": "step,loss,step\n1,2,3\n",
    "a step that is a text": "step,loss\nx,1\n",
    "a step below zero": "step,loss\n-1,1\n",
    "a step of another script": "step,loss\n٣,1\n",
    "a step of very many digits": f"step\n{'9' * 5000}\n",
    "a step that steers": "step,loss\n\x1b[2J,1\n",
    "fewer fields": "step,loss\n1,2\n3\n",
    "more fields": "step,loss\n1,2,3\n",
    "a quote without an end": 'step,loss\n1,"2\n3,4\n',
    "a field of megabytes": f"step,loss\n1,{'2' * 1_000_000}\n",
    "a nul": "step,loss\n1,\0\n2\0,\n",
    "no UTF-8": b"step,loss\n1,\xff\n",
    "UTF-16": "step,loss\n1,2\n".encode("utf-16"),
    "lines of JSON": '{"step": 1}\n',
}


@pytest.mark.parametrize("what", [*TABLES, "a pipe", "a link out", "a hole", "a folder"])
def test_a_strangers_metrics_csv_is_no_table_before_a_tracker_reads_it(tmp_path, what):
    path, run = tmp_path / "run/metrics.csv", create(tmp_path / "run", config="{}", info={"kind": "vae"})
    if what in TABLES:
        path.write_bytes(TABLES[what] if isinstance(TABLES[what], bytes) else TABLES[what].encode())
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a link out":
        path.symlink_to("/etc/passwd")
    elif what == "a folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    config = OmegaConf.create({"logger": {"_target_": "sora.training.Csv"}, "tracker": {"patience": 20.0, "room": 9}})
    with pytest.raises(ValueError, match=r"metrics\.csv") as refusal:
        tracker_of(config, run, first=0)
    assert "\x1b" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize("content", ["", "step,loss", "step,loss\n", "step,loss\n1,2\n2,", 'step,loss\n1,2\n\n2,"a\nb"\n'])
def test_ones_own_metrics_csv_goes_on_wherever_a_kill_cut_it(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    refuse_other_table(tmp_path / "metrics.csv")
    one = tracker(tmp_path, first=2)
    one.log(3, {"loss": 0.5})
    one.close()
    assert one.problem is None
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file))[-1] == {"step": "3", "loss": "0.5"}


@pytest.mark.slow
def test_tensorboard_writes_its_events(tmp_path):
    one = tracker(tmp_path, TensorBoard(), patience=60)
    one.log(1, {"loss": 1.0})
    one.close()
    assert one.problem is None
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_tensorboard_shows_no_step_twice_however_often_a_run_goes_on(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((0, 4), (0, 6), (3, 5), (3, 7), (5, 8)):  # killed before a checkpoint, and after those of steps 3 and 5
        one = TensorBoard()
        one.open(tmp_path, "abc", {"seed": 0}, first)
        for step in range(first + 1, last + 1):
            one.log(step, {"loss": float(10 * last + step)})
        one.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={accumulator.SCALARS: 0, accumulator.TENSORS: 0})
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [
        *((step, 60.0 + step) for step in (1, 2, 3)),
        *((step, 70.0 + step) for step in (4, 5)),
        *((step, 80.0 + step) for step in (6, 7, 8)),
    ]
    assert len(events.Tensors("config/text_summary")) == 1


@pytest.mark.slow
def test_wandb_runs_offline_without_an_account(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    one = tracker(tmp_path, Wandb(project="test", entity=None, mode="offline", tags=[], timeout=60.0), patience=120)
    one.log(1, {"loss": 1.0})
    one.close()
    assert one.problem is None
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_tracker_that_cannot_be_started_or_fed_costs_its_copy_alone(tmp_path, capsys):
    one = tracker(tmp_path, command=[str(tmp_path / "nothing")], patience=0.5)
    one.log(1, {"loss": 1.0})
    one.close()
    assert "could not be started" in (one.problem or "")
    other = tracker(tmp_path)
    other.log(1, {"loss": 1.0})
    other.log(2, {"loss": {1, 2}})
    other.log(3, {"loss": float("nan")})
    other.close()
    assert (other.dropped, "cannot take" in (other.problem or "")) == (1, True)
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "3"]
    assert capsys.readouterr().out.count("metrics.jsonl in the run folder has them all") == 2


HANGS = "import os, time\nif os.fork() == 0: time.sleep(60)\nopen({mark!r}, 'w').write('begun')\ntime.sleep(60)"


def members(group: int) -> list[int]:
    """The live processes of a session."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [process for process in found if runs(process) and session(process) == group]


def session(process: int) -> int | None:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return None


def gone(group: int, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while members(group) and time.monotonic() < end:
        time.sleep(0.1)
    return not members(group)


def awaited(path: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def test_what_a_tracker_has_started_ends_with_it(tmp_path):
    mark = tmp_path / "mark"
    one = tracker(tmp_path, command=[sys.executable, "-c", HANGS.format(mark=str(mark))], patience=0.3)
    awaited(mark)
    assert one._process is not None and len(members(one._process.pid)) == 2
    one.close()
    assert gone(one._process.pid, seconds=LONG)


FAKE = """
import os, time, pathlib
class Settings:
    def __init__(self, **_): ...
def init(**_):
    pathlib.Path({mark!r}).write_text(str(os.getpid()))
    time.sleep(60)
"""
TRAINER = """
import sys, time
from sora.training.logging.sinks import Wandb
from sora.training.logging.tracker import NoTracker, Tracker
if __name__ == "__main__":
    sink = Wandb(project="p", entity=None, mode="online", tags=[], timeout=5.0)
    Tracker(sink, folder=sys.argv[1], identity="a", config={}, first=0, patience=1.0, room=10)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_tracker_that_hangs_does_not_outlive_a_trainer_that_was_killed(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE.format(mark=str(mark)))
    (tmp_path / "trainer.py").write_text(TRAINER)
    path = os.pathsep.join([str(tmp_path / "fake"), str(ROOT)])
    trainer = subprocess.Popen([sys.executable, str(tmp_path / "trainer.py"), str(tmp_path)], env={**os.environ, "PYTHONPATH": path})
    awaited(mark, 60)
    sink = int(mark.read_text())
    assert runs(sink)
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert gone(sink, seconds=LONG)


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "import sys; sys.stdin.readline(); 1/0"], ids=["hangs", "crashes"])
def test_training_beside_a_dead_tracker_keeps_its_whole_record(tmp_path, code):
    fit(tmp_path / "plain", until=12, total=12)
    create(tmp_path / "run", config="seed: 0\n", info={"kind": "vae"})
    began = time.monotonic()
    one = tracker(tmp_path / "run", command=[sys.executable, "-c", code], patience=0.3, room=3)
    fit(tmp_path / "run", until=12, total=12, tracker=one)
    assert time.monotonic() - began < LONG  # 12 steps of milliseconds, not 60 s
    kept = [[(row["step"], row["loss"], row["grad_norm"]) for row in read(tmp_path / name / "metrics.jsonl")] for name in ("run", "plain")]
    assert kept[0] == kept[1] and len(kept[0]) == 12
    assert one.problem is not None


def test_a_picture_lies_in_the_run_folder_before_a_tracker_hears_of_it(tmp_path):
    class Heard(NoTracker):
        def media(self, step, name, path, caption):
            self.told = (step, name, path.read_text(), caption)

    run = create(tmp_path / "run", config="seed: 0\n", info={"kind": "vae"})
    heard = Heard()
    journal = Journal(run, every=1, steps=1, unit="clips", tracker=heard, resumed=None, phases=Phases())
    (run.samples / "a.mp4").write_text("frames")
    journal.media(3, "strip", run.samples / "a.mp4", "a ball")
    assert heard.told == (3, "strip", "frames", "a ball")
    (tmp_path / "b.mp4").write_text("frames")
    for elsewhere in (tmp_path / "b.mp4", run.samples / "c.mp4", run.samples):
        with pytest.raises(ValueError, match="write it there first"):
            journal.media(3, "strip", elsewhere, "a ball")


class Server:
    """On loopback, instead of wandb's: takes connections and never answers, answers every request with an error, or is not there."""

    def __init__(self, how: str) -> None:
        self._listening, self._how, self._open = socket.create_server(("127.0.0.1", 0)), how, []
        self.port = self._listening.getsockname()[1]
        if how == "refuses":
            self._listening.close()
        else:
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            self._open.append(connection)
            if self._how == "errors":
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.close()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("how", ["is silent", "refuses", "errors"])
def test_wandb_without_its_server_neither_delays_a_run_nor_fails_it(tmp_path, monkeypatch, how):
    server = Server(how)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    began = time.monotonic()
    one = tracker(tmp_path, Wandb(project="test", entity=None, mode="online", tags=[], timeout=1.0), patience=12.0, room=5)
    for step in range(1000):
        one.log(step, {"loss": 1.0})
    assert time.monotonic() - began < 10  # its patience would be longer
    one.close()
    assert time.monotonic() - began < LONG
    assert one._process is not None and gone(one._process.pid, seconds=LONG)
    assert list((tmp_path / "wandb").glob("offline-run-*")), one.problem  # to be sent later


def test_a_strangers_run_does_not_say_what_its_tracker_is(tmp_path):
    """`sora train resume=RUN` takes RUN's own configuration, of whatever keys."""
    run = create(tmp_path / "run", config="{}", info={"kind": "vae"})
    stored = {
        "logger": {"_target_": "sora.training.Csv"},
        "tracker": {"patience": 20.0, "room": 9, "command": ["touch", str(tmp_path / "pwned")]},
    }
    found = tracker_of(OmegaConf.create(stored), run, first=0)
    found.log(1, {"loss": 1.0})
    found.close()
    assert (run.folder / "metrics.csv").is_file() and not (tmp_path / "pwned").exists()
