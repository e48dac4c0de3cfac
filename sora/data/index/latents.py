"""Encoded clips on disk, beside the shards they come from: one tar of latents and one parquet file for each shard of the dataset.

latents-<vae hash, 8 digits>.json               the VAE, the dataset and the shards; written last
latents-<vae hash, 8 digits>-refused.jsonl      the clips that could not be encoded, and why; their latents are of shape (0, 0, 0)
latent-<vae hash, 8 digits>-000000.tar          {key}.safetensors: "latents" (C, t, h, w), whitened, float16
latent-<vae hash, 8 digits>-000000.parquet      key, place in the tar, shape, SHA-256 of the clip, and how the latents were made
latents-<vae hash, 8 digits>/                   the same places and shapes as numbers, mapped into memory (60 bytes a clip)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sora.data.index.index import Index
from sora.data.index.mapped_arrays import ArrayWriter, Column, check_arrays, open_arrays
from sora.data.index.rows import refuse_impossible
from sora.data.shards.shards import Member, ShardReader, ShardWriter
from sora.data.shards.stores import open_store
from sora.gate import parquet
from sora.gate.files import below
from sora.gate.forms import Fields, Items, Maybe, Named, anything, beside, count, digest, fitting, some, text
from sora.gate.tensors import finite
from sora.gate.texts import CARD, LIST, json_of, read_json
from sora.system.files import NotEncoded, file_hash, local, whole_file, write_json, write_text
from sora.system.terminal import counted

VERSION = 1
SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string()), ("source_sha256", pa.string())]
    + [(name, pa.int32()) for name in ("frames", "rows", "columns")]
    + [("refused", pa.string())]
)
LAYOUT = {"offset": Column("<i8"), "size": Column("<i8"), "sha256": Column("u1", 32), "shape": Column("<i4", 3)}
_CHECKED_AT_ONCE = 32 << 20  # bytes of metadata up to which every file's hash is compared at once
_ENTRY = {"meta": beside, "meta_sha256": digest, "shard": beside, "bytes": count}
FORM = Fields(
    {"version": some, "vae": text, "dataset": text, "stride": Items(some, 3, 3), "shards": [_ENTRY]},
    may={"columns": Maybe(dict.fromkeys(LAYOUT, digest))},
)  # the form of latents-….json
_EMPTY_TAR = bytes(1024)  # the end mark of a tar
_UNBOUNDED = 1 << 60  # one tar for one shard, however large
_NOTHING = {"offset": 0, "size": 0, "sha256": "00" * 32, "frames": 0, "rows": 0, "columns": 0}  # the row of a clip without latents
Encode = Callable[[Sequence[int]], Sequence[Tensor | str]]


def manifest_path(folder: Path | str, vae_hash: str) -> Path:
    return Path(folder) / f"latents-{vae_hash[:8]}.json"


def shard_rows(index: Index) -> list[Sequence[int]]:
    """For each shard of the dataset, the rows of the index that lie in it, in order."""
    return [index.rows_of_shard(number) for number in range(len(index.described["shards"]))]


def finished(index: Index, rows: Sequence[int], *, number: int, vae_hash: str, settings: dict[str, Any]) -> bool:
    """Whether shard `number` already has latents of this VAE and these settings, for exactly these clips.

    Raises:
        ValueError: it has, but their frames came from another reader than settings["reader"].
    """
    meta = _shard_path(index.folder, vae_hash, number, "parquet")
    if not meta.is_file() or not meta.with_suffix(".tar").is_file():
        return False
    try:
        table = _rows(index, meta, ("key", "source_sha256"))
        about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        made = fitting(json_of(about.get("settings", "{}").encode(), limit=CARD), Named(anything), str(meta))
    except (OSError, ValueError):  # written by another version, or half a file: encode again
        return False
    members = [index.member(row) for row in rows]
    wanted = [(member.key, member.sha256) for member in members]
    if about.get("vae") != vae_hash or list(zip(table["key"].to_pylist(), table["source_sha256"].to_pylist(), strict=True)) != wanted:
        return False
    if (was := made.get("reader")) != (now := settings.get("reader")):
        raise ValueError(
            f"{meta} is stale: its frames were decoded by reader={was}, here is reader={now}, and one dataset's latents are of one"
            f" reader; choose that one, or delete {index.folder}/latent-{vae_hash[:8]}-*.parquet to encode anew"
        )
    return made == settings


def write_shard(index: Index, rows: Sequence[int], encode: Encode, *, number: int, vae_hash: str, settings: dict[str, Any]) -> None:
    """Encode the clips of one shard and write their latents. encode: gives for each row, in order, whitened latents or why it has none."""
    meta = _shard_path(index.folder, vae_hash, number, "parquet")
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    prefix = f"latent-{vae_hash[:8]}"
    manifest_path(index.folder, vae_hash).unlink(missing_ok=True)  # until `finish` the latents are incomplete
    meta.with_suffix(".tar").unlink(missing_ok=True)
    with ShardWriter(index.folder, prefix=prefix, suffixes=("safetensors",), max_bytes=_UNBOUNDED, first=number) as writer:
        for row, latents in zip(rows, encode(rows), strict=True):
            source = index.member(row)
            if isinstance(latents, str):
                for name, value in {**_NOTHING, "key": source.key, "source_sha256": source.sha256, "refused": latents}.items():
                    columns[name].append(value)
                continue
            if not latents.isfinite().all() or latents.abs().max() > 6e4:
                raise ValueError(f"clip {source.key}: its latents are not finite or too large for float16; train the VAE again")
            (member,) = writer.write(source.key, {"safetensors": save({"latents": latents.half().contiguous()})})
            shape = dict(zip(("frames", "rows", "columns"), latents.shape[1:], strict=True))
            place = {"key": source.key, "offset": member.offset, "size": member.size, "sha256": member.sha256}
            for name, value in {**place, "source_sha256": source.sha256, **shape, "refused": None}.items():
                columns[name].append(value)
    if not meta.with_suffix(".tar").exists():  # no clip could be encoded
        meta.with_suffix(".tar").write_bytes(_EMPTY_TAR)
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"vae": vae_hash, "settings": json.dumps(settings)})
    with whole_file(meta) as staging:
        pq.write_table(table, local(staging), compression="zstd")


def refused(index: Index, *, number: int, vae_hash: str) -> dict[str, str]:
    """The clips of shard `number` that could not be encoded: key to reason."""
    meta = _shard_path(index.folder, vae_hash, number, "parquet")
    table = _rows(index, meta, ("key", "refused"))
    if "refused" not in table.column_names:  # files of earlier versions lack the column
        return {}
    found = table.filter(table["refused"].is_valid())
    return dict(zip(found["key"].to_pylist(), found["refused"].to_pylist(), strict=True))


def finish(index: Index, *, shards: int, vae_hash: str, about: dict[str, Any]) -> Path:
    """Write the columns and then the manifest, which says that the latents are whole. about: JSON-able: stride, channels, settings, ..."""
    listed = []
    manifest_path(index.folder, vae_hash).unlink(missing_ok=True)
    with closing(ArrayWriter(_columns_path(index.folder, vae_hash), LAYOUT)) as columns:
        for number in range(shards):
            meta = _shard_path(index.folder, vae_hash, number, "parquet")
            tar = meta.with_suffix(".tar")
            entry = {"meta": meta.name, "meta_sha256": file_hash(meta), "shard": tar.name, "bytes": tar.stat().st_size}
            columns.write(_arrays(index, number, entry))
            listed.append(entry)
        hashes = columns.finish()
    _list_refused(index, shards, vae_hash)
    path = manifest_path(index.folder, vae_hash)
    known = {"version": VERSION, "vae": vae_hash, "dataset": index.dataset_fingerprint, "shards": listed, "columns": hashes}
    write_json(path, {**known, **about})
    return path


def _list_refused(index: Index, shards: int, vae_hash: str) -> None:
    path = index.folder / f"latents-{vae_hash[:8]}-refused.jsonl"
    path.unlink(missing_ok=True)
    entries = (
        {"shard": index.described["shards"][number]["shard"], "key": key, "reason": reason}
        for number in range(shards)
        for key, reason in refused(index, number=number, vae_hash=vae_hash).items()
    )
    if lines := [json.dumps(entry) for entry in entries]:
        write_text(path, "\n".join([*lines, ""]))


def _columns_path(folder: Path, vae_hash: str) -> Path:
    return below(folder, f"latents-{vae_hash[:8]}")


def _shard_path(folder: Path, vae_hash: str, number: int, suffix: str) -> Path:
    return folder / f"latent-{vae_hash[:8]}-{number:06d}.{suffix}"


class LatentIndex:
    """The latents of an index's clips under one VAE, in the index's order; a clip that could not be encoded has the shape (0, 0, 0).

    stride: pixels and frames per latent, as (frames, rows, columns). shapes: (clips, 3), latent frames, rows and columns of each clip.
    Places and shapes are mapped from files; for a split that is not the whole dataset the shapes are copied (12 bytes a clip).
    """

    def __init__(self, index: Index, vae_hash: str) -> None:
        self.index, self.vae_hash = index, vae_hash
        self.described = _open_manifest(index, vae_hash)
        self.stride: tuple[int, int, int] = tuple(self.described["stride"])
        small = _check_shards(index, self.described)
        if small:
            self.check()
        whole = _open_columns(index, self.described)
        if whole is None:
            parts = [_arrays(index, number, entry) for number, entry in enumerate(self.described["shards"])]
            whole = {name: np.concatenate([part[name] for part in parts]) for name in LAYOUT}
        self._whole = whole
        self.shapes: Int[np.ndarray, "clips 3"] = index.of_rows(whole["shape"])
        self._reader = ShardReader(open_store(index.folder), members=None if index.hash_every_read else len(whole["size"]))

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return LatentIndex, (self.index, self.vae_hash)

    @property
    def made_by(self) -> str:
        """What the latents depend on besides the VAE and the clips: the reader of the frames, and the multiple that sizes are cut to."""
        return f"reader {self.described.get('reader', 'not known')}, multiple {self.described.get('multiple', 'not known')}"

    def member(self, number: int) -> Member:
        place, found = self.index.place(number), self._whole
        shard = self.described["shards"][self.index.shard(number)]["shard"]
        offset, size = int(found["offset"][place]), int(found["size"][place])
        return Member(self.index.key(number), "safetensors", shard, offset, size, bytes(found["sha256"][place]).hex(), place)

    def check(self) -> None:
        """Compare all metadata files with their hashes; a file that has changed raises `ValueError` with its name."""
        for entry in self.described["shards"]:
            _check_meta(self.index.folder, entry)
        folder = _columns_path(self.index.folder, self.vae_hash)
        if self.described.get("columns") and folder.is_dir():
            check_arrays(folder, LAYOUT, self.described["columns"], rows=self.index.described["totals"]["clips"])

    def latents(self, number: int) -> Float[Tensor, "C _ _ _"]:
        """Whitened float32 latents of a clip; ValueError with the shard and key if they are missing or changed."""
        member = self.member(number)
        if not member.size:
            raise ValueError(f"clip {member.key} has no latents: it could not be encoded")
        content, said, wrong = self._reader.read(member), tuple(self._whole["shape"][self.index.place(number)].tolist()), ""
        try:
            latents = load(content)["latents"].float()
        except (SafetensorError, KeyError) as error:
            raise self._damaged(member, str(error)) from None
        if latents.shape[1:] != said:
            wrong = f"they are of {tuple(latents.shape[1:])} and not of {said}"
        elif not finite(latents):
            wrong = "they are not finite"
        if wrong:
            raise self._damaged(member, wrong)
        return latents

    def _damaged(self, member: Member, why: str) -> ValueError:
        return ValueError(f"clip {member.key}: its latents in {member.shard} are damaged: {why}; run sora encode again")


def _open_manifest(index: Index, vae_hash: str) -> dict[str, Any]:
    path = manifest_path(index.folder, vae_hash)
    if not path.is_file():
        others = [other.stem.removeprefix("latents-") for other in sorted(index.folder.glob("latents-????????.json"))]
        raise NotEncoded(
            f"{index.folder} has no finished latents of the VAE {vae_hash[:8]} (there are those of: {', '.join(others) or 'none'});"
            " run sora encode",
            index.folder,
        )
    described = read_json(path, limit=LIST, within=index.folder)
    if not isinstance(described, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object; run sora encode again")
    for name, wanted in (("version", VERSION), ("vae", vae_hash), ("dataset", index.dataset_fingerprint)):
        if described.get(name) != wanted:
            stale = f"{path} is stale: its {name} is {described.get(name)}, wanted is {wanted}"
            raise NotEncoded(f"{stale}; run sora encode again", index.folder)
    _refuse_malformed(path, index, described, vae_hash)
    return described


def _refuse_malformed(path: Path, index: Index, described: dict[str, Any], vae_hash: str) -> None:
    """Raise ValueError unless the manifest has all entries that are read, of the right type, and lists only files that latents have."""
    wanted = len(index.described["shards"])
    fitting(described, FORM, str(path), "run sora encode again")
    if len(described["shards"]) != wanted:
        raise ValueError(f"{path} lists {counted(len(described['shards']), 'shard')}, the dataset has {wanted}; run sora encode again")
    names = [[_shard_path(index.folder, vae_hash, number, suffix).name for suffix in ("parquet", "tar")] for number in range(wanted)]
    if [[entry["meta"], entry["shard"]] for entry in described["shards"]] != names:
        raise ValueError(f"{path} is damaged: its shards are not those of such latents; run sora encode again")


def _check_shards(index: Index, described: dict[str, Any]) -> bool:
    """Check that every file of the manifest exists and every shard has its size; return whether the metadata are small enough to hash."""
    total = 0
    for entry in described["shards"]:
        meta, shard = index.folder / entry["meta"], index.folder / entry["shard"]
        if not meta.is_file():
            raise ValueError(f"{meta} is missing or has changed; run sora encode again")
        total += meta.stat().st_size
        if not shard.is_file() or shard.stat().st_size != entry["bytes"]:
            raise ValueError(
                f"{shard} is missing or cut short, it should have {entry['bytes']} bytes; delete {meta.name} and run sora encode again"
            )
    return total <= _CHECKED_AT_ONCE


def _rows(index: Index, meta: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a shard's parquet file, with their types checked; "refused" may be missing. Raises ValueError for a damaged file."""
    with parquet.opened(meta, within=index.folder) as file:
        names = [name for name in columns if name != "refused" or name in file.schema_arrow.names]
        table = parquet.taken(file, meta, names).select(names)
        return table.cast(pa.schema([SCHEMA.field(name) for name in names], metadata=table.schema.metadata))


