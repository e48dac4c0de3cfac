"""Index shards made by others, check a dataset to the last byte, or show what is inside.

sora data index FOLDER   rows, hashes and offsets for any WebDataset of videos or images with captions (json, txt, ...), beside its shards;
                         of a URL (s3://…, https://…) into output=FOLDER, with the shards left where they are
sora data check FOLDER   counts, hashes, and that every clip decodes to what the index says
sora data show FOLDER    sizes, durations, rates and captions as histograms, and a page with thumbnails
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora.gate.sizes import MOST_WORKERS, Number, refuse_numbers
from sora.system.terminal import counted

if TYPE_CHECKING:
    from sora.config.compose import Composed

EXAMPLES = (
    "sora data index=shards shards=*/*.tar",
    "sora data check=data/mine decode=0.01 workers=8",
    "sora data show=data/mine output=mine.html",
)
ACTIONS = ("index", "check", "show")
EVERY = ("output", "workers", "clip_seconds", "worker_memory_gb")
READ = {"check": (*EVERY, "decode"), "show": (*EVERY, "clips", "sample")}  # the keys of each action; all others are of index
NUMBERS = {
    "workers": Number(0, whole=True, most=MOST_WORKERS),
    **dict.fromkeys(("clip_seconds", "worker_memory_gb", "most_mb"), Number(0, above=True)),
    **dict.fromkeys(("decode", "max_bad_share", "held_out"), Number(0, most=1)),
    **dict.fromkeys(("fetch_after", "sample"), Number(1, whole=True)),
    "clips": Number(0, whole=True),
    "cache_mb": Number(0),
}


def main(composed: Composed) -> int | None:
    from sora.config.command_line.idle import refuse_idle
    from sora.gate.confine import lacking

    config = composed.config
    given = [action for action in ACTIONS if config[action] is not None]
    if len(given) != 1:
        wanted = ", ".join(f"{action}=FOLDER" for action in ACTIONS)
        raise ValueError(f"needs one of {wanted}; given: {', '.join(given) or 'none'}")
    refuse_idle(config, composed.said, idle(config, given[0]), why=f"with {given[0]}=")
    refuse_numbers(config, NUMBERS)
    if why := lacking():
        print(f"note: {why}")
    return {"index": index, "check": check, "show": show}[given[0]](config)


def idle(config: Any, action: str) -> set[str]:
    """The keys that an action does not read."""
    others = {key for keys in READ.values() for key in keys} - set(EVERY)
    return set(config) - {*READ[action], action} if action in READ else others


def index(config: Any) -> None:
    from pathlib import Path

    from omegaconf import OmegaConf

    from sora.config.command_line.commands import command
    from sora.config.command_line.following import after_prepare
    from sora.data.index.index import Index
    from sora.data.index.writer import DATASET
    from sora.data.shards.stores import names_place, store_of, write_remote
    from sora.ingest.clip_texts import CaptionWords
    from sora.ingest.index_shards import index_shards, mirror, names_of, passed_over
    from sora.ingest.survey import Choices
    from sora.system.terminal import counting, say

    place, output = str(config.index), None if config.output is None else Path(config.output)
    elsewhere = {"cache": config.cache, "cache_mb": config.cache_mb, "fetch_after": config.fetch_after}
    store, folder = store_of(place, **elsewhere), output or Path(place)
    _refuse_unfit(config, remote=store.remote)
    far = place if store.remote else str(Path(place).resolve())
    if output is not None and (folder / DATASET).exists() and names_place(folder, far):
        write_remote(folder, far, **elsewhere)
        say(f"{folder}: its shards lie at {far}, by your word from now on", f"next: {after_prepare(folder, Index.open(folder))}")
        return
    if (folder / DATASET).exists():
        raise ValueError(f"{folder / DATASET} exists already: it is indexed; remove that file, or index into another folder with output=")
    if output is not None:
        write_remote(folder, far, **elsewhere)
    if output is not None and _there(store, DATASET):
        described = mirror(store, folder, most=int(config.metadata_mb * 2**20))
    else:
        choices = Choices(
            video=config.video,
            need_captions=config.need_captions,
            key_with_shard=config.key_with_shard,
            held_out=config.held_out,
            most_mb=config.most_mb,
            words=CaptionWords(**OmegaConf.to_container(config.captions)),  # pyright: ignore[reportCallIssue]
        )
        shards = names_of(store, config.shards)
        passed = passed_over(store, config.shards, shards, folder)
        with counting("shards") as report:
            described = index_shards(
                store,
                shards,
                folder,
                choices,
                licence=config.licence,
                max_bad_share=config.max_bad_share,
                workers=config.workers,
                seconds=config.clip_seconds,
                memory_gb=config.worker_memory_gb,
                about={"command": "data index", "config": OmegaConf.to_container(config, resolve=True)},
                passed=passed,
                report=report,
            )
    # where all clips are held out there is nothing to train on
    then = after_prepare(folder, Index.open(folder)) if "train" in described["splits"] else command("data", "show", folder)
    say(*_told(described, folder), f"next: {then}")


def _refuse_unfit(config: Any, *, remote: bool) -> None:
    """Raise ValueError for an index that needs a place of its own, and for a key that says nothing of shards."""
    from pathlib import Path

    from sora.ingest.clip_texts import FILE
    from sora.system.files import may_write

    if FILE in config.captions.get("keys", {}):
        raise ValueError(f"captions.keys={{{FILE}: …}} has no effect with index=, where members of one name are one sample; leave it out")
    if config.output is None and remote:
        raise ValueError(f"index={config.index} is a URL; name the folder for its index with output=FOLDER")
    if config.output is None and Path(config.index).is_dir() and not may_write(Path(config.index)):
        why = "cannot be written, and its index would lie beside the shards"
        raise ValueError(f"index={config.index} {why}; name a folder of your own: output=FOLDER")


def _there(store: Any, name: str) -> bool:
    try:
        store.open(name)[0].close()
    except ValueError:
        return False
    return True


def _told(described: dict[str, Any], folder: Any) -> list[str]:
    from sora.ingest.tree import listed

    totals, splits = described["totals"], described["splits"]
    parts = (
        f" ({', '.join(f'{count} {split}' for split, count in sorted(splits.items(), reverse=True))})" if set(splits) != {"train"} else ""
    )
    shown = (
        f"{counted(totals['clips'], 'clip')}{parts} in {counted(len(described['shards']), 'shard')}, {counted(totals['frames'], 'frame')}"
    )
    shown = f"{shown}, {counted(round(totals['seconds']), 'second')}"
    lines = [f"{folder}: {shown}, {totals['bytes'] / 2**20:.1f} MB, {counted(totals['captions'], 'caption')}"]
    refused = described.get("refused", {})
    if described.get("kept"):
        lines.append(
            f"  {counted(described['kept'], 'shard had been indexed before, and was', 'shards had been indexed before, and were')} kept"
        )
    if refused:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(refused.items()))
        lines.append(f"  {sum(refused.values())} could not be used ({kinds}); {folder}/refused.jsonl says which and why")
    if passed := described.get("passed"):
        shown = listed([f"{one.source} {one.reason}" for one in passed])
        lines.append(f"  {len(passed)} passed over ({shown}); {folder}/report.json names them")
    return lines + [f"  note: {note}: {count}" for note, count in sorted(described.get("notes", {}).items())]


def check(config: Any) -> int:
    from pathlib import Path

    from sora.data.index.index import Index
    from sora.ingest.check import check as compare
    from sora.system.files import refuse_unwritable, write_json
    from sora.system.terminal import counting, say

    opened = Index.open(config.check)
    if config.output is not None:
        output = Path(config.output)
        refuse_unwritable(output, key="output", suffix=".json")
        if output.exists() and '"faults"' not in output.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"output={output} is there and no report of a check; it is not written over: name another file")
    with counting("clips") as report:
        done = 0

        def count(clips: int) -> None:
            nonlocal done
            done += clips
            report(done, None)

        checked = compare(
            opened,
            decode=config.decode,
            workers=config.workers,
            seconds=config.clip_seconds,
            memory_gb=config.worker_memory_gb,
            report=count,
        )
    say(*(f"{config.check}: {told}" if not number else told for number, told in enumerate(checked.lines())))
    if config.output is not None:
        faults = [fault._asdict() for fault in checked.faults]
        compared = {"dataset": opened.dataset_fingerprint, "compared": dict(checked.counts), "kinds": dict(checked.kinds)}
        write_json(Path(config.output), {**compared, "notes": checked.notes, "faults": faults})
        print(f"  all of it is in {config.output}")
    return 1 if checked.faults else 0


def show(config: Any) -> None:
    import shutil
    from pathlib import Path

    import numpy as np

    from sora.data.index.index import Index
    from sora.data.shards.stores import open_store
    from sora.ingest.statistics import Thumbnails, describe, heavy, lasting, sets_told
    from sora.report.dataset import write_page
    from sora.system.files import may_write, refuse_unwritable
    from sora.system.guarded_pool import in_order
    from sora.system.terminal import say

    folder = Path(config.show)
    opened = Index.open(folder)
    output = Path(config.output) if config.output is not None else folder / "show.html"
    if config.output is None and not may_write(folder):
        output = Path(f"{folder.resolve().name}-show.html")
        print(f"{folder} is read-only: the page is written to {output}")
    refuse_unwritable(output, key="output", suffix=".html")
    described = describe(opened, sample=config.sample)
    (length, unit), (size, prefix) = lasting(described.totals["seconds"]), heavy(described.totals["bytes"])
    splits = ", ".join(f"{count} {split}" for split, count in described.splits.items())
    clips, frames = counted(len(opened), "clip"), counted(int(described.totals["frames"]), "frame")
    held = f"{clips} ({splits}), {frames}, {length:.4g} {unit}, {size:.4g} {prefix}"
    print(f"{folder}: {held}; shards: {described.totals['shards']}\n")
    width = min(shutil.get_terminal_size((100, 30)).columns, 120)
    for histogram in described.histograms:
        say(*histogram.lines(width), "")
    say(*described.left, *sets_told(opened))
    for name, counts in described.counted.items():
        listed = sorted(counts.items(), key=lambda item: -item[1])[:8]
        say(f"{name}: " + ", ".join(f"{text} {count}" for text, count in listed))
    rows = np.unique(np.linspace(0, len(opened) - 1, config.clips).round().astype(int)).tolist()
    limits = {"seconds": config.clip_seconds, "memory_gb": config.worker_memory_gb, "apart": not open_store(folder).remote}
    made = list(in_order(Thumbnails(opened), rows, workers=config.workers, **limits))
    unreadable = [done.reason for done in made if done.result is None]
    write_page(output, folder.resolve().name, described, [done.result for done in made if done.result is not None], unreadable)
    say(*(f"could not be shown: {why}" for why in unreadable), f"the page: {output}")


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("data"))
