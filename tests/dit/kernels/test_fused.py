"""The fused steps are their formulas: outputs and every gradient, and they keep no more than they say."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sora.dit.kernels import gelu_mlp as frugal
from sora.dit.kernels.fused import fused_linear, gated_sum, gelu_linear, modulate, norm_rotate
from sora.dit.kernels.gelu_mlp import gelu_mlp, is_mlp

# As many tokens as channels, where a wrong axis hides; level 2 of 4 is nobody's.
N, D, U = 6, 6, 4
INDEX = torch.tensor([0, 3, 3, 1, 0, 0])


def draws(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def turn(x, rotation):
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotation).flatten(-2)


def angles(count, pairs):
    return torch.polar(torch.ones(count, 1, pairs), torch.randn(count, 1, pairs, generator=torch.Generator().manual_seed(1))).to(
        torch.complex128
    )


ROTATION = angles(N, 3)
STEPS = {
    "modulate": (
        lambda x, scale, shift: modulate(x, scale, shift, INDEX, eps=1e-6),
        lambda x, scale, shift: F.layer_norm(x, (D,), eps=1e-6) * scale[INDEX] + shift[INDEX],
        [(N, D), (U, D), (U, D)],
    ),
    "gated_sum": (
        lambda x, branch, gate: gated_sum(x, branch, gate, INDEX),
        lambda x, branch, gate: x + gate[INDEX] * branch,
        [(N, D), (N, D), (U, D)],
    ),
    "gelu_linear": (gelu_linear, lambda x, weight, bias: F.linear(F.gelu(x), weight, bias), [(N, 5), (4, 5), (4,)]),
    "gelu_mlp": (
        gelu_mlp,
        lambda x, up, up_bias, down, down_bias: F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias),
        [(N, D), (7, D), (7,), (D, 7), (D,)],
    ),
    "norm": (
        lambda x, gain: norm_rotate(x, gain, None, eps=1e-6),
        lambda x, gain: F.rms_norm(x, (D,), gain, eps=1e-6),
        [(N, 2, D), (D,)],
    ),
    "norm_rotate": (
        lambda x, gain: norm_rotate(x, gain, ROTATION, eps=1e-6),
        lambda x, gain: turn(F.rms_norm(x, (D,), gain, eps=1e-6), ROTATION),
        [(N, 2, D), (D,)],
    ),
}


@pytest.mark.parametrize("rows", [4, 512])
@pytest.mark.parametrize("name", STEPS)
def test_a_fused_step_is_its_formula_and_its_derivative(name, rows, monkeypatch):
    monkeypatch.setattr(frugal, "ROWS", rows)  # the second part is shorter than the first
    fused, plain, shapes = STEPS[name]
    inputs = draws(*shapes)
    weight = draws(plain(*inputs).shape, seed=2)[0].detach()
    out, expected = fused(*inputs), plain(*inputs)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    for mine, theirs in zip(
        torch.autograd.grad((out * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=0)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_products_of_halves_are_those_of_their_numbers(monkeypatch, native, biased):
    """Where a CPU does not multiply halves they are multiplied in float32; rounding to a half comes once, at the end."""
    monkeypatch.setattr("sora.dit.kernels.fused.MULTIPLIES_BFLOAT16", native)
    x, weight, bias = (tensor.detach().bfloat16().requires_grad_() for tensor in draws((N, 5), (4, 5), (4,)))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
    inputs, truth = ((x, weight, bias), exact) if biased else ((x, weight), exact[:2])
    for mine, plain in ((fused_linear, F.linear), (gelu_linear, lambda x, *rest: F.linear(F.gelu(x), *rest)))[: 2 if biased else 1]:
        out, expected = mine(*inputs, *[None] * (not biased)), plain(*truth)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.double(), expected, atol=0.02, rtol=0.01)
        found, wanted = torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), truth)
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == torch.bfloat16
            torch.testing.assert_close(a.double(), b, atol=0.05, rtol=0.02)


@pytest.mark.slow
def test_the_op_of_a_whole_mlp_keeps_the_promises_of_a_custom_op():
    inputs = draws((N, D), (7, D), (7,), (3, 7), (3,), dtype=torch.float32)
    torch.library.opcheck(torch.ops.sora_mlp.gelu.default, tuple(inputs))
    assert is_mlp(torch.ops.sora_mlp.gelu.default) and not is_mlp(torch.ops.aten.mm.default)
    assert gelu_mlp(*(x[:0] if place == 0 else x for place, x in enumerate(inputs))).shape == (0, 3)


def test_operations_of_a_whole_mlp_are_counted_with_those_made_again():
    inputs = draws((N, D), (7, D), (7,), (3, 7), (3,), dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        out = gelu_mlp(*inputs)
        assert counter.get_total_flops() == 2 * N * 7 * (D + 3)
        out.sum().backward()
    assert counter.get_total_flops() == 2 * N * 7 * ((1 + 3) * D + (1 + 2) * 3)


def test_under_autocast_a_whole_mlp_is_two_linear_layers():
    inputs = [x.float() for x in draws((N, D), (7, D), (7,), (D, 7), (D,))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = gelu_mlp(*inputs), STEPS["gelu_mlp"][1](*inputs)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name", STEPS)
def test_a_fused_step_keeps_its_dtype_and_stays_within_its_rounding(name):
    fused, plain, shapes = STEPS[name]
    if name == "norm_rotate":
        fused = lambda x, gain: norm_rotate(x, gain, ROTATION.to(torch.complex64), eps=1e-6)  # noqa: E731
    inputs = draws(*shapes)
    out = fused(*[x.detach().bfloat16() for x in inputs])
    assert out.dtype == torch.bfloat16
    expected = plain(*[x.detach().bfloat16().double() for x in inputs])
    assert (out.double() - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "kept"),
    [("modulate", (N, D)), ("gated_sum", (N, D)), ("gelu_linear", (N, 5)), ("gelu_mlp", (N, D)), ("norm_rotate", (N, 2, D))],
)
def test_a_fused_step_keeps_one_tensor_as_large_as_its_tokens(name, kept):
    fused, _, shapes = STEPS[name]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        fused(*draws(*shapes))
    assert saved.count(torch.Size(kept)) == 1
    assert all(shape == kept or shape in shapes or shape.numel() <= N * 3 for shape in saved)
