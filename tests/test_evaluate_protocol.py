"""Two scores with one protocol hash are of clips taken alike; what each figure depends on stands in it, and files of before are told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sora.cli import run
from sora.evaluation.measures.motion import network_of
from sora.metrics.clips.reconstruction import psnr
from sora.metrics.feature_cache import FeatureCache
from sora.metrics.feature_sets import read_features, save_features
from sora.metrics.scored import MOTION, told_shorter
from sora.video.files import read, write

pytestmark = pytest.mark.slow
FRAMES, SIDE = 9, 16


def folder(place, *, seed, count=6, names="clip-{}.mp4", frames=FRAMES):
    """Losslessly written clips, each of its own brightness and speed."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        still = draw.integers(0, 120, (SIDE, SIDE, 3)) + 20 * number
        video = np.stack([np.roll(still, number * step, axis=1) for step in range(frames)]).astype(np.uint8)
        write(place / names.format(number), video, 8.0, lossless=True)
    return place


def renamed(place, other):
    """The same files in another order of names."""
    other.mkdir()
    paths = sorted(place.glob("*.mp4"))
    for path, number in zip(paths, (3, 0, 5, 1, 4, 2), strict=True):
        shutil.copy(path, other / f"clip-{number}.mp4")
    return other


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    home = tmp_path_factory.mktemp("2026_11_29 ü")
    one, two = folder(home / "one", seed=0), folder(home / "two", seed=1)
    return {"one": one, "two": two, "one again": renamed(one, home / "one again"), "two again": renamed(two, home / "two again")}


def evaluated(output, one, two, *words, code=0):
    real = [] if two is None else [f"data={two}"]
    assert run("evaluate", [f"checkpoint={one}", *real, f"output={output}", "bootstrap=0", "page=false", *words]) == code
    return json.loads((output / "scores.json").read_text()) if code == 0 else {}


def test_which_real_clips_were_taken_is_part_of_the_protocol(sets, tmp_path):
    """The same files under other names, of which the first three are taken: other figures, another hash; all of them: the same."""
    words = ["real.choose=first", "metrics=[frechet]"]
    few = [evaluated(tmp_path / f"{n}", sets["one"], sets[name], *words, "real.n=3") for n, name in enumerate(("two", "two again"))]
    assert few[0]["figures"]["frechet"] != few[1]["figures"]["frechet"]
    assert few[0]["protocol"]["dataset"] == few[1]["protocol"]["dataset"]
    assert few[0]["protocol"]["real"]["taken"] != few[1]["protocol"]["real"]["taken"]
    every = [evaluated(tmp_path / f"all {n}", sets["one"], sets[name], *words) for n, name in enumerate(("two", "two again"))]
    assert every[0]["protocol_sha256"] == every[1]["protocol_sha256"] and every[0]["figures"] == every[1]["figures"]


@pytest.mark.parametrize("words", [["n=3"], ["trajectories=2"]], ids=lambda words: words[0])
def test_where_names_decide_what_is_scored_scores_of_one_folder_do_not_mix(sets, tmp_path, words, capsys):
    found = [
        evaluated(tmp_path / str(n), sets[name], sets["two"], *words, "metrics=[frechet]") for n, name in enumerate(("one", "one again"))
    ]
    assert found[0]["figures"]["frechet"] != found[1]["figures"]["frechet"] and found[0]["subject"]["taken"] != found[1]["subject"]["taken"]
    assert "names" in found[0]["protocol"]["generated"]
    assert run("compare", [str(tmp_path / "0"), str(tmp_path / "1")]) == 2
    assert "of which other clips were taken, or in other sets" in capsys.readouterr().err
    assert run("compare", [str(tmp_path / "0"), str(tmp_path / "1"), "differ=[subject.taken]"]) == 0
    # Another folder whose files are called alike has the same protocol: that is what is compared.
    other = evaluated(tmp_path / "2", sets["two"], sets["two"], *words, "metrics=[frechet]")
    assert (
        other["protocol_sha256"] == found[0]["protocol_sha256"]
        and "names" not in evaluated(tmp_path / "3", sets["one"], sets["two"])["protocol"]["generated"]
    )


