"""Videos from anywhere are scored without a network of ours, by clips that are taken as the protocol says; what does not fit is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sora.cli import run
from sora.config.compose import config_dir
from sora.evaluation.scoring import size_asked
from sora.metrics.distribution.distribution import VideoDistribution
from sora.metrics.extractors.pixels import half_pixel
from sora.metrics.extractors.rand3d import Random3D
from sora.metrics.feature_sets import save_features
from sora.system.files import file_hash
from sora.video.files import read, write
from tests.trained import plain_dataset

pytestmark = pytest.mark.slow
FRAMES, SIDE = 11, 16


def folder(place, *, seed, count=6, frames=FRAMES, size=(SIDE, SIDE), fps=8.0, bright=0):
    """Losslessly written clips of smooth noise that moves."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        still = draw.integers(0, 200 - bright, (size[0], size[1], 3))
        video = np.stack([np.roll(still, number * step, axis=1) + bright for step in range(frames)]).astype(np.uint8)
        write(place / f"clip-{number}.mp4", video, fps, lossless=True)
    return place


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    home = tmp_path_factory.mktemp("files")
    return folder(home / "one", seed=0), folder(home / "two", seed=1, bright=40)


def scores(output, one, two, *words, code=0):
    real = [f"data={two}"] if two is not None else []
    assert run("evaluate", [f"checkpoint={one}", *real, f"output={output}", "bootstrap=0", *words]) == code
    return json.loads((output / "scores.json").read_text()) if code == 0 else None


def videos(place):
    return [read(path).frames for path in sorted(place.glob("*.mp4"))]


def distance(fake, real, **settings):
    metric = VideoDistribution(extractor=Random3D(seed=0), layout="b t h w c", bootstrap=0, **settings)
    metric.update(torch.from_numpy(np.stack(real)), real=True)
    metric.update(torch.from_numpy(np.stack(fake)), real=False)
    return metric.compute()


def test_two_folders_have_the_distance_of_their_pixels(sets, tmp_path):
    one, two = sets
    found = scores(tmp_path / "a", one, two)
    expected = distance(videos(one), videos(two))
    for name, value in expected.items():
        if name.partition("/")[0] in ("frechet", "kvd", "n_real", "n_fake"):
            assert found["figures"][name] == pytest.approx(value, rel=1e-9), name
    assert found["kind"] == "videos" and found["n"] == 6 and [row["name"] for row in found["rows"]] == [f"clip-{n}.mp4" for n in range(6)]
    assert found["protocol"]["real"]["shapes"] == {"11x16x16 at 8 fps": 6} and found["protocol"]["pixels"]["codec"] == ["h264/gbrp"]
    same = scores(tmp_path / "b", one, one)
    assert same["figures"]["frechet"] < 1e-9 and same["protocol_sha256"] != found["protocol_sha256"]


def test_scores_of_another_folder_may_be_compared_and_names_do_not_matter(sets, tmp_path):
    one, two = sets
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(one.glob("*.mp4"))):
        (renamed / f"{9 - number}.mp4").write_bytes(path.read_bytes())
    first, again = scores(tmp_path / "a", one, two), scores(tmp_path / "b", renamed, two)
    assert first["protocol_sha256"] == again["protocol_sha256"]
    assert {**first["subject"], "place": ""} == {**again["subject"], "place": ""}
    assert first["figures"] == pytest.approx(again["figures"], rel=1e-9)


def test_what_an_evaluation_wrote_into_a_folder_is_none_of_its_videos(sets, tmp_path):
    """Scored again, scored against, or after a kill before the scores were written: the same videos and no copies of them."""
    one, two = (Path(shutil.copytree(place, tmp_path / place.name)) for place in sets)
    (one / "deep").mkdir()
    (one / "clip-5.mp4").rename(one / "deep/clip-5.mp4")
    first = scores(one / "evaluation", one, two)
    assert list((one / "evaluation/clips").glob("*.mp4"))
    for words in ((one / "evaluation", one, two), (tmp_path / "a", one, two)):
        again = scores(*words)
        assert again["figures"] == first["figures"] and again["subject"] == first["subject"] and again["n"] == 6
    (one / "evaluation/scores.json").unlink()
    turned = scores(tmp_path / "b", two, one)
    assert turned["figures"]["n_real"] == 6 and turned["protocol"]["dataset"]["fingerprint"] == first["subject"]["videos"]["fingerprint"]
    shutil.copy(tmp_path / "b/scores.json", one / "scores.json")  # of the folder itself
    assert scores(tmp_path / "c", one, two)["n"] == 6 and scores(one, one, two, code=2) is None
    assert scores(tmp_path / "d", one / "evaluation/clips", two, code=2) is None  # of other sizes: they may well be named themselves


