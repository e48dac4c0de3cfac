"""A step of the network beside those of diffusers, on packs of many shapes, and under recomputing: `make bench-dit` writes dit.json here.

Everything runs on one thread and is timed by the processor's clock, side by side and in turn; the first round is not counted unless it
takes longer than a comparison may, and figures are ratios of medians. Peers are run all together first, and then the fastest two again
beside ours: the least of several noisy times is too small. `gflop` in the rows is what a step multiplies: a network whose tokens attend to
captions multiplies some 4 % more than one whose words are tokens.

Where the processor does not multiply bfloat16 (`native_bfloat16` in the file), torch emulates it and is slow, and ratios of times in it are
null. What blocks and packing are worth is then told by those that end in _float32; what the attention for bfloat16
(`sora.dit.attention.chunked`) is worth, by none. Needs diffusers (in the dev extra).
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import torch
from peers.dit import HEAD, HEADS, PATCH, WIDTH, WORDS, peers
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.activation_bytes import kept_bytes, peak_bytes
from sora.dit.attention.fastest import MULTIPLIES_BFLOAT16, fastest_attention
from sora.dit.attention.patterns import full_attention
from sora.dit.blocks.lean import lean_block
from sora.dit.dit import DiT, cross_block, gelu, layer_norm, rms_per_head
from sora.dit.layers.modulation import SingleModulation
from sora.dit.layers.rope import AxialRope
from sora.patches.packing import pack, unpack
from sora.system.files import write_json
from sora.tokens import Grid, NoiseLevels, PackedTokens, Segments, TextTokens
from sora.training import activation_checkpointing as recompute

HERE = Path(__file__).resolve().parent
SECONDS, ROUNDS = 90.0, 15  # for each comparison: rounds until so long, and at most so many
RECOMPUTED = torch.bfloat16 if MULTIPLIES_BFLOAT16 else torch.float32  # what B5 computes in


# ---- networks, each as a function of nothing that runs a forward pass


def ours(depth: int, dtype: torch.dtype, *, block=lean_block, attention=fastest_attention) -> DiT:
    torch.manual_seed(0)
    network = DiT(
        patch_channels=PATCH,
        text_width=WIDTH,
        width=WIDTH,
        depth=depth,
        heads=HEADS,
        kv_heads=None,
        mlp=gelu,
        mlp_ratio=4.0,
        rope=AxialRope(axes=[16, 24, 24], time_scale=6.0, theta=1e4),
        position=None,
        pooled_text=False,
        norm=partial(layer_norm, eps=1e-6),
        qk_norm=partial(rms_per_head, eps=1e-6),
        modulation=SingleModulation(),
        attention=attention,
        pattern=full_attention,
        block=block,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return network.to(dtype)


def packed(grids: list[Grid], dtype: torch.dtype, *, words: int, seed: int = 0) -> tuple[PackedTokens, NoiseLevels, TextTokens]:
    """Clips of these grids without padding, each at one noise level and with a caption of so many words."""
    draw = torch.Generator().manual_seed(seed)
    patches = [torch.randn(grid.tokens, PATCH, generator=draw).to(dtype) for grid in grids]
    total, count = sum(grid.tokens for grid in grids), len(grids)
    tokens = pack(patches, grids, seconds=[torch.arange(grid.t) / 6 for grid in grids], budget=total, max_clips=count)
    index = torch.arange(count).repeat_interleave(torch.tensor([grid.tokens for grid in grids]))
    levels = NoiseLevels(torch.linspace(0.1, 0.9, count + 1), index, torch.arange(count + 1))
    states = torch.randn(words * count, WIDTH, generator=draw).to(dtype)
    return tokens, levels, TextTokens(states, Segments.of([words] * count + [0]))


def backward_of(network: torch.nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        network.zero_grad(set_to_none=True)
        forward().float().square().mean().backward()

    return step


# ---- measuring


def in_turn(steps: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """The processor seconds of each, run one after another in rounds; the first round is a warm-up if there is time for others."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.process_time()
    for number in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
        if time.process_time() - begin > SECONDS * (number + 1) / (number + 2):
            break
    return {name: seconds[1:] or seconds for name, seconds in times.items()}


