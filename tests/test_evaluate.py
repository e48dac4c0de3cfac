"""`sora evaluate` writes one file of scores with all they depend on, and refuses what it cannot measure."""

import errno
import json

import pytest

from sora.cli import run
from sora.evaluation.videos.made import fit
from sora.metrics.statistics import wilson
from sora.patches.geometry import Geometry
from sora.world.judge.adherence import ASPECTS
from tests.faults import Countdown, die, in_child, injected
from tests.trained import diffusion_run, plain_dataset, vae_artefact, world_dataset
from tests.training.groups import in_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("evaluate")
    world_dataset(home / "world", clips=40)
    plain_dataset(home / "real")
    diffusion_run(home / "dit", vae=vae_artefact(home / "vae"), data=home / "world")
    return home


def scores(home, output, *words):
    steps = [] if f"checkpoint={home / 'vae'}" in words else ["steps=2"]  # which a VAE has none of
    assert run("evaluate", [f"output={output}", *steps, *words]) == 0
    return json.loads((output / "scores.json").read_text())


def test_a_diffusion_run_is_scored_on_held_out_prompts(home, tmp_path):
    found = scores(home, tmp_path / "a", f"checkpoint={home / 'dit'}", f"data={home / 'world'}", "n=12", "keep=3")
    figures = found["figures"]
    assert {"adherence_all", "adherence_colour", "frechet_over_floor", "kvd", "frechet/rand3d-v1@mixed"} <= set(figures)
    assert figures["n_fake"] == 12 and figures["n_real"] == 20 and found["n"] == len(found["rows"]) == 12
    assert figures["frechet_over_floor"] == pytest.approx(figures["frechet"] / figures["frechet_floor"])
    assert figures["adherence_all_low"] <= figures["adherence_all"] <= figures["adherence_all_high"]
    for name, keys in {"all_v1": ("colour", "shape", "direction"), "all": (*ASPECTS,)}.items():
        share = sum(all(row["adherence"][key] is not False for key in keys) for row in found["rows"]) / 12
        assert figures[f"adherence_{name}"] == pytest.approx(share)
    assert found["protocol"]["measures"]["adherence"] == 2 and set(found["protocol"]["measures"]) == {"adherence", "motion"}
    assert all(isinstance(value, float) for value in figures.values()) and not any("fvd" in name for name in figures)
    assert len(found["clips"]) == 3 and all((tmp_path / "a" / name).is_file() for name in found["clips"])
    protocol = found["protocol"]
    assert protocol["extractor"]["name"] == "rand3d-v1" and protocol["sampling"]["steps"] == 2 and protocol["dataset"]["split"] == "heldout"
    again = scores(home, tmp_path / "b", f"checkpoint={home / 'dit'}", f"data={home / 'world'}", "n=12", "keep=0", "budget=20", "step=5")
    assert again["protocol_sha256"] == found["protocol_sha256"]  # another checkpoint may be compared, another protocol may not
    assert again["figures"]["frechet"] == pytest.approx(figures["frechet"], rel=2e-2)  # the same weights, packed otherwise
    other = scores(
        home, tmp_path / "c", f"checkpoint={home / 'dit'}", f"data={home / 'world'}", "n=12", "keep=0", "metrics=[kvd]", "seed=1"
    )
    assert other["protocol_sha256"] != found["protocol_sha256"] and not any(
        name.startswith(("frechet", "adh")) for name in other["figures"]
    )


def test_a_vae_is_scored_on_each_dataset_by_name(home, tmp_path):
    found = scores(home, tmp_path / "a", f"checkpoint={home / 'vae'}", f"data=[{home / 'world'},{home / 'real'}]", "n=5", "keep=2")
    assert {"world_vae_psnr", "real_vae_psnr", "world_vae_ssim", "real_vae_ssim"} <= set(found["figures"])
    rows = {name: [row["psnr"] for row in found["rows"] if row["dataset"] == name] for name in ("world", "real")}
    assert (len(rows["world"]), len(rows["real"])) == (5, 4) and len(found["clips"]) == 4
    for name, values in rows.items():
        assert found["figures"][f"{name}_vae_psnr"] == pytest.approx(sum(values) / len(values))
    assert all((tmp_path / "a" / name).is_file() for name in found["clips"])


def test_distances_of_reconstructions_are_over_the_same_clips(home, tmp_path):
    """The FVD of reconstructions, by whichever extractor: originals are cut as the VAE takes them."""
    words = [f"checkpoint={home / 'vae'}", f"data={home / 'world'}", "n=6", "metrics=[reconstruction,frechet]", "keep=0", "bootstrap=0"]
    found = scores(home, tmp_path / "a", *words)
    figures, protocol = found["figures"], found["protocol"]
    assert figures["world_vae_n_real"] == figures["world_vae_n_fake"] == 6 and figures["world_vae_frechet"] > 0
    assert protocol["real"]["world"]["shapes"] == protocol["generated"]["world"]["shapes"] and protocol["extractor"]["name"] == "rand3d-v1"
    folder = tmp_path / "a/reconstructions/world/lossless"
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(made) == 6 and scores(home, tmp_path / "a", *words)["figures"] == figures
    assert made == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}  # nothing was reconstructed twice
    psnr = [row["psnr"] for row in found["rows"]]
    assert figures["world_vae_psnr"] == pytest.approx(sum(psnr) / 6) and figures["world_vae_videos"] == 6


