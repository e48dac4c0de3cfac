"""What tests of `sora prepare` are made with: a source of small windows, and the whole command in this process."""

import json
from functools import partial

from sora import prepare
from sora.data.index.index import DATASET, Index
from sora.data.index.units import WHOLE, Units
from sora.ingest.clip_texts import WORDS
from sora.ingest.preparing import join, keep
from sora.ingest.sources import FolderSource
from sora.system.guarded_pool import in_order

QUIET = {"options": {"g": "12", "crf": "8"}}
run = partial(in_order, workers=0, seconds=60, memory_gb=64)


def source(**more):
    settings = {"fps": None, "frames": 9, "min_frames": 5, "stride_time": 4, "size": None, "multiple": 16, "windows_per_video": None}
    settings |= {"held_out": 0.0, "held_out_by": "video", "leave_out": [], "lossless": True, "licence": "CC0-1.0"}
    settings |= {"images": True, "follow_links": False}
    return FolderSource(**(settings | more))


def prepared(output, made=None, *, run=run, count=None, captions=None, folder=None, words=WORDS):
    with Units(output, part=WHOLE, mark=DATASET, doing="preparing") as units:
        job = (made or source()).job(folder=None if folder is None else str(folder), captions=captions, words=words, count=count, run=run)
        described = join(job, units, *keep(job, units, run=run), max_bytes=1 << 30, about={})
        units.remove()
    return Index.open(output), json.loads((output / "report.json").read_text()), prepare.summary(described, output)
