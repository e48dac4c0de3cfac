"""Write new captions for a dataset's clips, by a server or a captioner of your own, as a set beside its index.

Frames are taken here, by content and time, and sent to captioner.url (https, or this machine). Each answer is kept as it comes, so the same
command goes on after anything and pays nothing twice; a changed prompt makes a new set beside the old one. Checks give flags, which the
page OUTPUT/SET/captions.html shows with frames, old and new captions; nothing of the dataset is changed or removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sora.gate.sizes import Number, refuse_numbers
from sora.system.terminal import counted, counting

if TYPE_CHECKING:
    from sora.captions.captioner import Captioner
    from sora.captions.recaptioning import Recaption, Recaptioned, RecaptionSettings
    from sora.captions.taking import TakenFrames
    from sora.config.compose import Composed

EXAMPLES = (
    "sora recaption data=data/mine captioner.url=http://127.0.0.1:8000/v1 captioner.model=Qwen/Qwen3-VL-8B-Instruct",
    "sora recaption data=data/mine captioner=stub dry=true",
    "sora recaption data=data/mine captioner=template set=facts",
)
PAGE, SHOWN = "captions.html", 3
NUMBERS = {
    "max_failed": Number(0, most=1),
    "passes": Number(1, whole=True, most=2),
}
PRICES: dict[str, Number] = dict.fromkeys(("input", "output"), Number(0))


def main(composed: Composed) -> None:
    from pathlib import Path

    from sora.captions.checks.words import refuse_lacking
    from sora.captions.recaptioning import Recaption
    from sora.config.build import build
    from sora.config.command_line.following import outputs_beside
    from sora.data.index.index import Index
    from sora.data.index.units import JobPart
    from sora.gate.confine import lacking
    from sora.system.files import called, may_write, refuse_within

    config = composed.config
    if config.data is None:
        raise ValueError(f"needs data=; such as {EXAMPLES[0]}")
    refuse_numbers(config, NUMBERS)
    refuse_numbers(config.price, PRICES)
    if config.retry not in (None, "failed"):
        raise ValueError(f"retry={config.retry}: only retry=failed asks again for what failed; what is answered is never asked for again")
    index = Index.open(config.data, sets=[], selection=config.selection)
    if not may_write(index.folder):
        raise ValueError(
            f"data={index.folder} cannot be written, and the set lies beside its index; sora data index output=FOLDER makes one"
        )
    output = Path(config.output) if config.output is not None else outputs_beside(index.folder) / f"{called(index.folder)}_captions"
    refuse_within(output)
    checks = build(config.checks)
    refuse_lacking(checks)
    if why := lacking():
        print(f"note: {why}")
    captioner, engine = captioner_of(config), build(config.engine)
    try:
        given: dict[str, Any] = {"name": config.set, "work": output, "engine": engine, "part": JobPart.of(config.part)}
        job = Recaption(index, captioner, settings(config), retry=config.retry == "failed", **given)
        if config.dry:
            tell_estimate(job, config.price)
            return
        done = job.run(counting)
        said = page(job, done, checks, config.price)
        tell(job, done, said)
    finally:
        captioner.close()
        engine.close()


def settings(config: Any) -> RecaptionSettings:
    """What the set depends on, as objects."""
    from sora.captions.recaptioning import RecaptionSettings
    from sora.config.build import build

    given = {"kinds": list(config.kinds), "passes": config.passes, "max_failed": config.max_failed}
    return RecaptionSettings(taking=build(config.frames), **given)


def captioner_of(config: Any) -> Captioner:
    """The captioner; one that takes a `prompt` is given that of caption_prompt=."""
    import inspect

    from sora.captions.captioner import Captioner
    from sora.config.build import build, resolve

    takes = inspect.signature(resolve(config.captioner["_target_"])).parameters
    found = build(config.captioner, **({"prompt": build(config.caption_prompt)} if "prompt" in takes else {}))
    if not isinstance(found, Captioner):
        raise ValueError(f"captioner: {config.captioner['_target_']} is no captioner; see sora.captions.Captioner for what one has")
    return found


def page(job: Recaption, done: Recaptioned, checks: Any, price: Any) -> Any:
    """Check all captions and write the page, once every clip of every part has a row; what it shows, else None."""
    from sora.captions.checks.checking import check_captions
    from sora.captions.estimating import cost_of
    from sora.captions.rows import path_of
    from sora.config.command_line.following import after_prepare
    from sora.data.index.index import Index
    from sora.data.index.keyed_sets import CAPTION_SETS
    from sora.report.captions.page import write_page
    from sora.report.captions.view import view_of
    from sora.system.files import called

    if not all(path_of(job.rows, shard).is_file() for shard in job.shards):
        return None
    check_captions(job.index, job.rows, job.shards, checks)
    title = f"Captions of {called(job.index.folder)} by {job.captioner.name}"
    others = [name for name in CAPTION_SETS.names(job.index.folder) if name not in done.sets]
    chosen = None if job.index.selection is None else job.index.selection.name
    before = Index.open(job.index.folder, sets=others, selection=chosen)
    view = view_of(before, job.rows, lambda rows: frames_of(job, rows), title=title, captioner=job.captioner.name)
    view.cost = cost_of(view.tokens_in, view.tokens_out, price)
    view.commands = [after_prepare(job.index.folder, job.index)] if done.sets else []
    view.notes = [done.waiting] if done.waiting else []
    write_page(job.rows / PAGE, view)
    return view


def frames_of(job: Recaption, rows: Sequence[int]) -> Iterator[tuple[int, list[TakenFrames] | str]]:
    """The frames of some rows as they were shown to the captioner, or why there are none."""
    from sora.captions.taking import TakeFrames
    from sora.data.shards.stores import open_store

    remote = open_store(job.index.folder).remote
    items = ((row, job.index.read_member(row) if remote else None) for row in rows)
    for one in job.engine(TakeFrames(job.index, job.settings.taking, even=job.captioner.even_frames), items):
        yield one.item[0], one.reason if one.result is None else one.result


def tell(job: Recaption, done: Recaptioned, view: Any) -> None:
    """Say what came of it, and what comes next."""
    from sora.config.command_line.following import after_prepare
    from sora.report.page import number
    from sora.system.terminal import say

    answers = f"{counted(done.asked, 'request')} sent, {counted(done.known, 'answer')} known before"
    torn = f"; {counted(done.dropped, 'torn line')} in {job.journal_folder} passed over" if done.dropped else ""
    say(f"{answers}{torn}")
    if view is not None:
        say(f"{counted(view.captioned, 'clip')} with captions, {view.clips - view.captioned} without, {view.flagged} with a flag")
        for why, clips in view.failures.most_common(SHOWN):
            say(f"  {clips} without: {why}")
        for flag, clips in view.flags.most_common(SHOWN):
            say(f"  {clips} flagged {flag}")
        cost = f", cost {number(view.cost)}" if view.cost is not None else ""
        say(f"{view.tokens_in:,} tokens in, {view.tokens_out:,} out{cost}")
        print(job.rows / PAGE)
    if done.waiting:
        then = "with retry=failed, or with a larger max_failed" if "retry=failed" in done.waiting else "goes on"
        say(f"not finished: {done.waiting}", f"next: the same command {then}")
        return
    sets = ", ".join(done.sets)
    say(f"set {sets} in {job.index.folder}; data.sets=[{sets}] names it, and without data.sets all sets are in force")
    print(f"next: {after_prepare(job.index.folder, job.index)}")


def tell_estimate(job: Recaption, price: Any) -> None:
    """Ask for a few clips, and say what the whole job will take."""
    from sora.captions.estimating import estimate
    from sora.report.page import number
    from sora.system.terminal import say

    found = estimate(job, price=price)
    hours = "hours not known, since all answers were there" if found.hours is None else f"{found.hours:.2g} hours at this rate"
    cost = "" if found.cost is None else f", cost {number(found.cost)}"
    say(
        f"{counted(found.looked, 'clip')} of {found.clips:,} asked for: {found.failed} failed; their answers are kept",
        f"all: {found.requests:,} requests, {found.tokens_in:,} tokens in, {found.tokens_out:,} out, {hours}{cost}",
        f"next: the same command without dry=true makes the set {job.name}",
    )


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("recaption"))
