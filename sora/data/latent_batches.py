"""Packs of encoded clips by plan: step number in, batches out. What they hold depends on the plan, the seed and the clips alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from sora.data.index import Index
from sora.data.latents import LatentIndex
from sora.data.plan import Item, Pack, PackedPlan
from sora.data.quarantine import Quarantine
from sora.draws import generator, sample_id
from sora.patches import Patchifier, frame_times, pack, patch_times
from sora.text.cache import TextCache
from sora.text.dropping import choose_caption, keep_caption
from sora.text.encoder import TextEncoder
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid


class LatentData:
    """The encoded datasets that a run trains on, and how: what conf/data/latents.yaml sets.

    folders: datasets that `sora encode` has been through. captions: weights of the kinds of captions (null: alike). drop: share of
    clips shown without their caption. first_frame: share of clips whose first latent frame is given as a condition. text_budget: text
    tokens of a pack (null: as many as there are). max_bad_share: of the clips may be unreadable before the run stops. cache_mb: of
    latents kept in memory by each process.
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
        vae_hash: str,
        text: TextEncoder,
        patchifier: Patchifier,
        seed: int,
    ) -> None:
        if isinstance(folders, str) or not folders:
            raise ValueError(f"data.folders={folders!r}; list one folder or more, such as data.folders=[data/world]")
        self.split, self.captions, self.drop, self.first_frame = split, captions, drop, first_frame
        self.text_budget, self.max_bad_share, self.cache_mb = text_budget, max_bad_share, cache_mb
        self.patchifier, self.seed, self.vae_hash = patchifier, seed, vae_hash
        self.latents = tuple(LatentIndex(Index.open(folder, split), vae_hash) for folder in folders)
        self.texts = tuple(TextCache(folder, text.fingerprint) for folder in folders)
        self._starts = np.cumsum([0, *(len(latents) for latents in self.latents)])

    @cached_property
    def grids(self) -> list[Grid]:
        """Of every clip; a ValueError names one that does not divide into patches."""
        found = []
        for latents in self.latents:
            for number, shape in enumerate(latents.shapes.tolist()):
                try:
                    found.append(self.patchifier.grid(*shape))
                except ValueError as error:
                    raise ValueError(f"clip {latents.index.keys[number]} of {latents.index.folder}: {error}, or encode.multiple") from None
        return found

    @property
    def tokens(self) -> Int[np.ndarray, "clips"]:
        """How many tokens each clip has."""
        return np.array([grid.tokens for grid in self.grids], dtype=np.int64)

    @cached_property
    def keys(self) -> list[str]:
        return [key for latents in self.latents for key in latents.index.keys]

    @cached_property
    def fingerprint(self) -> str:
        """Of the clips, their captions, the VAE and the stored captions' encoder."""
        parts = [self.vae_hash, *(text.fingerprint for text in self.texts)]
        parts += [f"{item.index.fingerprint}\t{item.index.captions_fingerprint}" for item in self.latents]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def locate(self, row: int) -> tuple[int, int]:
        """(dataset, its row) of a row counted through all datasets."""
        dataset = int(np.searchsorted(self._starts, row, side="right")) - 1
        return dataset, row - int(self._starts[dataset])

    def batches(self, plan: PackedPlan, *, quarantine: Path | str | None = None) -> LatentBatches:
        """The plan's steps. quarantine: the file that lists bad clips (None: in memory)."""
        return LatentBatches(self, plan, quarantine=Quarantine(quarantine, clips=len(self.keys), max_share=self.max_bad_share))


class LatentBatches(Dataset):
    """`[step] -> list[Batch]`, one for each pack of the plan's step; a clip that cannot be read is replaced by the plan's rule."""

    def __init__(self, data: LatentData, plan: PackedPlan, *, quarantine: Quarantine) -> None:
        self.data, self.plan, self.quarantine = data, plan, quarantine
        self._kept: dict[int, Tensor] = {}
        self._room = round(data.cache_mb * 2**20)

    def __getitem__(self, step: int) -> list[Batch]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[Batch]:
        """What one rank trains on at a step."""
        return [self._batch(planned) for planned in self.plan.at(step).share(ranks=ranks, rank=rank)]

    def _batch(self, planned: Pack) -> Batch:
        data = self.data
        items, patches = zip(*(self._readable(item) for item in planned.items), strict=True)
        grids = [data.grids[item.row] for item in items]
        samples = tuple(sample_id(data.keys[item.row], item.window) for item in items)
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
        return Batch(tokens=tokens, text=text, conditions=conditions, sample_ids=samples, epoch=planned.epoch)

    def _readable(self, planned: Item) -> tuple[Item, Float[Tensor, "n P"]]:
        """The planned clip's patches, or those of the one that stands in for it."""
        item, attempt = planned, 0
        while True:
            try:
                return item, self._patches(item.row)
            except ValueError as error:
                dataset, row = self.data.locate(item.row)
                member = self.data.latents[dataset].member(row)
                self.quarantine.add(member.key, shard=member.shard, reason=str(error))
                substitute = self.plan.replacement(planned, attempt)
                if substitute is None:
                    raise ValueError(f"no clip is left to stand in for {self.data.keys[planned.row]}: {error}") from None
                item, attempt = substitute, attempt + 1

    def _patches(self, row: int) -> Float[Tensor, "n P"]:
        if row in self._kept:
            return self._kept[row]
        dataset, number = self.data.locate(row)
        patches = self.data.patchifier.patchify(self.data.latents[dataset].latents(number))
        size = patches.numel() * patches.element_size()
        # An epoch comes round in another order: what came first is as good to keep as what came last.
        if size <= self._room:
            self._kept[row] = patches
            self._room -= size
        return patches

    def _seconds(self, item: Item, grid: Grid) -> Float[Tensor, "t"]:
        dataset, row = self.data.locate(item.row)
        latents, size = self.data.latents[dataset], self.data.patchifier.size
        return patch_times(frame_times(grid.t * size.t, float(latents.index.fps[row]), latents.stride[0]), size.t)

    def _states(self, item: Item, sample: int) -> Float[Tensor, "_ D"]:
        dataset, row = self.data.locate(item.row)
        kinds = [(caption.kind, caption.text) for caption in self.data.latents[dataset].index.captions(row)]
        draw = {"seed": self.data.seed, "epoch": item.epoch, "sample": sample}
        kept = keep_caption(**draw, rate=self.data.drop)
        return self.data.texts[dataset].states(choose_caption(kinds, self.data.captions, **draw) if kept else "")

    def _given(self, item: Item, grid: Grid, sample: int) -> Bool[Tensor, "n"]:
        """The tokens of a clip that are conditions: its first latent frame, in a share of the clips that go on after it."""
        draw = generator("condition", seed=self.data.seed, epoch=item.epoch, sample=sample)
        first = grid.t > 1 and draw.random() < self.data.first_frame
        return torch.arange(grid.tokens) < (grid.h * grid.w if first else 0)
