"""Attention on packed axes equals the formula, segment by segment."""

import pytest
import torch

from sora.dit.attention import attend, dense, per_segment, varlen
from sora.dit.attention.op import places
from sora.tokens import Segments

RAGGED = [
    ((5, 5, 5), (5, 5, 5)),
    ((7, 1, 3, 3, 0, 0, 4), (7, 1, 3, 3, 0, 0, 4)),
    ((6, 6, 6, 2, 0, 3), (4, 4, 9, 1, 0, 2)),
    ((4, 3, 5), (0, 6, 0)),  # clips without a caption
    ((0, 0, 8), (3, 2, 0)),  # captions without a clip, and nothing to see for the rest
    ((4, 4, 0, 4), (4, 4, 0, 4)),  # an empty segment parts neighbours of equal lengths
]


def inputs(q_lengths, k_lengths, *, heads=3, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    rows = (sum(q_lengths), sum(k_lengths), sum(k_lengths))
    tensors = [torch.randn(n, heads, width, generator=generator, dtype=torch.float64).to(dtype) for n in rows]
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(("q_lengths", "k_lengths"), RAGGED)
def test_outputs_and_gradients_are_those_of_the_masked_formula(q_lengths, k_lengths):
    segments = Segments.of(q_lengths), Segments.of(k_lengths)
    ours, truth = inputs(q_lengths, k_lengths), inputs(q_lengths, k_lengths, dtype=torch.float64)
    out, expected = attend(*ours, *segments), dense(*truth, *segments)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=0)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weight.float()).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=5e-6, rtol=0)


def test_views_with_odd_strides_are_read_right():
    """q, k and v usually are slices of one fused projection."""
    lengths = (4, 4, 3, 0, 5)
    fused = torch.randn(sum(lengths), 3, 2, 8)
    q, k, v = fused.unbind(1)
    segments = Segments.of(lengths)
    torch.testing.assert_close(attend(q, k, v, segments, segments), dense(q, k, v, segments, segments), atol=2e-6, rtol=0)


def test_gradcheck_against_finite_differences():
    q, k, v = inputs((3, 3, 2), (2, 2, 4), heads=2, width=4, dtype=torch.float64)
    segments = Segments.of((3, 3, 2)), Segments.of((2, 2, 4))
    assert torch.autograd.gradcheck(lambda *qkv: per_segment(*qkv, *segments), (q, k, v))


@pytest.mark.slow
def test_the_op_keeps_the_promises_of_a_custom_op():
    q, k, v = inputs((3, 3, 2), (2, 2, 4))
    segments = Segments.of((3, 3, 2)), Segments.of((2, 2, 4))
    for op in (torch.ops.sora_attend.per_segment.default, torch.ops.sora_attend.chunked.default):
        torch.library.opcheck(op, (q, k, v, *places(*segments, None)))


def test_a_backend_that_cannot_run_here_says_why():
    q, k, v = inputs((3,), (3,))
    with pytest.raises(ValueError, match=r"CUDA.*dit\.attention"):
        varlen(q, k, v, Segments.of((3,)), Segments.of((3,)))
