"""Score a run, a VAE, or videos from anywhere: against prompts, against real videos, by themselves.

checkpoint= names a diffusion run (clips are generated for held-out prompts), a VAE or its run (clips are reconstructed), a captioner's run
(captions are written of held-out clips), or a folder of videos or a dataset (taken as they are). What was generated or extracted is kept,
and a command that was stopped goes on. Started by torchrun or srun, several processes share the work. `sora compare` sets scores side by
side, and `-m checkpoint=outputs/density/*` scores all runs of a sweep and ends with their table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sora.config.compose import Composed
    from sora.evaluation.settings import EvaluationSettings

EXAMPLES = (
    "sora evaluate checkpoint=outputs/dit data=data/world n=256",
    "sora evaluate checkpoint=generated data=real preset=stylegan_v_fvd2048_16f extractor.path=i3d_torchscript.pt",
    "sora evaluate checkpoint=outputs/vae data=[data/world,data/real]",
)
# What a preset says of, or may.
PROTOCOL = ("n", "real", "generated", "size", "kernel", "crop", "trajectories", "rates", "quantise", "ddof", "extractor")
UNPUBLISHED = ("extractor.path", "extractor.sha256", "extractor.batch")  # keys of a protocol that no publication sets


def main(composed: Composed) -> None:
    """Evaluate what the checkpoint holds, write `scores.json` and the clips, and print the figures."""
    from sora.config.stored import refuse_programs
    from sora.evaluation.captioners import evaluate_captioner
    from sora.evaluation.files import evaluate_files
    from sora.evaluation.reads import refuse_other_statistics, refuse_unread
    from sora.evaluation.runs import evaluate_diffusion
    from sora.evaluation.vaes import evaluate_vae
    from sora.gate.sizes import refuse_numbers
    from sora.generation.prompts import NUMBERS, negative_of, refuse_unguided
    from sora.report.evaluation import write_page
    from sora.runs.run import run_of
    from sora.system.work_sharing import joined

    config = composed.config
    refuse_programs(config, composed.said)
    refuse_numbers(config, NUMBERS)
    kinds = {"diffusion": evaluate_diffusion, "vae": evaluate_vae, "captioner": evaluate_captioner, "videos": evaluate_files}
    folder, config.step = run_of(Path(config.checkpoint), config.step)
    config.checkpoint = str(folder)
    settings = settings_of(config)
    kind = kind_of(folder)
    refuse_unread(settings, said_in(config, composed.said), kind=kind)
    refuse_unguided(negative_of(config.negative), (), config.guidance, composed.choices.get("guidance"))
    refuse_other_statistics(settings, composed.said, composed.choices.get("preset"))
    with joined(config.device) as share:
        scores = kinds[kind](settings, share, preset_of(composed))
        if not share.first:
            return
        if config.page:
            write_page(scores["output"])
        for line in figure_lines(scores["figures"]):
            print(f"  {line}")
        print(ending(scores["output"], page=config.page))


def said_in(config: DictConfig, said: Sequence[str]) -> dict[str, Any]:
    """The keys of a configuration that a command line names, with their values."""
    from omegaconf import OmegaConf

    return {key: OmegaConf.select(config, key) for key in said if key.partition(".")[0] in config}


def settings_of(config: DictConfig) -> EvaluationSettings:
    """A command's configuration as values."""
    from functools import partial

    from sora.assembly.generation import sampling
    from sora.config.build import build, plain
    from sora.evaluation.settings import Continuation, EvaluationSettings, LossSettings, Side
    from sora.evaluation.words import listed

    values = {key: value for key, value in plain(config).items() if key in EvaluationSettings.__dataclass_fields__}
    data = values["data"]
    values |= {
        "data": (data,) if isinstance(data, str) else None if data is None else tuple(data),
        "metrics": listed(values["metrics"]),
        "sets": listed(values["sets"]),
    }
    values |= {"real": Side(**values["real"]), "generated": Side(n=None, **values["generated"])}
    values |= {"continuation": Continuation(**values["continuation"]), "loss": LossSettings(**values["loss"])}
    return EvaluationSettings(**values | {"extractor": partial(build, config.extractor), "sampling": partial(sampling, config)})


def figure_lines(figures: Mapping[str, float]) -> list[str]:
    """A line for each figure, with its interval where it has one. Of a figure that stands there with its extractor's name as well as by a
    short name, the short one; the former are in scores.json."""
    from sora.metrics.scored import told_shorter

    shown = [name for name in figures if not told_shorter(name, figures)]
    ends = {f"{name}{end}" for name in shown for end in ("_low", "_high") if f"{name}_low" in figures and f"{name}_high" in figures}
    lines = [name for name in shown if name not in ends]
    width = max((len(name) for name in lines), default=0)
    spans = {name: f"   [{figures[f'{name}_low']:.5g}, {figures[f'{name}_high']:.5g}]" for name in lines if f"{name}_low" in ends}
    return [f"{name:<{width}}  {figures[name]:.5g}{spans.get(name, '')}" for name in lines]


def ending(output: Path, *, page: bool) -> str:
    """One line: where everything is, and what comes next."""
    from sora.config.command_line.commands import command

    seen = f"{(output / 'report.html').resolve()} shows them; " if page else ""
    return f"{seen}beside another's: {command('compare', output, 'OTHER')}"


def preset_of(composed: Composed) -> dict[str, Any] | None:
    """The preset in force, which of a protocol's keys the command line set besides, and where it departs from what was published itself."""
    name = composed.choices.get("preset")
    ours = [key for key in composed.said if key.partition(".")[0] in PROTOCOL and key not in UNPUBLISHED]
    return None if name is None else {"name": name, "changed": sorted(ours), "departs": composed.config.departs}


def kind_of(folder: Path) -> str:
    """What is scored: "diffusion", "captioner" or "vae" (a run, or a VAE's artefact), or "videos" (a dataset, or a folder of files)."""
    from sora.assembly.load import run_kind
    from sora.vae.artefact import CARD

    if not folder.is_dir():
        several = "; add -m to evaluate each folder that is called so" if "*" in str(folder) else ""
        raise ValueError(f"checkpoint={folder} is no folder; name a run, a VAE, a dataset or a folder of videos{several}")
    return run_kind(folder) if (folder / "run.json").exists() or (folder / CARD).exists() else "videos"


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("evaluate"))
