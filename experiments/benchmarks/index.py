"""What it costs to open a large index and to look clips up in it at random: `make bench-index` writes index.json here.

The metadata are real, the shards are empty files of the right length: opening and looking up read no clip. Then what reading clips
by the index costs beside webdataset's sequential pipeline over the same shards: in random order, hashed at a process's first read as
the default is, read again, and hashed at every read. Ratios are medians over rounds that take turns, by the clock and by the processor.
At last what `sora data index` takes to join shards that are read already, and how much memory in all.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from sora.data.index.columns import LAYOUT
from sora.data.index.index import Caption, ClipFacts, Index
from sora.data.index.rows import clip_row
from sora.data.index.writer import DatasetWriter, IndexWriter
from sora.data.shards.shards import Member
from sora.system.files import write_json

HERE = Path(__file__).resolve().parent
CLIPS, EACH, LOOKS = 300_000, 5_000, 3_000
READ, READ_BYTES, ROUNDS = 600, 280_000, 5
WORDS = ["a", "red", "ball", "rolls", "left", "over", "wet", "sand", "while", "the", "camera", "follows", "it", "slowly"]
OPENING = """
import json, resource, sys, time
import numpy as np
from sora.data.index.index import Index
def used():
    fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024
Index.open(sys.argv[2])
before, start = used(), time.perf_counter()
index = Index.open(sys.argv[1], "train")
opened, after = time.perf_counter() - start, used()
rows = np.random.default_rng(0).integers(0, len(index), int(sys.argv[3])).tolist()
def rate(look):
    start = time.process_time()
    for row in rows:
        look(row)
    return len(rows) / (time.process_time() - start)
found = {"open_seconds": opened, "open_mb": after - before, "members_per_cpu_second": rate(index.member)}
found |= {"captions_per_cpu_second": rate(index.captions), "after_all_mb": used() - before}
print(json.dumps(found))
"""


def write(folder: Path, clips: int) -> float:
    """A dataset's metadata; rows a second."""
    draw, start = np.random.default_rng(0), time.perf_counter()
    folder.mkdir()
    writer = IndexWriter(folder, licence="CC0-1.0")
    for first in range(0, clips, EACH):
        shard, rows, offset = f"video-{first // EACH:06d}.tar", [], 512
        for number in range(first, min(first + EACH, clips)):
            text = " ".join(draw.choice(WORDS, 40))
            said = (Caption("dense", text, "m"), Caption("short", text[:40], "m"))
            facts = ClipFacts(f"{number:012x}-00000", int(draw.integers(17, 129)), 24.0, 720, 1280, said)
            size = int(draw.integers(1, 1 << 16))
            rows.append(clip_row(facts, Member(facts.key, "mp4", shard, offset, size, draw.bytes(32).hex())))
            offset += size
        with open(folder / shard, "wb") as file:
            file.truncate(offset)
        writer.add(rows, size=offset)
    writer.finish({})
    return clips / (time.perf_counter() - start)


def reading(folder: Path) -> dict[str, float]:
    """Clips a second over webdataset's."""
    import webdataset

    draw = np.random.default_rng(0)
    with DatasetWriter(folder, licence="CC0-1.0", max_bytes=64 << 20) as writer:
        for number in range(READ):
            writer.write(ClipFacts(f"clip-{number:05d}", 65, 16.0, 256, 454), draw.bytes(READ_BYTES))
        writer.finish({})
    order, urls = draw.permutation(READ).tolist(), sorted(map(str, folder.glob("video-*.tar")))
    known = Index.open(folder)

    def read(index: Index) -> int:
        return sum(len(index.read_member(row)) for row in order)

    ways = {
        "webdataset": lambda: sum(len(one["mp4"]) for one in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)),
        "first_read": lambda: read(Index.open(folder)),
        "read_again": lambda: read(known),
        "every_read_hashed": lambda: read(Index.open(folder, hash_every_read=True)),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            clock, busy = time.perf_counter(), time.process_time()
            assert way() == READ * READ_BYTES
            took[name].append((time.perf_counter() - clock, time.process_time() - busy))
    found = {}
    for name in list(ways)[1:]:
        for which, of in enumerate(("", "_processor")):
            ratios = [theirs[which] / ours[which] for theirs, ours in zip(took["webdataset"], took[name], strict=True)]
            found[f"{name}_vs_webdataset{of}"] = float(np.median(ratios))
    return found


JOINING = """
import json, random, sys, time
from pathlib import Path
from sora.ingest.survey import Survey
from sora.ingest.index_shards import _joined
from sora.ingest.index_progress import Parts
from sora.data.index.rows import Caption, ClipFacts, clip_row
from sora.data.shards.shards import Member
draw, clips, each = random.Random(0), int(sys.argv[2]), int(sys.argv[3])
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
with Parts(Path(sys.argv[1]), {}) as parts:
    shards = [f"video-{number:06d}.tar" for number in range(clips // each)]
    for number, shard in enumerate(shards):
        rows = []
        for inner in range(each):
            said = (Caption("dense", " ".join(draw.choices(["red", "ball", "rolls", "left", "slowly"], k=20)), "m"),)
            facts = ClipFacts(f"{number * each + inner:012x}-00000", draw.randint(17, 129), 24.0, 720, 1280, said)
            rows.append(clip_row(facts, Member(facts.key, "mp4", shard, 512 + inner * 1024, 900, draw.randbytes(32).hex())))
        parts.write(Survey(shard, each * 1024), rows, [])
    before, start = peak(), time.process_time()
    _joined(parts, shards, Path(sys.argv[1]), licence="", max_bad_share=1.0, about={})
    found = {"joined_rows_per_cpu_second": clips / (time.process_time() - start), "parts_peak_mb": before, "joined_peak_mb": peak()}
print(json.dumps(found))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        large, small = Path(made) / "large", Path(made) / "small"
        written = write(large, CLIPS)
        write(small, 10)
        asked = [sys.executable, "-c", OPENING, str(large), str(small), str(LOOKS)]
        rows = [json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
        columns = sum(path.stat().st_size for path in (large / "columns").iterdir())
        metas = sum(path.stat().st_size for path in large.glob("*.parquet"))
        assert len(Index.open(large)) == CLIPS
        against = reading(Path(made) / "read")
        joining = [sys.executable, "-c", JOINING, str(Path(made) / "joined"), str(CLIPS), str(EACH)]
        joined = json.loads(subprocess.run(joining, capture_output=True, text=True, check=True).stdout)
    figures = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    figures |= against | joined
    figures |= {"clips": CLIPS, "rows_written_per_second": written}
    figures |= {"column_bytes_per_clip": columns / CLIPS, "parquet_bytes_per_clip": metas / CLIPS}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        HERE / "index.json",
        {
            "figures": figures,
            "rows": rows,
            "settings": {
                "clips": CLIPS,
                "clips_in_a_shard": EACH,
                "looks": LOOKS,
                "read": READ,
                "read_bytes": READ_BYTES,
                "columns": list(LAYOUT),
            },
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "pyarrow": pa.__version__},
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "commit": commit,
        },
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
