"""Make a curated set of clips from raw videos: cut, score, find duplicates, choose late, and write shards.

input is a folder of videos, a list of them, or a dataset (then scores and a selection are written beside its shards). A stage writes a
file for each video into the work folder, under a hash of the video and of all settings that matter, so the same command goes on after
anything, and a changed setting repeats only what depends on it. Every clip ends as kept or with one first reason, which the page
OUTPUT/curation.html shows. Nothing of the input is changed or removed.

sora curate status WORK   how far each stage is, at what rate, and what failed
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import Number, refuse_numbers
from sora.system.terminal import counted, counting

if TYPE_CHECKING:
    from pathlib import Path

    from sora.config.compose import Composed
    from sora.curation.curating import Curated, Curation, CurationSettings
    from sora.curation.steps.deduplicating import Deduplication
    from sora.curation.steps.modelling import ModelScoring
    from sora.ingest.tree import Refused

EXAMPLES = (
    "sora curate input=videos output=outputs/curation",
    "sora curate input=videos output=outputs/curation 'select.rules={object_motion: [0.05, null]}' cuts=both",
    "sora curate status outputs/curation",
)
ACTIONS = ("status",)
PAGE, SHOWN = "curation.html", 3
CAPTIONS = 20_000  # that are measured for the page
NAME = re.compile(r"\w[\w-]*(\.[\w-]+)*")  # of a dataset's folder
IDLE = ("cuts", "spans", "transcode", "held_out", "licence", "shard_mb", "captions", "facts", "leave_out", "follow_links")  # for a dataset
NUMBERS = {
    "shard_mb": Number(1),
    **dict.fromkeys(("spans.least_seconds", "spans.most_seconds"), Number(0, above=True)),
    "spans.trim_frames": Number(0, whole=True),
}


def main(composed: Composed) -> None:
    from pathlib import Path

    from sora.config.build import build
    from sora.config.command_line.idle import refuse_idle
    from sora.curation.curating import STOPS, Curation
    from sora.data.index.index import DATASET
    from sora.data.index.units import JobPart
    from sora.gate.confine import lacking
    from sora.system.files import refuse_nested, refuse_within

    config = composed.config
    if config.status is not None:
        show(Path(config.status))
        return
    for key in ("input", "output"):
        if config[key] is None:
            raise ValueError(f"needs {key}=; such as {EXAMPLES[0]}, or sora curate status WORK")
    refuse_numbers(config, NUMBERS)
    if config.duplicates.embeddings is None:
        refuse_idle(config, composed.said, ("duplicates.similarity",), why="without duplicates.embeddings=")
    if config.dataset is not None and not NAME.fullmatch(str(config.dataset)):
        raise ValueError(f"dataset={config.dataset} is no name for a folder in output; use letters, digits, '_', '-' and single dots")
    if config.until not in (None, *STOPS):
        raise ValueError(f"until={config.until} is no stage to stop after; there are {', '.join(STOPS)}")
    if config.retry not in (None, "failed"):
        raise ValueError(f"retry={config.retry}: only retry=failed tries again what failed; what is done is never made again")
    place, work = Path(config.input), Path(config.output)
    if (place / DATASET).is_file():
        refuse_idle(config, composed.said, IDLE, why=f"as input={place} is a dataset: its clips are scored and chosen as they are")
    refuse_within(work)
    if place.is_dir():
        refuse_nested(work, place, key="input")
    if why := lacking():
        print(f"note: {why}")
    work.mkdir(parents=True, exist_ok=True)
    engine = build(config.engine)
    try:
        curation = Curation(place, work, settings(config), engine=engine, counting=counting, part=JobPart.of(config.part))
        done = curation.run(until=config.until, retry=config.retry == "failed")
    finally:
        engine.close()
    if done.funnel is not None:
        page(curation, done, work, config.text)
    tell(done, work, JobPart.of(config.part), retried=config.retry == "failed")
    if done.nothing:
        raise ValueError(f"{done.nothing}; {work / PAGE} shows what became of each")


def settings(config: Any) -> CurationSettings:
    """The objects that a configuration names."""
    from pathlib import Path

    from omegaconf import OmegaConf

    from sora.config.build import build
    from sora.curation.curating import CurationSettings
    from sora.curation.inputs import InputSettings
    from sora.curation.joining import Shards
    from sora.curation.steps.finding import Cuts
    from sora.curation.steps.scoring import CheapScoring
    from sora.ingest.clip_texts import CaptionWords

    said: Any = OmegaConf.to_container(config.captions)
    table = said.pop("file")
    reading = InputSettings(
        words=CaptionWords(**said),
        captions=None if table is None else Path(table),
        facts=None if config.facts is None else Path(config.facts),
        leave_out=tuple(config.leave_out),
        follow_links=config.follow_links,
    )
    return CurationSettings(
        reading=reading,
        cuts=Cuts(build(config.cuts), **config.spans),
        scoring=[*([CheapScoring()] if config.cheap else []), *scorers(config.scorers)],
        duplicates=duplicates(config),
        selection=build(config.select),
        transcode=build(config.transcode),
        shards=Shards(held_out=config.held_out, shard_mb=config.shard_mb, licence=config.licence),
        dataset=config.dataset,
    )


def scorers(names: Sequence[str]) -> list[ModelScoring]:
    """The stages of the scorers of these names."""
    from sora.curation.steps.modelling import ModelScoring

    return [ModelScoring(name, scorer(name, "scorers=[{}]")) for name in names]


def scorer(name: str, key: str) -> Any:
    """The scorer of a name, an option in conf/scorer or in a folder of the user's. key: how it was asked for, for messages."""
    from omegaconf import OmegaConf

    from sora.config.build import build
    from sora.config.command_line.flags import usual_folders
    from sora.config.compose import config_dir, groups
    from sora.config.words import listed, meant

    there = groups([*usual_folders(), config_dir()]).get("scorer", {})
    if name not in there:
        raise ValueError(f"{key.format(name)}: there is no scorer {name}{meant(name, there)}; there are {listed(there)}")
    return build(OmegaConf.create({"scorer": OmegaConf.load(there[name])}).scorer)


