"""What a real run measures while it trains: as its checkpoint says, on several ranks as on one, stored latents as clips encoded online."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sora import cli
from sora.config.build import build
from sora.runs import checkpoint
from sora.runs.jsonl import read
from sora.system import files as storage
from tests.trained import vae_artefact, world_dataset
from tests.training.groups import in_ranks
from tests.training.test_parity import launched
from tests.training.test_resume import lines


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    world, vae = world_dataset(folder / "world", clips=16), vae_artefact(folder / "vae")
    assert cli.run("encode", [f"vae={vae}", f"data={world}", "text=byte", "threads=1"]) == 0
    return folder


MEASURED = ("evaluation=videos", "evaluation.every=6", "evaluation.share=null", "evaluation.clips=7", "evaluation.levels=3")
VIDEOS = ("count=5", "shown=2", "steps=2", "metrics=[adherence,frechet,kvd]")


def trained(made: Path, folder: Path, *more: str, count: int = 1, trainer: str = "ddp") -> Path:
    settings = ["steps=4", "log_every=1", "checkpoint.every=100", "trainer.threads=1", "plan.packs=2", "plan.budget=120", "dit.depth=2"]
    words = ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", *settings, f"output={folder}", *more]
    if count == 1:
        assert cli.run("train", words) == 0
        return folder
    axis = {"fsdp": "shard", "cp": "context", "tp": "tensor"}.get(trainer)
    kind = [f"trainer={trainer}", *([f"trainer.{axis}={count}"] if axis else [])]
    many = [*kind, "trainer.accelerator=cpu", f"trainer.devices={count}", "trainer.precision=32-true", "trainer.threads=1"]

    def work(rank: int) -> None:
        launched(rank, count)
        rank_zero_only.rank = rank
        assert cli.run("train", [*words, *many]) == 0

    notes = folder.parent / f"{folder.name}-ranks"
    notes.mkdir()
    in_ranks(count, notes, work)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Of what is trained; random states aside, which a fork takes along from the tests before."""
    path = checkpoint.newest(folder / "checkpoints")
    return {file.name: storage.file_hash(file) for file in path.iterdir() if file.suffix == ".safetensors" and "rng" not in file.name}


@pytest.fixture(scope="module")
def alone(made) -> Path:
    return trained(made, made / "alone", *MEASURED, *(f"evaluation.videos.{word}" for word in VIDEOS))


@pytest.mark.slow
def test_a_real_run_measures_loss_and_videos_and_trains_the_same(made, alone):
    plain = trained(made, made / "plain")
    assert hashes(alone) == hashes(plain) and lines(alone) == lines(plain)
    rows = read(alone / "evaluation.jsonl")
    assert len(rows) >= 2 and rows[-1]["step"] == 4
    for row in rows:
        assert row["loss_low"] <= row["loss"] <= row["loss_high"] and row["loss_clips"] == 7 == len(row["clips"])
        assert row["loss"] == pytest.approx(np.mean(list(row["clips"].values())))
        assert row["loss"] == pytest.approx(np.mean(list(row["by_level"].values())))
        assert sum(shape["clips"] for shape in row["by_shape"]) == 7
        assert {(shape["height"], shape["width"]) for shape in row["by_shape"]} <= {(24, 24), (24, 32)}
        assert {"adherence_all", "adherence_n", "frechet", "frechet_over_floor", "kvd"} <= set(row)
        assert row["frechet_over_floor"] == pytest.approx(row["frechet"] / row["frechet_floor"])
        assert len(row["videos"]) == 2 and all((alone / path).is_file() for path in row["videos"])
    change = rows[-1]["loss"] / rows[-2]["loss"] - 1
    assert rows[-1]["loss_change"] == pytest.approx(change, rel=1e-6)
    assert rows[-1]["loss_change_low"] <= change <= rows[-1]["loss_change_high"] and 0 <= rows[-1]["loss_power"] <= 1


