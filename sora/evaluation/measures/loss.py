"""metrics=[loss]: the loss of a run's network on held-out clips, at fixed noise levels with fixed noise; no video is generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import scoring
from sora.evaluation.bench import bar
from sora.gate.files import below

if TYPE_CHECKING:
    from sora.assembly.load import LoadedDiffusion
    from sora.evaluation.settings import EvaluationSettings
    from sora.metrics.protocol import Protocol
    from sora.system.work_sharing import Share

MOST_CLIPS = 64  # clips of a pack


def evaluate_loss(settings: EvaluationSettings, share: Share, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Score a run by its held-out loss only."""
    from sora.assembly.load import load_diffusion
    from sora.data.index.index import Index
    from sora.evaluation.files import real_folder
    from sora.evaluation.videos.sets import described

    loaded = load_diffusion(Path(settings.checkpoint), settings.step, ema=settings.ema)
    output = Path(settings.output) if settings.output else below(loaded.run, "evaluation", f"step-{loaded.step:08d}")
    index = Index.open(real_folder(settings), settings.split, sets=settings.sets, selection=settings.selection)
    scoring.check_places(settings, output)
    share.hold(output)
    figures, about = measured_loss(loaded, settings, share)
    if not share.first:
        return {}
    scores = {"kind": "diffusion", "figures": figures, "n": int(figures["loss_clips"]), "floor": {}, "distances": [], "heldout": about}
    subject = {"run": str(loaded.run), "step": loaded.step, "ema": loaded.ema, "hashes": loaded.hashes}
    return scoring.finish(output, scores, protocol_of(settings, described(index)), subject=subject, preset=preset, rows=[], clips=[])


def protocol_of(settings: EvaluationSettings, dataset: Mapping[str, Any]) -> Protocol:
    """The protocol: all that a held-out loss depends on except the run."""
    from sora.metrics.protocol import Protocol

    nothing = dict.fromkeys(("real", "generated", "prompts", "extractor", "distances", "sampling"))
    return Protocol(dataset=dataset, pixels={}, measures={"loss": convention(settings)}, seed=settings.seed, **nothing)


def convention(settings: EvaluationSettings) -> dict[str, Any]:
    """How the loss is measured, for the protocol."""
    return {"of": "velocity", "clips": settings.loss.clips, "levels": settings.loss.levels, "draws": settings.loss.draws}


def measured_loss(loaded: LoadedDiffusion, settings: EvaluationSettings, share: Share) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures, and the losses by level, by shape and by clip. The processes share the packs."""
    import torch

    from sora.assembly.validation import held_out_of
    from sora.config import stored
    from sora.diffusion.validation_loss import HeldOutLoss, LevelLoss, LossTable
    from sora.evaluation.files import real_folder
    from sora.runs.run import open_run
    from sora.system.devices import choose_device
    from sora.training.callbacks.validation_measures import loss_figures, shape_rows

    stored.refuse_loose_reader(open_run(loaded.run), loaded.config)
    device, said, objective = choose_device(settings.device), settings.loss, loaded.objective
    packs = {"budget": settings.budget, "max_clips": MOST_CLIPS, "seed": settings.seed}
    clips = held_out_of(
        loaded, real_folder(settings), split=settings.split, sets=settings.sets, selection=settings.selection, count=said.clips, **packs
    )
    loss = HeldOutLoss(
        path=objective.path, prediction=objective.prediction, levels=said.levels, draws=said.draws, seed=settings.seed, max_levels=None
    )
    dit, text = loaded.dit.to(device), loaded.text.to(device)

    def of_pack(step: int) -> dict[str, Any]:
        """The clips of a pack and their errors."""
        (batch,) = clips.batches(step, torch.device(device))
        pieces = [(piece.level, piece.errors.tolist()) for piece in loss.pieces(dit, text, [batch])]
        return {"samples": [str(sample) for sample in batch.sample_ids], "pieces": pieces}

    listing = clips.listing
    tally = LossTable(listing.samples, listing.grids, loss.levels)
    with bar(share, "held-out loss", "pack") as progress:
        rows = share.rows(len(listing), of_pack, progress)
    for row in rows:
        for level, errors in row["pieces"]:
            tally.add(LevelLoss(0, level, torch.tensor(errors, dtype=torch.float64)), [int(sample) for sample in row["samples"]])
    losses = tally.losses()
    names = dict(zip(listing.samples, map(listing.clips.key, listing.rows.tolist()), strict=True))
    each = {names[sample]: value for sample, value in zip(losses.samples, losses.clips.tolist(), strict=True)}
    found = loss_figures(losses, before={}, now=each)
    about = {"by_level": found.pop("by_level"), "by_shape": shape_rows(losses, clips.shape), "clips": each}
    return {name: float(value) for name, value in found.items()}, about
