"""Attention on packed axes equals the formula, segment by segment, whoever computes it."""

import importlib
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sora.dit.attention.chunked import chunked_attention
from sora.dit.attention.dense import allowed, dense_attention
from sora.dit.attention.fastest import fastest, fastest_attention
from sora.dit.attention.flash import flash_attention
from sora.dit.attention.flex import block_mask_of, flex_attention, mask_mod
from sora.dit.attention.layout import Layout, Mask
from sora.dit.attention.op import is_attention, places
from sora.dit.attention.per_segment import per_segment_attention
from sora.dit.attention.varlen import varlen_attention
from sora.patches.packing import pack
from sora.tokens import Grid, Segments, owners

RAGGED = [
    ((5, 5, 5), (5, 5, 5)),
    ((7, 1, 3, 3, 0, 0, 4), (7, 1, 3, 3, 0, 0, 4)),
    ((6, 6, 6, 2, 0, 3), (4, 4, 9, 1, 0, 2)),
    ((4, 3, 5), (0, 6, 0)),  # clips without a caption
    ((0, 0, 8), (3, 2, 0)),  # captions without a clip, and nothing to see for the rest
    ((4, 4, 0, 4), (4, 4, 0, 4)),  # an empty segment parts neighbours of equal lengths
]


# Largest difference from the formula in float64, as a share of the largest number: of outputs, and of gradients.
TOLERANCE = {torch.float32: (1e-6, 3e-6), torch.bfloat16: (1.5e-2, 2.5e-2)}
# One frame, one token, long and flat, portrait, and as many frames as rows and columns; twice the same, which are computed together.
GRIDS = (Grid(3, 4, 5), Grid(1, 3, 7), Grid(1, 3, 7), Grid(5, 2, 2), Grid(4, 1, 1), Grid(1, 1, 1), Grid(2, 2, 2), Grid(1, 20, 6))
# (reach, causal)
MASKS = [
    ((0, -1, -1), False),  # frames by themselves
    ((-1, 0, 0), False),  # places over time
    ((1, 0, 0), True),
    ((-1, -1, -1), True),
    ((1, -1, -1), True),
    ((1, 1, 1), False),
    ((0, 1, -1), False),
    ((-1, 1, 2), False),
    ((1, -1, 1), True),
    ((0, 0, 0), False),
]


