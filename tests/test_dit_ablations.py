"""The study of the network's choices: arms that compose and build, equal compute, and a table of what came of them."""

from copy import deepcopy
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from experiments.dit_ablations import study
from experiments.dit_ablations.plot import plot
from sora.configs.check import check_targets
from sora.configs.compose import compose, parse
from sora.storage import write_json
from sora.tokens import Grid


@pytest.mark.slow
def test_every_arm_is_one_word_that_makes_another_network_of_known_cost():
    base = compose("train", ["experiment=quickstart"])
    grids = [(Grid(5, 8, 8), 3), (Grid(1, 8, 8), 1)]
    costs = {}
    for arm in study.arms():
        assert len(arm.words) == (arm.name != "base") and all(word.startswith("dit.") for word in arm.words)
        composed = replace(base, config=changed(base.config, arm.words))
        assert (composed.config.dit == base.config.dit) == (arm.name == "base"), arm.name
        costs[arm.name] = study.cost(composed, grids, patch_channels=48, text_width=384)
        if arm.name == "rotations and learned":  # composing takes a while; the words are read alike
            assert compose("train", ["experiment=quickstart", *arm.words]).config == composed.config
    assert all(0.5 < value / costs["base"] < 2 for value in costs.values()), costs
    assert costs["factorised"] < costs["base"] < costs["adaLN-zero"]


def changed(config, words):
    config = deepcopy(config)
    OmegaConf.set_struct(config, False)
    for word in map(parse, words):
        OmegaConf.update(config, word.key_or_group, word.value())
    check_targets(config, "")
    return config


def test_the_base_answers_every_question_by_its_own_name():
    base, *others = study.arms()
    assert {study.title(base, question) for question in base.questions} == {
        "cross-attention", "full", "adaLN-single", "rotations and waves",
    }  # fmt: skip
    assert all(study.title(arm, *arm.questions) == arm.name for arm in others)
    assert len({arm.place for arm in (base, *others)}) == len(others) + 1


def test_steps_make_compute_equal_and_seeds_are_outermost(tmp_path, monkeypatch):
    words = {"base": ["experiment=toy"], "dear": ["experiment=toy"], "cheap": ["experiment=toy"]}
    prices = iter([4.0, 5.0, 3.0])
    monkeypatch.setattr(study, "diffusion_plan", lambda _: FakePlanned())
    monkeypatch.setattr(study, "latent_channels", lambda _: 4)
    monkeypatch.setattr(study, "cost", lambda *_, **__: next(prices))
    monkeypatch.setattr(study, "compose", lambda *_: compose_once())
    steps = study.equal_steps(words, [], steps=100)
    assert steps == {"base": 100, "dear": 80, "cheap": 133}
    stages = study.stages(tmp_path, words, ["vae=x"], steps=steps, seeds=[7, 8], score=["n=4"])
    assert [stage.name for stage in stages[:4]] == ["train-base-7", "score-base-7", "train-dear-7", "score-dear-7"]
    assert [stage.name for stage in stages[6:8]] == ["train-base-8", "score-base-8"]
    assert {"seed=7", "steps=80", "vae=x"} < set(stages[2].overrides) and stages[3].after == ("train-dear-7",)


def test_the_table_holds_what_there_is(tmp_path):
    arms = [study.Arm("base", (), ("block",)), study.Arm("other", ("dit.kv_heads=1",), ("block",)), study.Arm("late", ("x=1",), ("block",))]
    for place, seed, shift in (("base", 0, 0.0), ("base", 1, 0.2), ("other", 0, -0.5)):
        folder = tmp_path / place / str(seed)
        folder.mkdir(parents=True)
        lines = [f'{{"step": {step}, "loss": {2.0 + shift if step > 90 else 99.0}}}' for step in range(10, 101, 5)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        write_json(folder / "scores/scores.json", {"figures": {"adherence_all": 0.5 + shift}})
    rows = study.results(tmp_path, arms, seeds=[0, 1], steps={"base": 100, "other": 90, "late": 80})
    assert [row["loss"] for row in rows] == [[2.0, 2.2], [1.5], []]
    text = study.table(rows, ["block"], lambda row, _: row["arm"])
    assert "| base | 100 | 2.1000 ± 0.1414 | 0.6000 ± 0.1414 | 2 |" in text
    assert "| other | 90 | 1.5000 | 0.0000 | 1 |" in text and "| late | 80 | – | – | 0 |" in text
    drawn = plot(rows, ["block"], lambda row, _: row["arm"])
    assert drawn == plot(rows, ["block"], lambda row, _: row["arm"]) and "block: other" in drawn


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

                from sora.data.planning.clips import Measured

                return Measured(np.array([[1, 2, 2], [2, 2, 2], [1, 2, 2]]), np.zeros(3, np.uint8))


def compose_once():
    class Empty:
        config = None

    return Empty()
