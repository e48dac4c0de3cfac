"""Packs of encoded clips by plan: the index is a step number, the items are batches. They depend on plan, seed and clips alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from sora.data.index.index import Index, open_indexes
from sora.data.index.latents import LatentIndex
from sora.data.loading.caption_checks import all_told, identity, require_cached, require_caption, require_kinds, selected
from sora.data.loading.quarantine import Quarantine, first_readable, of_the_clip, planned_keys
from sora.data.plan.clips import LatentClips
from sora.data.plan.listing import PackPlan
from sora.data.plan.steps import Item, Pack
from sora.patches.packing import frame_times, pack, patch_times
from sora.patches.patchifier import Patchifier
from sora.system.draws import generator, sample_id
from sora.text.all_captions import AllCaptions
from sora.text.cache import TextCache
from sora.text.caption_mix import choose_caption, keep_caption
from sora.text.encoder import TextEncoder
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid

_CHUNK = 1 << 18  # clips that are measured together


class LatentData:
    """The encoded datasets that a run trains on, and how they are read: the settings of conf/data/latents.yaml.

    folders: datasets that `sora encode` has encoded. weights: their shares of the clips (null: every clip once an epoch). captions: weights
    of the kinds of captions (null: all alike). drop: share of clips shown without their caption. first_frame: share of clips whose first
    latent frame is given as a condition. text_budget: the most text tokens of a pack (null: no limit). max_bad_share: share of the clips
    that may be unreadable before the run stops. cache_mb: latents cached in memory by each process. hash_every_read: compare latents with
    their hashes at every read, not only at a process's first read. sets, selection: see `open_indexes`. text: a text encoder, or
    `AllCaptions` for all captions of each clip and its facts.
    """

    def __init__(
        self,
        *,
        folders: Sequence[str],
        split: str,
        captions: Mapping[str, float] | None,
        drop: float,
        first_frame: float,
        text_budget: int | None,
        max_bad_share: float,
        cache_mb: float,
        hash_every_read: bool,
        weights: Sequence[float] | None,
        vae_hash: str,
        text: TextEncoder | AllCaptions,
        patchifier: Patchifier,
        seed: int,
        sets: Sequence[str | Sequence[str]] | None = None,
        selection: str | Sequence[str | None] | None = None,
    ) -> None:
        self.weights, self.split, self.captions, self.drop, self.first_frame = weights, split, captions, drop, first_frame
        self.text_budget, self.max_bad_share, self.cache_mb = text_budget, max_bad_share, cache_mb
        self.patchifier, self.seed, self.vae_hash = patchifier, seed, vae_hash
        indexes = open_indexes(folders, split, sets=sets, selection=selection, hash_every_read=hash_every_read)
        self.latents = tuple(LatentIndex(index, vae_hash) for index in indexes)
        self.told = text if isinstance(text, AllCaptions) else None
        self.texts = () if self.told is not None else tuple(TextCache(folder, text.fingerprint) for folder in folders)
        self._starts = np.cumsum([0, *(len(latents) for latents in self.latents)])
        require_kinds(self.indexes, captions)
        for latents, texts in zip(self.latents, self.texts, strict=self.told is None):
            require_cached(latents.index, texts, captions)

    @property
    def indexes(self) -> tuple[Index, ...]:
        return tuple(latents.index for latents in self.latents)

    @cached_property
    def clips(self) -> LatentClips:
        """The table of clips for the plan; ValueError names a clip that does not divide into patches."""
        for latents in self.latents:
            size = np.array(self.patchifier.size)
            for start in range(0, len(latents), _CHUNK):
                odd = np.flatnonzero((latents.shapes[start : start + _CHUNK] % size).any(axis=1))
                if odd.size:
                    self._refuse(latents, start + int(odd[0]))
        shapes = [latents.shapes for latents in self.latents]
        return LatentClips(shapes, patch=self.patchifier.size, fingerprint=self.fingerprint, key=self.key)

    def _refuse(self, latents: LatentIndex, row: int) -> None:
        try:
            self.patchifier.grid(*latents.shapes[row].tolist())
        except ValueError as error:
            raise ValueError(f"clip {latents.member(row).key} of {latents.index.folder}: {error}, or encode.multiple") from None

    def key(self, row: int) -> str:
        """The key of the clip in a row that counts through all datasets."""
        dataset, number = self.locate(row)
        return self.latents[dataset].member(number).key

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the clips, their captions, the VAE, and the text encoder of the stored captions."""
        indexes = [item.index for item in self.latents]
        return identity(indexes, self.vae_hash, *(text.fingerprint for text in self.texts))

    @property
    def depends(self) -> dict[str, str]:
        """The identities of a run's data; "latents" names the reader that decoded the clips and the multiple that sizes were trimmed to."""
        return {
            **selected(self.indexes),
            "data": self.fingerprint,
            "latents": "; ".join(sorted({latents.made_by for latents in self.latents})),
        }

    def locate(self, row: int) -> tuple[int, int]:
        """(dataset, row within that dataset) of a row counted through all datasets."""
        dataset = int(np.searchsorted(self._starts, row, side="right")) - 1
        return dataset, row - int(self._starts[dataset])

    def batches(self, plan: PackPlan, *, quarantine: Path | str | None = None) -> LatentBatches:
        """The dataset of a plan's steps. quarantine: the file that lists bad clips (None: the list is held in memory)."""
        return LatentBatches(self, plan, quarantine=Quarantine(quarantine, clips=len(self), max_share=self.max_bad_share))