@pytest.mark.long
def test_the_same_scores_on_several_processes_and_after_a_kill(home, tmp_path):
    words = [f"checkpoint={home / 'dit'}", f"data={home / 'world'}", "n=6", "keep=1", "budget=100", "metrics=[adherence,frechet,quality]"]
    whole = scores(home, tmp_path / "one", *words)

    def work(rank):
        assert run("evaluate", [f"output={tmp_path / 'two'}", "steps=2", *words]) == 0

    in_ranks(2, tmp_path, work)
    shared = json.loads((tmp_path / "two/scores.json").read_text())
    for cut in (40, 120):

        def killed(cut=cut):
            with injected(Countdown(cut, die)):
                run("evaluate", [f"output={tmp_path / 'three'}", "steps=2", *words])

        assert in_child(killed) == -9
    again = scores(home, tmp_path / "three", *words)
    for other in (shared, again):
        assert {key: other[key] for key in other if key != "code"} == {key: whole[key] for key in whole if key != "code"}
    bits = [  # what a killed process was writing stays for an hour, under a name of its own
        sorted((path.name, path.read_bytes()) for path in (tmp_path / name / "generated").iterdir() if not path.name.startswith("."))
        for name in ("one", "two", "three")
    ]
    assert bits[0] == bits[1] == bits[2] and len(bits[0]) == 6


@pytest.mark.long
def test_processes_that_have_nothing_to_do_are_there_to_the_end(home, tmp_path):
    """Two clips in one pack, on three processes: one generates, and two have features to extract."""
    words = [f"checkpoint={home / 'dit'}", f"data={home / 'world'}", "n=2", "keep=1", "metrics=[adherence,frechet]", "bootstrap=0"]
    whole = scores(home, tmp_path / "one", *words)
    in_ranks(3, tmp_path, lambda rank: run("evaluate", [f"output={tmp_path / 'three'}", "steps=2", *words]))
    shared = json.loads((tmp_path / "three/scores.json").read_text())
    assert {key: shared[key] for key in shared if key != "code"} == {key: whole[key] for key in whole if key != "code"}


def test_clips_are_cut_as_a_protocol_says_and_named_as_vbench_wants(home, tmp_path):
    words = ["generated.frames=6", "real.frames=6", "metrics=[kvd]", "n=4", "keep=0", f"vbench={tmp_path / 'vbench'}", "caption=short"]
    found = scores(home, tmp_path / "a", f"checkpoint={home / 'dit'}", f"data={home / 'world'}", *words)
    assert {int(shape.split("x")[0]) for shape in found["protocol"]["generated"]["shapes"]} == {6}
    assert {row["frames"] for row in found["rows"]} == {6} and any(name.startswith("kvd/rand3d-v1@") for name in found["figures"])
    wanted = sorted(row["prompt"] for row in found["rows"])
    assert sorted(path.stem.rpartition("-")[0] for path in (tmp_path / "vbench").iterdir()) == wanted


def test_scores_are_written_whatever_becomes_of_the_export_and_what_cannot_be_exported_is_told_first(home, tmp_path, monkeypatch, capsys):
    from sora.evaluation.videos import generating

    words = [
        f"checkpoint={home / 'dit'}",
        f"data={home / 'world'}",
        "metrics=[kvd]",
        "n=2",
        "steps=1",
        "bootstrap=0",
        "page=false",
        "keep=0",
    ]

    def refused(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "vb")

    monkeypatch.setattr(generating, "export", refused)
    assert run("evaluate", [*words, f"output={tmp_path / 'a'}", f"vbench={tmp_path / 'vb'}"]) == 1
    assert json.loads((tmp_path / "a/scores.json").read_text())["n"] == 2
    monkeypatch.setattr(generating, "generate", refused)  # from here on nothing may be made
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/other.mp4").touch()
    for word, told in (
        (f"vbench={tmp_path / 'file'}", "file is a file; name a folder"),
        (f"vbench={tmp_path / 'full'}", "holds 'other.mp4', which this evaluation did not make"),
        (f"output={tmp_path / 'file/below'}", "file is no folder; name another output="),
    ):
        capsys.readouterr()
        assert run("evaluate", [*words, *([] if word.startswith("output") else [f"output={tmp_path / 'b'}"]), word]) == 2
        assert told in capsys.readouterr().err


