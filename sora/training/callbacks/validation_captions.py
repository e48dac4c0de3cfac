"""A measure for validation while a captioner trains: its loss on held-out clips, and how often its captions of them are right."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from sora.captioner.attributes import Attributes
from sora.captioner.network import CaptionNetwork
from sora.captioner.scoring import CaptionScores
from sora.captioner.trained import answers_of
from sora.captioner.words import Words
from sora.captioner.writing import write_captions
from sora.data.plan.listing import Listing
from sora.gate.files import below
from sora.generation.generator import Request
from sora.system import distributed as ranks
from sora.text.all_captions import captions_in
from sora.tokens import Batch
from sora.training.callbacks.validation import Figures
from sora.training.callbacks.validation_measures import places
from sora.training.captioner_task import CaptionerTask, captioned
from sora.training.module import TrainingModule

Row = dict[str, Any]


@torch.no_grad()
def said_rows(network: CaptionNetwork, words: Words, attributes: Attributes, batch: Batch, *, beam: int, most: int) -> list[Row]:
    """What a captioner says of each clip of a pack, and what is true, as plain JSON: sample (the id as text), said (captions by kind),
    truth (the first caption of each kind), answers (by attribute), shown (the values that are known)."""
    seen = network.see(batch.tokens)
    written = {kind: write_captions(network, words, seen, kind, beam=beam, most=most) for kind in words.kinds}
    told = [captions_in(states) for states in batch.text.states.split(list(batch.text.segments.lengths))[: len(batch.sample_ids)]]
    rows = []
    for place, (sample, (captions, facts)) in enumerate(zip(batch.sample_ids, told, strict=True)):
        first = {kind: text for kind, text in reversed(captions) if kind in words.kinds}
        rows.append(
            {
                "sample": str(sample),
                "said": {kind: lines[place].text for kind, lines in written.items()},
                "truth": {kind: first[kind] for kind in words.kinds if kind in first},
                "answers": {name: value for name, (value, _) in answers_of(seen, attributes, place).items()},
                "shown": {name: list(values) for name, values in attributes.of(captions, facts).items()},
            }
        )
    return rows


def scored(rows: Sequence[Row], attributes: Attributes) -> tuple[CaptionScores, list[dict[str, dict[str, bool]]]]:
    """The scores of rows of `said_rows`, and for each row its verdicts by kind of caption ("answers" for the heads)."""
    scores, verdicts = CaptionScores(attributes), []
    for row in rows:
        mine = {kind: scores.caption(kind, row["said"][kind], truth) for kind, truth in row["truth"].items()}
        verdicts.append({**mine, "answers": scores.answers(row["answers"], row["shown"])})
    return scores, verdicts


class HeldOutCaptions:
    """The loss of held-out clips, by the weights of the end of training, the shares of right captions, and some captions beside clips.

    read: returns the packs of a step of the listing. show: the frames of a clip of a pack, and their rate. keep: writes clips to a folder
    and returns the videos' paths. folder: of the run. shown: clips that are written. beam, most: see `write_captions`.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        read: Callable[[int], Sequence[Any]],
        show: Callable[[Batch, int], tuple[Tensor, float]],
        keep: Callable[[Path, Sequence[Request], Sequence[Tensor]], Sequence[Path]],
        folder: Path,
        shown: int,
        beam: int,
        most: int,
    ) -> None:
        self._listing, self._read, self._show, self._keep = listing, read, show, keep
        self._folder, self._shown, self._beam, self._most = folder, shown, beam, most
        self._batches: list[Batch] = []

    def begin(self, module: TrainingModule, earlier: Sequence[Mapping[str, Any]]) -> None:
        task = _task(module)
        if isinstance(task, FSDPModule):
            raise ValueError(
                "evaluation=captions writes captions of different lengths on each rank, for which every rank needs all weights; choose "
                "trainer=ddp, or evaluation=none and sora evaluate afterwards"
            )
        rank, count, _ = places(module)
        for step in range(rank, len(self._listing), count):
            self._batches += [pack if task.encode is None else task.encode(pack, module.device).to("cpu") for pack in self._read(step)]

    def work(self, module: TrainingModule, weights: str) -> Generator[float, None, Figures]:
        task, rows = _task(module), []
        final = task.objective.weights(1.0)
        sums = dict.fromkeys(("loss", *final, "clips"), 0.0)
        for done, batch in enumerate(self._batches, 1):
            here = batch.to(module.device)
            clips = captioned(batch, task.words, task.attributes, task.objective, weights=final, seed=task.seed)
            found = task.objective.losses(task.network, clips.to(module.device, non_blocking=False), final)
            for name, weight in final.items():
                sums[name] += float(found.terms[name].sum())
                sums["loss"] += weight * float(found.terms[name].sum())
            sums["clips"] += len(batch.sample_ids)
            rows += said_rows(task.network, task.words, task.attributes, here, beam=self._beam, most=self._most)
            yield done / max(len(self._batches), 1)
        parts = ranks.joined(list(json.dumps(rows).encode()), module.device)[:: places(module)[2]]
        total = ranks.summed(torch.tensor(list(sums.values()), dtype=torch.float64, device=module.device)).tolist()
        whole = dict(zip(sums, total, strict=True))
        figures: Figures = {f"caption_{name}": value / whole["clips"] for name, value in whole.items() if name != "clips"}
        figures |= scored([row for part in parts for row in json.loads(bytes(part))], task.attributes)[0].figures()
        if module.global_rank == 0:
            figures["videos"] = self._write(module, weights, rows)
        return figures

    def _write(self, module: TrainingModule, weights: str, rows: Sequence[Row]) -> list[str]:
        """Write the first clips, each with what is said of it as its prompt; return the videos' paths within the run."""
        requests, clips, done = [], [], 0
        for batch in self._batches:
            for place in range(len(batch.sample_ids)):
                if len(clips) == self._shown:
                    break
                row, (frames, fps) = rows[done], self._show(batch, place)
                said = [f"{kind}: {text}" for kind, text in row["said"].items()]
                true = [f"in truth: {text}" for text in list(row["truth"].values())[-1:]]
                size = (frames.shape[0], frames.shape[1], frames.shape[2])
                requests.append(Request(" / ".join([*said, *true]), *size, fps=fps, seed=0, sample=done))
                clips.append(frames)
                done += 1
        if not clips:
            return []
        place = below(self._folder, "samples", f"step-{module.counters.step:08d}-{weights}")
        return [str(path.relative_to(self._folder)) for path in self._keep(place, requests, clips)]


def _task(module: TrainingModule) -> CaptionerTask:
    assert isinstance(module.task, CaptionerTask)
    return module.task