def test_clips_are_taken_by_their_policies(sets, tmp_path):
    one, two = sets
    words = ["real.frames=4", "real.stride=3", "generated.frames=4", "generated.start=middle", "rates=any", "ddof=0", "metrics=[frechet]"]
    found = scores(tmp_path / "a", one, two, *words)
    expected = distance([video[3:7] for video in videos(one)], [video[:10:3] for video in videos(two)], ddof=0)
    assert found["figures"]["frechet"] == pytest.approx(expected["frechet/rand3d-v1@4f"], rel=1e-9)
    assert found["protocol"]["real"]["stride"] == 3 and found["protocol"]["distances"]["ddof"] == 0
    assert not any(name.startswith("kvd") for name in found["figures"])
    with_rates = scores(tmp_path / "b", one, two, *words[:3], code=2)
    assert with_rates is None


def test_random_starts_and_choices_follow_from_the_seed_and_the_videos(sets, tmp_path):
    one, two = sets
    words = ["real.n=3", "real.frames=4", "generated.frames=4", "real.start=random", "n=4", "generated.choose=random", "metrics=[kvd]"]
    first, again = scores(tmp_path / "a", one, two, *words), scores(tmp_path / "b", one, two, *words)
    other = scores(tmp_path / "c", one, two, *words, "seed=1")
    assert first["figures"] == again["figures"] and first["figures"]["n_fake"] == 4 and first["figures"]["n_real"] == 3
    assert other["figures"]["kvd"] != first["figures"]["kvd"]


def test_features_are_not_extracted_twice_and_a_changed_video_is(sets, tmp_path, monkeypatch):
    one, two = folder(tmp_path / "one", seed=0), sets[1]
    asked = []
    forward = Random3D.forward
    monkeypatch.setattr(Random3D, "forward", lambda self, given: asked.append(len(given)) or forward(self, given))
    cache = f"cache={tmp_path / 'features'}"
    first = scores(tmp_path / "a", one, two, cache)
    assert sum(asked) == 12
    again = scores(tmp_path / "b", one, two, cache)
    assert sum(asked) == 12 and again["figures"] == first["figures"]
    folder(tmp_path / "other", seed=5, count=1)
    (one / "clip-3.mp4").write_bytes((tmp_path / "other/clip-0.mp4").read_bytes())
    changed = scores(tmp_path / "c", one, two, cache)
    assert sum(asked) == 13 and changed["figures"]["frechet"] != first["figures"]["frechet"]
    scores(tmp_path / "d", one, two, cache, "size=12")
    assert sum(asked) == 25


def test_statistics_stand_for_the_real_side_and_only_for_the_same(sets, tmp_path, capsys):
    one, two = sets
    file = f"statistics={tmp_path / 'real.safetensors'}"
    first = scores(tmp_path / "a", one, two, file)
    alone = tmp_path / "b"
    assert run("evaluate", [f"checkpoint={one}", f"output={alone}", "bootstrap=0", file]) == 0
    again = json.loads((alone / "scores.json").read_text())
    assert again["figures"] == first["figures"] and again["protocol_sha256"] == first["protocol_sha256"]
    scores(tmp_path / "c", one, two, file)
    foreign = tmp_path / "foreign.safetensors"
    save_features(foreign, torch.zeros(3, 224), {"extractor": {"name": "rand3d-v1"}})
    capsys.readouterr()
    for words, told in (
        ([f"data={one}", file], "dataset.fingerprint"),
        ([f"data={two}", file, "real.n=5"], "real.n: 5 here, 6 there"),
        ([file, "size=12"], "pixels.brought_to"),
        ([file, "extractor.seed=1"], "extractor.sha256"),
        ([file, "generated.frames=4"], "holds (frames, height, width) [(11, 16, 16)] at [8.0] fps"),
        ([file, "generated.stride=2", "generated.frames=6"], "at [4.0]"),
        ([f"statistics={tmp_path / 'nowhere'}"], "needs data=…"),
        ([f"statistics={foreign}"], "does not say of which clips it is"),
    ):
        assert run("evaluate", [f"checkpoint={one}", f"output={tmp_path / 'x'}", "bootstrap=0", *words]) == 2, told
        assert told in capsys.readouterr().err