def test_size_reaches_what_measures_single_clips(sets, tmp_path):
    plain, small = (
        evaluated(tmp_path / str(n), sets["one"], None, "metrics=[quality]", *words) for n, words in enumerate(([], ["size=8"]))
    )
    flicker = []
    for path in sorted(sets["one"].glob("*.mp4")):
        video = torch.from_numpy(read(path).frames).permute(0, 3, 1, 2).float()
        sized = torch.nn.functional.interpolate(video, size=8, mode="bilinear", antialias=True).round()
        flicker.append(1 - float(sized.diff(dim=0).abs().mean()) / 255)
    assert small["figures"]["temporal_flickering"] == pytest.approx(np.mean(flicker), abs=2e-4)
    assert small["figures"]["temporal_flickering"] != plain["figures"]["temporal_flickering"]
    assert small["protocol"]["pixels"]["brought_to"]["size"] == [8, 8] and plain["protocol"]["pixels"]["brought_to"] is None


def test_an_encoder_that_quality_depends_on_stands_in_the_protocol(sets, tmp_path):
    words = ["extractor=efficientnet_lite0", "extractor.frames=2", "n=2", "metrics=[quality]"]
    with_encoder, without = evaluated(tmp_path / "a", sets["one"], None, *words), evaluated(tmp_path / "b", sets["one"], None, *words[2:])
    assert with_encoder["protocol"]["extractor"]["input"]["size"] == [224, 224] and without["protocol"]["extractor"] is None
    name = with_encoder["protocol"]["extractor"]["name"]
    assert any(figure == f"frame_consistency/{name}" for figure in with_encoder["figures"])
    assert with_encoder["protocol_sha256"] != without["protocol_sha256"]


def test_a_file_of_statistics_of_before_is_told_and_another_stride_refused(sets, tmp_path, capsys):
    file = tmp_path / "real.safetensors"
    words = [f"statistics={file}", "real.frames=4", "generated.frames=4"]
    first = evaluated(tmp_path / "a", sets["one"], sets["two"], *words)
    alone = evaluated(tmp_path / "b", sets["one"], None, *words)
    assert alone["protocol_sha256"] == first["protocol_sha256"] and alone["figures"] == first["figures"]
    assert "motion_frechet" in alone["figures"]  # its features are in the file, too
    for stride in ("real.stride=2", "real={stride: 2}", "real.windows=2"):
        capsys.readouterr()
        evaluated(tmp_path / "x", sets["one"], None, *words, stride, code=2)
        assert "is not of clips that were taken as asked for: real." in capsys.readouterr().err
    held = read_features(file)
    old = {key: value for key, value in held.protocol["real"].items() if key not in ("taken", "windows")}
    save_features(file, held.features, {**held.protocol, "real": old})
    capsys.readouterr()
    before = evaluated(tmp_path / "c", sets["one"], None, *words)
    told = capsys.readouterr()
    assert "is of an earlier version and says not which clips it is of" in told.out + told.err
    assert "holds no features of motion: left out" in told.out + told.err and "motion_frechet" not in before["figures"]
    assert before["figures"]["frechet"] == first["figures"]["frechet"] and before["protocol_sha256"] != first["protocol_sha256"]
    evaluated(tmp_path / "d", sets["one"], sets["two"], *words, code=2)
    assert "real.taken" in capsys.readouterr().err
    evaluated(tmp_path / "e", sets["one"], None, *words, "metrics=[motion]", code=2)
    assert "holds no features of motion; name the real videos, too" in capsys.readouterr().err


def test_values_under_other_keys_are_refused_in_a_cache(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    cache = FeatureCache(tmp_path, about={"extractor": "x"}, dimension=2)
    cache.put("a", torch.tensor([1.0, 2.0]))
    cache.put("b", torch.tensor([3.0, 4.0]))
    cache.flush()
    (path,) = tmp_path.rglob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["sora"])
    told["keys"] = told["keys"][::-1]
    save_file(load_file(path), path, metadata={"sora": json.dumps(told)})
    with pytest.raises(ValueError, match="is damaged or foreign"):
        FeatureCache(tmp_path, about={"extractor": "x"}, dimension=2).refresh()


