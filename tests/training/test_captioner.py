"""A captioner's run cut anywhere, on any number of ranks, ends as one that was not; and what its data and its options have to be."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from sora import cli
from sora.runs import checkpoint
from sora.training.captioner_task import captioned
from sora.training.guard import Guard
from sora.training.module import TrainingModule
from sora.training.optim import ema, schedules
from sora.training.optim.ema import Average
from tests.captioner.making import ATTRIBUTES, CaptionShares, CaptionSteps, bare, batch, task, words
from tests.training.groups import in_ranks
from tests.training.soak import Trained, ended, prepared, started, torture
from tests.training.stand_ins import ADAMW, fit
from tests.training.test_parity import launched
from tests.training.test_parity_products import MESHES, SINGLE, STEADY, differing, mesh, trained
from tests.training.test_resume import TOTAL, final, lines, resume

STAGES_AT_ONCE = [{"until": 0.5, "contrast": 1.0, "attributes": 1.0}, {"until": 1.0, "contrast": 1.0, "short": 1.0, "dense": 1.0}]


def captioner(*, steps: int, flag=lambda: False) -> TrainingModule:
    return TrainingModule(
        task=task(steps=steps),
        optimizer=ADAMW,
        schedule=partial(schedules.cosine_schedule, steps=steps, warmup=3, floor=0.1),
        average=Average(partial(ema.constant_decay, decay=0.9, warmup=10)),
        max_grad_norm=1.0,
        guard=Guard(patience=5, most=1000, spike=None, history=128, max_rollbacks=0),
        stop=flag,
    )


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(7,), pytest.param((1, 8, 15, 20), marks=pytest.mark.long)])
def test_a_run_cut_in_any_of_its_stages_goes_on_bit_by_bit(tmp_path, cuts):
    """Cuts before, at and behind the steps at which the weights of the losses change (8 and 15 of 24)."""
    settings = {"make": captioner, "dataset": CaptionSteps()}
    fit(tmp_path / "whole", until=TOTAL, total=TOTAL, **settings)
    expected = lines(tmp_path / "whole")
    assert ["dense" in row for row in expected] == [False] * 15 + [True] * 9 and "short" in expected[8] and "short" not in expected[7]
    for cut in cuts:
        folder = tmp_path / f"cut{cut}"
        fit(folder, until=TOTAL, total=TOTAL, stop_at=cut, **settings)
        resume(folder, **settings)
        assert lines(folder) == expected and final(folder) == final(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.slow
def test_a_run_killed_five_times_on_one_two_and_four_ranks_ends_with_the_same_numbers(tmp_path):
    what, steps = Trained("captioner", 4), 64
    prepared(tmp_path)
    ended(started(tmp_path, tmp_path / "whole", what, count=1, steps=steps), within=300)
    from tests.training.soak import digest

    told = torture(tmp_path, tmp_path / "killed", what, kills=5, steps=steps, draw=random.Random(3), say=lambda line: None)
    assert told.digest == digest(tmp_path / "whole", steps=steps)


@pytest.mark.long
@pytest.mark.slow
def test_ranks_that_share_weights_train_as_one_process_does(tmp_path):
    def made():
        return task(steps=2, stages=STAGES_AT_ONCE, scrambled=True)

    wanted = trained(SINGLE, STEADY, made=made, shares=CaptionShares)

    def work(rank: int) -> None:
        launched(rank, 2)
        for name in ("ddp", "fsdp"):
            assert not differing(trained(mesh(MESHES[2][name]), STEADY, made=made, shares=CaptionShares), wanted), name
        with pytest.raises(ValueError, match="CaptionerTask trains on none; set trainer.context=1"):
            trained(mesh(MESHES[2]["cp"]), STEADY, made=made, shares=CaptionShares)

    in_ranks(2, tmp_path, work)


def test_what_is_hidden_and_changed_of_a_clip_follows_from_seed_epoch_and_clip_alone():
    made, weights = task(steps=4), {"contrast": 1.0, "short": 1.0, "dense": 1.0}
    prepare = partial(captioned, words=made.words, attributes=ATTRIBUTES, objective=made.objective, weights=weights)
    one, other = prepare(batch([0, 1, 2]), seed=3), prepare(batch([1, 2]), seed=3)
    for kind in ("short", "dense"):
        width = other.sentences[kind].shown.shape[1]
        assert torch.equal(one.sentences[kind].shown[1:, :width], other.sentences[kind].shown)
    for changes in ({"seed": 4}, {"epoch": 1}):
        again = prepare(batch([1, 2], epoch=changes.get("epoch", 0)), seed=changes.get("seed", 3))
        assert not torch.equal(again.sentences["dense"].shown, other.sentences["dense"].shown)
        assert torch.equal(again.sentences["dense"].words, other.sentences["dense"].words)
    less = captioned(batch([1, 2]), made.words, ATTRIBUTES, made.objective, weights={"dense": 1.0}, seed=3)
    assert torch.equal(less.sentences["dense"].shown, other.sentences["dense"].shown) and less.pairs is None


def test_clips_without_captions_or_facts_cost_nothing_and_spoil_nothing():
    made = task(steps=4)
    weights = {"attributes": 1.0, "contrast": 1.0, "short": 1.0, "dense": 1.0}
    clips = captioned(bare(batch([0, 1])), made.words, ATTRIBUTES, made.objective, weights=weights, seed=3)
    found = made.objective.losses(made.network, clips, weights)
    assert clips.pairs is None and not any(term.any() for term in found.terms.values())
    assert all(asked == 0 for _, asked in found.right.values())


def test_a_clip_that_is_not_finite_is_named_and_no_other():
    made = task(steps=4)
    pack = batch([0, 1, 2])
    first = pack.tokens.grids[0].tokens
    pack.tokens.patches[first : first + pack.tokens.grids[1].tokens] = torch.nan
    from sora.training.captioner_task import StepPack

    (prepared_pack,) = made.prepare([StepPack(pack, 3)], torch.device("cpu"))
    assert made(prepared_pack).by_sample().isfinite().tolist() == [True, False, True]


# ---- the command


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    prepared(folder)
    return folder


def train(home: Path, *said: str) -> int:
    few = ["plan.budget=120", "steps=2", "trainer.threads=1", "checkpoint.every=1"]
    return cli.run("train", ["experiment=toy_captioner", f"data.folders=[{home}/world]", *few, *said])


@pytest.mark.slow
def test_a_run_is_opened_scored_and_asked_for_captions_of_frames(home, capsys):
    import sora
    from sora.captioner import TimedFrames
    from sora.data.loading.dataset import open_dataset

    run = home / "run"
    measured = ["evaluation=captions", "evaluation.every=1", "evaluation.share=null", "evaluation.clips=3", "evaluation.most=6"]
    assert train(home, f"vae={home}/vae", f"output={run}", *measured) == 0, capsys.readouterr().err
    (row, *_) = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert {"caption_loss", "short_all", "dense_all", "answers_colour"} <= set(row) and (run / row["videos"][0]).is_file()
    opened = sora.open_run(run)
    clips = open_dataset(home / "world", "heldout")
    given = [TimedFrames(torch.from_numpy(clip.frames.copy()), [place / clip.fps for place in range(len(clip.frames))]) for clip in clips]
    captioner = opened.captioner(most=5)
    said = captioner.captions_of(given[:3])
    assert [set(each.captions) for each in said] == [{"short", "dense"}] * 3 and not any(each.error for each in said)
    alone = captioner.captions_of(given[1:2], kinds=["dense"])
    assert alone[0].captions["dense"].text == said[1].captions["dense"].text
    small = TimedFrames(given[0].frames[:, :4, :4], given[0].times)
    wrong = captioner.captions_of([small, given[0], TimedFrames(given[0].frames, [0.0])])
    texts = [{kind: line.text for kind, line in each.captions.items()} for each in (wrong[1], said[0])]
    assert "smaller than a patch" in wrong[0].error and texts[0] == texts[1] and "has 1 times" in wrong[2].error
    assert cli.run("evaluate", [f"checkpoint={run}", f"data={home}/world", "n=3", "keep=2"]) == 0
    (scores,) = [json.loads(path.read_text()) for path in run.glob("evaluation/*/scores.json")]
    assert scores["n"] == 3 and len(scores["clips"]) == 2 and set(scores["confusions"]) >= {"colour", "shape"}
    assert "What was taken for what" in next(run.glob("evaluation/*/report.html")).read_text()
    assert checkpoint.step_of(checkpoint.newest(run / "checkpoints")) == 2


@pytest.mark.slow
def test_a_captioner_without_a_vae_sees_pixels(home, capsys):
    run = home / "pixels"
    frames = ["data=videos", "data.areas=[400]", "data.vae_batch=2", "attributes=none", "objective.stages=[{until: 1, dense: 1}]"]
    assert train(home, *frames, f"output={run}", "pixels.stride=[4,4,4]", "kinds=[dense]", "plan.budget=400") == 0, capsys.readouterr().err
    assert not (run / "vae").exists() and json.loads((run / "words.json").read_text())["kinds"] == ["dense"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["vae=null"], "say which (vae=FOLDER), or let the captioner see pixels (data=videos)"),
        (["kinds=[short,long]", "vae={home}/vae"], "no clip of these datasets has a caption of kind long; their kinds are dense, short"),
        (["kinds=[short]", "vae={home}/vae"], "weighs dense, which is neither attributes nor contrast nor one of kinds=['short']"),
        (["attributes.names=[smell]", "vae={home}/vae"], "attributes.names names smell"),
    ],
)
def test_what_cannot_be_trained_is_one_line(home, capsys, said, message):
    assert train(home, f"output={home}/none", *(word.format(home=home) for word in said)) == 2
    assert message in capsys.readouterr().err and not (home / "none").exists()


def test_latents_of_another_vae_are_refused_with_the_command_that_makes_them(home, capsys):
    from sora.config.build import build
    from sora.vae import artefact
    from tests.trained import option

    torch.manual_seed(9)
    artefact.save(build(option("vae", "toy")), home / "other", config={})
    assert train(home, f"vae={home}/other", f"output={home}/none") == 2
    told = capsys.readouterr().err
    assert "sora encode" in told and str(home / "other") in told


def test_words_of_a_run_are_those_that_it_began_with(home):
    from sora.assembly.captioning import read_words

    with pytest.raises(ValueError, match=r"words\.json is missing, and without its vocabulary a captioner cannot write"):
        read_words(home)
    (home / "words.json").write_text(words().to_json())
    assert read_words(home).fingerprint == words().fingerprint
    (home / "words.json").unlink()


def test_a_folder_that_is_no_captioner_is_told_apart(home, tmp_path):
    import sora
    from sora.runs.run import create

    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ValueError, match="is a model folder of another library and no run of sora train task=captioner"):
        sora.open_captioner(tmp_path)
    create(tmp_path / "other", config="kind: vae\n", info={"kind": "vae"})
    with pytest.raises(ValueError, match="is a run of kind vae; captions are written by a run of `sora train task=captioner`"):
        sora.open_captioner(tmp_path / "other")
    with pytest.raises(ValueError, match="is no run"):
        sora.open_captioner(home)
