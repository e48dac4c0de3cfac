"""Scores a captioner: how often what it writes of held-out clips is right, attribute by attribute, and what it takes for what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation import scoring
from sora.evaluation.bench import bar
from sora.evaluation.words import KNOWN, USUAL, chosen
from sora.gate.files import below

if TYPE_CHECKING:
    from sora.evaluation.settings import EvaluationSettings
    from sora.metrics.protocol import Protocol
    from sora.system.work_sharing import Share

MOST_CLIPS = 64  # of a pack
MOST_WORDS = 192  # of a caption
KEPT = 48  # clips with their captions, if keep is not set


def evaluate_captioner(settings: EvaluationSettings, share: Share, preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write captions of up to n held-out clips, and compare each with the true one of its kind."""
    from sora.assembly.captioner_validation import held_out_of_captioner
    from sora.assembly.load_captioner import load_captioner
    from sora.data.index.index import Index
    from sora.evaluation.files import real_folder
    from sora.evaluation.videos.sets import described
    from sora.training.callbacks.validation_captions import scored

    chosen(settings.metrics, usual=USUAL["captioner"], known=KNOWN["captioner"], scored="a captioner")
    loaded = load_captioner(Path(settings.checkpoint), settings.step, ema=settings.ema)
    output = Path(settings.output) if settings.output else below(loaded.run, "evaluation", f"step-{loaded.step:08d}")
    scoring.check_places(settings, output)
    share.hold(output)
    folder = real_folder(settings)
    index = Index.open(folder, settings.split, sets=settings.sets, selection=settings.selection)
    packs = {"count": settings.n, "budget": settings.budget, "max_clips": MOST_CLIPS, "seed": settings.seed, "split": settings.split}
    held, clips = held_out_of_captioner(loaded, folder, sets=settings.sets, selection=settings.selection, **packs)
    rows, files = said_of(loaded, held, clips, settings, share, output)
    if not share.first:
        return {}
    scores, verdicts = scored(rows, loaded.attributes)
    kinds = [kind for kind in reversed(loaded.words.kinds) if any(kind in row["truth"] for row in rows)]
    ordered = [
        {
            "key": row["key"],
            **row["shape"],
            "prompt": " / ".join(f"{kind}: {row['said'][kind]}" for kind in kinds) or "no caption to compare with",
            "caption": " / ".join(f"{kind}: {row['truth'][kind]}" for kind in kinds if kind in row["truth"]),
            "adherence": next((verdict[kind] for kind in kinds if verdict.get(kind)), {}),
            "answers": row["answers"],
        }
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    found = {"kind": "captioner", "figures": scores.figures(), "n": len(rows), "floor": {}, "distances": []}
    found["confusions"] = scores.tables()
    if not scores.counts:
        found["cautions"] = [
            "none of its attributes is known of these clips, so nothing could be compared; see attributes= of its training"
        ]
    subject = {"run": str(loaded.run), "step": loaded.step, "ema": loaded.ema, "hashes": loaded.hashes}
    protocol = protocol_of(settings, described(index), loaded.words.kinds)
    return scoring.finish(output, found, protocol, subject=subject, preset=preset, rows=ordered, clips=files)


def said_of(
    loaded: Any, held: Any, clips: Any, settings: EvaluationSettings, share: Share, output: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each clip (see `said_rows`) with its key and shape, and the stored clips, of the first rows. Processes share the packs."""
    import torch

    from sora.assembly.captioner_validation import rate_of, shown
    from sora.system.devices import choose_device
    from sora.training.callbacks.validation_captions import said_rows
    from sora.video.files import write

    device = torch.device(choose_device(settings.device))
    network, keep = loaded.network.to(device), KEPT if settings.keep is None else settings.keep
    listing = held.listing
    names = {str(sample): listing.clips.key(row) for sample, row in zip(listing.samples, listing.rows.tolist(), strict=True)}
    number = {sample: place for place, sample in enumerate(names)}

    def of_pack(step: int) -> dict[str, Any]:
        (batch,) = held.batches(step, device)
        rows = said_rows(network, loaded.words, loaded.attributes, batch, beam=1, most=MOST_WORDS)
        for place, row in enumerate(rows):
            fps = rate_of(clips, batch, place)
            row |= {"key": names[row["sample"]], "shape": {**held.shape(batch.tokens.grids[place]), "fps": round(fps, 3)}}
            if number[row["sample"]] < keep:
                frames, _ = shown(clips, batch.to("cpu"), place)
                write(output / file_of(number[row["sample"]]), frames.numpy(), fps, lossless=False)
        return {"rows": rows}

    with bar(share, "captions", "pack") as progress:
        found = [row for pack in share.rows(len(listing), of_pack, progress) for row in pack["rows"]]
    found.sort(key=lambda row: number[row["sample"]])
    return found, [file_of(place) for place in range(min(keep, len(found)))]


def file_of(place: int) -> str:
    return f"clips/{place + 1:04d}.mp4"


def protocol_of(settings: EvaluationSettings, dataset: Mapping[str, Any], kinds: Any) -> Protocol:
    """The protocol: all that the scores depend on except the captioner."""
    from sora.metrics.protocol import Protocol

    nothing = dict.fromkeys(("real", "generated", "prompts", "extractor", "distances", "sampling"))
    measures = {"captions": {"kinds": list(kinds), "clips": settings.n, "beam": 1, "most": MOST_WORDS}}
    return Protocol(dataset=dataset, pixels={}, measures=measures, seed=settings.seed, **nothing)