@pytest.mark.slow
def test_the_loss_is_that_of_the_checkpoint_s_averaged_weights(made, alone):
    from omegaconf import OmegaConf

    from sora.assembly.load import load_diffusion
    from sora.assembly.validation import held_out_clips, held_out_loss
    from sora.diffusion.validation_loss import LossTable

    loaded = load_diffusion(alone)
    config = OmegaConf.create(loaded.config)
    rest = {"budget": 5000, "max_clips": 8, "vae": alone / "vae", "identity": loaded.hashes["vae"]}
    clips = held_out_clips(config, split="heldout", count=7, seed=0, **rest)
    loss = held_out_loss(loaded.objective, SimpleNamespace(levels=3, draws=1, seed=0))
    tally = LossTable(clips.listing.samples, clips.listing.grids, loss.levels)
    batches = [batch for step in range(len(clips.listing)) for batch in clips.read(step)]
    for piece in loss.pieces(loaded.dit, loaded.text, batches):
        tally.add(piece, batches[piece.batch].sample_ids)
    assert float(tally.losses().clips.mean()) == pytest.approx(read(alone / "evaluation.jsonl")[-1]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["ddp", "fsdp", "cp", "tp"])
def test_two_ranks_measure_what_one_does_and_train_the_same(made, alone, name):
    videos = [f"evaluation.videos.{word}" for word in VIDEOS]
    folder = trained(made, made / name, *MEASURED, *videos, "evaluation.weights=[ema,raw]", count=2, trainer=name)
    plain = trained(made, made / f"{name}-plain", count=2, trainer=name)
    assert hashes(folder) == hashes(plain)
    rows, wanted = [row for row in read(folder / "evaluation.jsonl") if row["weights"] == "ema"], read(alone / "evaluation.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, one in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(one["loss"], rel=1e-5) and row["clips"].keys() == one["clips"].keys()
        assert row["frechet"] == pytest.approx(one["frechet"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.long
def test_what_cannot_be_measured_is_told_before_training(made, tmp_path, capsys):
    base = ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", "steps=1", f"output={tmp_path / 'run'}"]
    for number, (words, told) in enumerate(
        (
            (["evaluation=loss", "evaluation.split=train"], "split=train is what the run trains on"),
            (["evaluation=videos", "evaluation.videos.count=99"], "evaluation.videos.count=99: from 1 to the 8 held-out clips"),
            (["evaluation=videos", "evaluation.videos.count=2", "evaluation.videos.metrics=[fvd]"], "choose from adherence, frechet, kvd"),
        )
    ):
        assert cli.run("train", [*base[:-1], f"output={tmp_path / str(number)}", *words]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("data", [["data=latents"], ["data=videos", "data.areas=[256]", "data.rate=4", "data.text_cache=true"]])
def test_held_out_clips_themselves_have_no_distance_at_whatever_size_they_are_trained_on(made, data):
    """The real side is what training sees, not a corner of what is stored."""

    from sora.assembly.validation import held_out_clips, requests_of
    from sora.config.compose import compose
    from sora.evaluation.while_training import scorer
    from sora.vae import artefact

    words = ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", "output=x", "evaluation=videos", *data]
    config = compose("train", words).config
    named = {"vae": made / "vae", "identity": artefact.artefact_hash(made / "vae")}
    clips = held_out_clips(config, split="heldout", count=6, budget=200, max_clips=8, seed=0, **named)
    requests = requests_of(clips, 5, seed=0)
    words, usual = ("frechet", "kvd"), partial(build, config.evaluation.videos.extractor)
    score = scorer(words, usual, clips, requests)
    originals = list(score._originals().values())
    assert [tuple(each.shape[:3]) for each in originals] == [(one.frames, one.height, one.width) for _, one in requests]
    assert {each.shape[1] * each.shape[2] <= 256 for each in originals} == {"data=videos" in data}
    found = score(originals)
    assert found["frechet"] < 1e-9 < found["frechet_floor"] and found["distance_clips"] == 5
    assert score([each.flip(0).flip(1) for each in originals])["frechet"] > 1e-3
    with pytest.raises(ValueError, match=r"evaluation.videos.count=1: frechet, kvd and motion take at least 2 videos"):
        scorer(words, usual, clips, requests[:1])
    i3d = partial(build, {"_target_": "sora.metrics.I3DScript", "path": None, "kernel": "none", "crop": False, "batch": 1})
    with pytest.raises(ValueError, match="extractor.path is not set"):
        scorer(words, i3d, clips, requests)
    # Motion has features of its own: neither the weights nor the frames that another extractor lacks are asked for.
    moving = scorer(["motion"], i3d, clips, requests)
    assert moving(originals)["motion_frechet"] < 1e-9 and "frechet" not in moving(originals)
    stills = [(row, replace(request, frames=1)) for row, request in requests]
    for metrics, asked, told in (
        (
            ["motion"],
            stills,
            "metrics has motion, which is of clips of 2 frames or more, and fewer than two of the held-out clips",
        ),
        (["kvd", "motion"], stills, "sees 2 frames or more, and held-out clips have 1; choose another, or leave kvd out .* motion .* stay"),
        (["frechet", "kvd"], stills, "sees 2 frames or more, .* or leave frechet and kvd out of evaluation.videos.metrics$"),
    ):
        with pytest.raises(ValueError, match=told):
            scorer(metrics, partial(build, {"_target_": "sora.metrics.TransNetV2", "batch": 1}), clips, asked)


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True], ids=["stored", "encoded while training"])
def test_originals_that_cannot_be_read_are_left_out_of_both_sides_and_named(made, capsys, monkeypatch, online):
    """The distance of what is left to itself is none: what was made for a lost original does not stay on the other side."""

    from sora.assembly.validation import held_out_clips, requests_of
    from sora.config.compose import compose
    from sora.data.index.index import Index
    from sora.evaluation.while_training import scorer
    from sora.vae import artefact

    data = (
        ["data=videos", "data.areas=[256]", "data.rate=4", "data.text_cache=true", "data.max_bad_share=1"] if online else ["data=latents"]
    )
    words = ["experiment=toy", f"vae={made}/vae", f"data.folders=[{made}/world]", "output=x", "evaluation=videos", *data]
    config = compose("train", words).config
    named = {"vae": made / "vae", "identity": artefact.artefact_hash(made / "vae")}
    clips = held_out_clips(config, split="heldout", count=6, budget=200, max_clips=8, seed=0, **named)
    requests = requests_of(clips, 5, seed=0)
    keys, read = [clips.listing.clips.key(row) for row, _ in requests], Index.read_member
    said = ["frechet"], partial(build, config.evaluation.videos.extractor)
    whole = list(scorer(*said, clips, requests)._originals().values())
    assert "beware" not in capsys.readouterr().out

    def lost(keys):
        def member(self, member):
            content = read(self, member)
            return content[: len(content) // 2] if member.key in keys else content

        monkeypatch.setattr(Index, "read_member", member)
        return scorer(*said, clips, requests)(whole)

    found, told = lost({keys[1], keys[3]}), capsys.readouterr().out
    assert found["frechet"] < 1e-9 and found["distance_clips"] == 3
    assert f"beware: 2 held-out clips of 5 have no part in distances: {keys[1]}" in told and keys[3] in told and keys[2] not in told
    if not online:  # all of a pack: told before a run begins
        assert lost({*keys[1:]}) == {"distance_clips": 1.0} and "and 1 more; of fewer than two" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.slow
def test_videos_that_are_encoded_while_training_are_measured_as_stored_latents_are(made, alone):
    """The same clips by the other door: decoded, encoded once at the start, and kept. Stored latents are float16."""
    words = ["evaluation=loss", "evaluation.every=6", "evaluation.share=null", "evaluation.clips=7", "evaluation.levels=3"]
    folder = trained(made, made / "online", "data=videos", "data.areas=[576,768]", "data.text_cache=true", *words)
    rows, wanted = read(folder / "evaluation.jsonl"), read(alone / "evaluation.jsonl")
    assert rows[0]["clips"].keys() == wanted[0]["clips"].keys() and rows[0]["by_shape"] != []
    assert rows[0]["loss"] == pytest.approx(wanted[0]["loss"], rel=1e-2)
