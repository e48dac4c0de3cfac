"""`Geometry` is each of the formulas that stood in other files until December 2026, as they were written there."""

from itertools import product

import numpy as np
import pytest

from sora.patches.geometry import Geometry
from sora.tokens import Grid

STRIDES = [(1, 1, 1), (2, 4, 4), (4, 8, 8), (4, 8, 16), (8, 32, 32)]
PATCHES = [(1, 1, 1), (1, 2, 2), (2, 2, 1), (3, 1, 4)]
BOTH = [Geometry(*both) for both in product(STRIDES, PATCHES)]
COUNTS, SIDES = range(1, 130), (1, 8, 31, 32, 64, 100, 128)


def vae_latent_shape(stride, frames, height, width):
    time, rows, columns = stride
    if frames < 1 or (frames - 1) % time:
        raise ValueError
    if height < 1 or width < 1 or height % rows or width % columns:
        raise ValueError
    return 1 + (frames - 1) // time, height // rows, width // columns


def generation_frames_of(seconds, fps, stride, *, patch):
    latent = 1 + max(seconds * fps - 1, 0) / stride
    return 1 + (max(round(latent / patch), 1) * patch - 1) * stride


def evaluation_frames(time, patch, count):
    groups = ((count - 1) // time + 1) // patch * patch
    return 1 + (groups - 1) * time if groups else 0


def evaluation_least(time, patch, count):
    groups = -(-(count - 1) // time) + 1
    return 1 + (-(-groups // patch) * patch - 1) * time


def reconstruction_fit(stride, count, height, width):
    time, rows, columns = stride
    return 1 + (count - 1) // time * time, height // rows * rows, width // columns * columns


def plan_kept(stride, patch, wanted):
    latent = (1 + (wanted - 1) // stride[0]) // patch.t * patch.t
    return np.where(latent > 0, 1 + (latent - 1) * stride[0], 0), latent


def usual(stride, latent):
    return 1 + (latent[:, 0] - 1) * stride[0], latent[:, 1] * stride[1] * latent[:, 2] * stride[2]


def held_out(stride, size, grid):
    return 1 + (grid.t * size.t - 1) * stride[0], grid.h * size.h * stride[1], grid.w * size.w * stride[2]


def prepared(stride_time, frames):
    return frames - (frames - 1) % stride_time if frames else 0


def world_frames(stride_time, seconds, fps):
    return 1 + stride_time * max(1, round((seconds * fps - 1) / stride_time))


def raised(call):
    try:
        return call()
    except ValueError:
        return "refused"


@pytest.mark.parametrize("geometry", BOTH)
def test_lengths_are_what_they_were(geometry):
    (time, *_), (patch, *_) = geometry.stride, geometry.patch
    for count in COUNTS:
        assert geometry.most_frames(count) == evaluation_frames(time, patch, count)
        assert geometry.least_frames(count) == evaluation_least(time, patch, count)
        assert Geometry(geometry.stride).most_frames(count) == prepared(time, count)
    for seconds, fps in product((0, 0.3, 1, 2.5, 7), (1, 8, 23.976, 30)):
        assert geometry.nearest_frames(seconds, fps) == generation_frames_of(seconds, fps, time, patch=patch)
        assert geometry.decoded(1 + max(1, round((seconds * fps - 1) / time))) == world_frames(time, seconds, fps)
    counts = np.array(COUNTS)
    kept, latent = plan_kept(geometry.stride, Grid(*geometry.patch), counts)
    assert (geometry.most_frames(counts) == kept).all() and (geometry.patches(kept) == latent // patch).all()
    assert geometry.most_frames(0) == prepared(time, 0) == 0


@pytest.mark.parametrize("geometry", BOTH)
def test_sizes_are_what_they_were(geometry):
    alone = Geometry(geometry.stride)
    for count, height, width in product((0, *COUNTS[::5]), SIDES, SIDES):
        shape = (count, height, width)
        assert raised(lambda shape=shape: geometry.latent_shape(*shape)) == raised(
            lambda shape=shape: vae_latent_shape(geometry.stride, *shape)
        )
        if count:
            assert alone.largest(*shape) == reconstruction_fit(geometry.stride, *shape)
    (_, rows, columns), patch = geometry.stride, Grid(*geometry.patch)
    assert geometry.block == (rows * patch.h, columns * patch.w)
    grids = np.array(list(product((1, 2, 7), (1, 3), (1, 4))))
    for grid in grids.tolist():
        assert geometry.pixels(*grid) == held_out(geometry.stride, patch, Grid(*grid))
    frames, height, width = geometry.pixels(*grids.T)
    before = usual(geometry.stride, grids * np.array(patch))
    assert (frames == before[0]).all() and (height * width == before[1]).all()
