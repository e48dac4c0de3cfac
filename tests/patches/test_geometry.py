"""What users ask for becomes sizes and lengths that the strides allow."""

from itertools import product

import numpy as np
import pytest

from sora.patches.geometry import Geometry, size_of


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
    alone = Geometry((4, 1, 1))
    assert alone.nearest_frames(0, 8) == 1
    assert alone.nearest_frames(2, 8) == 17
    assert alone.nearest_frames(1, 24) == 25
    assert [alone.nearest_frames(seconds, 8) for seconds in (0.5, 0.75, 1.0, 1.1)] == [5, 5, 9, 9]
    with pytest.raises(ValueError, match="seconds=-1"):
        alone.nearest_frames(-1, 8)


GEOMETRIES = [Geometry(stride, patch) for stride in ((1, 1, 1), (4, 8, 8), (8, 16, 32)) for patch in ((1, 1, 1), (1, 2, 2), (3, 1, 2))]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_clip_is_taken_whole_if_and_only_if_its_patches_give_it_back(geometry):
    for frames, height, width in product(range(1, 60), (16, 24, 32, 64), (32, 64, 96)):
        whole = geometry.largest(frames, height, width)
        try:
            latent = geometry.latent_shape(frames, height, width)
        except ValueError:
            assert whole != (frames, height, width)
            continue
        divides = not any(size % step for size, step in zip(latent, geometry.patch, strict=True))
        assert (whole == (frames, height, width)) == divides
        if divides:
            assert geometry.pixels(*(size // step for size, step in zip(latent, geometry.patch, strict=True))) == whole


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_lengths_are_the_largest_below_the_smallest_above_and_the_nearest(geometry):
    taken = [geometry.decoded(latent) for latent in range(geometry.patch[0], 200, geometry.patch[0])]
    for frames in range(1, 100):
        assert geometry.most_frames(frames) == max((length for length in taken if length <= frames), default=0)
        assert geometry.least_frames(frames) == min(length for length in taken if length >= frames)
        nearest = geometry.nearest_frames(frames / 8, 8)
        assert nearest in taken and abs(nearest - frames) == min(abs(length - frames) for length in taken)
    assert geometry.most_frames(0) == 0
    assert geometry.most_frames(np.arange(100)).tolist() == [geometry.most_frames(frames) for frames in range(100)]
