"""What it costs to open a large index and to look clips up in it at random: `make bench-index` writes index.json here.

The metadata are real, the shards are empty files of the right length: opening and looking up read no clip.
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

from sora.data.columns import LAYOUT
from sora.data.index import Caption, ClipFacts, Index
from sora.data.rows import clip_row
from sora.data.shards import Member
from sora.data.writing import IndexWriter
from sora.storage import write_json

HERE = Path(__file__).resolve().parent
CLIPS, EACH, LOOKS = 300_000, 5_000, 3_000
WORDS = ["a", "red", "ball", "rolls", "left", "over", "wet", "sand", "while", "the", "camera", "follows", "it", "slowly"]
OPENING = """
import json, resource, sys, time
import numpy as np
from sora.data.index import Index
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
    figures = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    figures |= {"clips": CLIPS, "rows_written_per_second": written}
    figures |= {"column_bytes_per_clip": columns / CLIPS, "parquet_bytes_per_clip": metas / CLIPS}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    write_json(
        HERE / "index.json",
        {
            "figures": figures,
            "rows": rows,
            "settings": {"clips": CLIPS, "clips_in_a_shard": EACH, "looks": LOOKS, "columns": list(LAYOUT)},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": sys.version.split()[0], "numpy": np.__version__, "pyarrow": pa.__version__},
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "commit": commit,
        },
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
