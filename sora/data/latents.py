"""Encoded clips on disk, beside the shards they come from: one tar of latents and one parquet file for each shard of the dataset.

latents-<vae hash, 8 digits>.json               of which VAE and dataset, and the shards; written last
latent-<vae hash, 8 digits>-000000.tar          {key}.safetensors: "latents" (C, t, h, w), whitened, float16
latent-<vae hash, 8 digits>-000000.parquet      key, where it lies, its shape, the SHA-256 of the clip it was made from
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sora.data.index import Index
from sora.data.shards import Member, ShardReader, ShardWriter
from sora.data.stores import open_store
from sora.storage import file_hash, read_json, whole_file, write_json

VERSION = 1
SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string()), ("source_sha256", pa.string())]
    + [(name, pa.int32()) for name in ("frames", "rows", "columns")]
)
_UNBOUNDED = 1 << 60  # one tar for one shard, however large
Encode = Callable[[Sequence[int]], Sequence[Tensor]]


def manifest_path(folder: Path | str, vae_hash: str) -> Path:
    return Path(folder) / f"latents-{vae_hash[:8]}.json"


def shard_rows(index: Index) -> list[list[int]]:
    """The rows of an index that lie in each shard of its dataset, in order."""
    rows: list[list[int]] = [[] for _ in index.described["shards"]]
    for number in range(len(index)):
        rows[index.shard(number)].append(number)
    return rows


def finished(index: Index, rows: Sequence[int], *, number: int, vae_hash: str, settings: dict[str, Any]) -> bool:
    """Whether the latents of shard `number` are there, of this VAE and these settings, for exactly these clips."""
    meta = _shard_path(index.folder, vae_hash, number, "parquet")
    if not meta.is_file() or not meta.with_suffix(".tar").is_file():
        return False
    try:
        table = pq.read_table(meta)
    except (pa.ArrowException, OSError):
        return False
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    members = [index.member(row) for row in rows]
    wanted = [(member.key, member.sha256) for member in members]
    same = about.get("vae") == vae_hash and about.get("settings") == repr(settings)
    return same and list(zip(table["key"].to_pylist(), table["source_sha256"].to_pylist(), strict=True)) == wanted


def write_shard(index: Index, rows: Sequence[int], encode: Encode, *, number: int, vae_hash: str, settings: dict[str, Any]) -> None:
    """Encode the clips of one shard and write their latents; `encode` gives one whitened latent per row, in order."""
    meta = _shard_path(index.folder, vae_hash, number, "parquet")
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    prefix = f"latent-{vae_hash[:8]}"
    meta.with_suffix(".tar").unlink(missing_ok=True)
    with ShardWriter(index.folder, prefix=prefix, suffixes=("safetensors",), max_bytes=_UNBOUNDED, first=number) as writer:
        for row, latents in zip(rows, encode(rows), strict=True):
            source = index.member(row)
            if not latents.isfinite().all() or latents.abs().max() > 6e4:
                raise ValueError(f"clip {source.key}: its latents are not finite or too large for float16; train the VAE again")
            (member,) = writer.write(source.key, {"safetensors": save({"latents": latents.half().contiguous()})})
            shape = dict(zip(("frames", "rows", "columns"), latents.shape[1:], strict=True))
            place = {"key": source.key, "offset": member.offset, "size": member.size, "sha256": member.sha256}
            for name, value in {**place, "source_sha256": source.sha256, **shape}.items():
                columns[name].append(value)
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"vae": vae_hash, "settings": repr(settings)})
    with whole_file(meta) as staging:
        pq.write_table(table, staging, compression="zstd")


def finish(index: Index, *, shards: int, vae_hash: str, about: dict[str, Any]) -> Path:
    """Write the manifest that says the latents are whole. about: JSON-able: stride, channels, settings, ..."""
    metas = [_shard_path(index.folder, vae_hash, number, "parquet") for number in range(shards)]
    listed = [
        {
            "meta": meta.name,
            "meta_sha256": file_hash(meta),
            "shard": meta.with_suffix(".tar").name,
            "bytes": meta.with_suffix(".tar").stat().st_size,
        }
        for meta in metas
    ]
    path = manifest_path(index.folder, vae_hash)
    write_json(path, {"version": VERSION, "vae": vae_hash, "dataset": index.dataset_fingerprint, "shards": listed, **about})
    return path


def _shard_path(folder: Path, vae_hash: str, number: int, suffix: str) -> Path:
    return folder / f"latent-{vae_hash[:8]}-{number:06d}.{suffix}"


class LatentIndex:
    """The latents of an index's clips under one VAE, in the index's order.

    stride: of the VAE in frames, rows and columns. shapes: (clips, 3), latent frames, rows and columns of each clip.
    """

    def __init__(self, index: Index, vae_hash: str) -> None:
        self.index, self.vae_hash = index, vae_hash
        self.described = _open_manifest(index, vae_hash)
        self.stride: tuple[int, int, int] = tuple(self.described["stride"])
        parts = [_open_shard(index, number, entry) for number, entry in enumerate(self._entries())]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._places = {name: index.of_rows(array) for name, array in whole.items() if name != "shape"}
        self.shapes: Int[np.ndarray, "clips 3"] = index.of_rows(whole["shape"])
        self._reader = ShardReader(open_store(index.folder))

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self):
        return LatentIndex, (self.index, self.vae_hash)

    def member(self, number: int) -> Member:
        shard = self.described["shards"][self.index.shard(number)]["shard"]
        offset, size = int(self._places["offset"][number]), int(self._places["size"][number])
        return Member(self.index.key(number), "safetensors", shard, offset, size, bytes(self._places["sha256"][number]).hex())

    def _entries(self) -> list[dict[str, Any]]:
        """The latents' shards: one for each of the dataset."""
        listed, wanted = self.described["shards"], self.index.described["shards"]
        if len(listed) != len(wanted):
            path = manifest_path(self.index.folder, self.vae_hash)
            raise ValueError(f"{path} lists {len(listed)} shards, the dataset has {len(wanted)}; run sora encode again")
        return listed

    def latents(self, number: int) -> Float[Tensor, "C _ _ _"]:
        """Whitened float32 latents of a clip; ValueError naming the shard and key if they are missing or changed."""
        member = self.member(number)
        try:
            return load(self._reader.read(member))["latents"].float()
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"clip {member.key}: its latents in {member.shard} are damaged: {error}; run sora encode again") from None


