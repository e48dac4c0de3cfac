"""A step of the network beside those of diffusers, on packs of many shapes, and under recomputing: `make bench-dit` writes dit.json here.

Everything runs on one thread and is timed by the processor's clock, side by side and in turn; figures are ratios of medians. Where the
processor does not multiply bfloat16 (`native_bfloat16` in the file), peers are slow because torch emulates it: compare the rows in float32.
Needs diffusers (in the dev extra).
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

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import diffusers
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    CosmosTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor
from torch.nn import functional as F

from sora.dit.attention import attend
from sora.dit.attention.fastest import MULTIPLIES_BFLOAT16
from sora.dit.dit import DiT, cross, gelu, layer_norm, rms_per_head
from sora.dit.lean import lean
from sora.dit.modulation import Single
from sora.dit.patterns import full
from sora.dit.rope import AxialRope
from sora.patches import pack, unpack
from sora.storage import write_json
from sora.tokens import Grid, NoiseLevels, PackedTokens, Segments, TextTokens
from sora.training import recompute
from sora.training.kept import kept_bytes, peak_bytes

HERE = Path(__file__).resolve().parent
WIDTH, HEADS, CHANNELS, WORDS = 384, 6, 16, 64
HEAD, PATCH = WIDTH // HEADS, 4 * CHANNELS
SECONDS, ROUNDS = 30.0, 7  # for each comparison: rounds until so long, and at most so many
MIX_DTYPE = torch.bfloat16 if MULTIPLIES_BFLOAT16 else torch.float32


# ---- networks, each as a function of nothing that runs a forward pass


def ours(depth: int, dtype: torch.dtype, *, block=lean, attention=attend) -> DiT:
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
        modulation=Single(),
        attention=attention,
        pattern=full,
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


def peers(depth: int, frames: int, dtype: torch.dtype) -> dict[str, Callable[[], tuple[torch.nn.Module, Callable[[], Tensor]]]]:
    """diffusers' networks of our width, depth and heads on a clip of `frames` x 16 x 16 patches and 64 words."""
    inputs, makers = peer_inputs(frames, dtype), peer_makers(depth, frames)

    def made(name: str) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
        network, (given, named) = makers[name]().to(dtype), inputs[name]
        return network, lambda: network(*given, **named, return_dict=False)[0]

    return {name: partial(made, name) for name in makers}


