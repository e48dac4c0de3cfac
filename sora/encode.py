"""Encode a dataset's clips into latents and its captions into token states, so that training reads both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sora.data.index.units import WHOLE, JobPart
from sora.gate.sizes import Number, refuse_numbers
from sora.system.terminal import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from omegaconf import DictConfig
    from torch import Tensor

    from sora.config.compose import Composed
    from sora.data.index.index import Index
    from sora.data.index.latents import LatentIndex
    from sora.data.loading.quarantine import Quarantine
    from sora.vae.vae import VideoVAE
    from sora.video.reader import VideoReader

EXAMPLES = (
    "sora encode vae=outputs/vae data=data/world",
    "sora encode vae=outputs/vae data=data/mine text=t5_xxl device=cuda",
    "sora encode vae=outputs/vae data=data/mine part=[3,64]",
)
NUMBERS = {
    **dict.fromkeys(("batch", "captions_per_file", "threads"), Number(1, whole=True)),
    "max_bad_share": Number(0, most=1),
}


def main(composed: Composed) -> None:
    """Encode a dataset that no other process encodes; of its parts, several may at once."""
    from contextlib import ExitStack

    from sora.config.command_line.commands import command
    from sora.data.index.index import Index
    from sora.data.index.units import refuse_other_counts
    from sora.system.files import may_write
    from sora.system.locks import alone_in

    refuse_numbers(composed.config, NUMBERS)
    multiple = list(composed.config.multiple)
    if len(multiple) != 3 or min(multiple) < 1:
        raise ValueError(f"multiple={multiple} is not three whole numbers from 1, of frames, rows and columns, such as [1,2,2]")
    sets = None if composed.config.sets is None else list(composed.config.sets)
    index, part = Index.open(composed.config.data, sets=sets), JobPart.of(composed.config.part)
    if not may_write(index.folder):
        shown = command("data", "index", str(index.folder), "output=FOLDER")
        raise ValueError(
            f"data={index.folder} cannot be written, and what is encoded lies beside the shards; {shown} makes a dataset of them "
            "in a folder of your own: encode that one"
        )
    others = "wait for it or stop it; several jobs encode one dataset with part=[K,N]"
    name, number, of_all = ".lock-encode", part.number, part.of_all
    with ExitStack() as held:
        held.enter_context(alone_in(index.folder, "encoding into", name=name, shared=of_all > 1, advice=others))
        if of_all > 1:
            doing = f"encoding part {part} of"
            held.enter_context(alone_in(index.folder, doing, name=f"{name}-{number}-of-{of_all}", advice="each part is for one job"))
            refuse_other_counts(index.folder, part, name=name, doing="encoding")
        encode(composed.config, index, part)


def encode(config: DictConfig, index: Index, part: JobPart) -> None:
    """Write the latents and the token states of a part of a dataset."""
    from pathlib import Path

    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from sora.config.build import build
    from sora.config.command_line.following import after_encode
    from sora.data.index.latents import LatentIndex, shard_rows
    from sora.system.devices import choose_device
    from sora.system.terminal import bars
    from sora.text import cache
    from sora.vae import artefact

    torch.set_num_threads(config.threads or torch.get_num_threads())
    source = artefact.folder_of(config.vae)
    vae = artefact.load(source).to(choose_device(config.device))
    encoder, reader = build(config.text), build(config.reader)
    encoder.to(vae.shift.device)
    captions = captions_of(index, config.captions, part=part)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with bars(*columns, TaskProgressColumn(show_speed=True), TimeRemainingColumn(), stderr=False) as progress:
        clips = progress.add_task("encoding clips", total=sum(len(rows) for rows in part.some(shard_rows(index)).values()))
        trimmed = encode_clips(
            index,
            vae,
            artefact.artefact_hash(source),
            batch=config.batch,
            multiple=tuple(config.multiple),
            reader=reader,
            report=lambda n: progress.advance(clips, n),
            max_bad_share=config.max_bad_share,
            part=part,
        )
        texts = progress.add_task("encoding captions", total=len(captions))
        new = cache.extend(
            index.folder,
            encoder,
            sorted(captions),
            shard=config.captions_per_file,
            part=part.number if part.of_all > 1 else None,
            progress=lambda n: progress.advance(texts, n),
        )
        progress.update(texts, completed=len(captions))
    if part.of_all > 1:
        print(f"part {part.number} of {part.of_all} of {index.folder} is encoded; when all are, end with the same line without part")
        return
    latents = LatentIndex(index, artefact.artefact_hash(source))
    lost = _warn_of_scale(latents)
    note = f", {trimmed} of them trimmed to fit" if trimmed else ""
    print(f"{counted(len(index) - lost, 'clip')}{note} and {counted(len(captions), 'caption')} ({new} new) are encoded in {index.folder}")
    _tell_of_cuts(cache.manifest_path(index.folder, encoder.fingerprint))
    if lost:
        listed = f"latents-{latents.vae_hash[:8]}-refused.jsonl"
        print(f"  {counted(lost, 'clip')} could not be encoded; {index.folder / listed} says which and why")
    print(f"next: {after_encode(Path(config.vae), index.folder, shapes=latents.shapes, text=config.text)}")


def captions_of(index: Index, kinds: Sequence[str] | None, *, part: JobPart = WHOLE) -> set[str]:
    """The texts of all captions of the part's clips, or of those of some kinds, and the empty one that guidance needs.

    Raises:
        ValueError: no clip has a caption of one of the kinds.
    """
    from sora.data.index.latents import shard_rows

    rows = (row for several in part.some(shard_rows(index)).values() for row in several)
    found = {(caption.kind, caption.text) for row in rows for caption in index.captions(row)}
    there = {kind for kind, _ in found}
    if set(kinds or ()) - there and part.of_all > 1:  # a part may have no clip of some kind, or none at all
        there = {caption.kind for row in range(len(index)) for caption in index.captions(row)}
    if unknown := sorted(set(kinds or ()) - there):
        has = ", ".join(sorted(there)) or "none"
        raise ValueError(f"captions={list(kinds or ())}: no clip of {index.folder} has kind {', '.join(unknown)}, only {has}")
    return {"", *(text for kind, text in found if kinds is None or kind in kinds)}


def encode_clips(
    index: Index,
    vae: VideoVAE,
    vae_hash: str,
    *,
    batch: int,
    multiple: Sequence[int],
    reader: VideoReader | None = None,
    report: Callable[[int], None] = lambda _: None,
    max_bad_share: float = 0.0,
    part: JobPart = WHOLE,
) -> int:
    """Write the latents of every clip of the part that has none yet, shard by shard; how many clips had to be trimmed.

    Without a part, also the list that makes them whole.

    multiple: latent frames, rows and columns are multiples of it; more is cut off at the end and at the right and bottom edges.
    reader: decodes the clips (None: PyAV in this process). max_bad_share: of the clips may be damaged, or smaller than a patch; they
    get no latents, but a line of `latents-<vae>-refused.jsonl`. A ValueError names the one that is too many.
    """
    from functools import partial

    from sora.data.index import latents
    from sora.data.index.decoded import decoded_by
    from sora.data.loading.quarantine import Quarantine
    from sora.video.files import PYAV

    decode = reader or PYAV
    settings = {"multiple": [int(size) for size in multiple], "reader": decoded_by(decode, index)}
    bad = Quarantine(None, clips=len(index), max_share=max_bad_share, setting="max_bad_share")
    trimmed = sum(_box(index, row, vae.stride, multiple) not in (None, _shape(index, row)) for row in range(len(index)))
    shards = latents.shard_rows(index)
    mine = part.some(shards)
    named = {"vae_hash": vae_hash, "settings": settings}
    there = {number: latents.finished(index, rows, number=number, **named) for number, rows in mine.items()}
    encode = partial(_encoded, index, multiple=multiple, vae=vae, batch=batch, reader=decode, bad=bad, report=report)
    for number, rows in mine.items():
        if there[number]:
            for key, reason in latents.refused(index, number=number, vae_hash=vae_hash).items():
                bad.add(key, shard="", reason=reason)
            report(len(rows))
        else:
            latents.write_shard(index, rows, encode, number=number, **named)
    if part.of_all > 1:
        return trimmed
    about = {"stride": list(vae.stride), "channels": vae.latent_channels, "clips": len(index), "trimmed": trimmed, **settings}
    latents.finish(index, shards=len(shards), vae_hash=vae_hash, about=about)
    return trimmed


def _shape(index: Index, row: int) -> tuple[int, int, int]:
    return int(index.frames[row]), int(index.heights[row]), int(index.widths[row])


def _box(index: Index, row: int, stride: Sequence[int], multiple: Sequence[int]) -> tuple[int, int, int] | None:
    """Frames, height and width of the largest part of a clip that the VAE and the patches take; None if it is smaller than a patch."""
    time = ((int(index.frames[row]) - 1) // stride[0] + 1) // multiple[0] * multiple[0]
    height, width = (
        int(size) // (stride[axis] * multiple[axis]) * stride[axis] * multiple[axis]
        for axis, size in ((1, index.heights[row]), (2, index.widths[row]))
    )
    if min(time, height, width) < 1:
        return None
    return 1 + (time - 1) * stride[0], height, width


def _encoded(
    index: Index,
    rows: Sequence[int],
    *,
    multiple: Sequence[int],
    vae: VideoVAE,
    batch: int,
    reader: VideoReader,
    bad: Quarantine,
    report: Callable[[int], None],
) -> list[Tensor | str]:
    """Latents of a shard's rows in their order, or why there are none; clips of one shape are encoded together."""
    from collections import defaultdict

    import torch

    shapes: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    found: dict[int, Tensor | str] = {}
    for row in rows:
        if box := _box(index, row, vae.stride, multiple):
            shapes[box].append(row)
            continue
        had = "x".join(map(str, _shape(index, row)))
        why = f"clip {index.key(row)} of {had} (frames, height, width) is smaller than one patch of {list(multiple)} latents"
        why += f" of stride {list(vae.stride)}; prepare larger clips or lower encode.multiple"
        found[row] = _refused(index, row, why, bad)
    for box, same in shapes.items():
        for start in range(0, len(same), batch):
            some = same[start : start + batch]
            clips = {row: _read(index, row, box, reader) for row in some}
            found.update({row: _refused(index, row, clip, bad) for row, clip in clips.items() if isinstance(clip, str)})
            whole = {row: clip for row, clip in clips.items() if not isinstance(clip, str)}
            if whole:
                with torch.inference_mode():
                    encoded = vae.encode(torch.stack(list(whole.values())).to(vae.shift.device)).float().cpu()
                found.update(zip(whole, encoded, strict=True))
            report(len(some))
    return [found[row] for row in rows]


