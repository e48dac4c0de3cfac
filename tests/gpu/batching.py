"""Packs beside batches of one shape and batches padded to the longest, and the network beside that of diffusers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.cluster_prices import Item
from sora.tokens import Grid, Segments
from tests.gpu.measuring import in_turn
from tests.gpu.networks import Trained, batches, sizes, trained, wanted
from tests.gpu.record import Place, Report


def batching(place: Place) -> Iterator[Report]:
    """packs_vs_buckets and packs_vs_padding: real tokens a second of `dit=b_2` on the same clips."""
    clips = [grid for mix in sizes(place).mixes for grid in mix]
    grouped = {
        "packs": [list(mix) for mix in sizes(place).mixes],
        "buckets": [[grid for grid in clips if grid == shape] for shape in sorted(set(clips))],
        "padding": [
            shuffled[first : first + 4] for shuffled in [random.Random(0).sample(clips, len(clips))] for first in range(0, len(clips), 4)
        ],
    }
    steps: dict[str, Callable[[], Any]] = {}
    for name, groups in grouped.items():
        runs = [_run(place, name, group) for group in groups]
        steps[name] = lambda runs=runs: [run() for run in runs]
    for name in ("padding", "buckets"):
        seconds = in_turn({each: steps[each] for each in ("packs", name)}, place, rounds=5)
        yield Report(figures={f"packs_vs_{name}": seconds[name] / seconds["packs"]})


_SHARED: dict[str, Trained] = {}


def _run(place: Place, name: str, group: Sequence[Grid]) -> Callable[[], Any]:
    """Forward and backward of one batch of clips."""
    longest = max(grid.tokens for grid in group)
    shown = list(group) if name != "padding" else [Grid(1, 1, longest)] * len(group)
    total = sizes(place).budget if name == "packs" else sum(grid.tokens for grid in shown)
    item = wanted(place, "b_2", f"plan.budget={total}", *([] if name == "packs" else [f"plan.max_clips={len(group)}"]))
    item = Item(item.config, item.given, [[(grid, 16 if not place.toy else 3) for grid in shown]])
    (batch,) = batches(item)
    if name not in _SHARED:
        _SHARED[name] = trained(place, item)
        _SHARED[name].module.task.objective.max_levels = None  # batches of one shape have as many as they need
    made = _SHARED[name]
    prepared, route = made.prepare(batch), made.module.task.dit.route
    seen = None
    if name == "padding":
        ends = torch.tensor([grid.tokens for grid in group], device=made.device)
        seen = (torch.arange(longest, device=made.device) < ends[:, None])[:, None, None]
    usual = stock(seen, rows=len(group))

    def run() -> None:
        if name != "packs":
            route.attention = usual
        made.learn(prepared)

    return run


def stock(seen: Tensor | None, *, rows: int) -> Callable[..., Tensor]:
    """torch's attention over (rows, tokens) of one length, as networks without packing call it. seen: the keys of rows that are padded."""

    def attention(q: Tensor, k: Tensor, v: Tensor, q_segments: Segments, k_segments: Segments, mask=None) -> Tensor:
        queries, keys, values = (x.unflatten(0, (rows, -1)).transpose(1, 2) for x in (q, k, v))
        among = seen if q.shape[0] == k.shape[0] else None  # captions are of one length
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=among).transpose(1, 2).flatten(0, 1)

    return attention


def without_diffusers(_: Place) -> str | None:
    from importlib.util import find_spec

    if find_spec("diffusers") is None:
        return "diffusers is not here"
    lacking = [name for name in ("huggingface_hub", "PIL", "regex", "requests", "httpx", "importlib_metadata") if find_spec(name) is None]
    return f"diffusers needs {', '.join(lacking)}, not here" if lacking else None


def peer(place: Place) -> Iterator[Report]:
    """wan_vs_diffusers: time of a step of Wan 2.1 1.3B on one clip, over that of diffusers' class, both in bfloat16 autocast."""
    import diffusers

    grid = Grid(2, 4, 4) if place.toy else Grid(13, 30, 40)
    item = wanted(place, "wan_2_1_1_3b", "dit.depth=2" if place.toy else "dit.depth=10", f"plan.budget={grid.tokens}", "plan.max_clips=1")
    dit = item.config.dit
    words = dit.text.fill
    item = Item(item.config, item.given, [[(grid, words)]])
    ours = trained(place, item)
    prepared = ours.prepare(batches(item)[0])
    with torch.device(place.device):
        theirs = diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=dit.heads,
            attention_head_dim=dit.width // dit.heads,
            in_channels=16,
            out_channels=16,
            text_dim=item.given["text_width"],
            freq_dim=256,
            ffn_dim=int(dit.width * dit.mlp_ratio + 0.5),
            num_layers=dit.depth,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
        )
    latents = torch.randn(1, 16, grid.t, 2 * grid.h, 2 * grid.w, device=place.device)
    states, time = torch.randn(1, words, item.given["text_width"], device=place.device), torch.tensor([500.0], device=place.device)

    def their_step() -> None:
        with torch.autocast(place.device, dtype=torch.bfloat16):
            out = theirs(hidden_states=latents, timestep=time, encoder_hidden_states=states).sample
        out.float().square().mean().backward()

    times = in_turn({"ours": lambda: ours.learn(prepared), "theirs": their_step}, place, rounds=5)
    yield Report(figures={"wan_vs_diffusers": times["ours"] / times["theirs"]})