def test_a_size_is_width_by_height_as_everywhere():
    assert size_asked("64x48") == (48, 64) and size_asked(32) == size_asked([32, 32]) == size_asked("32x32") == (32, 32)
    assert size_asked(None) is None


def test_sizes_are_brought_together_only_when_asked(sets, tmp_path, capsys):
    other = folder(tmp_path / "large", seed=2, size=(24, 32))
    assert scores(tmp_path / "a", sets[0], other, code=2) is None
    assert "11 frames of 32x24 at 8 fps" in capsys.readouterr().err
    found = scores(tmp_path / "b", sets[0], other, "size=16", "kernel=half_pixel", "crop=false")
    planes = [torch.from_numpy(video).permute(0, 3, 1, 2).float() for video in videos(other)]
    resized = [half_pixel(plane, (16, 16)).round().permute(0, 2, 3, 1).byte().numpy() for plane in planes]
    expected = distance(videos(sets[0]), resized)
    assert found["figures"]["frechet"] == pytest.approx(expected["frechet/rand3d-v1@11f"], rel=1e-6)


def test_what_does_not_fit_is_told(sets, tmp_path, capsys):
    one, two = sets
    mixed = folder(tmp_path / "mixed", seed=0, count=2)
    folder(tmp_path / "fast", seed=3, count=1, fps=25.0)
    (mixed / "fast.mp4").write_bytes((tmp_path / "fast/clip-0.mp4").read_bytes())
    damaged = folder(tmp_path / "damaged", seed=0, count=3)
    (damaged / "clip-1.mp4").write_bytes(b"no video at all")
    cut = folder(tmp_path / "cut", seed=0, count=3)
    content = (cut / "clip-2.mp4").read_bytes()
    (cut / "clip-2.mp4").write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / "empty").mkdir()
    for checkpoint, words, told in (
        (folder(tmp_path / "single", seed=0, count=1), [], "has 1 video; scores need at least 2"),
        (one, ["n=7"], "generated: 7 clips are wanted and"),
        (one, ["real.n=7"], "real: 7 clips are wanted and"),
        (one, ["generated.frames=12"], "clip-0.mp4 of"),
        (one, ["generated.frames=12", "generated.short=leave_out", "n=2"], "6 more are too short"),
        (mixed, [], "11 frames of 16x16 at 25 fps"),
        (damaged, [], "clip-1.mp4"),
        (cut, [], "clip-2.mp4"),
        (tmp_path / "empty", [], "holds neither a run"),
        (one, ["metrics=[text]"], "reads no text; choose an image-text model"),
        (
            one,
            ["metrics=[adherence]"],
            "6 clips (clip-0.mp4, clip-1.mp4, clip-2.mp4, clip-3.mp4, clip-4.mp4, …) without a caption; put it beside",
        ),
        (one, ["metrics=[inception_score]"], "gives no class logits"),
        (one, ["trajectories=4"], "do not fall into trajectories=4"),
        (one, ["trajectories=6"], "at least 2 each"),
        (one, ["rates=some"], "rates=some"),
        (one, ["real.start=last"], "start=last: choose from first, middle, random"),
        (one, ["size=[24,16]"], "size=[24,16] does not say which is the width: write WIDTHxHEIGHT, size=16x24 or size=24x16"),
        (one, ["size=16x"], "size=16x: give one side of a square, or WIDTHxHEIGHT in pixels"),
        (one, ["size=0"], "size=0: give one side"),
        (one, ["kernel=cubic", "size=8"], ": kernel=cubic: choose from half_pixel, legacy, antialiased"),
        (one, ["bootstrap=5"], "bootstrap=5: an interval takes at least 20 repeats"),
        (one, ["ddof=2"], "ddof=2: covariances are"),
        (one, ["neighbours=0", "metrics=[precision]"], "neighbours=0"),
        (one, ["n=-1"], "generated: -1 clips are wanted; give at least 1"),
        (one, ["n=two"], "n=two is of the wrong kind: it takes a whole number"),
        (one, ["crop=maybe"], "crop=maybe is of the wrong kind: it takes true or false"),
        (one, ["keep=-1"], "keep=-1"),
        (one, ["neighbours=6", "metrics=[precision]"], "neighbours=6 needs more clips than 6"),
        (one, [f"statistics={tmp_path}"], "is a folder; name a file"),
        (one, [f"cache={one / 'clip-0.mp4'}"], "is a file; name a folder"),
        (one, ["metrics=[loss]"], "metrics=['loss']: for videos, choose from"),
        (one, ["vbench=x"], "but a run would; leave it out"),
        (one, ["step=3"], "but a run, a VAE or a captioner would; leave it out"),
        (one, ["preset=stylegan_v_fvd2048_16f"], "git blob SHA-1 93daef59c7ae0e9e8f76225521407e60cbafa6aa). Download it"),
        (one, ["preset=videogpt_bair_256", "extractor.path=nowhere"], "a867b87ac3a9097d200598b1d48a1b890d8ec744). Download it"),
    ):
        without = ["metrics=[text]"], ["metrics=[adherence]"], ["metrics=[loss]"]  # which measure no distance
        real = [] if words[:1] in without else [f"data={two}"]
        assert run("evaluate", [f"checkpoint={checkpoint}", *real, f"output={tmp_path / 'x'}", *words]) == 2, told
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error


