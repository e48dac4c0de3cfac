"""The page of an evaluation: worst clips first, only checkpoints of one protocol on one curve, every interval drawn, words as words."""

import json
import re

import numpy as np
import pytest

from sora.evaluate import figure_lines
from sora.metrics.protocol import preset_lines
from sora.report import plots
from sora.report.evaluation import TOLD, curve_parts, history, panels_of, standing, told_shorter, write_page
from sora.report.page import Plot, Prose, VideoGrid
from sora.report.plots import Panel, ValueInterval
from sora.system.files import write_json
from sora.video.files import write
from tests.report.test_page import HOSTILE, read

pytestmark = pytest.mark.slow
PROMPTS = ["a red circle moving left", "a blue square moving up", HOSTILE[0], "a green triangle going right"]
VERDICTS = [(True, True, True), (False, False, False), (True, False, True), (True, False, False)]


def scores(step, *, protocol="p" * 64, adherence=0.5, ema=True, **more):
    figures = {"adherence_all": adherence, "adherence_all_low": adherence - 0.2, "adherence_all_high": adherence + 0.2}
    figures |= {"frechet": 30.0 - step / 100, "frechet_low": 20.0, "frechet_high": 35.0, "frechet_floor": 12.0, "kvd": 0.1, "n_fake": 4.0}
    rows = [
        {
            "prompt": prompt,
            "frames": 5,
            "height": 16,
            "width": 24,
            "adherence": dict(zip(("colour", "shape", "direction"), right, strict=True)),
        }
        for prompt, right in zip(PROMPTS, VERDICTS, strict=True)
    ]
    subject = {"run": "RUN", "step": step, "ema": ema}
    base = {"kind": "diffusion", "figures": figures, "n": 4, "floor": {}, "rows": rows, "clips": [], "subject": subject}
    return {**base, "protocol_sha256": protocol, "protocol": {"dataset": {"split": "heldout"}, "seed": 0}, **more}