def test_windows_are_of_a_video_and_its_intervals_of_videos(sets, tmp_path, capsys):
    words = ["real.windows=2", "real.frames=4", "generated.frames=4", "bootstrap=20", "metrics=[frechet,motion]"]
    found = evaluated(tmp_path / "a", sets["one"], sets["two"], *words)
    figures = found["figures"]
    assert (figures["n_real"], figures["n_real_videos"], figures["n_fake"], figures["n_fake_videos"]) == (12, 6, 6, 6)
    assert {"frechet_low", "frechet_high", "frechet_floor", "frechet_p", "motion_frechet_p", "motion_n_real_videos"} <= set(figures)
    assert not {"frechet_infinite", "frechet_split"} & set(figures)  # which take clips for independent
    assert found["protocol"]["real"]["windows"] == 2 and "6 clips of 6 videos to 12 real ones of 6 videos" in capsys.readouterr().out
    for wrong, told in (
        (["real.windows=3"], "a clip of 3 windows of 4 at stride 1 needs 12; set real.frames lower"),
        (["real.windows=0"], "windows=0: give at least 1"),
        (["trajectories=2", "generated.windows=2"], "trajectories=2 are of clips of one video each"),
        ([f"statistics={tmp_path / 'real.safetensors'}"], "statistics= holds one clip of each video"),
    ):
        evaluated(tmp_path / "x", sets["one"], sets["two"], *words, *wrong, code=2)
        assert told in capsys.readouterr().err


def test_motion_is_of_clips_that_move(sets, tmp_path, capsys):
    """One frame of each: nothing moves, which is told, and refused where it is asked for."""
    words = ["real.frames=1", "generated.frames=1"]
    assert not any("motion" in name for name in evaluated(tmp_path / "a", sets["one"], sets["two"], *words)["figures"])
    said = capsys.readouterr().out
    told = "motion is left out: a distance needs at least 2 clips that move on both sides, and 0 of 6 real clips and 0 of 6 clips that are"
    assert told in said and said.count("motion is") == 1
    evaluated(tmp_path / "b", sets["one"], sets["two"], *words, "metrics=[motion]", code=2)
    both = evaluated(tmp_path / "c", sets["one"], sets["two"], "metrics=[frechet,fvmd_lite,motion]")
    assert {"fvmd_lite", "fvmd_lite_floor", "motion_frechet", "motion_kvd", "fvmd_lite_n_real"} <= set(both["figures"])
    names = {word: about["extractor"]["name"] for word, about in both["protocol"]["measures"].items()}
    assert names == {"motion": "motion3d-v1", "fvmd_lite": "flow-histograms-v1"}
    assert evaluated(tmp_path / "d", sets["one"], sets["one"], "metrics=[motion]")["figures"]["motion_frechet"] < 1e-9


ASKED = (["motion"], ["fvmd_lite"], ["frechet,motion"], ["kvd,fvmd_lite"], ["frechet,kvd,motion", "extractor=motion3d"])


@pytest.mark.parametrize("words", ASKED, ids="; ".join)
def test_each_figure_is_printed_once_by_the_name_that_tables_have(sets, tmp_path, capsys, words):
    figures = evaluated(tmp_path, sets["one"], sets["two"], f"metrics=[{words[0]}]", *words[1:])["figures"]
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(shown) == sorted(name for name in figures if "/" not in name)
    assert all(told_shorter(name, figures) for name in figures if "/" in name)


def test_a_figure_whose_short_name_is_another_s_is_shown():
    """kvd may be of the extractor that was chosen, while kvd/motion3d-v1 is not."""
    figures = {"kvd/motion3d-v1@9f": 2.0, "kvd": 1.0, "frechet/rand3d-v1@9f/p": 0.5, "motion_frechet_p": 0.5}
    assert not any(told_shorter(name, figures) for name in figures)
    assert all(network_of(word).name.startswith(f"{about.extractor}-") for word, about in MOTION.items())


def continuations(place, true, *, samples=2, context=3, shown=True):
    """Of each true clip: its context, and its future the darker the later the sample."""
    for path in sorted(true.glob("*.mp4")):
        video = read(path).frames
        for sample in range(samples):
            made = video.copy()
            made[context:] = made[context:] * (0.9 - 0.2 * sample)
            write(place / f"{path.stem}-{sample}.mp4", made if shown else made[context:], 8.0, lossless=True)
    return place