def duplicates(config: Any) -> Deduplication | None:
    """The settings of the search for duplicates; None if nobody asked for it."""
    from pathlib import Path

    from sora.curation.steps.deduplicating import Deduplication
    from sora.curation.steps.modelling import Embedding

    said = config.duplicates
    if not said.find:
        for key in ("against", "embeddings"):
            if said[key]:
                raise ValueError(f"duplicates.{key} has no effect with duplicates.find=false; leave one out")
        return None
    if not config.cheap:
        raise ValueError("duplicates are found by what the cheap scores leave: cheap=false needs duplicates.find=false")
    embedding = None if said.embeddings is None else Embedding(said.embeddings, scorer(said.embeddings, "duplicates.embeddings={}"))
    against = [Path(place) for place in said.against]
    return Deduplication(overlap=said.overlap, against=against, embedding=embedding, similarity=said.similarity)


def tell(done: Curated, work: Path, part: Any, *, retried: bool = False) -> None:
    """Say what came of it, and what comes next."""
    from sora.config.command_line.commands import command
    from sora.config.command_line.following import after_prepare
    from sora.data.index.index import Index
    from sora.ingest.statistics import lasting
    from sora.system.terminal import say

    inputs = done.inputs
    lost = [*inputs.refused, *done.lost]
    counts = [(len(inputs.copies), "copies of others"), (len(lost), "without a clip"), (len(inputs.passed), "passed over")]
    named = ", ".join(f"{count} {what}" for count, what in counts if count)
    say(f"{counted(len(inputs.units), 'shard' if inputs.dataset else 'video')}{f' ({named})' if named else ''}", *inputs.told)
    if retried:
        say(f"{counted(done.retried, 'failure')} tried again")
    if done.waiting:
        _tell_lost(lost, work)
        whose = f"part {part} of {work} is done" if part.of_all > 1 else f"{work} is done so far"
        same = f"the same command without {done.waiting}" if done.waiting.startswith("until=") else "the same command"
        status = command("curate", "status", work)
        say(f"{whose}; left: {done.waiting}", f"next: {same} goes on; {status} shows how far all parts are")
        return
    assert done.funnel is not None
    length, unit = lasting(sum(done.funnel.seconds.values()))
    parts, kept = counted(sum(done.funnel.clips.values()), "part"), counted(done.funnel.kept, "clip is", "clips are")
    say(f"{parts} of {length:.3g} {unit}: {kept} kept")
    for rule, count in sorted(done.funnel.clips.items(), key=lambda one: (-one[1], one[0])):
        if rule:
            say(f"  {count} left out: {rule}")
    _tell_lost(lost, work)
    if unmade := (done.described or {}).get("unmade"):
        say(f"  {counted(len(unmade), 'clip')} could not be made, such as {unmade[0]}")
    print(work / PAGE)
    if done.sets is not None and inputs.dataset is not None:
        say(f"sets in {inputs.dataset}: scores {', '.join(done.sets.scores) or 'none'}; selection {done.sets.selection}")
        index = Index.open(inputs.dataset, selection=done.sets.selection)
        print(f"next: {after_prepare(inputs.dataset, index)}")
    if done.dataset is not None:
        print(f"next: {after_prepare(done.dataset, Index.open(done.dataset))}")