def test_trajectories_are_scored_set_by_set(sets, tmp_path):
    found = scores(tmp_path / "a", *sets, "trajectories=2", "metrics=[frechet]")
    fake, real = videos(sets[0]), videos(sets[1])
    each = [distance(fake[place::2], real)["frechet/rand3d-v1@11f"] for place in range(2)]
    assert found["figures"]["frechet"] == pytest.approx(sum(each) / 2, rel=1e-9)


def test_a_dataset_may_stand_on_either_side_and_clips_have_scores_of_their_own(sets, tmp_path):
    plain = plain_dataset(tmp_path / "real")
    words = ["size=16", "real.frames=5", "generated.frames=5", "rates=any", "metrics=[quality,kvd,precision]", "neighbours=2"]
    found = scores(tmp_path / "a", plain, sets[1], *words)
    assert found["figures"]["n_fake"] == 4 and {"precision", "recall", "density", "coverage"} <= set(found["figures"])
    rows = [row["quality"] for row in found["rows"]]
    for name in ("temporal_flickering", "motion_smoothness_lite", "warping_error_lite"):
        assert found["figures"][name] == pytest.approx(np.mean([row[name] for row in rows]))
    assert [row["prompt"] for row in found["rows"]] == [f"noise number {number}" for number in range(4)]
    flicker = [1 - np.abs(np.diff(video[:5].astype(float), axis=0)).mean() / 255 for video in videos(sets[1])]
    turned = scores(tmp_path / "b", sets[1], None, "metrics=[quality]", "generated.frames=5")
    assert [row["quality"]["temporal_flickering"] for row in turned["rows"]] == pytest.approx(flicker)
    assert turned["protocol"]["extractor"] is None and turned["protocol"]["dataset"] == {}


def test_every_figure_is_told_once_few_clips_with_a_caution_and_the_last_line_leads_on(sets, tmp_path, capsys):
    output = tmp_path / "an output"
    found = scores(output, *sets, "metrics=[frechet,kvd]", "bootstrap=20")
    *lines, last = capsys.readouterr().out.strip().splitlines()
    named = [line.split()[0] for line in lines if line.startswith("  ")]
    assert len(named) == len(set(named)) and "frechet" in named and not any("/" in name or name.endswith("_low") for name in named)
    (told,) = [line for line in lines if line.split()[0] == "frechet"]
    figures = found["figures"]
    assert told.split(maxsplit=1)[1] == f"{figures['frechet']:.5g}   [{figures['frechet_low']:.5g}, {figures['frechet_high']:.5g}]"
    assert {"frechet/rand3d-v1@11f", "frechet"} <= set(figures)  # the file has both
    (beware,) = [line for line in lines if line.startswith("beware: a Fréchet distance over 6 clips of")]
    few = found["cautions"][0]
    assert few.startswith("beware: 6 real and 6 scored clips: there are 462 ways to split them, so p is never") and few in lines
    assert found["cautions"][1:] == [beware]
    assert last == f"{output / 'report.html'} shows them; beside another's: sora compare '{output}' OTHER"
    assert "cautions" in found and scores(tmp_path / "b", *sets, "metrics=[kvd]")["cautions"] == [few]


