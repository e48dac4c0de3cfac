"""What training the networks of conf/dit costs on clusters, computed: `python -m experiments.prices` writes docs/prices.md.

Nothing is run but shapes. Each bill is kept in outputs/prices.json as soon as it is made, and a later run goes on where this one stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sora.config.build import build
from sora.config.compose import compose, config_dir
from sora.cost.price import bill
from sora.plan import wanted
from sora.system.files import write_json, write_text
from sora.text.encoder import IdentityText
from sora.tokens import Grid

ROOT = Path(__file__).resolve().parent.parent
PAGE, KEPT = ROOT / "docs" / "prices.md", ROOT / "outputs" / "prices.json"
SIZES = ("s_2", "b_2", "l_2", "xl_2", "1b", "2b", "5b", "8b", "14b")
CLUSTERS = ("h100x8", "h100x64", "h100x512")
CLIP, WORDS, BUDGET, TEXT, CHANNELS = Grid(21, 30, 52), 512, 32768, 4096, 64  # 81 frames of 480 x 832; captions as UMT5-XXL makes them
TOKENS = 1e12


def priced(size: str, cluster: str) -> dict[str, Any]:
    """The figures of one bill: a long clip in each pack, a pack for each device in each step."""
    devices = cluster.partition("x")[2]
    words = [f"dit={size}", f"cluster={cluster}", "trainer=fsdp", f"plan.packs={devices}", f"plan.budget={BUDGET}", "plan.max_clips=8"]
    config = compose("plan", ["task=diffusion", *words]).config
    given = {"patch_channels": CHANNELS, "text_width": TEXT}
    found = bill(wanted(config, given, [[(CLIP, WORDS)]], IdentityText, epoch=None))
    return {**found.figures, "devices": found.cluster.devices, "price": found.cluster.price, "bound": found.time.bound}


def all_priced(sizes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every bill, made or kept."""
    found = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        for cluster in CLUSTERS:
            if f"{size} {cluster}" not in found:
                found[f"{size} {cluster}"] = priced(size, cluster)
                write_json(KEPT, found)
                print(size, cluster, flush=True)
    return found


def row(size: str, cluster: str, of: dict[str, Any]) -> str:
    hours = TOKENS / of["tokens_per_second"] / 3600 * of["devices"]
    fits = f"{of['largest_budget']:,}" if of["largest_budget"] else "none"
    memory = f"{of['memory_largest'] / 2**30:.1f} GiB"
    memory += "" if of["memory_largest"] <= of["memory_room"] else " (does not fit)"
    return (
        f"| `{size}` | `{cluster}` | {memory} | {fits} | {of['seconds_per_step']:.2f} s | {of['tokens_per_second']:,.0f} | {of['mfu']:.0%} "
        f"| {of['bound']} | {hours:,.0f} | ${hours * of['price']:,.0f} | {of['checkpoint_bytes'] / 2**30:.1f} GiB |"
    )


def machine(name: str) -> str:
    path = config_dir() / "cluster" / f"{name}.yaml"
    found, about = build(OmegaConf.load(path)), path.read_text().splitlines()[0].removeprefix("# ")  # pyright: ignore[reportArgumentType]
    return (
        f"| `{name}` | {found.memory:g} | {found.bf16:,g} | {found.fp32:g} | {found.bandwidth:,g} | {found.link:g} | {found.network:g} "
        f"| {found.price:g} | {about} |"
    )


def page(found: dict[str, dict[str, Any]]) -> str:
    rows = "\n".join(
        row(size, cluster, found[f"{size} {cluster}"]) for size in SIZES for cluster in CLUSTERS if f"{size} {cluster}" in found
    )
    machines = "\n".join(machine(path.stem) for path in sorted((config_dir() / "cluster").glob("*.yaml")))
    one = build(OmegaConf.load(config_dir() / "cluster" / "h100.yaml"))  # pyright: ignore[reportArgumentType]
    return f"""# Prices of training

Computed by `python -m experiments.prices`, not typed; `sora plan cluster=h100x512 …` does the same for a run and its data,
and says first which trainer and precision it prices: with the default `trainer=auto`, whole copies (ddp) in bf16-mixed on all devices.
Nothing here was measured on a GPU. Memory is that of a training step traced through the strategy that trains (`trainer=fsdp`, bf16
products, fp32 weights, AdamW, an average of the weights, `recompute` by size), one
clip of 81 frames of 480 × 832 in a pack of {BUDGET:,} tokens, with a
caption of {WORDS} tokens, and a pack for each device in each step. What is not traced (the driver's context, NCCL's buffers, gaps
between blocks) has {one.spare:.0%} of the memory. Time is a roofline:

    step = max(executed operations / (utilisation × peak), messages of weights and gradients)
         + messages inside layers (context and tensor ranks) + bytes that the update touches / bandwidth + waiting for the slowest rank

where a rank sends inside its node by `link`, and over nodes by as many `network` adapters as its group has members in a node. The
utilisation is **assumed**: {one.utilisation:.0%} of the peak while computing. `cluster.utilisation=0.35` changes it; `fit=RUN` takes the
share that a run's log reached. Prices of an hour are assumed, too (`cluster.price=…`). MFU counts the model's operations only, not what is
computed again or padding. GPU-hours and their cost are for 10^12 tokens.

| `dit=` | `cluster=` | most on a device | largest budget | step | tokens/s | MFU | bound by | GPU-hours | cost | checkpoint |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}

## Machines

`cluster=NAMExN` is N of them, eight to a node. Peaks are of dense products, in TFLOP/s; memory in GB; rates in GB/s, in one direction.

| `cluster=` | memory | bf16 | fp32 | bandwidth | link | network | USD an hour | source |
|---|---|---|---|---|---|---|---|---|
{machines}
"""


if __name__ == "__main__":
    write_text(PAGE, page(all_priced(sys.argv[1:] or SIZES)))
    print(PAGE)