def inputs(q_lengths, k_lengths, *, heads=3, kv_heads=None, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(q_lengths), heads), *[(sum(k_lengths), kv_heads or heads)] * 2]
    # Rounded to bfloat16 first, so that every dtype begins with the same numbers.
    tensors = [torch.randn(*shape, width, generator=generator, dtype=torch.float64).bfloat16().to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


def check(backend, dtype, q_lengths, k_lengths, segments, mask=None, **shape):
    """Outputs and gradients of a backend against the formula in float64."""
    ours = inputs(q_lengths, k_lengths, dtype=dtype, **shape)
    truth = inputs(q_lengths, k_lengths, dtype=torch.float64, **shape)
    out, expected = backend(*ours, *segments, mask), dense_attention(*truth, *segments, mask)
    assert out.dtype == dtype
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
    found = torch.autograd.grad((out * weight.to(dtype)).sum(), ours)
    wanted = torch.autograd.grad((expected * weight.double()).sum(), truth)
    for mine, theirs, tolerance in zip((out, *found), (expected, *wanted), (TOLERANCE[dtype][0], *[TOLERANCE[dtype][1]] * 3), strict=True):
        assert not len(theirs) or (mine.double() - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max())


def layout(grids=GRIDS, *, padding=5, empty=2):
    tokens = sum(grid.tokens for grid in grids)
    clips, seconds = [torch.zeros(grid.tokens, 1) for grid in grids], [torch.zeros(grid.t) for grid in grids]
    return Layout.of(pack(clips, grids, seconds=seconds, budget=tokens + padding, max_clips=len(grids) + empty))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", [per_segment_attention, chunked_attention])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), RAGGED)
def test_outputs_and_gradients_are_those_of_the_masked_formula(q_lengths, k_lengths, backend, dtype):
    check(backend, dtype, q_lengths, k_lengths, (Segments.of(q_lengths), Segments.of(k_lengths)))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", [per_segment_attention, chunked_attention])
@pytest.mark.parametrize(("reach", "causal"), MASKS)
def test_every_mask_is_that_of_brute_force(reach, causal, backend, dtype):
    where = layout()
    mask = Mask(where, reach, causal)
    check(backend, dtype, where.segments.lengths, where.segments.lengths, (where.segments,) * 2, mask, heads=4, kv_heads=2, width=4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("backend", [per_segment_attention, chunked_attention])
def test_fewer_heads_of_keys_serve_as_many_queries_each(backend, kv_heads):
    q_lengths, k_lengths = RAGGED[2]
    check(backend, torch.float32, q_lengths, k_lengths, (Segments.of(q_lengths), Segments.of(k_lengths)), heads=4, kv_heads=kv_heads)


def test_chunks_of_queries_add_up(monkeypatch):
    monkeypatch.setattr(importlib.import_module("sora.dit.attention.chunked"), "SCORES", 1)
    lengths = (100, 37)
    check(chunked_attention, torch.float32, lengths, lengths, (Segments.of(lengths),) * 2, heads=4, kv_heads=2)
    where = layout((Grid(2, 9, 5), Grid(1, 7, 7)))
    check(
        chunked_attention,
        torch.float32,
        where.segments.lengths,
        where.segments.lengths,
        (where.segments,) * 2,
        Mask(where, (1, 2, 1), True),
    )


@pytest.mark.parametrize(("reach", "causal"), [(None, False), *MASKS])
def test_flex_attention_has_the_same_mask(reach, causal):
    """Its kernels need a GPU; what it is told to compute can be read, and computed forwards on a CPU."""
    where = layout()
    mask = None if reach is None else Mask(where, reach, causal)
    lengths = where.segments.lengths
    q, k, v = (tensor.detach() for tensor in inputs(lengths, lengths, heads=4, kv_heads=2))
    expected = dense_attention(q, k, v, where.segments, where.segments, mask)
    torch.testing.assert_close(flex_attention(q, k, v, where.segments, where.segments, mask), expected, atol=2e-6, rtol=0)
    kept = block_mask_of(where.segments, where.segments, mask, len(q), len(q))
    assert kept is block_mask_of(where.segments, where.segments, mask, len(q), len(q))  # found once for all blocks of a network


@pytest.mark.parametrize(("reach", "causal"), [(None, False), ((1, 1, 1), False), ((-1, -1, -1), True)])
def test_the_blocks_that_flex_attention_reads_are_found_without_a_matrix_of_all_pairs(reach, causal, monkeypatch):
    """Part after part they are those of the whole, also where the last part and the last block are not full."""

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.bytes = max([self.bytes, *(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
            return out

    where = layout((Grid(5, 12, 13), Grid(1, 9, 16), Grid(2, 16, 9)))
    mask, count = None if reach is None else Mask(where, reach, causal), where.segments.total
    assert count % 256
    monkeypatch.setattr(importlib.import_module("sora.dit.attention.flex"), "PAIRS", 256 * count)
    with Largest() as largest:
        found = block_mask_of(where.segments, where.segments, mask, count, count)
    assert largest.bytes <= 8 * 256 * (count + 127)  # numbers of so many pairs
    owner = owners(where.segments)
    expected = create_block_mask(mask_mod(owner, owner, mask), None, None, count, count, device="cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.shape == expected.shape and 0 < found.sparsity() < 100


def test_flex_attention_to_captions():
    q_lengths, k_lengths = RAGGED[2]
    segments = Segments.of(q_lengths), Segments.of(k_lengths)
    q, k, v = (tensor.detach() for tensor in inputs(q_lengths, k_lengths))
    torch.testing.assert_close(flex_attention(q, k, v, *segments), dense_attention(q, k, v, *segments), atol=2e-6, rtol=0)


def test_views_with_odd_strides_are_read_right():
    """q, k and v usually are slices of one fused projection."""
    lengths = (4, 4, 3, 0, 5)
    fused = torch.randn(sum(lengths), 3, 2, 8)
    q, k, v = fused.unbind(1)
    segments = Segments.of(lengths)
    torch.testing.assert_close(
        fastest_attention(q, k, v, segments, segments), dense_attention(q, k, v, segments, segments), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("backend", [per_segment_attention, chunked_attention])
def test_gradcheck_against_finite_differences(backend):
    q, k, v = inputs((3, 3, 2), (2, 2, 4), heads=2, width=4, dtype=torch.float64)
    segments = Segments.of((3, 3, 2)), Segments.of((2, 2, 4))
    assert torch.autograd.gradcheck(lambda *qkv: backend(*qkv, *segments), (q, k, v), fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["per_segment", "chunked"])
def test_the_op_keeps_the_promises_of_a_custom_op(name):
    q, k, v = inputs((3, 3, 2), (2, 2, 4))
    segments = Segments.of((3, 3, 2)), Segments.of((2, 2, 4))
    op = getattr(torch.ops.sora_attend, name).default
    torch.library.opcheck(op, (q, k, v, *places(*segments, None)))
    assert is_attention(op)
    assert not is_attention(torch.ops.aten.mm.default)


@pytest.mark.parametrize("backend", [per_segment_attention, chunked_attention])
@pytest.mark.parametrize(("reach", "causal"), [(None, False), *MASKS])
def test_flops_are_counted_by_the_pairs_that_see_one_another(reach, causal, backend):
    where = layout()
    mask = None if reach is None else Mask(where, reach, causal)
    q, k, v = inputs(where.segments.lengths, where.segments.lengths, heads=4, kv_heads=2)
    seen = int(allowed(where.segments, where.segments, mask).sum())
    with FlopCounterMode(display=False) as counter:
        out = backend(q, k, v, where.segments, where.segments, mask)
        assert counter.get_total_flops() == 4 * seen * 4 * 8
        out.sum().backward()
    assert counter.get_total_flops() == (4 + 10) * seen * 4 * 8


class Package:
    """Functions of flash attention that check how they are called, in the place of kernels that need a GPU."""

    @staticmethod
    def called(q, k, offsets, longest):
        lengths = [cu.diff().tolist() for cu in offsets]
        assert all(cu.dtype == torch.int32 for cu in offsets)
        assert list(longest) == [max(each) for each in lengths]
        assert [len(q), len(k)] == [sum(each) for each in lengths]
        return [Segments.of(each) for each in lengths]

    @staticmethod
    def _flash_attn_varlen_forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p, softmax_scale, causal):
        assert (dropout_p, softmax_scale, causal) == (0.0, pytest.approx(q.shape[-1] ** -0.5), False)
        return dense_attention(q, k, v, *Package.called(q, k, (cu_q, cu_k), (max_q, max_k))), torch.zeros(q.shape[1], len(q)), None, None

    @staticmethod
    def _flash_attn_varlen_backward(grad, q, k, v, out, lse, dq, dk, dv, cu_q, cu_k, max_q, max_k, **settings):
        assert (settings["dropout_p"], settings["causal"]) == (0.0, False)
        assert settings["softmax_scale"] == pytest.approx(q.shape[-1] ** -0.5)
        assert grad.is_contiguous() and grad.shape == out.shape == q.shape and lse.shape == (q.shape[1], len(q))
        Package.called(q, k, (cu_q, cu_k), (max_q, max_k))
        for given, number in ((dq, 1.0), (dk, 2.0), (dv, 3.0)):
            given.fill_(number)


def test_flash_attention_is_called_as_it_asks_to_be(monkeypatch):
    """Offsets, their dtypes, the longest segments, the shape of the log-sum-exp and whose gradient is whose."""
    segments = [Segments.of(lengths) for lengths in RAGGED[2]]
    q, k, v = inputs(*RAGGED[2], heads=4, kv_heads=2)
    monkeypatch.setattr(importlib.import_module("sora.dit.attention.flash"), "_package", lambda: Package)
    out, _ = torch.ops.sora_attend.flash(q, k, v, *places(*segments, None))
    torch.testing.assert_close(out, dense_attention(q, k, v, *segments), atol=2e-6, rtol=0)
    found = torch.autograd.grad(out.sum(), (q, k, v))
    assert [grad.unique().tolist() for grad in found] == [[1.0], [2.0], [3.0]]
    assert [grad.shape for grad in found] == [q.shape, k.shape, v.shape]


def test_torchs_variable_length_attention_is_called_as_it_asks_to_be(monkeypatch):
    segments = [Segments.of(lengths) for lengths in RAGGED[2]]
    q, k, v = inputs(*RAGGED[2], heads=4, kv_heads=2)

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux, enable_gqa):
        assert return_aux.lse and enable_gqa
        return dense_attention(q, k, v, *Package.called(q, k, (cu_q, cu_k), (max_q, max_k))), torch.zeros(q.shape[1], len(q))

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    out, _ = torch.ops.sora_attend.varlen(q, k, v, *places(*segments, None))
    torch.testing.assert_close(out, dense_attention(q, k, v, *segments), atol=2e-6, rtol=0)


def test_the_flash_attn_package_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(importlib.import_module("sys").modules, "flash_attn", None)
    with pytest.raises(ValueError, match=r"pip install flash-attn.*dit\.attention\._target_=sora\.dit\.varlen_attention"):
        importlib.import_module("sora.dit.attention.flash")._package()


def test_an_older_flash_attn_package_is_refused_by_its_version(monkeypatch):
    for version, said in (("2.6.3", r"needs flash-attn 2\.7 or later, here is 2\.6\.3"), ("2.7.0.post2", None), ("2.10.1", None)):
        package = SimpleNamespace(__version__=version, flash_attn_interface=ModuleType("flash_attn_interface"))
        monkeypatch.setitem(importlib.import_module("sys").modules, "flash_attn", package)
        with pytest.raises(ValueError, match=said) if said else nullcontext():
            assert importlib.import_module("sora.dit.attention.flash")._package() is package.flash_attn_interface


@pytest.mark.parametrize("backend", [varlen_attention, flash_attention])
def test_heads_that_flash_attention_does_not_take_are_refused_by_their_keys(backend):
    segments = (Segments.of((3,)),) * 2
    with FakeTensorMode(), torch.device("cuda"):
        for width in (12, 264):
            q, k, v = (torch.empty(3, 2, width, dtype=torch.bfloat16) for _ in "qkv")
            with pytest.raises(ValueError, match=rf"multiple of 8 up to 256, and dit\.width / dit\.heads is {width}"):
                backend(q, k, v, *segments)


@pytest.mark.parametrize("backend", [varlen_attention, flash_attention])
def test_a_backend_that_cannot_run_here_says_why(backend):
    q, k, v = inputs((3,), (3,))
    segments = (Segments.of((3,)),) * 2
    with pytest.raises(ValueError, match=r"CUDA.*dit\.attention\._target_=sora\.dit\.fastest_attention"):
        backend(q, k, v, *segments)
    with pytest.raises(ValueError, match=r"no masks.*dit\.attention\._target_=sora\.dit\.fastest_attention"):
        backend(q, k, v, *segments, Mask(layout((Grid(1, 1, 3),), padding=0), (0, 0, 0), False))


def test_flex_attention_refuses_to_train_on_a_cpu():
    q, k, v = inputs((3,), (3,))
    with pytest.raises(ValueError, match=r"trains on CUDA only.*sora\.dit\.fastest_attention"):
        flex_attention(q, k, v, *(Segments.of((3,)),) * 2)


def test_the_fastest_backend_is_chosen_by_device_dtype_and_mask(monkeypatch):
    monkeypatch.setattr("sora.dit.attention.fastest.MULTIPLIES_BFLOAT16", True)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert fastest(cuda, torch.bfloat16, 64, masked=False) is varlen_attention
    assert fastest(cuda, torch.bfloat16, 64, masked=True) is flex_attention
    assert fastest(cuda, torch.bfloat16, 60, masked=False) is fastest(cuda, torch.bfloat16, 264, masked=False) is flex_attention
    assert fastest(cuda, torch.float32, 64, masked=False) is flex_attention
    assert fastest(cpu, torch.float32, 64, masked=True) is per_segment_attention
    assert fastest(cpu, torch.bfloat16, 64, masked=True) is chunked_attention
    monkeypatch.setattr("sora.dit.attention.fastest.MULTIPLIES_BFLOAT16", False)
    assert fastest(cpu, torch.bfloat16, 60, masked=False) is per_segment_attention
