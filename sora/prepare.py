"""Make a dataset of shards from a folder of videos, or from the built-in world.

A folder's videos (mp4, webm, mkv, mov, avi, ogv, ...) may have captions beside them, `name.txt`, `name.mp4.txt`, `name.caption`,
`name.json`, or one table for all: captions=FILE (.csv, .tsv, .jsonl, .json or .parquet with a column `file`), or the folder's own
metadata.jsonl as Hugging Face has it. What cannot be read or fits no video is counted in the last line and named in report.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from sora.configs.compose import Composed
    from sora.data.sources import Job, Refused, Run

EXAMPLES = (
    "sora prepare input=videos output=data/mine",
    "sora prepare input=videos captions=captions.csv output=data/mine source.size=256 source.fps=16 source.frames=65",
    "sora prepare source=world count=3000 output=data/world",
)


def main(composed: Composed) -> None:
    from functools import partial
    from pathlib import Path

    from omegaconf import OmegaConf

    from sora.configs.build import build
    from sora.configs.following import after_prepare
    from sora.data.clip_texts import CaptionWords
    from sora.data.index import Index
    from sora.data.workers import in_order
    from sora.storage import whole_folder

    config = composed.config
    output = Path(config.output)
    run: Run = partial(in_order, workers=config.workers, seconds=config.unit_seconds, memory_gb=config.worker_memory_gb)
    source = build(config.source)
    said: Any = OmegaConf.to_container(config.captions)
    table = said.pop("file")
    with whole_folder(output) as staging:
        job = source.job(folder=config.input, captions=table, words=CaptionWords(**said), count=config.count, run=run)
        about = {"command": "prepare", "config": OmegaConf.to_container(config, resolve=True)}
        described = write(job, staging, run=run, max_bytes=int(config.shard_mb * 2**20), about=about)
    print(summary(described, output))
    print(f"next: {after_prepare(output, Index.open(output))}")


def write(job: Job, folder: Path, *, run: Run, max_bytes: int, about: dict[str, Any]) -> dict[str, Any]:
    """Make the job's clips into shards, an index and `report.json` in `folder`. What dataset.json holds."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from sora.data.index import DatasetWriter
    from sora.data.sources import Made, Refused

    refused = list(job.refused)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    # Without a thread of its own: worker processes are forked from this one.
    with DatasetWriter(folder, licence=job.licence, max_bytes=max_bytes) as writer, Progress(*columns, auto_refresh=False) as progress:
        task = progress.add_task("preparing clips", total=job.clips)
        for done in run(job.make, job.units):
            found = [Refused(job.name_of(done.item), 0.0, done.reason)] if done.result is None else done.result
            for one in found:
                if isinstance(one, Made) and (job.most is None or writer.rows < job.most):
                    writer.write(one.facts, one.media)
                elif isinstance(one, Refused):
                    refused.append(one)
            progress.update(task, completed=min(writer.rows, job.clips), refresh=True)
            if job.most is not None and writer.rows >= job.most:
                break
        if not writer.rows:
            raise ValueError(f"not one clip could be made: {_listed(refused)}")
        described = writer.finish(about)
    return described | {"refused": _report(folder, described, refused, job), "told": job.told}


def _report(folder: Path, described: dict[str, Any], refused: list[Refused], job: Job) -> int:
    from sora.storage import write_json

    listed = [one._asdict() for one in refused]
    said = {"splits": described["splits"], "captioned": described["captioned"], "refused": listed}
    report = {"clips": described["totals"]["clips"], **said, **job.notes}
    write_json(folder / "report.json", report)
    return len(refused)


def _listed(refused: list[Refused]) -> str:
    return "; ".join(f"{one.source}: {one.reason}" for one in refused[:3])


def summary(described: dict[str, Any], output: Path) -> str:
    """The line a user reads at the end."""
    totals, splits = described["totals"], described["splits"]
    parts = [f"{count} {split}" for split, count in sorted(splits.items(), reverse=True)]
    line = (
        f"{output}: {totals['clips']} clips ({', '.join(parts)}), {totals['frames']} frames, {totals['seconds']:.0f} seconds, "
        f"{totals['bytes'] / 2**20:.1f} MB in {len(described['shards'])} shard{'s' if len(described['shards']) > 1 else ''}"
    )
    if described["refused"]:
        line += f"; {described['refused']} could not be used, {output / 'report.json'} says which and why"
    without = sum(counts["without"] for counts in described["captioned"].values())
    told = [f"{without} of {totals['clips']} clips have no caption"] if without else []
    return "; ".join([line, *told, *described["told"]])


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("prepare"))