def test_continuations_are_scored_on_their_future_alone(sets, tmp_path):
    made = continuations(tmp_path / "made", sets["one"])
    words = ["metrics=[continuation]", "continuation.context=3", "bootstrap=20"]
    found = evaluated(tmp_path / "a", made, sets["one"], *words)
    pairs = [[Path(path).stem, path] for path in sorted(made.glob("*.mp4"))]
    wanted = {}
    for name, path in pairs:
        true, other = (torch.from_numpy(read(one).frames[3:])[None] for one in (sets["one"] / f"{name.rpartition('-')[0]}.mp4", path))
        wanted[name] = float(psnr(true, other))
    assert {Path(row["name"]).stem: row["continuation"]["psnr"] for row in found["rows"]} == pytest.approx(wanted)
    figures = found["figures"]
    assert figures["continuation_psnr"] == pytest.approx(np.mean(list(wanted.values())))
    assert figures["continuation_psnr_best_of_2"] == pytest.approx(
        np.mean([value for name, value in wanted.items() if name.endswith("-0")])
    )
    assert figures["continuation_clips"] == 6 and figures["context_psnr"] == 100 and figures["continuation_spatial_iou"] > 0.9
    assert figures["continuation_psnr_low"] <= figures["continuation_psnr"] <= figures["continuation_psnr_high"]
    assert found["protocol"]["measures"]["continuation"]["context"] == 3 and found["protocol"]["real"]["taken"]
    bare = continuations(tmp_path / "bare", sets["one"], shown=False)
    again = evaluated(tmp_path / "b", bare, sets["one"], *words, "continuation.shown=false")["figures"]
    assert again["continuation_psnr"] == pytest.approx(figures["continuation_psnr"]) and "context_psnr" not in again


def test_what_continues_nothing_or_is_of_other_frames_is_told(sets, tmp_path, capsys):
    made = continuations(tmp_path / "made", sets["one"])
    words = ["metrics=[continuation]", "continuation.context=3"]
    odd = continuations(tmp_path / "odd", sets["one"])
    (odd / "clip-5-1.mp4").unlink()
    lonely = folder(tmp_path / "lonely", seed=3, names="other-{}.mp4", count=2)
    for checkpoint, more, told in (
        (made, ["metrics=[continuation]"], "say how many first frames the model was given"),
        (made, [*words[:1], "continuation.context=9"], "continuation.context=9 leaves none to compare"),
        (made, [*words[:1], "continuation.context=-1"], "give 0 or more frames"),
        (made, [*words, "continuation.shown=false"], "a continuation is as long as what it continues, less 3 of context"),
        (odd, words, "is continued 1 times and"),
        (lonely, words, "2 clips (other-0.mp4, other-1.mp4)"),
        (made, [*words, "real.stride=2", "real.frames=5", "generated.frames=5"], "frames of different times; set the strides"),
    ):
        capsys.readouterr()
        evaluated(tmp_path / "x", checkpoint, sets["one"], *more, code=2)
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
    off = evaluated(
        tmp_path / "y", made, sets["one"], *words, "generated.start=first", "generated.frames=5", "real.frames=5", "real.start=middle"
    )
    assert any("is not that of the real clip" in line for line in off["cautions"])
    part = evaluated(tmp_path / "z", made, sets["one"], *words, "n=6")
    assert any("3 of the 6 real clips are not continued" in line for line in part["cautions"])


def test_two_models_continuations_are_compared_clip_by_clip(sets, tmp_path, capsys):
    words = ["metrics=[continuation]", "continuation.context=3", "bootstrap=20"]
    first = continuations(tmp_path / "first", sets["one"], samples=1)
    second = folder(tmp_path / "second", seed=0)
    for name, made in (("a", first), ("b", second)):
        evaluated(tmp_path / name, made, sets["one"], *words)
    capsys.readouterr()
    assert run("compare", [str(tmp_path / "a"), str(tmp_path / "b"), "figures=[continuation_ssim]"]) == 0
    assert "continuation_ssim change" in capsys.readouterr().out
