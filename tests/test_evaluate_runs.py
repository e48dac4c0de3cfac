"""What `sora evaluate` says of a run beside its videos: the loss on held-out clips, and whether it makes what it was trained on."""

import json
import shutil

import numpy as np
import pytest

from sora.cli import run
from tests.trained import diffusion_run, vae_artefact, world_dataset
from tests.training.groups import in_ranks

pytestmark = pytest.mark.slow
LOSS = ("metrics=[loss]", "loss.clips=6", "loss.levels=3")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    world_dataset(home / "world", clips=24)
    diffusion_run(home / "dit", vae=vae_artefact(home / "vae"), data=home / "world")
    assert run("encode", [f"vae={home / 'vae'}", f"data={home / 'world'}", "text=byte", "threads=1"]) == 0
    return home


def words(home, output, *more):
    return [f"checkpoint={home / 'dit'}", f"data={home / 'world'}", f"output={output}", "device=cpu", *more]


def scores(home, output, *more):
    assert run("evaluate", words(home, output, *more)) == 0
    return json.loads((output / "scores.json").read_text())


def test_the_loss_needs_no_videos_and_is_the_same_every_time_in_any_packs_and_on_any_ranks(home, tmp_path):
    found = scores(home, tmp_path / "a", *LOSS)
    figures, about = found["figures"], found["heldout"]
    assert figures["loss"] == pytest.approx(np.mean(list(about["clips"].values()))) and figures["loss_clips"] == found["n"] == 6
    assert figures["loss"] == pytest.approx(np.mean(list(about["by_level"].values()))) and len(about["by_level"]) == 3
    assert sum(row["clips"] * row["loss"] for row in about["by_shape"]) / 6 == pytest.approx(figures["loss"])
    assert not (tmp_path / "a" / "generated").exists() and found["clips"] == []
    assert "Held-out loss" in (tmp_path / "a" / "report.html").read_text()
    apart = scores(home, tmp_path / "b", *LOSS, "budget=70", "page=false")
    assert apart["figures"]["loss"] == pytest.approx(figures["loss"], rel=1e-5) and not (tmp_path / "b" / "report.html").exists()
    assert apart["protocol_sha256"] == found["protocol_sha256"]
    raw = scores(home, tmp_path / "d", *LOSS, "ema=last", "page=false")
    assert raw["figures"]["loss"] != pytest.approx(figures["loss"], rel=1e-3) and raw["protocol_sha256"] == found["protocol_sha256"]
    (tmp_path / "ranks").mkdir()
    in_ranks(2, tmp_path / "ranks", lambda rank: run("evaluate", words(home, tmp_path / "e", *LOSS, "budget=70", "page=false")))
    shared = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert shared["heldout"] == apart["heldout"]


def test_a_run_that_makes_what_it_was_trained_on_is_told_by_its_nearest_clips(home, tmp_path, monkeypatch):
    """A generator that only remembers: in place of what it made stand training clips of that shape."""
    from sora.data.index.index import Index
    from sora.evaluation import runs
    from sora.video.files import read, write

    ask = ("metrics=[frechet,remembered]", "n=6", "steps=1", "keep=6", "bootstrap=0")
    honest = scores(home, tmp_path / "honest", *ask)
    assert {"remembered", "remembered_z"} <= set(honest["figures"])
    near = honest["neighbours"]
    assert near["training"] == 12 and [pair["distance"] for pair in near["pairs"]] == sorted(pair["distance"] for pair in near["pairs"])
    assert all((tmp_path / "honest" / pair["file"]).is_file() for pair in near["pairs"])
    text = (tmp_path / "honest" / "report.html").read_text()
    assert "Nearest training clips" in text and near["pairs"][0]["caption"].split(",")[0] in text
    index, plain = Index.open(home / "world", "train"), runs.generated
    clips = [index.member(number) for number in range(len(index))]
    stored = [read(index.read_member(member), name=member.key).frames for member in clips]

    def remembers(*arguments, **named):
        made = plain(*arguments, **named)
        for number, path in enumerate(made.paths):
            shape = made.read(number, 0, made.frames(number)).shape
            original = next(frames for frames in stored if frames.shape == shape)
            write(path, original, made.shape(number).fps, lossless=True)
        return made

    monkeypatch.setattr(runs, "generated", remembers)
    copied = scores(home, tmp_path / "copied", *ask)
    assert copied["figures"]["remembered"] == 1.0 and copied["figures"]["remembered_z"] < -2
    assert max(pair["distance"] for pair in copied["neighbours"]["pairs"]) < 1e-3 * copied["neighbours"]["usual"]
    shutil.rmtree(tmp_path / "copied")


def test_what_has_no_meaning_is_refused(home, tmp_path, capsys):
    for more, told in (
        (["metrics=[remembered]"], "add a distance: metrics=[frechet,remembered]"),
        (["metrics=[loss]", "split=train"], "split=train is what the run trains on"),
        (["metrics=[losses]"], "choose from"),
    ):
        assert run("evaluate", words(home, tmp_path / "x", *more)) == 2
        assert told in capsys.readouterr().err