def gflop(step: Callable[[], object]) -> float:
    """Multiplications and additions of a step, in thousand millions. torch has no formula for its own attention on the CPU."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def products(count: int, q: torch.Size, k: torch.Size) -> int:
        return 2 * count * q.numel() * k[-2]

    formulas: dict[Any, Any] = {
        flash: lambda q, k, *_, **__: products(2, q, k),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, *_, **__: products(5, q, k),
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        step()
    return counter.get_total_flops() / 1e9


def fixed_step(frames: int, depth: int, dtype: torch.dtype, only: list[str] | None = None) -> list[dict]:
    """B1: one clip of `frames` x 16 x 16 patches, forward and backward. only: the peers to run."""
    inputs = packed([Grid(frames, 16, 16)], dtype, words=WORDS)
    steps, rows = {}, []
    built = {name: make for name, make in peers(depth, frames, dtype).items() if only is None or name in only}
    network = ours(depth, dtype)
    for name, make in {"sora": lambda: (network, lambda: network(*inputs)), **built}.items():
        model, forward = make()
        kept = kept_bytes(forward, besides=model.parameters())
        steps[name] = backward_of(model, forward)
        rows.append({"network": name, "kept_mb": kept / 1e6, "parameters": sum(value.numel() for value in model.parameters())})
        if dtype == torch.float32:  # in others as many, and slowly where they are emulated
            rows[-1]["gflop"] = gflop(steps[name])
    for row, seconds in zip(rows, in_turn(steps).values(), strict=True):
        shared = {"bench": "peers" if only is None else "fixed", "tokens": frames * 256, "depth": depth, "dtype": str(dtype)}
        row |= shared | {"seconds": statistics.median(seconds), "rounds": seconds}
    return rows


def beside_fastest(frames: int, depth: int, dtype: torch.dtype, only: list[str] | None = None) -> list[dict]:
    """`fixed_step` of all peers (or of those named) and again of the fastest two."""
    rows = fixed_step(frames, depth, dtype) if only is None else []
    return [*rows, *fixed_step(frames, depth, dtype, only or fastest(rows))]


def fastest(rows: list[dict]) -> list[str]:
    others = [row for row in rows if row["bench"] == "peers" and row["network"] != "sora"]
    return [row["network"] for row in sorted(others, key=lambda row: row["seconds"])[:2]]


def roofline(frames: int, depth: int, dtype: torch.dtype) -> dict:
    """Processor seconds of the blocks' products and attention alone, at the rates measured in turn with whole steps, and of a step."""
    count, network = frames * 256, ours(depth, dtype)
    step = backward_of(network, partial(network, *packed([Grid(frames, 16, 16)], dtype, words=WORDS)))
    segments, words = Segments.of([count, 0]), Segments.of([WORDS, 0])
    shape = (count, HEADS, HEAD)
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    text = [torch.randn(WORDS, HEADS, HEAD).to(dtype).requires_grad_() for _ in range(2)]
    grad = torch.randn(shape).to(dtype)
    # what multiplies this dtype fastest here: itself, or float32 where it would be emulated
    fast = torch.float32 if dtype == torch.bfloat16 and not MULTIPLIES_BFLOAT16 else dtype
    a, b = torch.randn(2048, WIDTH).to(fast), torch.randn(4 * WIDTH, WIDTH).to(fast)
    times = in_turn(
        {
            "product": lambda: [F.linear(a, b) for _ in range(8)],
            "attention": lambda: torch.autograd.grad(fastest_attention(q, k, v, segments, segments), (q, k, v), grad),
            "cross": lambda: torch.autograd.grad(fastest_attention(q, *text, segments, words), (q, *text), grad),
            "step": step,
        }
    )
    parts = {name: statistics.median(seconds) for name, seconds in times.items()}
    rate = 8 * 2 * 2048 * WIDTH * 4 * WIDTH / parts["product"]
    layers = {name: layer.weight.numel() for name, layer in network.blocks.named_modules() if isinstance(layer, torch.nn.Linear)}
    products = sum(6 * size * (WORDS if name.endswith("cross.kv") else count) for name, size in layers.items())
    bound = products / rate + depth * (parts["attention"] + parts["cross"])
    return {"bench": "roofline", "tokens": count, "dtype": str(dtype), "bound": bound, **parts}


# ---- clips of many shapes