class LatentBatches(Dataset):
    """`[step] -> list[Batch]`, one batch for each pack of the plan's step. The plan replaces a clip that cannot be read."""

    def __init__(self, data: LatentData, plan: PackPlan, *, quarantine: Quarantine) -> None:
        self.data, self.plan, self.quarantine = data, plan, quarantine
        self._kept: dict[int, Tensor] = {}
        self._room = round(data.cache_mb * 2**20)

    def __getitem__(self, step: int) -> list[Batch]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[Batch]:
        """One rank's batches of a step."""
        self.quarantine.enter(step)
        return [self._batch(planned) for planned in self.plan.at(step).share(ranks=ranks, rank=rank)]

    def keys(self, step: int) -> dict[int, str]:
        """The keys of the clips that are planned for a step, by sample id."""
        return planned_keys(self.plan, self.data.key, step)

    def _batch(self, planned: Pack) -> Batch:
        data = self.data
        found = [clip for clip in (self._readable(item) for item in planned.items) if clip is not None]
        if not found:
            raise ValueError(f"no clip of the pack with {data.key(planned.items[0].row)} can be read, nor any that may stand in for them")
        items, patches, grids = zip(*found, strict=True)
        samples = tuple(sample_id(data.key(item.row), item.window) for item in items)
        tokens = pack(
            patches,
            grids,
            seconds=[self._seconds(item, grid) for item, grid in zip(items, grids, strict=True)],
            budget=self.plan.budget,
            max_clips=self.plan.max_clips,
        )
        states = [self._states(item, sample) for item, sample in zip(items, samples, strict=True)]
        text = pack_text(states, budget=data.text_budget, max_clips=self.plan.max_clips)
        conditions = torch.zeros(self.plan.budget, dtype=torch.bool)
        given = [self._given(item, grid, sample) for item, grid, sample in zip(items, grids, samples, strict=True)]
        conditions[: tokens.real] = torch.cat(given)
        return Batch(tokens=tokens, text=text, conditions=conditions, sample_ids=samples, epochs=tuple(item.epoch for item in items))

    def _readable(self, planned: Item) -> tuple[Item, Float[Tensor, "n P"], Grid] | None:
        """The patches of the planned clip or of its replacement; None if no other clip fits in its place."""
        return first_readable(planned, self._read, plan=self.plan, quarantine=self.quarantine, locate=self._place)[0]

    def _place(self, item: Item) -> tuple[Index, int]:
        dataset, row = self.data.locate(item.row)
        return self.data.latents[dataset].index, row

    def _read(self, item: Item) -> tuple[Item, Float[Tensor, "n P"], Grid]:
        require_caption(*self._place(item), self.data.captions)
        return item, *self._patches(item)

    def _patches(self, item: Item) -> tuple[Float[Tensor, "n P"], Grid]:
        dataset, number = self.data.locate(item.row)
        latents = self.data.latents[dataset]
        time, height, width = latents.shapes[number].tolist()
        grid = self.data.patchifier.grid(time if item.crop is None else item.crop.frames, height, width)
        if item.row not in self._kept:
            with of_the_clip():
                stored = latents.latents(number)
            patches = self.data.patchifier.patchify(stored)
            size = patches.numel() * patches.element_size()
            # Each epoch has another order, so evicting old latents for new ones would gain nothing.
            if size > self._room:
                return patches[: grid.tokens], grid
            self._kept[item.row] = patches
            self._room -= size
        return self._kept[item.row][: grid.tokens], grid

    def _seconds(self, item: Item, grid: Grid) -> Float[Tensor, "t"]:
        dataset, row = self.data.locate(item.row)
        latents, size = self.data.latents[dataset], self.data.patchifier.size
        return patch_times(frame_times(grid.t * size.t, float(latents.index.fps[row]), latents.stride[0]), size.t)

    def words(self, item: Item) -> int:
        """The number of text tokens of the caption that the plan shows with a clip."""
        cache, said = self._said(item, sample_id(self.data.key(item.row), item.window))
        return cache.count(said)

    def _states(self, item: Item, sample: int) -> Float[Tensor, "_ D"]:
        if self.data.told is not None:
            return all_told(self.data.told, *self._place(item), self.data.captions)
        cache, said = self._said(item, sample)
        return cache.states(said)

    def _said(self, item: Item, sample: int) -> tuple[TextCache, str]:
        dataset, row = self.data.locate(item.row)
        kinds = [(caption.kind, caption.text) for caption in self.data.latents[dataset].index.captions(row)]
        draw = {"seed": self.data.seed, "epoch": item.epoch, "sample": sample}
        kept = keep_caption(**draw, rate=self.data.drop)
        return self.data.texts[dataset], choose_caption(kinds, self.data.captions, **draw) if kept else ""

    def _given(self, item: Item, grid: Grid, sample: int) -> Bool[Tensor, "n"]:
        """Which tokens of a clip are conditions: its first latent frame, in a share `first_frame` of the clips with more than one."""
        draw = generator("condition", seed=self.data.seed, epoch=item.epoch, sample=sample)
        first = grid.t > 1 and draw.random() < self.data.first_frame
        return torch.arange(grid.tokens) < (grid.h * grid.w if first else 0)