@pytest.fixture
def home(tmp_path):
    for step, settings in ((100, {"adherence": 0.25}), (200, {"protocol": "q" * 64}), (300, {"adherence": 0.5}), (400, {"ema": False})):
        write_json(tmp_path / f"RUN/evaluation/step-{step:08d}/scores.json", scores(step, **settings))
    folder = tmp_path / "RUN/evaluation/step-00000500"
    clips = []
    for number in range(4):
        frames = np.full((5, 16, 24, 3), 60 * number, np.uint8)
        write(folder / f"clips/{number}.mp4", frames, 8.0, lossless=False)
        clips.append(f"clips/{number}.mp4")
    write(folder / "nearest/0000.mp4", np.full((5, 16, 24, 3), 9, np.uint8), 8.0, lossless=False)
    pairs = [{"number": 2, "key": "train-7", "file": "nearest/0000.mp4", "prompt": PROMPTS[2], "caption": "a real one", "distance": 1.25}]
    pairs += [{**pairs[0], "number": 99}]  # of a clip that was not kept
    found = {"remembered": 0.25, "z": -1.5, "usual": 3.0, "training": 40, "extractor": "rand3d-v1", "pairs": pairs}
    shapes = [{"width": 24, "height": 16, "frames": 5, "clips": 3, "loss": 0.5, "levels": [0.75, 0.25]}]
    more = {"neighbours": found, "heldout": {"by_level": {"0.25": 0.75, "0.75": 0.25}, "by_shape": shapes}}
    write_json(folder / "scores.json", scores(500, adherence=0.75, clips=clips, **more))
    lines = []
    for place, step in enumerate((50, 100, 150)):
        line = {"step": step, "weights": "ema", "loss": 1.0 - 0.1 * place, "loss_low": 0.5, "loss_high": 1.2}
        change = {"loss_change": -0.1, "loss_change_low": -0.12, "loss_change_high": -0.08, "loss_power": 0.3, "loss_detectable": 0.02}
        lines += [line | (change if place else {}), {**line, "weights": "raw", "loss": 9.0}]
    (tmp_path / "RUN/evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 15')
    return folder


def test_the_page_is_whole_and_shows_the_worst_clip_first(home):
    text = write_page(home).read_text()
    page = read(text)
    words = "".join(page.words)
    ranked = [
        words.index(PROMPTS[number], words.index("Clips from worst to best", words.index("Held-out loss"))) for number in (1, 3, 2, 0)
    ]
    assert ranked == sorted(ranked)
    videos = [attributes for tag, attributes in page.tags if tag == "video"]
    assert len(videos) == 4 + 2 and "a real one" in words and "at 1.25" in words and "25.0 % of" in words
    assert "script" not in [tag for tag, _ in page.tags] and not re.search(r'(?:src|href)="http', text)
    assert "floor 12" in words and "95 % interval 0.55 to 0.95" in words and "dataset.split" in words
    assert text.count("<svg") == 7  # shares, the Fréchet interval, three of checkpoints, one while training, loss by level


def test_the_page_names_its_run_folds_its_protocol_and_shows_a_real_clip_of_its_size_beside_each(home):
    told = json.loads((home / "scores.json").read_text())
    write(home / "real/0000.mp4", np.full((5, 16, 24, 3), 7, np.uint8), 8.0, lossless=False)
    real = [{"file": "real/0000.mp4", "name": "train-9", "prompt": HOSTILE[0], "frames": 5, "height": 16, "width": 24}]
    write_json(
        home / "scores.json", {**told, "real": real, "cautions": ["beware: few"], "subject": {**told["subject"], "run": "outputs/my run"}}
    )
    text = write_page(home).read_text()
    page = read(text)
    words = "".join(page.words)
    assert "Scores of my run, step 500" in words and "of outputs/my run;" in words and "Beware: few." in words
    assert len([1 for tag, _ in page.tags if tag == "video"]) == 2 * 4 + 2 and words.count("not of its prompt") == 1
    assert [tag for tag, _ in page.tags].count("details") == 3
    videos = [attributes for tag, attributes in page.tags if tag == "video"]
    assert all(
        video["poster"].startswith("data:image/jpeg;base64,") and (video["width"], video["height"]) == ("24", "16") for video in videos
    )


def test_the_page_of_a_vae_has_its_figures_in_large_type_and_names_originals_at_their_size(tmp_path):
    write(tmp_path / "reconstructions/set/0001.mp4", np.zeros((5, 64, 192, 3), np.uint8), 8.0, lossless=False)  # two of 24x16, enlarged
    row = {"dataset": "set", "key": "clip-7", "frames": 5, "height": 16, "width": 24, "psnr": 31.25, "file": "0001.mp4"}
    figures = {"set_vae_psnr": 31.25, "set_vae_ssim": 0.5, "set_vae_videos": 1.0}
    told = {"kind": "vae", "figures": figures, "n": 1, "rows": [row], "clips": ["reconstructions/set/0001.mp4"], "subject": {"run": "vae"}}
    write_json(tmp_path / "scores.json", {**told, "protocol_sha256": "p" * 64, "protocol": {"seed": 0}})
    page = read(write_page(tmp_path).read_text())
    words = "".join(page.words)
    assert "PSNR of set" in words and "31.25" in words and "SSIM of set" in words and "clip-7" in words
    assert "set; 24×16, 5 frames; 31.2 dB" in words and "original is on the left" in words
    (video,) = [attributes for tag, attributes in page.tags if tag == "video"]
    assert (video["width"], video["height"]) == ("48", "16")


def test_a_preset_is_named_with_all_that_is_not_as_published(home, tmp_path):
    assert preset_lines({}) == []
    assert preset_lines({"name": "x", "changed": []}) == ["measured by the protocol of x"]  # scores of earlier versions
    told = {"name": "jedi_5000", "changed": ["n", "size"], "departs": "<another> network"}
    write_json(tmp_path / "scores.json", {**scores(10), "preset": told, "rows": [], "clips": []})
    page = write_page(tmp_path).read_text()
    assert "measured by the protocol of jedi_5000, but n, size changed: not what was published" in page
    assert "beware: &lt;another&gt; network; its values compare with one another" in page


def test_only_checkpoints_of_one_protocol_and_one_kind_of_weights_are_on_a_curve(home):
    found = history(home, scores(500))
    assert [step for step, _ in found] == [100, 300, 500]
    assert [figures["adherence_all"] for _, figures in found] == [0.25, 0.5, 0.75]


def test_a_page_without_the_rest_still_is_one(tmp_path):
    write_json(tmp_path / "deep/run/out/scores.json", {**scores(1), "rows": [], "figures": {"kvd": 0.5}})
    words = "".join(read(write_page(tmp_path / "deep/run/out").read_text()).words)
    assert "Kernel distance" in words and "Over checkpoints" not in words and "Clips from worst" not in words


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({"adherence": {"colour": True, "shape": None, "direction": False, "all": False}}, 0.5),
        ({"adherence": {"colour": True}, "physics": {"permanence": 0.0}}, 0.5),
        ({"adherence": {"colour": None}, "text_similarity/clip": 0.3}, 0.3),
        ({"psnr": 31.0}, 31.0),
        ({"key": "x"}, None),
    ],
)
def test_how_well_a_clip_did(row, value):
    assert standing(row) == value


def test_panels_hold_what_two_points_have_and_leave_out_what_is_not_a_number():
    points = [(1, {"loss": 2.0, "kvd": 1.0}), (2, {"loss": float("nan"), "kvd": 0.5, "kvd_low": 0.4, "kvd_high": 0.6}), (3, {"loss": 1.0})]
    drawn = {panel.title: panel for panel in panels_of(points, TOLD)}
    assert set(drawn) == {"Held-out loss", "Kernel distance"}
    assert drawn["Held-out loss"].lines["loss"] == ([1, 3], [2.0, 1.0]) and drawn["Kernel distance"].bands == {}
    assert curve_parts([(1, {"loss": 1.0})], []) == []


