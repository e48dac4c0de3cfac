"""Flags: each is given where it is meant and nowhere else, is a column, and removes nothing."""

import pytest

from sora.captions.captioner import CaptionRequest
from sora.captions.captioners.template import TemplateCaptioner
from sora.captions.checks.flags import FLAGS, CaptionChecks
from sora.captions.checks.scores import score_flags
from sora.captions.checks.words import agreement, refuse_lacking, repeated_share, word_flags, words_of
from tests.captions.test_chat import FRAMES

FAIR = (
    "A woman in a green coat walks slowly along a wet street at night while red lights blink behind her.",
    "A woman in a green coat walks slowly along a wet street at night. Red lights blink behind her and are seen again in the puddles.",
)


def checks(**changed):
    said = {"dense_words": (8, 80), "short_words": 30, "repeated": 0.2, "same": 2, "agreement": 0.3, "language": None}
    return CaptionChecks(**said | {"still": 0.01, "moving": 0.1} | changed)


def test_a_fair_caption_has_no_flag():
    assert word_flags(*FAIR, checks()) == []
    assert score_flags(FAIR[1], "a static camera", {"camera_motion": 0.0, "object_motion": 0.05}, checks(), one_shot=True) == []


@pytest.mark.parametrize(
    ("short", "dense", "flag"),
    [
        ("A man.", "I'm sorry, but I cannot describe what these people look like in any way.", "refusal"),
        ("A man.", "In the first frame a man stands by a door, and then he leaves through it.", "about_frames"),
        ("A man.", "These images show a man who stands by a door, and then he leaves through it.", "about_frames"),
        ("A man.", "<0.0 seconds> A man stands by a door, and then he leaves through it again.", "about_frames"),
        ("A man.", "As the prompt asks, here is a man by a door, who leaves through it again.", "about_frames"),
        ("A dog.", "the dog runs and the dog runs and the dog runs and the dog runs and stops", "repetition"),
        (FAIR[1], FAIR[1], "same_sentence"),
        ("A dog.", "A dog runs.", "too_short"),
        ("A dog.", " ".join(f"w{number}" for number in range(81)), "too_long"),
        (" ".join(f"w{number}" for number in range(31)), FAIR[1], "too_long"),
    ],
)
def test_a_flag_is_given_for_what_it_is_meant_for(short, dense, flag):
    assert word_flags(short, dense, checks()) == [flag]


def test_a_picture_on_a_wall_is_no_talk_of_pictures():
    assert word_flags("A room.", "A framed picture hangs on the wall over a chair, and a clock ticks beside it.", checks()) == []


STILL, MOVES = {"camera_motion": 0.0, "object_motion": 0.0}, {"camera_motion": 0.5, "object_motion": 0.4}
SAID = {
    "says_motion": ("A dog runs across the yard.", "", STILL, MOVES),
    "says_still": ("A yard in which nothing moves.", "", MOVES, STILL),
    "says_camera_moves": ("A yard.", "the camera pans to the left", STILL, MOVES),
    "says_camera_still": ("A yard.", "static camera", MOVES, STILL),
}


@pytest.mark.parametrize("flag", SAID)
def test_scores_contradict_words_one_way_only(flag):
    dense, camera, against, fits = SAID[flag]
    assert flag in score_flags(dense, camera, against, checks(), one_shot=False)
    assert flag not in score_flags(dense, camera, fits, checks(), one_shot=False)
    assert score_flags(dense, camera, {}, checks(), one_shot=False) == []  # no score, no contradiction


def test_a_cut_is_flagged_in_one_shot_alone():
    assert score_flags("The scene cuts to a beach.", "", {}, checks(), one_shot=True) == ["says_cut"]
    assert score_flags("The scene cuts to a beach.", "", {}, checks(), one_shot=False) == []
    assert score_flags("A man cuts a loaf of bread.", "", {}, checks(), one_shot=True) == []


def test_measures_of_words_are_shares_with_their_ends():
    assert repeated_share([]) == repeated_share(list("abcdef")) == 0 and repeated_share(list("aaaaaaaa")) > 0.8
    for one, two in (("a b c", "c b a"), ("", ""), ("A, b.", "a b")):
        assert agreement(one, two) == agreement(two, one) == 1
    assert agreement("a b", "c d") == 0 and words_of("It's a 犬 犬小屋") == ["it's", "a", "犬", "犬", "小", "屋"]


def test_a_language_needs_its_package_and_says_so(monkeypatch):
    import sys

    from sora.captions.checks import words

    words._classifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    refuse_lacking(checks())
    with pytest.raises(ValueError, match=r"pip install 'py3langid"):
        refuse_lacking(checks(language="en"))
    words._classifier.cache_clear()


def test_another_language_is_flagged():
    german = "Eine Frau geht langsam eine nasse Strasse entlang und rote Lichter blinken hinter ihr in der Nacht."
    assert word_flags("Eine Frau.", german, checks(language="en")) == ["language"]
    assert word_flags(*FAIR, checks(language="en")) == []


def test_every_flag_has_a_meaning_and_settings_are_in_order():
    assert all(meaning and name.islower() for name, meaning in FLAGS.items())
    for changed in ({"dense_words": (9, 3)}, {"repeated": 1.5}, {"still": 0.2}, {"same": 0}):
        with pytest.raises(ValueError, match=r"checks\."):
            checks(**changed)


# The template


def facts(**more):
    return {"seconds": 2.5, "captions": {"original": "a dog"}, "extra": {"facts": {"background": "graded"}}, **more}


def template(short="{captions.original}", dense="{captions.original} on {extra.facts.background} for {seconds} s"):
    return TemplateCaptioner(name="facts", short=short, dense=dense)


def said(captioner, **more):
    request = CaptionRequest(id="0" * 64, key="k", frames=FRAMES, times=(0.0, 1.0, 2.0), facts=facts(**more))
    (found,) = captioner(iter([request]))
    return found


def test_a_template_says_what_is_known_and_refuses_what_is_not():
    captioner = template()
    assert captioner.reads == ("captions.original", "extra.facts.background", "seconds")
    fields = said(captioner).fields
    assert fields is not None and (fields.short, fields.dense) == ("a dog", "a dog on graded for 2.5 s")
    for broken in ("{nothing}", "{captions}", "{captions.original.x}", "{extra.facts}"):
        found = said(template(short=broken))
        assert found.fields is None and f"{broken} of captioner.short" in found.error


def test_a_template_does_not_read_its_facts_as_a_template():
    found = said(template(), captions={"original": "{seconds} {extra.__class__} \x1b[2J"}).fields
    assert found is not None and found.short == "{seconds} {extra.__class__} [2J"
