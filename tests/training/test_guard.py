"""Which steps a run learns from, whom it suspects, and going back: the same on every cut, and nothing of a step that was left out stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.training.guard import NOT_FINITE, SPIKE, Guard, Suspects, deviations
from tests.training.stand_ins import Steps, fit
from tests.training.test_resume import lines

pytestmark = pytest.mark.slow

NAN = float("nan")


def guard(**settings) -> Guard:
    return Guard(**{"patience": 3, "most": 100, "spike": 8.0, "history": 16, "max_rollbacks": 0, **settings})


def test_deviations_are_robust_and_know_no_unit():
    draw = np.random.default_rng(0)
    losses = draw.normal(5, 0.1, 400).tolist()
    assert deviations(5.4, losses) == pytest.approx(4, abs=0.5)  # of a normal distribution: standard deviations
    assert deviations(7 * 5.4, [7 * loss for loss in losses]) == pytest.approx(deviations(5.4, losses))
    soiled = [*losses[:300], *[1e6] * 100]
    assert deviations(5.4, soiled) > 2  # a quarter of wild ones hides no spike
    assert deviations(4.0, losses) < 0
    assert deviations(1.0, [1.0] * 9) == 0 and deviations(1.5, [1.0] * 9) == pytest.approx(50)  # that never scattered


def test_a_spike_is_left_out_once_there_is_a_history_and_is_no_part_of_it():
    one = guard()
    draw = np.random.default_rng(1)
    for loss in [100.0, 1.0, *draw.normal(2, 0.2, 20)]:
        assert one.judge(loss, finite=True) == "", loss  # while there is no history nothing stands out, and then nothing does
    before = list(one.losses)
    assert len(before) == 16
    assert one.judge(2e4, finite=True) == SPIKE and one.losses == before
    assert one.judge(NAN, finite=False) == NOT_FINITE and one.losses == before
    assert one.judge(2.1, finite=True) == "" and one.losses == [*before[1:], 2.1]
    assert guard(spike=None).judge(1e30, finite=True) == ""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"patience": 0}, "guard.patience=0"),
        ({"spike": 0.0}, "guard.spike=0.0"),
        ({"history": 3}, "guard.history=3"),
        ({"max_rollbacks": -1}, "max_rollbacks=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        guard(**settings)


def test_suspects_are_held_once_a_later_step_shows_that_it_was_not_the_weights():
    held = []
    some = Suspects(lambda *facts: held.append(facts))
    some.left_out(5, [7, 8])
    some.left_out(6, [9])
    assert held == []
    again = Suspects(lambda *facts: held.append(facts), some.facts)  # as a checkpoint keeps them
    again.learned()
    assert [(step, ids) for step, ids, _ in held] == [(4, [7, 8]), (5, [9])] and "not finite at step 5" in held[0][2]
    again.left_out(8, [1])
    again.forget()
    again.learned()
    assert len(held) == 2 and again.facts == []


def end(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(checkpoint.newest(folder / "checkpoints"))
    return {f"{kind}/{name}": state.tensors[kind][name] for kind in ("model", "ema", "optimizer") for name in state.tensors[kind]}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_wild_batch_leaves_no_trace(tmp_path):
    """Its step is as one that was left out for being not finite; and without the guard it is not."""
    judged = {"spike": 8.0, "history": 8}
    fit(tmp_path / "wild", until=20, total=20, dataset=Steps(poison={14: 1e4}), **judged)
    fit(tmp_path / "nan", until=20, total=20, dataset=Steps(poison={14: NAN}), **judged)
    fit(tmp_path / "blind", until=20, total=20, dataset=Steps(poison={14: 1e4}))
    assert same(end(tmp_path / "wild"), end(tmp_path / "nan")) and not same(end(tmp_path / "blind"), end(tmp_path / "nan"))
    (event,) = [row for row in read(tmp_path / "wild" / "events.jsonl") if row["event"] == "skipped"]
    assert (event["step"], event["reason"]) == (15, "spike")
    for first, second in zip(lines(tmp_path / "wild"), lines(tmp_path / "nan"), strict=True):
        assert {**first, "gradients": 0} == {**second, "gradients": 0}  # the loss of the step is no part of the log's sums


@pytest.mark.slow
def test_a_run_that_is_cut_judges_as_the_uninterrupted_one(tmp_path):
    settings = {"total": 20, "dataset": Steps(poison={10: 1e4, 14: 1e4}), "spike": 8.0, "history": 8}
    fit(tmp_path / "whole", until=20, **settings)
    assert [row["skipped"] for row in read(tmp_path / "whole" / "metrics.jsonl")].count(1) == 2
    for cut in (7, 10, 11, 13):
        folder = tmp_path / str(cut)
        fit(folder, until=20, stop_at=cut, **settings)
        fit(folder, until=20, resumed=checkpoint.load(checkpoint.newest(folder / "checkpoints")), **settings)
        assert lines(folder) == lines(tmp_path / "whole"), cut
        assert same(end(folder), end(tmp_path / "whole")), cut


BAD = dict.fromkeys(range(9, 12), NAN)  # steps 10 to 12, as they are counted


def test_a_run_at_its_end_goes_back_to_its_last_checkpoint_and_leaves_the_packs_out(tmp_path):
    fit(tmp_path / "run", until=13, total=20, every=4, keep=9, dataset=Steps(poison=BAD), patience=3, max_rollbacks=1)
    (event,) = [row for row in read(tmp_path / "run" / "events.jsonl") if row["event"] == "went back"]
    assert (event["step"], event["to"], event["left_out"]) == (12, 8, 4)
    steps = [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path / "run" / "checkpoints")]
    assert steps == [4, 8, 12]
    then, after = (checkpoint.load(checkpoint.folder_of(tmp_path / "run" / "checkpoints", step)) for step in (8, 12))
    for kind in ("model", "ema", "optimizer"):
        assert all(torch.equal(value, after.tensors[kind][name]) for name, value in then.tensors[kind].items())
    counters = after.facts["counters"]
    assert (counters["step"], counters["updates"], counters["skipped"], counters["skipped_in_a_row"]) == (12, 8, 4, 0)
    assert (after.samples, after.tokens) == (then.samples, then.tokens)
    assert read(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 13 and read(tmp_path / "run" / "metrics.jsonl")[-1]["loss"] > 0


@pytest.mark.long
@pytest.mark.slow
def test_a_cut_anywhere_around_going_back_changes_nothing(tmp_path):
    settings = {"total": 18, "every": 4, "dataset": Steps(poison=BAD), "patience": 3, "max_rollbacks": 1}
    fit(tmp_path / "whole", until=18, **settings)
    for cut in (9, 11, 12, 13):
        folder = tmp_path / str(cut)
        fit(folder, until=18, stop_at=cut, **settings)
        fit(folder, until=18, resumed=checkpoint.load(checkpoint.newest(folder / "checkpoints")), **settings)
        assert same(end(folder), end(tmp_path / "whole")), cut
        assert [row["loss"] for row in lines(folder)] == [row["loss"] for row in lines(tmp_path / "whole")], cut
    for died in (10, 12, 13):  # as after kill -9: steps are made again, and it goes back again
        folder = tmp_path / f"died{died}"
        fit(folder, until=died, **settings)
        fit(folder, until=18, resumed=checkpoint.load(checkpoint.newest(folder / "checkpoints")), **settings)
        assert same(end(folder), end(tmp_path / "whole")), died


def test_the_second_time_it_goes_further_back_unless_there_was_a_newer_checkpoint_and_then_it_stops(tmp_path):
    settings = {"total": 30, "every": 4, "keep": 9, "patience": 3, "until": 30}
    went = lambda folder: [(row["step"], row["to"]) for row in read(folder / "events.jsonl") if row["event"] == "went back"]  # noqa: E731
    straight = dict.fromkeys(range(9, 15), NAN)
    fit(tmp_path / "further", dataset=Steps(poison=straight), max_rollbacks=2, **settings)
    assert went(tmp_path / "further") == [(12, 8), (15, 4)]
    later = {**BAD, **dict.fromkeys(range(21, 24), NAN)}
    fit(tmp_path / "later", dataset=Steps(poison=later), max_rollbacks=2, **settings)
    assert went(tmp_path / "later") == [(12, 8), (24, 20)]
    with pytest.raises(ValueError, match="3 steps in a row up to step 15"):
        fit(tmp_path / "spent", dataset=Steps(poison=straight), max_rollbacks=1, **settings)
    with pytest.raises(ValueError, match="3 steps in a row up to step 4"):
        fit(tmp_path / "early", dataset=Steps(poison=dict.fromkeys(range(1, 4), NAN)), max_rollbacks=5, **settings)


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path, capsys, monkeypatch):
    plain = checkpoint.Saving.commit

    def damaging(self, **kept):
        path = plain(self, **kept)
        if path.name == "step-00000008":
            (path / "model.safetensors").write_bytes(b"x")
        return path

    monkeypatch.setattr(checkpoint.Saving, "commit", damaging)
    fit(tmp_path / "run", until=13, total=20, every=4, keep=9, dataset=Steps(poison=BAD), patience=3, max_rollbacks=1)
    (event,) = [row for row in read(tmp_path / "run" / "events.jsonl") if row["event"] == "went back"]
    assert event["to"] == 4 and event["removed"] == [8]
    assert "passed over a damaged checkpoint" in capsys.readouterr().out


def test_more_left_out_steps_than_the_run_allows_stop_it(tmp_path):
    poison = {step: NAN for step in range(20) if step % 2}
    with pytest.raises(ValueError, match=r"4 steps up to step 8 were left out, more than guard\.most=3"):
        fit(tmp_path / "run", until=20, total=20, dataset=Steps(poison=poison), most=3)


def test_only_samples_whose_own_loss_was_not_finite_are_held_and_not_when_it_was_the_weights(tmp_path):
    held = []
    settings = {"total": 12, "hold": lambda step, ids, reason: held.append((step, list(ids)))}
    fit(tmp_path / "sample", until=12, dataset=Steps(poison={5: NAN}), **settings)
    assert held == [(5, [Steps()[5][-1].sample_ids[-1]])]
    fit(tmp_path / "gradient", until=12, dataset=Steps(poison={5: 1e18}), **settings)
    with pytest.raises(ValueError, match="in a row"):
        fit(tmp_path / "weights", until=12, dataset=Steps(poison=dict.fromkeys(range(5, 12), NAN)), **settings)
    fit(
        tmp_path / "back", until=12, every=4, dataset=Steps(poison=dict.fromkeys(range(5, 8), NAN)), patience=3, max_rollbacks=1, **settings
    )
    assert len(held) == 1
    fit(tmp_path / "cut", until=12, dataset=Steps(poison={5: NAN}), stop_at=6, **settings)
    assert len(held) == 1
    resumed = checkpoint.load(checkpoint.newest(tmp_path / "cut" / "checkpoints"))
    fit(tmp_path / "cut", until=12, dataset=Steps(poison={5: NAN}), resumed=resumed, **settings)
    assert held[1:] == held[:1]