def test_a_run_is_scored_against_videos_of_any_size_in_shards_or_as_files(home, tmp_path):
    """Both sides are cut as what a run trains on is cut; prompts stand beside files, or in the index."""
    from sora.data.index.index import Index
    from sora.evaluation.videos.clips import fitted, take
    from sora.evaluation.videos.sets import DatasetVideos
    from sora.video.files import read, write

    index = Index.open(home / "real", "heldout")
    for number in range(len(index)):
        frames = read(index.read_member(index.member(number)), name="x").frames
        write(tmp_path / f"files/clip-{number}.mp4", frames, 10.0, lossless=True)
        (tmp_path / f"files/clip-{number}.txt").write_text(f"noise number {number}\n")
    words = [f"checkpoint={home / 'dit'}", "n=6", "metrics=[kvd]", "keep=0", "steps=1"]
    shards = scores(home, tmp_path / "a", *words, f"data={home / 'real'}")
    files = scores(home, tmp_path / "b", *words, f"data={tmp_path / 'files'}")
    for found in (shards, files):
        protocol = found["protocol"]
        assert protocol["real"]["shapes"].keys() == protocol["generated"]["shapes"].keys() and protocol["real"]["n"] == 4
        assert {(row["frames"], row["height"] % 8, row["width"] % 8) for row in found["rows"]} == {(5, 0, 0)}
    assert shards["figures"] == files["figures"] and [row["prompt"] for row in files["rows"]] == [row["prompt"] for row in shards["rows"]]
    assert len({row["prompt"] for row in files["rows"][:4]}) == 4  # none twice before all were asked once
    clips = take(DatasetVideos(index, caption="dense"), policy_of(), n=None, seed=0, named="real")
    cut = fitted(clips, Geometry((4, 16, 8)))
    assert (cut.read(1) == clips.read(1)[:5, :16, :16]).all() and cut.key(1) != clips.key(1) and cut.about()["shapes"] != {}
    assert len(fitted(clips, Geometry((4, 16, 8), (3, 1, 1)))) == 0 and len(fitted(clips, Geometry((4, 32, 8)))) == 0


def policy_of():
    from sora.evaluation.videos.clips import ClipPolicy

    return ClipPolicy(frames=None, stride=1, windows=1, start="first", short="refuse", choose="first")


@pytest.mark.long
def test_mistakes_end_with_code_two_and_name_the_key_before_anything_is_made(home, capsys, monkeypatch):
    monkeypatch.setattr("sora.generation.generator.Generator.generate", None)
    dit, world, real = (f"{key}={home / name}" for key, name in (("checkpoint", "dit"), ("data", "world"), ("data", "real")))
    for words, told in (
        ([dit, world, "metrics=[fwd]"], "choose from adherence, physics, quality, text, frechet, fvd, kvd"),
        ([dit, world, "metrics=[fvd]"], "only the I3D weights by which FVD is defined give it, rand3d-v1 gives frechet"),
        ([dit, real, "metrics=[adherence]"], "adherence is measured on prompts of the built-in world"),
        ([dit, world, "extractor=i3d"], "git blob SHA-1 93daef59c7ae0e9e8f76225521407e60cbafa6aa). Download it"),
        ([dit, world, "real.frames=3"], "has 0 clips of the sizes that are generated"),
        ([dit, world, "generated.start=middle"], "leave it at first"),
        ([dit, world, "generated.short=leave_out"], "generated.short=leave_out: clips are generated as long"),
        ([dit, world, "generated.choose=random"], "leave it at first"),
        ([dit, world, "caption=desne"], "caption=desne: no clip of"),
        ([dit, world, "trajectories=3", "n=10"], "do not fall into trajectories=3"),
        ([dit, world, "metrics=[frechet,remembered]", "split=train"], "is what the run trained on"),
        ([dit, world, "bootstrap=5"], "at least 20 repeats"),
        ([f"checkpoint={home / 'vae'}", world, "generated.frames=5"], "set that, and leave generated.frames out"),
        ([f"checkpoint={home / 'vae'}", world, "real.n=5"], "set n=5"),
        (
            [f"checkpoint={home / 'vae'}", world, "real.frames=6", "real.short=leave_out"],
            "this VAE takes 1 + a multiple of 4 frames; set 5 or 9",
        ),
        ([f"checkpoint={home / 'vae'}", world, "n=0"], "give at least 1"),
        ([dit, world, "n=1"], "n=1: scores need at least 2 clips"),
        ([dit, world, "split=validation"], "no clips of split 'validation'"),
        ([dit, f"data=[{home / 'world'},{home / 'real'}]"], "one dataset at a time"),
        ([dit, f"data={home / 'nowhere'}"], "nowhere"),
        ([f"checkpoint={home / 'nowhere'}", world], "no folder"),
    ):
        assert run("evaluate", words) == 2
        assert told in capsys.readouterr().err


def test_clips_are_cut_to_what_the_vae_takes():
    import numpy as np

    frames = np.arange(7 * 18 * 22 * 3, dtype=np.uint32).reshape(7, 18, 22, 3).astype(np.uint8)
    assert (fit(frames, (4, 4, 8)) == frames[:5, :16, :16]).all()
    with pytest.raises(ValueError, match="smaller than the VAE's blocks"):
        fit(frames, (4, 32, 8))


def test_the_interval_of_a_share():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0) and wilson(0.3, 0) == (0.0, 1.0)
