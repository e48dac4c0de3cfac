"""What a run does besides steps is the same where ranks share packs or products: going back, and averages of any width afterwards."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sora.runs import checkpoint
from sora.runs import post_hoc_ema as profiles
from sora.runs.jsonl import read
from sora.runs.run import create
from sora.tokens import Batch
from sora.training.guard import Guard
from sora.training.module import TrainingModule
from sora.training.optim import schedules
from sora.training.optim.ema import PostHoc
from tests.training.groups import in_ranks
from tests.training.stand_ins import fit
from tests.training.test_parity import launched
from tests.training.test_parity_tensor_runs import LEAN, STEPS, Mode, Shares, apart, double
from tests.training.tokens import task

pytestmark = [pytest.mark.slow, pytest.mark.long]
TOTAL, BAD = 9, (6, 7)
MODES = {"tensor": Mode(tensor=2), "context": Mode(context=2), "context and shards": Mode(context=2, sharded=True)}
KINDS = ("model", "ema", "ema_2", "optimizer")


class Poisoned(Shares):
    """Whose steps 7 and 8 have a last token that is no number: for context ranks, among the tokens of the last one alone."""

    def __getitem__(self, step: int) -> list[Batch]:
        *packs, last = super().__getitem__(step % STEPS)  # sizes that fit the budget
        if step in BAD:
            patches = last.tokens.patches.clone()
            patches[last.tokens.real - 1] = float("nan")
            last = replace(last, tokens=last.tokens.with_patches(patches))
        return [*packs, last]


def learner(*, steps: int, flag: Any, **judged: Any) -> TrainingModule:
    found = TrainingModule(
        task=task(block=LEAN["block"]).double(),
        optimizer=partial(LEAN["optimizer"]),
        schedule=partial(schedules.cosine_schedule, steps=steps, warmup=3, floor=0.1),
        average=PostHoc(widths=[0.1, 0.05]),
        max_grad_norm=0.5,
        guard=Guard(**{"most": 99, "spike": None, "history": 8, **judged}),
        stop=flag,
    )
    found.task.get_submodule("dit").register_forward_pre_hook(double)
    return found


def ran(folder: Path, mode: Mode, rank: int) -> None:
    settings: dict[str, Any] = {"until": TOTAL, "total": TOTAL, "every": 2, "keep": 9, "patience": 2, "max_rollbacks": 1}
    fit(folder, dataset=Poisoned(mode, rank), trainer=mode.trainer(), make=learner, **settings)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    ran(folder, Mode(), 0)
    return folder


def told(folder: Path) -> list[dict[str, Any]]:
    return [{key: row.get(key) for key in ("event", "step", "reason", "sample_ids", "to")} for row in read(folder / "events.jsonl")]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_ranks_that_share_packs_or_products_go_back_together_and_their_averages_combine_as_one_processs(tmp_path, alone, mode):
    folder = tmp_path / "run"
    create(folder, config="seed: 0\n", info={"kind": "diffusion"})

    def work(rank: int) -> None:
        launched(rank, mode.ranks)
        ran(folder, mode, rank)

    in_ranks(mode.ranks, tmp_path, work)
    assert told(folder) == told(alone) and [row["event"] for row in told(folder)] == ["skipped", "skipped", "went back"]
    assert told(folder)[-1]["to"] == 6 and told(folder)[0]["sample_ids"]
    then, after, end, wanted = (
        checkpoint.load(checkpoint.folder_of(run / "checkpoints", step)).tensors
        for run, step in ((folder, 6), (folder, 8), (folder, TOTAL), (alone, TOTAL))
    )
    for kind in KINDS:
        assert then[kind].keys() == after[kind].keys() == wanted[kind].keys()
        assert all(torch.equal(after[kind][name], then[kind][name]) for name in then[kind]), kind
    for kind in KINDS[:3]:
        assert apart(dict(end[kind]), dict(wanted[kind])) <= 1e-6, kind
    ends = [checkpoint.folder_of(run / "checkpoints", TOTAL) for run in (folder, alone)]
    made = [profiles.averaged(source, width=0.07, report=lambda _: None) for source in ends]
    assert apart(*made) <= 1e-5 and apart(made[0], dict(end["ema"])) > 1e-3
