"""Write a trained network alone: as diffusers loads it if it is a published one, else as a run to sample from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.system import files as storage

if TYPE_CHECKING:
    import torch

    from sora.assembly.load import LoadedDiffusion
    from sora.config.compose import Composed

EXAMPLES = (
    "sora export checkpoint=outputs/dit output=outputs/transformer",
    "sora export checkpoint=outputs/dit step=20000 ema=0.07 output=outputs/transformer",
    "sora export checkpoint=outputs/dit precision=bfloat16 shard_gb=10 output=outputs/transformer",
)
DIFFUSERS, OWN = "diffusers", "run"


def main(composed: Composed) -> None:
    import torch

    from sora.assembly.load import load_diffusion
    from sora.config.command_line.following import after_diffusion
    from sora.config.command_line.idle import refuse_idle
    from sora.dit.published import checkpoints
    from sora.dit.published.network import PublishedDiT
    from sora.runs.run import open_run

    config = composed.config
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if config.precision not in types:
        raise ValueError(f"precision={config.precision} is none of {', '.join(types)}")
    if not config.shard_gb > 0:
        raise ValueError(f"shard_gb={config.shard_gb} must be above 0")
    if config.format not in (None, DIFFUSERS, OWN):
        raise ValueError(f"format={config.format} is none of {DIFFUSERS}, {OWN}")
    output = Path(config.output)
    storage.refuse_there(output)
    loaded = load_diffusion(Path(config.checkpoint), config.step, ema=config.ema)
    dit = loaded.dit
    if config.format == DIFFUSERS and not isinstance(dit, PublishedDiT):
        raise ValueError(f"format={DIFFUSERS}: {config.checkpoint} is no published network, of which diffusers has a class; leave it out")
    if not isinstance(dit, PublishedDiT) or config.format == OWN:
        refuse_idle(config, composed.said, ("shard_gb",), why="for a run to sample from, which is one file")
        write_run(loaded, output, dtype=types[config.precision], ema=config.ema, usual=known_of(loaded))
        print(f"step {loaded.step} as a run to sample from: {output}")
        print(f"next: {after_diffusion(output)}")
        return
    refuse_trained_text(loaded)
    given = {"words": words_of(loaded.config["text"]), "beside": (open_run(loaded.run).began_with or {}).get("config")}
    checkpoints.save(dit, output, **given, dtype=types[config.precision], shard_bytes=int(config.shard_gb * 1e9))
    print(f"step {loaded.step} as {dit.keys(dit).kind}: {output}")


def refuse_trained_text(loaded: LoadedDiffusion) -> None:
    """Raise ValueError where a text module was trained beside the network, which no class of diffusers has room for."""
    if named := list(loaded.text.state_dict()):
        raise ValueError(
            f"text={loaded.encoder.name} trains a module beside the network (text.{named[0]}), which is no part of what diffusers loads, so"
            f" nothing was written; format={OWN} writes both"
        )


def words_of(text: Mapping[str, Any]) -> int | None:
    """How long captions get, of a run's text node; None where it does not say."""
    return {**text.get("states", {}), **text}.get("max_tokens")


def known_of(loaded: LoadedDiffusion) -> dict[str, float]:
    """The sizes and rates that the run trained on; none, said, of an old run whose dataset is gone."""
    from sora.assembly.usual import KEYS, told
    from sora.runs.run import open_run

    try:
        return told(open_run(loaded.run), KEYS)
    except ValueError as error:
        print(f"beware: {error}, whenever the export is sampled from")
        return {}


def write_run(loaded: LoadedDiffusion, output: Path, *, dtype: torch.dtype, ema: bool | float | str, usual: Mapping[str, float]) -> None:
    """A folder with what sampling needs of a run: its configuration, its VAE, and one checkpoint of the network's weights in `dtype`.

    usual: what it trained on, see `sora.assembly.usual`.

    Raises:
        ValueError: the folder exists.
    """
    from sora.assembly.load import averaged
    from sora.runs import checkpoint
    from sora.runs.checkpoint import TrainingState
    from sora.runs.run import Run, open_run
    from sora.vae import artefact

    parts = {"dit": loaded.dit, "text": loaded.text}
    named = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    model = {name: value.to(dtype) if value.is_floating_point() else value for name, value in named.items()}
    source = open_run(loaded.run)
    origin = {"step": loaded.step, "ema": ema, "averaged": averaged(source, loaded.step, ema=ema), "hashes": loaded.hashes}
    # it may go anywhere: it samples without its dataset, and run.json says nothing of where that lay
    info = {key: value for key, value in source.info.items() if key not in ("place", "datasets")}
    info |= {"usual": dict(usual)} if usual else {}
    for kept in info.get("own", {}).values():
        kept |= {"file": Path(kept["file"]).name} if "file" in kept else {}
    with storage.whole_folder(output) as staging:
        storage.copy_files([path.name for path in (source.config_file, source.init_file) if path.exists()], source.folder, staging)
        artefact.copy(source.vae, staging / "vae")
        storage.write_json(staging / "run.json", {**info, "exported": origin})
        state = TrainingState(step=loaded.step, samples=0, tokens=0, tensors={"model": model}, facts={"exported": origin})
        checkpoint.save(Run(staging).checkpoints, state, keep=1)


if __name__ == "__main__":
    from sora.cli import run as run_command

    raise SystemExit(run_command("export"))