def _tell_lost(lost: Sequence[Refused], work: Path) -> None:
    from sora.system.terminal import say

    for one in lost[:SHOWN]:
        say(f"  {one.source}: {one.reason}")
    if len(lost) > SHOWN:
        say(f"  {len(lost) - SHOWN} more without a clip: {work / 'report.json'} names all")


def page(curation: Curation, done: Curated, work: Path, text: Any) -> None:
    """Write the page, and the lists of all that gave no clip. text: the text encoder whose limit captions are compared with."""
    from sora.config.command_line.following import after_prepare
    from sora.data.index.index import Index
    from sora.report.curated import view_of
    from sora.report.curation import write_page
    from sora.system.files import called, write_json

    commands = [] if done.dataset is None else [after_prepare(done.dataset, Index.open(done.dataset))]
    write_json(work / "report.json", done.report())
    notes = [*done.inputs.told, *cut_captions(text, done)]
    view = view_of(curation, done, title=f"Curation of {called(curation.place)}", notes=notes, commands=commands)
    write_page(work / PAGE, view)


def cut_captions(text: Any, done: Curated) -> list[str]:
    """Lines on the captions that a text encoder would cut, or that nobody can know it here."""
    from sora.config.build import build
    from sora.data.index.index import Index
    from sora.text.limits import cuts

    said = [one.text for facts in done.inputs.facts.values() for one in facts.captions]
    if done.inputs.dataset is not None:
        index = Index.open(done.inputs.dataset)
        said = [one.text for row in range(min(len(index), CAPTIONS)) for one in index.captions(row)]
    if not said:
        return []
    try:
        return [cut.line() for cut in cuts(build(text).limits(), said[:CAPTIONS])]
    except (ValueError, OSError, ImportError) as error:
        return [f"how many captions the text encoder cuts is not known here: {str(error).splitlines()[0]}"]


def show(work: Path) -> None:
    """Print how far each stage of a work folder is."""
    from sora.curation.status import progress
    from sora.system.terminal import say

    for one in progress(work):
        rate = f", {one.rate:.3g}/s" if one.left and one.rate else ""
        left = f", {_time(one.seconds)} left" if one.left and one.seconds is not None else ""
        barred = f", {one.barred} failed before" if one.barred else ""
        say(f"{one.stage:<12} {one.done} done, {one.left} left, {one.failed} failed{barred}{rate}{left}")
        for name, reason in one.reasons:
            say(f"  {name}: {reason}")


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("curate"))
