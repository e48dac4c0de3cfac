"""Score a run, a VAE, or videos from anywhere: against prompts, against real videos, by themselves.

checkpoint= names a diffusion run (clips are generated for held-out prompts), a VAE or its run (clips are reconstructed), or a folder of
videos or a dataset (taken as they are). What was generated or extracted is kept, and a command that was stopped goes on. Started by
torchrun or srun, several processes share the work. `sora compare` sets scores side by side, and `-m checkpoint=outputs/density/*` scores
all runs of a sweep and ends with their table.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sora.configs.compose import Composed

EXAMPLES = (
    "sora evaluate checkpoint=outputs/dit data=data/world n=256",
    "sora evaluate checkpoint=generated data=real preset=stylegan_v_fvd2048_16f extractor.path=i3d_torchscript.pt",
    "sora evaluate checkpoint=outputs/vae data=[data/world,data/real]",
)
# What a preset says of, or may.
PROTOCOL = ("n", "real", "generated", "size", "kernel", "crop", "trajectories", "rates", "quantise", "ddof", "extractor")


def main(composed: Composed) -> None:
    """Evaluate what the checkpoint holds, write `scores.json` and the clips, and print the figures."""
    from sora.evaluation.files import evaluate_files
    from sora.evaluation.runs import evaluate_diffusion
    from sora.evaluation.sharing import joined
    from sora.evaluation.vaes import evaluate_vae
    from sora.report.evaluation import write_page

    config = composed.config
    kinds = {"diffusion": evaluate_diffusion, "vae": evaluate_vae, "videos": evaluate_files}
    with joined(config.device) as share:
        scores = kinds[kind_of(Path(config.checkpoint))](config, share, preset_of(composed))
        if not share.first:
            return
        if config.page:
            print(f"  {write_page(scores['output']).resolve()}")
        width = max(len(name) for name in scores["figures"])
        for name, value in scores["figures"].items():
            print(f"  {name:<{width}}  {value:.5g}")


def preset_of(composed: Composed) -> dict[str, Any] | None:
    """The preset in force, which of a protocol's keys the command line set besides, and where it departs from what was published itself."""
    name = composed.choices.get("preset")
    ours = [key for key in composed.said if key.partition(".")[0] in PROTOCOL and key not in ("extractor.path", "extractor.batch")]
    return None if name is None else {"name": name, "changed": sorted(ours), "departs": composed.config.departs}


def kind_of(folder: Path) -> str:
    """What is scored: "diffusion" or "vae" (a run, or a VAE's artefact), or "videos" (a dataset, or a folder of files)."""
    from sora.configs.load import run_kind
    from sora.vae.artefact import CARD

    if not folder.is_dir():
        several = "; add -m to evaluate each folder that is called so" if "*" in str(folder) else ""
        raise ValueError(f"checkpoint={folder} is no folder; name a run, a VAE, a dataset or a folder of videos{several}")
    return run_kind(folder) if (folder / "run.json").is_file() or (folder / CARD).is_file() else "videos"


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("evaluate"))
