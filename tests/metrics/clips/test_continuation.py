"""Continuations against their futures: masks and overlaps in closed form, and what better and worse ones score."""

import math

import pytest
import torch

from sora.metrics.clips.continuation import HIGHER, best, continuation_scores, motion_masks, overlaps

T, HEIGHT, WIDTH = 6, 40, 56


def square(*, start=10, step=4, frames=T):
    """A white square of 12 pixels that goes right over black."""
    found = torch.zeros(frames, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    for time in range(frames):
        found[time, 10:22, start + step * time : start + step * time + 12] = 255
    return found


def test_a_mask_is_where_something_moves_and_nowhere_in_the_first_frame():
    masks = motion_masks(square())
    assert masks.shape == (T, HEIGHT, WIDTH) and not masks[0].any() and masks[1:].flatten(1).any(dim=1).all()
    rows, columns = masks[1].nonzero().unbind(dim=1)
    # What was left and what was taken, four columns each, and the smoothing's two pixels about them; opened, so no smaller than five.
    assert rows.min() >= 8 and rows.max() <= 23 and columns.min() >= 8 and columns.max() <= 27
    assert not motion_masks(square()[:1].expand(T, -1, -1, -1)).any()


def test_noise_below_the_threshold_and_specks_do_not_move():
    draw = torch.Generator().manual_seed(0)
    still = torch.full((T, HEIGHT, WIDTH, 3), 100)
    quiet = (still + torch.randint(-4, 5, still.shape, generator=draw)).to(torch.uint8)
    assert not motion_masks(quiet).any()
    speck = still.clone().to(torch.uint8)
    speck[2, 20:22, 20:22] = 255  # smaller than the opening's block
    assert not motion_masks(speck).any()


def test_overlaps_in_closed_form():
    one, two = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    one[0, :2], one[1, :2] = True, True  # the upper half, always
    two[1, 1:3] = True  # the middle, in the second frame
    found = overlaps(one, two)
    assert found == {
        "spatial_iou": pytest.approx(4 / 12),
        "spatiotemporal_iou": pytest.approx((0 + 4 / 12) / 2),
        "weighted_spatial_iou": pytest.approx(4 * 0.5 / (8 * 1 + 4 * 0.5)),
    }
    nothing = torch.zeros_like(one)
    assert set(overlaps(nothing, nothing).values()) == {1.0} and set(overlaps(one, nothing).values()) == {0.0}
    assert overlaps(one, two) == overlaps(two, one)


def test_a_true_future_is_perfect_and_each_fault_is_seen():
    true = square()
    perfect = continuation_scores(true, true)
    assert perfect == {"psnr": 100.0, "mse": 0.0, "ssim": pytest.approx(1), **dict.fromkeys(list(overlaps(*[motion_masks(true)] * 2)), 1.0)}
    late, elsewhere, still = square(step=2), true.flip(1), true[:1].expand(T, -1, -1, -1).contiguous()
    for other in (late, elsewhere, still):
        found = continuation_scores(true, other)
        assert all(found[name] < perfect[name] if higher else found[name] > perfect[name] for name, higher in HIGHER.items())
    assert continuation_scores(true, elsewhere)["spatial_iou"] < continuation_scores(true, late)["spatial_iou"]
    shown = continuation_scores(true, still)
    assert shown["spatial_iou"] == 0 and shown["spatiotemporal_iou"] == pytest.approx(1 / T)  # the first frame moves in neither
    change = (true.double() - still.double()) / 255
    assert shown["mse"] == pytest.approx(float(change.square().mean()))


def test_the_best_is_the_highest_or_of_errors_the_lowest():
    values = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
    assert best("psnr", values).tolist() == [3, 5] and best("mse", values).tolist() == [1, 2]
    assert math.isclose(float(best("spatial_iou", values).mean()), 4)


def test_clips_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"a true future of \(6, 40, 56, 3\) and a continuation of \(5, 40, 56, 3\)"):
        continuation_scores(square(), square(frames=5))