def _read(index: Index, row: int, box: tuple[int, int, int], reader: VideoReader) -> Tensor | str:
    """The part of a clip that is encoded, or why it cannot be read."""
    import torch

    from sora.data.loading.loader import read_clip

    frames, height, width = box
    try:
        return torch.from_numpy(read_clip(index, row, reader=reader)[:frames, :height, :width])
    except ValueError as error:
        return str(error)


def _refused(index: Index, row: int, reason: str, bad: Quarantine) -> str:
    """The reason, noted; a ValueError if that is one too many."""
    bad.add(index.key(row), shard=index.member(row).shard, reason=reason)
    return reason


def _warn_of_scale(latents: LatentIndex, *, sample: int = 64) -> int:
    """Say so if the latents of some clips, spread over the dataset, are not of the scale of whitening; how many clips have none."""
    import numpy as np

    from sora.vae.whitening import unlike

    there = np.flatnonzero(latents.shapes.any(axis=1))
    rows = there[np.unique(np.linspace(0, len(there) - 1, sample).round().astype(int))].tolist()
    if odd := unlike(latents.latents(row) for row in rows):
        print(
            f"beware: over {counted(len(rows), 'clip')} the latents are not white, so that noise levels mean something else; "
            f"{'; '.join(odd)}"
        )
        print("  (the clips differ from those that the VAE was trained on, or it was trained too little)")
    return len(latents) - len(there)


def _tell_of_cuts(manifest: Path) -> None:
    """Say how many captions were longer than the encoder reads."""
    from sora.system.terminal import say
    from sora.text import cache

    for cut in cache.cut_in(manifest) or ():
        say(f"  {cut.line()}")


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("encode"))