def mix() -> list[Grid]:
    """Twelve clips of 1 to 16 latent frames in three aspect ratios: 10,080 tokens (seed 0)."""
    draw = random.Random(0)
    return [Grid(frames, *draw.choice(((9, 16), (16, 9), (12, 12)))) for frames in (1, 1, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]


def packs(grids: list[Grid], budget: int) -> list[list[Grid]]:
    """First fit, longest first; in training the next clips would fill the last."""
    found: list[list[Grid]] = []
    for grid in sorted(grids, key=lambda grid: -grid.tokens):
        home = next((one for one in found if sum(each.tokens for each in one) + grid.tokens <= budget), None)
        found.append([grid]) if home is None else home.append(grid)
    return found


def stock(lengths: list[int] | None) -> Callable[..., Tensor]:
    """torch's attention over (clips, tokens) of one length, as networks without packing call it. lengths: of clips that are padded."""

    def attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask=None) -> Tensor:
        clips = q_segments.count - 1  # the last segment is empty padding
        queries, keys, values = (x.unflatten(0, (clips, -1)).transpose(1, 2) for x in (q, k, v))
        seen = None
        if lengths is not None and q.shape[0] == k.shape[0]:
            seen = (torch.arange(keys.shape[2]) < torch.tensor(lengths)[:, None])[:, None, None]
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen).transpose(1, 2).flatten(0, 1)

    return attention


def mixed_step(dtype: torch.dtype) -> list[dict]:
    """B2: real tokens a second of batches of four padded to the longest, of one shape each, and of packs."""
    grids, words = mix(), 16
    shuffled = random.Random(1).sample(grids, len(grids))
    batches = {
        "padding": [shuffled[first : first + 4] for first in range(0, len(grids), 4)],
        "buckets": [[one for one in grids if one == shape] for shape in sorted(set(grids))],
        "packed": packs(grids, 4608),
    }
    steps: dict[str, Callable[[], object]] = {}
    for name, groups in batches.items():
        runs = []
        for group in groups:
            if name == "padding":
                longest, lengths = max(grid.tokens for grid in group), [grid.tokens for grid in group]
                network = ours(1, dtype, block=cross_block, attention=stock(lengths))
                inputs = packed([Grid(1, 1, longest)] * len(group), dtype, words=words)
            else:
                network = ours(1, dtype, block=cross_block, attention=stock(None)) if name == "buckets" else ours(1, dtype)
                inputs = packed(group, dtype, words=words)
            runs.append(backward_of(network, partial(network, *inputs)))
        steps[name] = lambda runs=runs: [run() for run in runs]
    real = sum(grid.tokens for grid in grids)
    shared = {"bench": "mix", "dtype": str(dtype), "real_tokens": real}
    return [
        shared
        | {"batching": name, "batches": len(batches[name]), "tokens_per_second": real / statistics.median(seconds), "rounds": seconds}
        for name, seconds in in_turn(steps).items()
    ]


def packed_losses() -> dict:
    """Losses of packs and of the same clips one by one, in float32."""
    network, together, alone = ours(1, torch.float32), 0.0, 0.0
    with torch.no_grad():
        for group in packs(mix(), 4608):
            tokens, levels, text = packed(group, torch.float32, words=16)
            together += sum(float(out.double().square().mean()) for out in unpack(network(tokens, levels, text), tokens.grids))
            start = 0
            for number, grid in enumerate(group):
                here, read = slice(start, start + grid.tokens), slice(16 * number, 16 * number + 16)
                one = pack([tokens.patches[here]], [grid], seconds=[torch.arange(grid.t) / 6], budget=grid.tokens, max_clips=1)
                level = NoiseLevels(levels.levels[[number, -1]], torch.zeros(grid.tokens, dtype=torch.int64), torch.arange(2))
                out = network(one, level, TextTokens(text.states[read], Segments.of([16, 0])))
                alone += float(out.double().square().mean())
                start = here.stop
    return {"bench": "losses", "packed": together, "alone": alone}


# ---- recomputing


def recomputed_step() -> list[dict]:
    """B5: depth 4, 2,048 tokens: time, and the most memory beside weights and gradients."""
    policies = {"none": recompute.recompute_none, "full": recompute.recompute_all, "every_2": partial(recompute.recompute_every_n, n=2)}
    policies["save_attention"] = recompute.recompute_all_but_attention
    inputs, steps, rows = packed([Grid(8, 16, 16)], RECOMPUTED, words=WORDS), {}, []
    for name, policy in policies.items():
        network = ours(4, RECOMPUTED)
        policy(network)
        for value in network.parameters():
            value.grad = torch.zeros_like(value)
        held = [*network.parameters(), *[value.grad for value in network.parameters() if value.grad is not None]]
        step = lambda network=network: network(*inputs).float().square().mean().backward()  # noqa: E731
        rows.append({"bench": "recompute", "policy": name, "peak_mb": peak_bytes(step, besides=held) / 1e6})
        steps[name] = step
    times = in_turn(steps)
    return [row | {"seconds": statistics.median(times[row["policy"]]), "rounds": times[row["policy"]]} for row in rows]


