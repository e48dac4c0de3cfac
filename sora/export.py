"""Write a trained network in the format of the published one that it is, as diffusers loads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sora.configs.compose import Composed

EXAMPLES = (
    "sora export checkpoint=outputs/dit output=outputs/transformer",
    "sora export checkpoint=outputs/dit step=20000 ema=false output=outputs/transformer",
    "sora export checkpoint=outputs/dit precision=bfloat16 shard_gb=10 output=outputs/transformer",
)


def main(composed: Composed) -> None:
    from pathlib import Path

    import torch

    from sora.configs.load import load_diffusion
    from sora.dit.published import checkpoints
    from sora.dit.published.network import PublishedDiT

    config = composed.config
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if config.precision not in types:
        raise ValueError(f"precision={config.precision} is none of {', '.join(types)}")
    if not config.shard_gb > 0:
        raise ValueError(f"shard_gb={config.shard_gb} must be above 0")
    loaded = load_diffusion(Path(config.checkpoint), config.step, ema=config.ema)
    if not isinstance(loaded.dit, PublishedDiT):
        raise ValueError(
            f"{config.checkpoint} trained a network of ours alone, which nothing else loads; networks that can be exported are those"
            " of conf/dit whose _target_ is sora.dit.published.network.PublishedDiT, such as dit=wan_2_1_1_3b"
        )
    output = Path(config.output)
    checkpoints.save(loaded.dit, output, dtype=types[config.precision], shard_bytes=int(config.shard_gb * 1e9))
    print(f"step {loaded.step} as {loaded.dit.keys(loaded.dit).kind}: {output}")


if __name__ == "__main__":
    from sora.cli import run as run_command

    raise SystemExit(run_command("export"))
