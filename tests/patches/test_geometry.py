"""What users ask for becomes sizes and lengths that the strides allow."""

import pytest

from sora.patches.geometry import frames_of, size_of


def test_aspect_ratios_are_width_to_height_at_about_the_area():
    assert size_of("16:9", area=36 * 64, multiple=(4, 4)) == (36, 64)
    assert size_of("9:16", area=36 * 64, multiple=(4, 4)) == (64, 36)
    assert size_of("1:1", area=1024, multiple=(8, 8)) == (32, 32)
    for ratio in ("16:9", "4:3", "1:1", "9:16", "2.39:1"):
        height, width = size_of(ratio, area=256 * 256, multiple=(16, 32))
        assert height % 16 == 0 and width % 32 == 0
        assert height * width == pytest.approx(256 * 256, rel=0.2)


def test_pixels_are_width_times_height_and_must_fit():
    assert size_of("64x32", area=1, multiple=(8, 8)) == (32, 64)
    with pytest.raises(ValueError, match="the nearest is 64x40"):
        size_of("66x38", area=1, multiple=(8, 8))


@pytest.mark.parametrize("text", ["wide", "16:0", "16x", "x9", "-4:3", ""])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="size="):
        size_of(text, area=1024, multiple=(8, 8))


def test_frames_are_one_and_a_multiple_nearest_to_the_seconds():
    assert frames_of(0, 8, 4) == 1
    assert frames_of(2, 8, 4) == 17
    assert frames_of(1, 24, 4) == 25
    assert [frames_of(seconds, 8, 4) for seconds in (0.5, 0.75, 1.0, 1.1)] == [5, 5, 9, 9]
    for patch in (1, 2, 3):
        for seconds in (0, 0.3, 1, 4.7):
            assert ((frames_of(seconds, 12, 4, patch=patch) - 1) // 4 + 1) % patch == 0
    with pytest.raises(ValueError, match="seconds=-1"):
        frames_of(-1, 8, 4)