def test_the_quickstart_draws_what_was_measured_while_it_trained_in_one_plot(tmp_path):
    from sora.report.quickstart import watched_parts

    assert watched_parts(tmp_path) == []
    lines = []
    for step in (10, 20, 30):
        figures = {"loss": 1.0, "loss_low": 0.9, "loss_high": 1.1, "adherence_all": 0.1, "frechet": 3.0, "frechet_floor": 2.0, "kvd": 0.1}
        lines += [{"step": step, "weights": name, **figures} for name in ("ema", "raw")]
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (part,) = watched_parts(tmp_path)
    assert isinstance(part, Plot) and "measured 3 times" in part.caption and "".join(part.each).count("stroke-dasharray") >= 1
    for title in ("Held-out loss", "Prompt adherence", "Fréchet distance", "Kernel distance"):
        assert title in "".join(part.each)


def test_plots_of_intervals_and_panels_follow_the_page_and_are_the_same_each_time():
    spans = {"colour": ValueInterval(0.5, 0.4, 0.6), "$x$": ValueInterval(1.0, 0.9, 1.2, floor=0.8)}
    items = [Panel("a", {"a": ([1, 2], [3.0, 4.0])}, {"a": ([1, 2], [2.0, 3.0], [4.0, 5.0])}, 1.0), Panel("b", {"b": ([1], [1.0])}, {})]
    for make in (lambda: plots.intervals(spans, across="share"), lambda: plots.panels([*items, items[0]], across="step")):
        first = make()
        assert first == make() and "currentColor" in "".join(first) and plots.INK not in "".join(first)
    assert "colour" in plots.intervals(spans, across="share") and "$x$" in plots.intervals(spans, across="share")


def test_of_many_clips_both_ends_are_shown(home):
    whole = json.loads((home / "scores.json").read_text())
    count = 30
    rows = [{**whole["rows"][0], "prompt": f"prompt {number}", "adherence": {"colour": number >= 15}} for number in range(count)]
    write_json(home / "scores.json", {**whole, "rows": rows, "clips": [whole["clips"][0]] * count})
    from sora.report.evaluation import clip_parts

    parts = [
        part for part in clip_parts(home, {**whole, "rows": rows, "clips": [whole["clips"][0]] * count}) if isinstance(part, VideoGrid)
    ]
    assert [len(part.clips) for part in parts] == [12, 12]
    assert not any(isinstance(part, Plot) for part in parts)
    assert [clip.marks["colour"] for part in parts for clip in part.clips] == [False] * 12 + [True] * 12
    told = [
        part.text for part in clip_parts(home, {**whole, "rows": rows, "clips": [whole["clips"][0]] * count}) if isinstance(part, Prose)
    ]
    assert told == [f"12 of the 15 that do {what}, which do equally well, of 30." for what in ("worst", "best")]


def test_clips_that_nothing_ranks_are_shown_as_what_they_are(home):
    whole = json.loads((home / "scores.json").read_text())
    plain = [{"name": f"{number}.mp4", "prompt": None, "frames": 5, "height": 16, "width": 24} for number in range(4)]
    write_json(home / "scores.json", {**whole, "kind": "videos", "rows": plain, "neighbours": None})
    page = read(write_page(home).read_text())
    words = "".join(page.words)
    assert "The first 4 of 4; nothing was measured that ranks them" in words and "worst to best" not in words
    assert [tag for tag, _ in page.tags].count("video") == 4


def test_a_running_mean_lies_over_what_it_is_the_mean_of():
    """A straight line is its own running mean, if each mean stands in the middle of its window; at the end it would lag behind."""
    from matplotlib import pyplot

    xs = [float(x) for x in range(20)]
    drawn = []
    plot = pyplot.Axes.plot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyplot.Axes, "plot", lambda self, xs, ys, **more: drawn.append((list(xs), list(ys))) or plot(self, xs, ys, **more))
        text = plots.curves({"loss": (xs, [x / 100 + 0.02 for x in xs])}, across="step", up="loss", logarithmic=True, smooth=7)
    (_, _), (places, means) = drawn
    assert places == xs[3:17] and means == pytest.approx([x / 100 + 0.02 for x in places])
    assert "0.1" in text and "times" not in text  # numbers as they are read, not as powers


def test_a_figure_is_told_by_its_short_name_alone_where_it_has_one():
    """Those of features with a word of their own begin with it; another extractor's short name is none of theirs."""
    figures = {"frechet/rand3d-v1@9f": 1.5, "frechet/rand3d-v1@9f/low": 1.0, "frechet": 1.5, "frechet_low": 1.0}
    figures |= {
        "frechet/motion3d-v1@9f": 9.0,
        "frechet/motion3d-v1@9f/infinite": 8.0,
        "motion_frechet": 9.0,
        "motion_frechet_infinite": 8.0,
    }
    figures |= {"frechet/i3d-1234@9f": 77.0, "psnr": 30.0}
    assert [name for name in figures if told_shorter(name, figures)] == [name for name in figures if "/" in name and "i3d" not in name]
    assert "frechet/motion3d-v1@9f/infinite" not in "".join(figure_lines(figures))