def peer_makers(depth: int, frames: int) -> dict[str, Callable[[], torch.nn.Module]]:
    heads = {"num_attention_heads": HEADS, "attention_head_dim": HEAD}
    deep, read = {**heads, "num_layers": depth}, {"text_embed_dim": WIDTH}
    shape = {"sample_width": 32, "sample_height": 32, "sample_frames": 4 * frames - 3, "max_text_seq_length": WORDS}
    halves = {"num_layers": depth // 2, "num_single_layers": depth - depth // 2, "num_refiner_layers": 1}
    plain = {"concat_padding_mask": False, "extra_pos_embed_type": None}
    return {
        "wan": partial(WanTransformer3DModel, **deep, text_dim=WIDTH, ffn_dim=4 * WIDTH),
        "ltx": partial(
            LTXVideoTransformer3DModel, **deep, in_channels=PATCH, out_channels=PATCH, cross_attention_dim=WIDTH, caption_channels=WIDTH
        ),
        "cogvideox": partial(CogVideoXTransformer3DModel, **deep, **read, **shape, use_rotary_positional_embeddings=True),
        "hunyuan_video": partial(
            HunyuanVideoTransformer3DModel,
            **{**heads, **halves, **read},
            pooled_projection_dim=WIDTH,
            rope_axes_dim=(16, 24, 24),
            guidance_embeds=False,
        ),
        "mochi": partial(
            MochiTransformer3DModel, **deep, **read, pooled_projection_dim=WIDTH, in_channels=CHANNELS, max_sequence_length=WORDS
        ),
        "cosmos": partial(CosmosTransformer3DModel, **deep, **read, **plain, adaln_lora_dim=WIDTH // 4),
    }


def peer_inputs(frames: int, dtype: torch.dtype) -> dict[str, tuple[tuple, dict]]:
    """What each is called with, by place and by name."""
    video, text = torch.randn(1, CHANNELS, frames, 32, 32).to(dtype), torch.randn(1, WORDS, WIDTH).to(dtype)
    time_, seen = torch.tensor([500]), torch.ones(1, WORDS, dtype=torch.bool)
    tokens = torch.randn(1, frames * 256, PATCH).to(dtype)
    rotations = torch.ones(frames * 256, HEAD), torch.zeros(frames * 256, HEAD)
    return {
        "wan": ((video, time_, text), {}),
        "ltx": ((tokens, text, time_, seen, frames, 16, 16), {}),
        "cogvideox": ((video.transpose(1, 2).contiguous(), text, time_), {"image_rotary_emb": rotations}),
        "hunyuan_video": ((video, time_, text, seen, text.mean(1)), {}),
        "mochi": ((video, text, time_, seen), {}),
        "cosmos": ((video, time_.to(dtype), text), {}),
    }


def backward_of(network: torch.nn.Module, forward: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        network.zero_grad(set_to_none=True)
        forward().float().square().mean().backward()

    return step


# ---- measuring


def in_turn(steps: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median processor seconds of each, run one after another in rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.process_time()
    for number in range(ROUNDS):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
        if time.process_time() - begin > SECONDS * (number + 1) / (number + 2):
            break
    return {name: statistics.median(values) for name, values in times.items()}


def fixed_step(frames: int, depth: int, dtype: torch.dtype, only: list[str] | None = None) -> list[dict]:
    """B1: one clip of `frames` x 16 x 16 patches, forward and backward. only: the peers to run."""
    inputs = packed([Grid(frames, 16, 16)], dtype, words=WORDS)
    steps, rows = {}, []
    built = {name: make for name, make in peers(depth, frames, dtype).items() if only is None or name in only}
    network = ours(depth, dtype)
    for name, make in {"sora": lambda: (network, lambda: network(*inputs)), **built}.items():
        model, forward = make()
        kept = kept_bytes(forward, besides=model.parameters())  # and a warm-up
        steps[name] = backward_of(model, forward)
        rows.append({"network": name, "kept_mb": kept / 1e6, "parameters": sum(value.numel() for value in model.parameters())})
    seconds = in_turn(steps)
    for row in rows:
        row |= {"bench": "fixed", "tokens": frames * 256, "depth": depth, "dtype": str(dtype), "seconds": seconds[row["network"]]}
    return rows


def roofline(frames: int, depth: int, dtype: torch.dtype) -> float:
    """Processor seconds of a step's products and attention alone, at the rates that this process measures for them."""
    count, blocks = frames * 256, ours(1, dtype).blocks
    segments, words = Segments.of([count, 0]), Segments.of([WORDS, 0])
    shape = (count, HEADS, HEAD)
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(3))
    text = [torch.randn(WORDS, HEADS, HEAD).to(dtype).requires_grad_() for _ in range(2)]
    grad = torch.randn(shape).to(dtype)
    # what multiplies this dtype fastest here: itself, or float32 where it would be emulated
    fast = torch.float32 if dtype == torch.bfloat16 and not MULTIPLIES_BFLOAT16 else dtype
    a, b = torch.randn(2048, WIDTH).to(fast), torch.randn(4 * WIDTH, WIDTH).to(fast)
    parts = in_turn(
        {
            "product": lambda: [F.linear(a, b) for _ in range(8)],
            "attention": lambda: torch.autograd.grad(attend(q, k, v, segments, segments), (q, k, v), grad),
            "cross": lambda: torch.autograd.grad(attend(q, *text, segments, words), (q, *text), grad),
        }
    )
    rate = 8 * 2 * 2048 * WIDTH * 4 * WIDTH / parts["product"]
    weights = sum(value.numel() for name, value in blocks.named_parameters() if name.endswith("weight") and "kv" not in name)
    of_words = sum(value.numel() for name, value in blocks.named_parameters() if name.endswith("kv.weight"))
    products = 6 * (weights * count + of_words * WORDS)
    return depth * (products / rate + parts["attention"] + parts["cross"])


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


def mixed_step() -> list[dict]:
    """B2: real tokens a second of batches of four padded to the longest, of one shape each, and of packs."""
    grids, dtype, words = mix(), MIX_DTYPE, 16
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
                network = ours(1, dtype, block=cross, attention=stock(lengths))
                inputs = packed([Grid(1, 1, longest)] * len(group), dtype, words=words)
            else:
                network = ours(1, dtype, block=cross, attention=stock(None)) if name == "buckets" else ours(1, dtype)
                inputs = packed(group, dtype, words=words)
            runs.append(backward_of(network, partial(network, *inputs)))
        steps[name] = lambda runs=runs: [run() for run in runs]
    seconds, real = in_turn(steps), sum(grid.tokens for grid in grids)
    shared = {"bench": "mix", "dtype": str(dtype), "real_tokens": real}
    return [
        shared | {"batching": name, "batches": len(batches[name]), "tokens_per_second": real / value} for name, value in seconds.items()
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
    policies = {"none": recompute.none, "full": recompute.full, "every_2": partial(recompute.every_n, n=2)}
    policies["save_attention"] = recompute.save_attention
    inputs, steps, rows = packed([Grid(8, 16, 16)], MIX_DTYPE, words=WORDS), {}, []
    for name, policy in policies.items():
        network = ours(4, MIX_DTYPE)
        policy(network)
        for value in network.parameters():
            value.grad = torch.zeros_like(value)
        held = [*network.parameters(), *[value.grad for value in network.parameters() if value.grad is not None]]
        step = lambda network=network: network(*inputs).float().square().mean().backward()  # noqa: E731
        rows.append({"bench": "recompute", "policy": name, "peak_mb": peak_bytes(step, besides=held) / 1e6})
        steps[name] = step
    seconds = in_turn(steps)
    return [row | {"seconds": seconds[row["policy"]]} for row in rows]


def figures(rows: list[dict], bounds: dict[torch.dtype, float]) -> dict[str, float]:
    def fixed(tokens: int, dtype: torch.dtype) -> tuple[dict, list[dict]]:
        found = [row for row in rows if row["bench"] == "fixed" and row["tokens"] == tokens and row["dtype"] == str(dtype)]
        return found[0], found[1:]

    def against(tokens: int, dtype: torch.dtype, key: str) -> float:
        mine, others = fixed(tokens, dtype)
        return mine[key] / min(row[key] for row in others)

    speed = {row["batching"]: row["tokens_per_second"] for row in rows if row["bench"] == "mix"}
    policies = {row["policy"]: row for row in rows if row["bench"] == "recompute"}
    losses = next(row for row in rows if row["bench"] == "losses")
    return {
        "time_vs_fastest_peer_1024": against(1024, torch.bfloat16, "seconds"),
        "time_vs_fastest_peer_4096": against(4096, torch.bfloat16, "seconds"),
        "time_vs_fastest_peer_1024_float32": against(1024, torch.float32, "seconds"),
        "time_vs_fastest_peer_4096_float32": against(4096, torch.float32, "seconds"),
        "roofline_share_1024": bounds[torch.bfloat16] / fixed(1024, torch.bfloat16)[0]["seconds"],
        "roofline_share_1024_float32": bounds[torch.float32] / fixed(1024, torch.float32)[0]["seconds"],
        "saved_bytes_vs_leanest_peer": against(1024, torch.bfloat16, "kept_mb"),
        "packed_vs_buckets": speed["packed"] / speed["buckets"],
        "packed_vs_padding": speed["packed"] / speed["padding"],
        "save_attention_time": policies["save_attention"]["seconds"] / policies["none"]["seconds"],
        "save_attention_memory_vs_full": policies["save_attention"]["peak_mb"] / policies["full"]["peak_mb"],
        "packed_loss_rel_diff": abs(losses["packed"] - losses["alone"]) / losses["alone"],
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = fixed_step(4, 2, torch.bfloat16)
    fastest = sorted(rows[1:], key=lambda row: row["seconds"])[:2]
    bounds = {torch.bfloat16: roofline(4, 2, torch.bfloat16)}
    rows += fixed_step(16, 1, torch.bfloat16, [row["network"] for row in fastest])
    for frames, depth in ((4, 2), (16, 1)):
        rows += fixed_step(frames, depth, torch.float32)
        if frames == 4:
            bounds[torch.float32] = roofline(4, 2, torch.float32)
    rows += [*mixed_step(), packed_losses(), *recomputed_step()]
    found = figures(rows, bounds)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    write_json(
        HERE / "dit.json",
        {
            "figures": found,
            "native_bfloat16": MULTIPLIES_BFLOAT16,
            "roofline_seconds_1024": {str(dtype): seconds for dtype, seconds in bounds.items()},
            "rows": rows,
            "settings": {"width": WIDTH, "heads": HEADS, "words": WORDS, "threads": 1, "rounds": ROUNDS, "mix_dtype": str(MIX_DTYPE)},
            "machine": machine,
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "diffusers": diffusers.__version__},
            "commit": commit,
        },
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
