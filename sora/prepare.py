"""Make a dataset of shards from a folder of videos and images, or from the built-in world.

Files are known by their bytes (mp4, webm, mkv, mov, avi, ...; jpg, png, webp, avif, gif) and may have captions beside them: `name.txt`,
`name.mp4.txt`, `name.caption`, `name.json`, one table for all, captions=FILE (.csv, .tsv, .jsonl, .json or .parquet with a column `file`),
or the folder's own metadata.jsonl as Hugging Face has it. What gives no clip or fits none is counted in the last line and named in
report.json. A command that was stopped goes on when it is given again; part=[K,N] makes the K-th of N shares, the same line without part
ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora.gate.sizes import MOST_WORKERS, Number, refuse_numbers
from sora.system.terminal import counted

if TYPE_CHECKING:
    from pathlib import Path

    from sora.config.compose import Composed

EXAMPLES = (
    "sora prepare input=videos output=data/mine",
    "sora prepare input=videos captions=captions.csv output=data/mine source.size=256 source.fps=16 source.frames=65",
    "sora prepare source=world count=3000 output=data/world",
)
NUMBERS = {
    "count": Number(1, whole=True),
    "workers": Number(0, whole=True, most=MOST_WORKERS),
    "shard_mb": Number(1),
    **dict.fromkeys(("unit_seconds", "worker_memory_gb"), Number(0, above=True)),
}


def main(composed: Composed) -> None:
    from functools import partial
    from pathlib import Path

    from omegaconf import OmegaConf

    from sora.config.build import build
    from sora.config.command_line.following import after_prepare
    from sora.data.index.index import DATASET, Index
    from sora.data.index.units import JobPart, Units
    from sora.gate.confine import lacking
    from sora.ingest.clip_texts import CaptionWords
    from sora.ingest.preparing import join, keep
    from sora.ingest.tree import Run
    from sora.system.files import refuse_nested, refuse_within
    from sora.system.guarded_pool import in_order
    from sora.system.terminal import counting, say

    config = composed.config
    refuse_numbers(config, NUMBERS)
    output, part = Path(config.output), JobPart.of(config.part)
    refuse_within(output)
    if config.input is not None:
        refuse_nested(output, Path(config.input), key="input")
    # What others made is never decoded in the process that writes.
    workers = config.workers if config.input is None else max(1, config.workers)
    if config.input is not None and (why := lacking()):
        print(f"note: {why}")
    run: Run = partial(in_order, workers=workers, seconds=config.unit_seconds, memory_gb=config.worker_memory_gb)
    source = build(config.source)
    said: Any = OmegaConf.to_container(config.captions)
    table = said.pop("file")
    with Units(output, part=part, mark=DATASET, doing="preparing") as units:
        job = source.job(folder=config.input, captions=table, words=CaptionWords(**said), count=config.count, run=run, besides=output)
        with counting("preparing", len(part.some(job.units))) as report:
            kept, refused = keep(job, units, run=run, report=report)
        if part.of_all > 1:
            print(f"part {part} of {output} is prepared: {counted(len(kept), 'file')}; when all are, end with the same line without part")
            return
        about = {"command": "prepare", "config": OmegaConf.to_container(config, resolve=True)}
        described = join(job, units, kept, refused, max_bytes=int(config.shard_mb * 2**20), about=about)
        units.remove()
    say(summary(described, output))
    print(f"next: {after_prepare(output, Index.open(output))}")


def summary(described: dict[str, Any], output: Path) -> str:
    """The line a user reads at the end."""
    totals, splits = described["totals"], described["splits"]
    parts = [f"{count} {split}" for split, count in sorted(splits.items(), reverse=True)]
    line = (
        f"{output}: {counted(totals['clips'], 'clip')} ({', '.join(parts)}), {counted(totals['frames'], 'frame')}, "
        f"{counted(round(totals['seconds']), 'second')}, "
        f"{totals['bytes'] / 2**20:.1f} MB in {counted(len(described['shards']), 'shard')}"
    )
    told = [f"{described[key]} {what}" for key, what in (("refused", "could not be used"), ("passed", "passed over")) if described[key]]
    named = [f"{', '.join(told)}: {output / 'report.json'} says which and why"] if told else []
    without = sum(counts["without"] for counts in described["captioned"].values())
    silent = [f"{without} of {counted(totals['clips'], 'clip has', 'clips have')} no caption"] if without else []
    return "; ".join([line, *named, *silent, *described["told"]])


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("prepare"))
