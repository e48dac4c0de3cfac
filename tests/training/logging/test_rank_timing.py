"""What ranks tell of themselves: who is slow and why, although all wait for one another; and that it is in the record."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from sora.runs.jsonl import read
from sora.runs.run import Run, create
from sora.system.files import read_json
from sora.training import state
from sora.training.callbacks.journal import Journal
from sora.training.logging import rank_timing as gauges
from sora.training.logging.goodput import Phases
from sora.training.logging.rank_timing import Gauges, Stopwatch, measured, memory
from sora.training.logging.tracker import NoTracker
from tests.training.groups import in_ranks
from tests.training.stand_ins import ADAMW, Integers, Network, ToyTask, fit, module_of
from tests.training.test_parity import Shares, launched, modes

pytestmark = pytest.mark.slow

CPU_DEVICE = torch.device("cpu")
STEPS, LAGGARD, LAG = 6, 1, 0.12  # far above what a busy machine holds up a rank of its own accord


def test_blocks_are_measured_and_nothing_inside_them_twice():
    network = Network()
    network.blocks.append(torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(8, 8)])))
    assert measured(network) == list(network.blocks)
    plain = torch.nn.Linear(2, 2)
    assert measured(plain) == [plain]
    network.blocks[1].compile(backend="eager")
    assert measured(network) == [network]


def test_only_what_runs_inside_a_step_counts(monkeypatch):
    now = {"value": 0.0}
    monkeypatch.setattr(gauges.time, "perf_counter", lambda: now["value"])
    watch = Stopwatch(CPU_DEVICE)
    for is_open, seconds in ((False, 100.0), (True, 2.0), (False, 100.0), (True, 3.0)):  # an evaluation stands between steps
        watch.open = is_open
        watch.start()
        now["value"] += seconds
        watch.stop()
    assert (watch.take(), watch.take()) == (5.0, 0.0)


def test_the_record_of_one_process_has_its_memory_and_the_norm_of_every_block(tmp_path):
    fit(tmp_path / "run", until=4, total=4, log_every=2)
    rows = read(tmp_path / "run/metrics.jsonl")
    for row in rows:
        assert row["machine"]["memory_peak"] >= row["machine"]["memory_resident"] > 0.05
        assert set(row["machine"]) == {"memory_peak", "memory_resident"}
        assert list(row["gradients"]) == [f"network.{part}" for part in ("enter", "blocks.0", "blocks.1", "leave")]
    plain = fit(tmp_path / "often", until=4, total=4, log_every=1)
    often = read(tmp_path / "often/metrics.jsonl")
    assert [row["gradients"] for row in rows] == [often[1]["gradients"], often[3]["gradients"]]  # of the logged step itself
    for row in often:
        assert sum(norm**2 for norm in row["gradients"].values()) == pytest.approx(row["grad_norm"] ** 2, rel=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.task.modules())


def test_memory_is_of_this_process():
    before = memory(CPU_DEVICE)["memory_resident"]
    held = torch.ones(50_000_000)
    assert memory(CPU_DEVICE)["memory_resident"] - before == pytest.approx(0.2, abs=0.02)
    del held


def late(how: str, monkeypatch) -> None:
    """One rank is slow in one way."""
    if how == "compute":
        plain = torch.nn.Linear.forward
        slow = lambda self, x: (time.sleep(LAG / 4 * (self.in_features == self.out_features)), plain(self, x))[1]  # noqa: E731
        monkeypatch.setattr(torch.nn.Linear, "forward", slow)  # each of two blocks, for two packs
    elif how == "prepare":
        plain = ToyTask.prepare
        monkeypatch.setattr(ToyTask, "prepare", lambda *given: (time.sleep(LAG), plain(*given))[1])
    else:
        plain = Shares.__getitem__
        monkeypatch.setattr(Shares, "__getitem__", lambda *given: (time.sleep(LAG), plain(*given))[1])


def journal_of(run: Run, **more) -> Journal:
    settings = {"every": 3, "steps": STEPS, "unit": "tokens", "tracker": NoTracker(), "resumed": None, "phases": Phases()}
    return Journal(run, **{**settings, **more})


@pytest.mark.parametrize(("how", "mode"), [("compute", "ddp"), ("compute", "fsdp"), ("prepare", "fsdp"), ("data", "ddp")])
def test_the_slow_rank_is_named_although_all_steps_take_as_long(tmp_path, monkeypatch, capfd, how, mode):
    run = create(tmp_path / "run", config="seed: 0\n", info={"kind": "vae"})

    def work(rank: int) -> None:
        launched(rank, 2)
        if rank == LAGGARD:
            late(how, monkeypatch)
        monkeypatch.setattr(gauges.socket, "gethostname", lambda: f"node-{rank}")
        module = module_of(steps=STEPS, optimizer=partial(ADAMW), averaged=False)
        loader = torch.utils.data.DataLoader(Shares(rank=rank, ranks=2), batch_size=None, sampler=Integers(0, STEPS))
        journal = journal_of(run, goodput=lambda: 0.5)
        modes(2)[mode](callbacks=[journal]).fit(module, loader)
        journal.close()

    in_ranks(2, tmp_path, work)
    rows = read(run.folder / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        machine = row["machine"]
        fastest, middle, slowest = machine["seconds_p50"]
        assert (machine["slowest"], machine["slowest_host"], machine["slowest_by"]) == (LAGGARD, f"node-{LAGGARD}", how)
        assert fastest == middle and slowest - fastest > 0.5 * LAG
        assert machine["slowest_ratio"] == pytest.approx(slowest / fastest, rel=2e-2)
        assert machine["seconds_p95"][2] >= slowest
        assert list(row["gradients"]) == ["network.enter", "network.blocks.0", "network.blocks.1", "network.leave"]
        assert row["step_seconds"] > 0.5 * LAG  # the other one's steps are no shorter
    table = read_json(run.folder / "ranks.json")
    assert [(row["rank"], row["host"]) for row in table] == [(0, "node-0"), (1, "node-1")]
    assert table[1][how] - table[0][how] > 0.5 * LAG
    out, err = capfd.readouterr()
    assert f"the slowest of 2 ranks was {LAGGARD} on node-{LAGGARD}" in out and "in 100% of" in out
    assert "goodput 50%  slowest 1@node-1" in err


def test_a_table_that_cannot_be_written_costs_nothing_else(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    found = Gauges(tmp_path / "file")
    found._hosts = ["a", "b"]
    monkeypatch.setattr(gauges.ranks, "several", lambda: True)
    monkeypatch.setattr(gauges.ranks, "gathered", lambda values: [values, 2 * values])
    found.end(data=0.1, prepare=0.1)
    told = found.told()
    assert (told["slowest"], told["slowest_host"], told["slowest_ratio"]) == (1, "b", 2.0)
    assert "training goes on without it" in capsys.readouterr().out


def test_saving_between_steps_is_no_waiting_for_data(tmp_path, monkeypatch):
    plain = state.capture
    monkeypatch.setattr(state, "capture", lambda *given: (time.sleep(0.6), plain(*given))[1])
    fit(tmp_path / "run", until=4, total=4, every=2, log_every=1)
    rows = read(tmp_path / "run/metrics.jsonl")
    assert rows[2]["seconds"] - rows[1]["seconds"] >= 0.6  # the save after the second step lies there
    assert rows[2]["data_share"] * rows[2]["step_seconds"] < 0.6
