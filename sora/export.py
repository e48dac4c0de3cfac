"""Write a trained network alone: as diffusers loads it if it is a published one, else as a run to sample from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sora.configs.compose import Composed
    from sora.configs.load import LoadedDiffusion

EXAMPLES = (
    "sora export checkpoint=outputs/dit output=outputs/transformer",
    "sora export checkpoint=outputs/dit step=20000 ema=0.07 output=outputs/transformer",
    "sora export checkpoint=outputs/dit precision=bfloat16 shard_gb=10 output=outputs/transformer",
)


def main(composed: Composed) -> None:
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
    output = Path(config.output)
    if isinstance(loaded.dit, PublishedDiT):
        checkpoints.save(loaded.dit, output, dtype=types[config.precision], shard_bytes=int(config.shard_gb * 1e9))
        print(f"step {loaded.step} as {loaded.dit.keys(loaded.dit).kind}: {output}")
    else:
        write_run(loaded, output, dtype=types[config.precision], ema=config.ema)
        print(f"step {loaded.step} as a run to sample from: sora sample checkpoint={output}")


def write_run(loaded: LoadedDiffusion, output: Path, *, dtype: torch.dtype, ema: bool | float | str) -> None:
    """A folder with what sampling needs of a run: its configuration, its VAE, and one checkpoint of the network's weights in `dtype`.

    Raises:
        ValueError: the folder exists.
    """
    import shutil

    from sora import storage
    from sora.configs.load import averaged
    from sora.training import checkpoint
    from sora.training.checkpoint import TrainingState
    from sora.training.run import Run, open_run

    parts = {"dit": loaded.dit, "text": loaded.text}
    named = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    model = {name: value.to(dtype) if value.is_floating_point() else value for name, value in named.items()}
    source = open_run(loaded.run)
    origin = {"step": loaded.step, "ema": ema, "averaged": averaged(source, loaded.step, ema=ema), "hashes": loaded.hashes}
    with storage.whole_folder(output) as staging:
        shutil.copyfile(source.config_file, staging / "config.yaml")
        shutil.copytree(source.vae, staging / "vae")
        storage.write_json(staging / "run.json", {**source.info, "exported": origin})
        state = TrainingState(step=loaded.step, samples=0, tokens=0, tensors={"model": model}, facts={"exported": origin})
        checkpoint.save(Run(staging).checkpoints, state, keep=1)


if __name__ == "__main__":
    from sora.cli import run as run_command

    raise SystemExit(run_command("export"))