IN_BFLOAT16 = ("time_vs_fastest_peer_1024", "time_vs_fastest_peer_4096", "roofline_share_1024", "packed_vs_buckets", "packed_vs_padding")


def figures(rows: list[dict]) -> dict[str, float | None]:
    """Ratios by name; those of times in bfloat16 are None where the processor emulates it."""

    def fixed(tokens: int, dtype: torch.dtype, bench: str = "fixed") -> tuple[dict, list[dict]]:
        found = [row for row in rows if row["bench"] == bench and row["tokens"] == tokens and row["dtype"] == str(dtype)]
        return found[0], found[1:]

    def against(tokens: int, dtype: torch.dtype, key: str) -> float:
        mine, others = fixed(tokens, dtype)
        peer = min(others, key=lambda row: row["seconds"])
        return mine[key] / peer[key]

    leanest = min(row["kept_mb"] for row in fixed(1024, torch.bfloat16, "peers")[1])
    mixes = [row for row in rows if row["bench"] == "mix"]
    half, wide = (
        {row["batching"]: row["tokens_per_second"] for row in mixes if row["dtype"] == str(dtype)}
        for dtype in (torch.bfloat16, torch.float32)
    )
    shares = {row["dtype"]: row["bound"] / row["step"] for row in rows if row["bench"] == "roofline"}
    policies = {row["policy"]: row for row in rows if row["bench"] == "recompute"}
    losses = next(row for row in rows if row["bench"] == "losses")
    found = {
        "time_vs_fastest_peer_1024": against(1024, torch.bfloat16, "seconds"),
        "time_vs_fastest_peer_4096": against(4096, torch.bfloat16, "seconds"),
        "time_vs_fastest_peer_1024_float32": against(1024, torch.float32, "seconds"),
        "time_vs_fastest_peer_4096_float32": against(4096, torch.float32, "seconds"),
        "gflop_vs_fastest_peer_1024_float32": against(1024, torch.float32, "gflop"),
        "gflop_vs_fastest_peer_4096_float32": against(4096, torch.float32, "gflop"),
        "roofline_share_1024": shares[str(torch.bfloat16)],
        "roofline_share_1024_float32": shares[str(torch.float32)],
        "saved_bytes_vs_leanest_peer": fixed(1024, torch.bfloat16)[0]["kept_mb"] / leanest,
        "packed_vs_buckets": half["packed"] / half["buckets"],
        "packed_vs_padding": half["packed"] / half["padding"],
        "packed_vs_buckets_float32": wide["packed"] / wide["buckets"],
        "packed_vs_padding_float32": wide["packed"] / wide["padding"],
        "save_attention_time": policies["save_attention"]["seconds"] / policies["none"]["seconds"],
        "save_attention_memory_vs_full": policies["save_attention"]["peak_mb"] / policies["full"]["peak_mb"],
        "packed_loss_rel_diff": abs(losses["packed"] - losses["alone"]) / losses["alone"],
    }
    return found if MULTIPLIES_BFLOAT16 else found | dict.fromkeys(IN_BFLOAT16)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[dict] = []
    for dtype in (torch.bfloat16, torch.float32):
        short = beside_fastest(4, 2, dtype)
        slow = dtype == torch.bfloat16 and not MULTIPLIES_BFLOAT16  # then not all peers on the long clip
        rows += [*short, *beside_fastest(16, 1, dtype, fastest(short) if slow else None), roofline(4, 2, dtype), *mixed_step(dtype)]
    rows += [packed_losses(), *recomputed_step()]
    found = figures(rows)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    write_json(
        HERE / "dit.json",
        {
            "figures": found,
            "native_bfloat16": MULTIPLIES_BFLOAT16,
            "rows": rows,
            "settings": {
                "width": WIDTH,
                "heads": HEADS,
                "words": WORDS,
                "threads": 1,
                "rounds": ROUNDS,
                "recomputed": str(RECOMPUTED),
            },
            "machine": machine,
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "diffusers": diffusers.__version__},
            "commit": commit,
        },
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