def test_floors_and_p_are_of_the_pool_and_what_sets_cannot_tell_is_said(sets, tmp_path):
    one, two = folder(tmp_path / "2026_11_29 ü", seed=3, count=9), folder(tmp_path / "real", seed=4, count=9, bright=90)
    found = scores(tmp_path / "a", one, two, "permutations=19", "page=false")
    figures, cautions = found["figures"], found["cautions"]
    assert figures["frechet_p"] == figures["kvd_p"] == figures["frechet/rand3d-v1@11f/p"] == 0.05  # 1 of 20: all splits score less
    assert figures["frechet_over_floor"] == figures["frechet"] / figures["frechet_floor"] > 1.2
    assert found["protocol"]["distances"]["permutations"] == 19 and found["floor"]["frechet_floor"] == figures["frechet_floor"]
    assert len(cautions) == 1 and "9 clips of 224 features" in cautions[0]
    same = scores(tmp_path / "b", two, two, "page=false")
    assert same["figures"]["frechet_p"] == same["figures"]["kvd_p"] == 1
    assert "9 of the 9 different clips that are scored are real" in same["cautions"][0]
    for number in range(1, 9):
        shutil.copyfile(one / "clip-0.mp4", one / f"clip-{number}.mp4")
    assert any("what is scored is one clip among 9" in line for line in scores(tmp_path / "c", one, two, "page=false")["cautions"])
    slow = folder(tmp_path / "slow", seed=5, count=9, fps=4.0)
    mixed = scores(tmp_path / "d", slow, two, "rates=any", "permutations=0", "page=false")
    assert any("real clips show 8 frames a second, what is scored 4" in line for line in mixed["cautions"])
    assert "frechet" in mixed["figures"] and not any(name.endswith(("floor", "_p", "debiased")) for name in mixed["figures"])


def test_several_trajectories_have_one_p_that_is_no_mean(sets, tmp_path):
    from sora.evaluation.measures.extraction import averaged

    one, two = folder(tmp_path / "one", seed=3, count=18), folder(tmp_path / "real", seed=4, count=9, bright=90)
    figures = scores(tmp_path / "a", one, two, "trajectories=2", "permutations=19", "page=false")["figures"]
    assert figures["frechet_p"] == 0.1 and figures["frechet_over_floor"] == pytest.approx(figures["frechet"] / figures["frechet_floor"])
    first, second = {"x": 1.0, "x_floor": 2.0, "x_over_floor": 0.5, "x_p": 0.7}, {"x": 3.0, "x_floor": 1.0, "x_over_floor": 3.0, "x_p": 0.9}
    assert averaged([{**first, "y": 1.0}, second]) == {"x": 2.0, "x_floor": 1.5, "x_over_floor": 2 / 1.5, "x_p": 1.0}
    assert averaged([first]) == first


def test_weights_that_do_not_fit_are_told_before_a_video_is_read_and_under_their_name(sets, tmp_path, capsys, monkeypatch):
    """Not of the first clip, and not as that clip's fault."""
    monkeypatch.setattr("sora.evaluation.videos.sets.open_videos", lambda *args, **settings: pytest.fail("videos were opened"))
    foreign, state = tmp_path / "other.pt", tmp_path / "state.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Conv3d(3, 4, 3), torch.zeros(1, 3, 9, 32, 32)), foreign)
    torch.save({"weight": torch.zeros(3)}, state)
    for words, told in (
        ([f"extractor.path={foreign}", "extractor=i3d", f"extractor.sha256={file_hash(foreign)}"], "extractor i3d-"),
        ([f"extractor.path={state}", "extractor=i3d_state"], "does not hold this network's weights"),
        ([f"extractor.path={state}", "extractor=i3d", f"extractor.sha256={file_hash(state)}"], "is no TorchScript file"),
    ):
        scores(tmp_path / "x", *sets, *words, code=2)
        error = capsys.readouterr().err
        assert told in error and "clip-0" not in error and "Traceback" not in error, error