def _open_manifest(index: Index, vae_hash: str) -> dict[str, Any]:
    path = manifest_path(index.folder, vae_hash)
    if not path.is_file():
        others = [other.stem.removeprefix("latents-") for other in sorted(index.folder.glob("latents-????????.json"))]
        raise ValueError(
            f"{index.folder} has no finished latents of the VAE {vae_hash[:8]} (there are those of: {', '.join(others) or 'none'});"
            f" run sora encode vae=… data={index.folder}"
        )
    described = read_json(path)
    for name, wanted in (("version", VERSION), ("vae", vae_hash), ("dataset", index.dataset_fingerprint)):
        if described.get(name) != wanted:
            raise ValueError(f"{path} is stale: its {name} is {described.get(name)}, wanted is {wanted}; run sora encode again")
    return described


def _open_shard(index: Index, number: int, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """The places and shapes of a shard's latents as arrays, in the order of the dataset's rows."""
    meta, shard = index.folder / entry["meta"], index.folder / entry["shard"]
    if not meta.is_file() or file_hash(meta) != entry["meta_sha256"]:
        raise ValueError(f"{meta} is missing or has changed; run sora encode again")
    if not shard.is_file() or shard.stat().st_size != entry["bytes"]:
        raise ValueError(
            f"{shard} is missing or cut short, it should have {entry['bytes']} bytes; delete {meta.name} and run sora encode again"
        )
    table = pq.read_table(meta)
    wanted = index.shard_keys(number)
    if (found := table["key"].to_pylist()) != wanted:
        there = set(found)
        lost = [key for key in wanted if key not in there]
        why = f"lacks {len(lost)} clips, such as {lost[0]}" if lost else "has them in another order"
        raise ValueError(f"{meta} is not of the clips of shard {number}: it {why}; run sora encode again")
    hashes = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), np.uint8).reshape(-1, 32)
    shape = np.stack([table[name].to_numpy() for name in ("frames", "rows", "columns")], axis=1)
    return {"offset": table["offset"].to_numpy(), "size": table["size"].to_numpy(), "sha256": hashes, "shape": shape}
