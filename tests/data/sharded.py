"""What tests of shards that others made are made with: tars of small videos and images, and the index of a folder of them."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from sora.data.index.index import Index
from sora.data.shards.stores import store_of, write_remote
from sora.ingest.index_shards import index_shards, names_of
from sora.ingest.survey import Choices
from tests.data.making import tar, telling

FRAMES = [3, 5, 1, 4]
QUICK = {"options": {"preset": "ultrafast", "bf": "0"}}


def write(path: Path, members) -> None:
    """A tar of (name or TarInfo, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar(members, kind=tarfile.PAX_FORMAT))


def samples(media, prefix="k", start=0):
    return [
        member
        for number, content in enumerate(media, start=start)
        for member in ((f"{prefix}{number}.mp4", content), (f"{prefix}{number}.json", json.dumps({"caption": f"clip {number}"}).encode()))
    ]


def indexed(folder, *, output=None, shards="*.tar", max_bad_share=1.0, workers=0, **choices):
    """(index, refusals as (shard, key, kind), what the command would tell)."""
    store = store_of(str(folder))
    if output:
        output.mkdir()
        write_remote(output, str(folder), cache=None, cache_mb=0, fetch_after=0)
    run = {"licence": "unknown", "workers": workers, "seconds": 20, "memory_gb": 64, "about": {}, "max_bad_share": max_bad_share}
    told = index_shards(store, names_of(store, shards), output or folder, Choices(**choices), **run)
    refused = [json.loads(line) for line in ((output or folder) / "refused.jsonl").read_text().splitlines()]
    assert told["refused"] == json.loads(((output or folder) / "report.json").read_text())["refused"]
    assert sum(told["refused"].values()) == len(refused)
    return Index.open(output or folder), [(one["shard"], one["key"], one["kind"]) for one in refused], told


def still(number, kind="JPEG", size=(48, 32)):
    file = io.BytesIO()
    Image.fromarray(telling(1, size[1], size[0], seed=number)[0]).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()
