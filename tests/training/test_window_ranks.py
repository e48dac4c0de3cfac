"""The open window of the log is all ranks' in a checkpoint, and a resumed run's next line is that of the whole one."""

from __future__ import annotations

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Trainer

from sora.runs.checkpoint import TrainingState
from sora.runs.jsonl import read
from sora.runs.run import Run
from sora.training.callbacks.journal import Journal
from sora.training.logging.goodput import Phases
from sora.training.logging.tracker import NoTracker
from sora.training.module import Counters, Report, TrainingModule
from tests.training.groups import in_ranks


@pytest.mark.slow
def test_a_line_after_a_resume_within_its_window_has_what_all_ranks_saw(tmp_path):
    def journal(rank, folder, resumed):
        folder.mkdir(exist_ok=True)
        said = {"every": 2, "steps": 4, "unit": "tokens", "tracker": NoTracker(), "phases": Phases()}
        made = Journal(Run(folder), **said, resumed=resumed)
        made._gauges = SimpleNamespace(attach=lambda *_: None, end=lambda **_: None, begin=lambda: None, told=dict, slowest="")
        module = Mock(spec=TrainingModule, task=None, device=torch.device("cpu"), report=None, counters=Counters(), preparing=0.0)
        made.on_train_start(Mock(spec=Trainer, is_global_zero=rank == 0), module)
        return made, module

    def step(made, module, rank, number):
        values = float(10 * rank + number), 1.0
        rest = {"grad_norm": 1.0, "lr": 1.0, "taken": True, "stop": False, "samples": 1, "tokens": 1, "flops": 0.0}
        module.report = Report(step=number, loss=1.0, parts={"part": values}, **rest)
        made.on_train_batch_end(Mock(spec=Trainer, is_global_zero=rank == 0), module, None, None, 0)

    def work(rank: int) -> None:
        whole, module = journal(rank, tmp_path / "whole", None)
        step(whole, module, rank, 1)
        found = [json.loads(json.dumps(whole.facts))]
        torch.distributed.broadcast_object_list(found)  # a checkpoint keeps the first rank's
        step(whole, module, rank, 2)
        cut, module = journal(rank, tmp_path / "cut", TrainingState(step=1, samples=0, tokens=0, tensors={}, facts=found[0]))
        step(cut, module, rank, 2)

    (tmp_path / "notes").mkdir()
    in_ranks(2, tmp_path / "notes", work)
    (whole,), (cut,) = read(tmp_path / "whole" / "metrics.jsonl"), read(tmp_path / "cut" / "metrics.jsonl")
    assert whole["part"] == (1 + 2 + 11 + 12) / 4 and cut["part"] == whole["part"]