def _check_meta(folder: Path, entry: dict[str, Any]) -> None:
    if file_hash(folder / entry["meta"], most=parquet.WHOLE) != entry["meta_sha256"]:
        raise ValueError(f"{folder / entry['meta']} is missing or has changed; run sora encode again")


def _open_columns(index: Index, described: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The mapped places and shapes; None if there are none, so that the caller makes them from the rows."""
    folder = _columns_path(index.folder, described["vae"])
    if described.get("columns") is None or not folder.is_dir():
        return None
    return open_arrays(folder, LAYOUT, described["columns"], rows=index.described["totals"]["clips"])


def _arrays(index: Index, number: int, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """The places and shapes of one shard's latents, in the order of the dataset's rows."""
    _check_meta(index.folder, entry)
    meta = index.folder / entry["meta"]
    table = _rows(index, meta, needed := SCHEMA.names[:-1])  # all but "refused", which older files lack
    refuse_impossible(table, meta, dict.fromkeys(("offset", "size", "frames", "rows", "columns"), 0), needed)
    wanted = index.shard_keys(number)
    if (found := table["key"].to_pylist()) != wanted:
        there = set(found)
        lost = [key for key in wanted if key not in there]
        why = f"lacks {counted(len(lost), 'clip')}, such as {lost[0]}" if lost else "has them in another order"
        raise ValueError(f"{meta} is not of the clips of shard {number}: it {why}; run sora encode again")
    hashes = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), np.uint8).reshape(-1, 32)
    shape = np.stack([table[name].to_numpy() for name in ("frames", "rows", "columns")], axis=1)
    return {"offset": table["offset"].to_numpy(), "size": table["size"].to_numpy(), "sha256": hashes, "shape": shape}
