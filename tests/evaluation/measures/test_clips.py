"""Scores of single clips are those of the metrics they stand for, and their figures the means over the clips that have them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sora.config.build import build
from sora.evaluation.measures.clips import MEASURES, Seen, cautions, check_extractor
from sora.evaluation.words import DISTANCES, KNOWN, NEEDS, chosen, of_words
from sora.metrics.clips.picture import PICTURE
from sora.metrics.clips.quality import VideoQuality, text_similarity
from sora.metrics.extractors.rand3d import Random3D
from sora.world.judge.observation import observe
from sora.world.judge.physics import Physics
from sora.world.language import PALETTE, parse
from tests.trained import WORLD, option


class Colours:
    """An image-text model: a frame is its mean colour, a caption the colour that it names."""

    name = "colours-0"
    named = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}

    def encode_frames(self, videos):
        return videos.float().mean(dim=(2, 3))

    def encode_texts(self, texts):
        return torch.tensor([self.named[text] for text in texts])


def video(colour, *, frames=4, noise=0, seed=0):
    draw = np.random.default_rng(seed).integers(-noise, noise + 1, (frames, 8, 10, 3))
    return np.clip(np.array(colour) + draw, 0, 255).astype(np.uint8)


def test_text_similarity_is_the_cosine_of_frames_and_prompt():
    seen = Seen(video((200, 0, 0)), 8.0, "red", None, Colours())
    assert MEASURES["text"].of_clip(seen) == {"text_similarity/colours-0": pytest.approx(1.0)}
    mixed = Seen(video((120, 60, 30), noise=20), 8.0, "green", None, Colours())
    expected = text_similarity(Colours().encode_frames(torch.from_numpy(mixed.frames)[None]), Colours().encode_texts(["green"]))
    rows = [MEASURES["text"].of_clip(each) for each in (seen, mixed)]
    assert rows[1]["text_similarity/colours-0"] == pytest.approx(float(expected))
    assert MEASURES["text"].of_all(rows)["text_similarity/colours-0"] == pytest.approx((1 + float(expected)) / 2)


def test_quality_of_all_is_what_the_metric_says_of_all():
    videos = [video((90, 120, 30), noise=30, seed=seed, frames=frames) for seed, frames in enumerate((1, 2, 4))]
    rows = [MEASURES["quality"].of_clip(Seen(each, 8.0, None, None, Colours())) for each in videos]
    metric = VideoQuality(encoders={"frame": Colours()})
    for each in videos:
        metric.update(torch.from_numpy(each)[None], fps=8.0)
    wanted = {name: value for name, value in metric.compute().items() if name != "n"}
    assert MEASURES["quality"].of_all(rows) == pytest.approx(wanted) and "frame_consistency/colours-0" in wanted
    assert set(rows[0]) == set(PICTURE) and not any(
        "consistency" in name for name in MEASURES["quality"].of_clip(Seen(videos[1], 8.0, None, None, Random3D()))
    )


@pytest.mark.slow
def test_the_worlds_own_clips_show_what_they_say_and_keep_to_physics():
    recipe = {
        **option("source", "world")["world"],
        **WORLD,
        "motions": ["bounce", "occlude", "linear"],
        "seconds": [2.0],
        "sizes": [[64, 64]],
    }
    world = build(recipe)
    clips = [world.clip(number, split="train") for number in range(12)]
    given = [Seen(clip.frames, clip.fps, clip.captions["dense"], parse(clip.captions["dense"]), None) for clip in clips]
    shown = MEASURES["adherence"].of_all([MEASURES["adherence"].of_clip(each) for each in given])
    assert shown["adherence_all"] >= 0.9 and shown["adherence_all_low"] < shown["adherence_all"] <= shown["adherence_all_high"]
    rows = [MEASURES["physics"].of_clip(each) for each in given]
    metric = Physics()
    for each in given:
        metric.update([observe(each.frames, each.fps, PALETTE)], [each.facts.event], [each.fps], [64.0])
    wanted = metric.compute()
    found = MEASURES["physics"].of_all(rows)
    assert found.pop("permanence_low") < found["permanence"] <= found.pop("permanence_high")
    assert found == pytest.approx(wanted) and wanted["gravity_clips"] > 0 and wanted["permanence_clips"] > 0
    assert all(row == {} for row, each in zip(rows, given, strict=True) if each.facts.event is None)


def test_a_caution_names_the_figures_that_flatter_worse_pictures():
    (told,) = cautions({"temporal_flickering": 0.9, "dynamic_degree_lite": 1.0, "frame_consistency/dino": 0.9, "sharpness": 0.4})
    assert told.startswith("temporal_flickering, frame_consistency/dino get better when videos are blurred") and "sharpness" in told
    assert cautions({"sharpness": 0.4, "frechet": 3.0}) == []


def test_words_choose_their_figures_and_no_other():
    key = "rand3d-v1@17f"
    names = (
        "frechet",
        "frechet/floor",
        "kvd",
        "jedi_formula",
        "precision",
        "coverage",
        "vendi_real",
        "n_real",
        "n_fake",
        "inception_score",
    )
    found = {f"{name.partition('/')[0]}/{key}{name[len(name.partition('/')[0]) :]}": 1.0 for name in names}
    found |= {name.replace("/", "_"): 1.0 for name in names}
    for word in DISTANCES:
        kept = {name.partition("/")[0] for name in of_words(found, [word]) if not name.startswith("n_")}
        starts = {name for name in kept if "_floor" not in name}
        assert starts <= set(DISTANCES[word]) and (starts or word == "fvd"), word
    assert set(of_words(found, ["frechet"])) == {name for name in found if name.startswith(("frechet", "n_"))}


def test_what_an_extractor_cannot_give_is_told_before_any_work():
    plain = SimpleNamespace(name="x-1", canonical=False, logits=False)
    for word, told in (("fvd", "choose extractor=i3d"), ("inception_score", "no class logits"), ("text", "choose an image-text model")):
        with pytest.raises(ValueError, match=told):
            check_extractor([word], plain)
    check_extractor(["frechet", "quality"], plain)
    check_extractor(["fvd", "inception_score"], SimpleNamespace(name="i3d", canonical=True, logits=True))

    class Missing:
        @property
        def name(self):
            raise ValueError("download it")

    check_extractor(["adherence"], Missing())  # needs no weights
    for word in ("kvd", "quality", "text"):
        with pytest.raises(ValueError, match="download it"):
            check_extractor([word], Missing())


def test_a_word_that_does_not_fit_says_what_it_is_measured_of():
    """Who wants continuations of a run is told that files are scored."""
    for word, kind, told in (
        ("continuation", "diffusion", "; continuation is measured of a folder of videos (checkpoint=FOLDER)"),
        ("loss", "videos", "; loss is measured of a diffusion run"),
        ("frechet_", "vae", "jedi"),
    ):
        with pytest.raises(ValueError) as error:
            chosen([word], usual=(), known=KNOWN[kind], scored=kind)
        assert told in str(error.value) and ("; " in str(error.value)) == told.startswith("; ")


def test_the_words_of_single_clips_are_those_that_are_measured():
    assert NEEDS.keys() == MEASURES.keys()
