"""The study of the network's choices: arms that compose and build, equal compute, and a table of what came of them."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.dit_ablations import runs, study
from experiments.dit_ablations.plot import plot
from sora.config.compose import compose
from sora.system.files import read_json, write_json
from sora.tokens import Grid


@pytest.mark.slow
def test_every_arm_is_one_word_that_makes_another_network_of_known_cost():
    base = compose("train", ["experiment=quickstart"])
    grids = [(Grid(5, 8, 8), 3), (Grid(1, 8, 8), 1)]
    costs = {}
    for arm in study.arms():
        assert len(arm.words) == (arm.name != "base") and all(word.startswith("dit.") for word in arm.words)
        composed = compose("train", ["experiment=quickstart", *arm.words])
        assert (composed.config.dit == base.config.dit) == (arm.name == "base"), arm.name
        costs[arm.name] = study.cost(composed, grids, patch_channels=48, text_width=384)
    assert all(0.5 < value / costs["base"] < 2 for value in costs.values()), costs
    assert costs["factorised"] < costs["base"] < costs["adaLN-zero"]


def test_the_base_answers_every_question_by_its_own_name():
    base, *others = study.arms()
    assert {study.title(base, question) for question in base.questions} == {
        "cross-attention", "full", "adaLN-single", "rotations and waves",
    }  # fmt: skip
    assert all(study.title(arm, *arm.questions) == arm.name for arm in others)
    assert len({arm.place for arm in (base, *others)}) == len(others) + 1


def test_steps_make_compute_equal(monkeypatch):
    words = {"base": ["experiment=toy"], "dear": ["experiment=toy"], "cheap": ["experiment=toy"]}
    prices = iter([4.0, 5.0, 3.0])
    monkeypatch.setattr(study, "diffusion_plan", lambda _: FakePlanned())
    monkeypatch.setattr(study, "latent_channels", lambda _: 4)
    monkeypatch.setattr(study, "cost", lambda *_, **__: next(prices))
    monkeypatch.setattr(study, "compose", lambda *_: compose_once())
    assert study.equal_steps(words, [], steps=100) == {"base": 100, "dear": 80, "cheap": 133}


def test_the_table_holds_what_there_is_and_compares_equal_seeds(tmp_path):
    arms = [study.Arm("base", (), ("block",)), study.Arm("other", ("dit.kv_heads=1",), ("block",)), study.Arm("late", ("x=1",), ("block",))]
    for place, seed, loss in (("base", 0, 2.0), ("base", 1, 2.4), ("other", 1, 2.1), ("other", 2, 9.0)):
        write_json(tmp_path / place / str(seed) / "figures.json", {"figures": {"loss": loss, "adherence_all": loss / 4}})
    rows = study.results(tmp_path, arms, seeds=[0, 1], steps={"base": 100, "other": 90, "late": 80})
    assert [row["loss"] for row in rows[:2]] == [[2.0, 2.4], [2.1]] and [row["seeds"] for row in rows] == [[0, 1], [1], []]
    assert study.against_base(rows)["other"] == [pytest.approx(-0.3)]
    text = study.table(rows, ["block"], lambda row, _: row["arm"])
    assert "| base | 100 | 2.2000 ± 0.2828 | – | 0.5500 ± 0.0707 | 2 |" in text
    assert "| other | 90 | 2.1000 | -0.3000 | 0.5250 | 1 |" in text and "| late | 80 | – | – | – | 0 |" in text
    drawn = plot(rows, ["block"], lambda row, _: row["arm"])
    assert drawn == plot(rows, ["block"], lambda row, _: row["arm"]) and "block: other" in drawn and "adherence" in drawn
    for row in rows:
        row.pop("adherence_all", None)
    assert "adherence" not in plot(rows, ["block"], lambda row, _: row["arm"])


def test_a_run_that_is_written_down_is_not_made_again_and_another_is(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runs.train, "main", lambda composed: made.append(composed) or 0)
    monkeypatch.setattr(runs, "compose", lambda verb, words: (verb, *words))
    monkeypatch.setattr(runs, "held_out", lambda run: {"loss": 1.5})
    for words, number in ((["a=1"], 1), (["a=1"], 1), (["a=2"], 2)):
        runs.make(tmp_path / "run", words, score=None)
        assert len(made) == number
    assert made[0] == ("train", "a=1", f"output={tmp_path / 'run'}", "resume=auto")
    assert read_json(tmp_path / "run/figures.json")["figures"] == {"loss": 1.5}
    monkeypatch.setattr(runs.train, "main", lambda composed: 143)
    with pytest.raises(KeyboardInterrupt):
        runs.make(tmp_path / "other", ["a=1"], score=None)
    assert not (tmp_path / "other/figures.json").exists()


def test_a_run_is_made_in_a_process_of_its_own(tmp_path):
    here = os.getpid()
    runs.in_child(lambda: (tmp_path / "pid").write_text(str(os.getpid())) and None, threads=1)
    assert int((tmp_path / "pid").read_text()) != here
    with pytest.raises(ValueError, match="exit code 1"):
        runs.in_child(lambda: sys.exit(1), threads=1)


def test_held_out_losses_are_means_of_tokens_at_draws_that_no_run_changes(monkeypatch):
    """Packs of unequal fill count by their tokens; split, captions and seed are the study's, whatever the run's were."""
    losses = {0: torch.tensor([1.0, 2.0, 3.0, 0.0]), 1: torch.tensor([10.0, 0.0, 0.0, 0.0])}
    asked = []

    class Objective:
        def noise(self, batch, *, seed):
            asked.append(seed)
            return SimpleNamespace(number=batch.number, count=torch.tensor(3.0 - 2 * batch.number))

        def losses(self, network, batch, noised, text):
            return losses[noised.number]

    def plan(config):
        asked.append((config.seed, config.data.split, config.data.drop, config.kept))
        batches = [[SimpleNamespace(number=number, text=None)] for number in (0, 1)]
        return SimpleNamespace(data=SimpleNamespace(batches=lambda _: batches), plan=SimpleNamespace(budget=4))

    loaded = SimpleNamespace(
        config={"seed": 7, "data": {"split": "train", "drop": 0.1}, "kept": "so"}, objective=Objective(), dit=None, text=lambda text: text
    )
    monkeypatch.setattr(runs, "load_diffusion", lambda run, ema: loaded)
    monkeypatch.setattr(runs, "diffusion_plan", plan)
    monkeypatch.setattr(runs, "TOKENS", 7)
    assert runs.held_out(Path("run")) == {"loss": 4.0}
    assert asked == [(runs.SEED, "heldout", 0.0, "so"), runs.SEED, runs.SEED]


class FakePlanned:
    vae = None

    class encoder:
        width = 8

    class patchifier:
        @staticmethod
        def channels(latent):
            return 4 * latent

    class data:
        class clips:
            starts = (0, 3)

            @staticmethod
            def measured(rows, limits):
                import numpy as np

                from sora.data.plan.clips import Measured

                return Measured(np.array([[1, 2, 2], [2, 2, 2], [1, 2, 2]]), np.zeros(3, np.uint8))


def compose_once():
    class Empty:
        config = None

    return Empty()