def test_long_work_is_counted_where_there_is_no_terminal_too(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sora.system.terminal.EVERY", 0.0)
    scores(tmp_path / "a", *sets, "metrics=[quality,frechet]", "page=false")
    told = capsys.readouterr()
    for what in ("measuring quality", "features of the real clips", "features of what is scored"):
        assert f"{what}: 3/6 clips, " in told.err and f"{what}: 6 clips in 0:0" in told.err
    assert "/s  0:0" in told.err and "left" in told.err and "distances of 6 clips to 6 real ones" in told.out


def test_a_video_without_a_caption_is_refused_by_name_or_left_out_of_what_takes_one(sets, tmp_path, capsys, monkeypatch):
    from sora.evaluation import scoring

    with pytest.raises(ValueError, match=r"metrics=\[text\]: 2 clips \(a, b\) without a caption.*uncaptioned=leave_out"):
        scoring.check_needs(("text",), [None] * 3, ["a", "b"])
    scoring.check_needs(("text",), [None] * 3, ["a", "b"], uncaptioned="leave_out")
    with pytest.raises(ValueError, match="3 clips"):
        scoring.check_needs(("text",), [None] * 3, ["a", "b", "c"], uncaptioned="leave_out")
    with pytest.raises(ValueError, match="uncaptioned=never"):
        scoring.check_needs(("text",), None, uncaptioned="never")


PRESETS = sorted(path.stem for path in (config_dir() / "preset").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_what_published_codes_did(name):
    """By evidence that is independent of the files: clips, strides, sides, extractors and ddof of the codes that defined the protocols."""
    config = OmegaConf.load(config_dir() / "preset" / f"{name}.yaml")
    wanted = {
        "stylegan_v_fvd2048_16f": ("i3d", 2048, 2048, 16, 1, 1, 0, "random"),
        "stylegan_v_fvd2048_128f": ("i3d", 2048, 2048, 128, 1, 1, 0, "random"),
        "stylegan_v_fvd2048_128f_s8": ("i3d", 2048, 2048, 16, 8, 8, 0, "random"),
        "latte_ucf101": ("i3d", 2048, 2048, 16, 3, 1, 0, "random"),
        "tf_fvd_2018": ("i3d_legacy", 16, 16, 15, 1, 1, 1, "first"),
        "videogpt_bair_256": ("i3d_state_cropped", 256, 256, 16, 1, 1, 1, "first"),
        "mcvd_256xn": ("i3d", 256, 2560, 16, 1, 1, 1, "first"),
        "magvit_k600_5to11": ("i3d_state", 50000, 50000, 16, 1, 1, 1, "first"),
        "cd_fvd_2048": ("videomae_ssv2_as_is", None, 2048, 16, 1, 1, 0, "random"),
        "jedi_5000": ("vjepa2", 5000, 5000, 16, 1, 1, 1, "first"),
        "rfvd": ("i3d", None, 10000, 17, 1, 1, 1, "first"),
    }[name]
    real, generated = config.real, config.get("generated", {})
    found = (
        config.defaults[0]["override /extractor"], real.get("n"), config.n, real.frames, real.stride, generated.get("stride", 1),
        config.get("ddof", 1), real.start,
    )  # fmt: skip
    assert found == wanted and config.rates == "any"


def test_a_preset_is_named_in_the_scores_with_what_was_changed_of_it(sets, tmp_path, capsys):
    words = ["preset=videogpt_bair_256", "extractor=rand3d", "n=6", "real.n=6", "generated.frames=9", "real.frames=9", "metrics=[frechet]"]
    found = scores(tmp_path / "a", *sets, *words)
    assert found["preset"] == {
        "name": "videogpt_bair_256",
        "changed": ["extractor", "generated.frames", "n", "real.frames", "real.n"],
        "departs": None,
    }
    assert "measured by the protocol of videogpt_bair_256, but extractor, generated.frames" in capsys.readouterr().out
    jedi = scores(
        tmp_path / "jedi", *sets, "preset=jedi_5000", "extractor=rand3d", "n=6", "real.n=6", "real.frames=9", "generated.frames=9"
    )
    assert "ViT-L and the mean of its tokens stand for" in jedi["preset"]["departs"]
    assert "beware: V-JEPA 2 ViT-L" in capsys.readouterr().out
    assert found["protocol"]["distances"]["bootstrap"] == 0 and scores(tmp_path / "b", *sets)["preset"] is None
