"""Packs of stored videos with their captions by plan, for a network whose VAE encodes them during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from sora.data.index.decoded import decoded_by
from sora.data.index.index import open_indexes
from sora.data.loading.caption_checks import all_told, identity, require_cached, require_caption, require_kinds, selected
from sora.data.loading.frames import ClipFrames, FramePacks, frame_clips
from sora.data.loading.quarantine import Quarantine, planned_keys
from sora.data.plan.frames import FrameClips
from sora.data.plan.listing import PackPlan
from sora.patches.geometry import Geometry
from sora.patches.patchifier import Patchifier
from sora.system.draws import generator
from sora.text.all_captions import AllCaptions
from sora.text.cache import TextCache
from sora.text.caption_mix import choose_caption, keep_caption
from sora.text.encoder import TextEncoder
from sora.video.reader import VideoReader


@dataclass(frozen=True)
class VideoPack:
    """The clips of one pack, as frames. pixels: of all clips end to end, one tensor for one transfer. shapes: (T, H, W) of each clip.

    fps: frames a second of each clip. captions: of each clip, "" for none. states: stored text states (None: not encoded yet). given:
    whether a clip's first latent frame is a condition. All random draws for a clip follow from its sample id and epoch.
    """

    pixels: UInt8[Tensor, "bytes"]
    shapes: tuple[tuple[int, int, int], ...]
    fps: tuple[float, ...]
    captions: tuple[str, ...]
    states: tuple[Tensor, ...] | None
    given: tuple[bool, ...]
    sample_ids: tuple[int, ...]
    epochs: tuple[int, ...]

    @property
    def frames(self) -> list[UInt8[Tensor, "T H W 3"]]:
        """The frames of each clip, as views of `pixels`."""
        sizes = [3 * time * height * width for time, height, width in self.shapes]
        return [clip.view(*shape, 3) for clip, shape in zip(self.pixels.split(sizes), self.shapes, strict=True)]


class VideoData:
    """The stored videos that a network trains on, and how they are read: the settings of conf/data/videos.yaml.

    folders: datasets of `sora prepare` or `sora data index`. weights: their shares of the clips (null: every clip once an epoch). areas,
    rate: see `FrameClips`. vae_batch, shard_vae, shard_text: see `OnlineEncoder`. text_cache: whether the captions' states are read from
    files. captions, drop, first_frame, text_budget, max_bad_share, sets, selection: as for `LatentData`. stride: of the VAE.
    """

    def __init__(
        self,
        *,
        folders: Sequence[str],
        split: str,
        weights: Sequence[float] | None,
        areas: Sequence[int],
        rate: float | None,
        vae_batch: int,
        shard_vae: bool,
        shard_text: bool,
        text_cache: bool,
        captions: Mapping[str, float] | None,
        drop: float,
        first_frame: float,
        text_budget: int | None,
        max_bad_share: float,
        reader: VideoReader,
        stride: Sequence[int],
        text: TextEncoder | AllCaptions,
        patchifier: Patchifier,
        seed: int,
        sets: Sequence[str | Sequence[str]] | None = None,
        selection: str | Sequence[str | None] | None = None,
    ) -> None:
        if vae_batch < 1:
            raise ValueError(f"data.vae_batch={vae_batch} must be 1 or more; it is how many clips of one shape are encoded at once")
        self.weights, self.captions, self.drop, self.first_frame, self.seed = weights, captions, drop, first_frame, seed
        self.areas, self.rate, self.patchifier = areas, rate, patchifier
        self.geometry = Geometry(stride, patchifier.size)
        if shard_text and text_cache:
            raise ValueError("data.shard_text=true cuts the text encoder over ranks; data.text_cache=true needs none: leave one out")
        self.vae_batch, self.shard_vae, self.shard_text, self.text_budget = vae_batch, shard_vae, shard_text, text_budget
        self.max_bad_share, self.reader = max_bad_share, reader
        self.indexes = open_indexes(folders, split, sets=sets, selection=selection)
        self.told = text if isinstance(text, AllCaptions) else None
        if self.told is not None and (text_cache or shard_text):
            raise ValueError("data.text_cache and data.shard_text are for text encoders, and captions are read as they are: leave them out")
        self.texts = tuple(TextCache(folder, text.fingerprint) for folder in folders) if text_cache else None
        require_kinds(self.indexes, captions)
        for index, texts in zip(self.indexes, self.texts or (), strict=False):
            require_cached(index, texts, captions)

    @cached_property
    def clips(self) -> FrameClips:
        """The table of clips for the plan."""
        return frame_clips(self.indexes, areas=self.areas, rate=self.rate, geometry=self.geometry)

    def __len__(self) -> int:
        return sum(len(index) for index in self.indexes)

    @property
    def depends(self) -> dict[str, str]:
        """The identities of a run's data."""
        return {**selected(self.indexes), "data": self.fingerprint, "reader": decoded_by(self.reader, *self.indexes)}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the clips, their captions, and the text encoder of the stored captions."""
        return identity(self.indexes, *(text.fingerprint for text in self.texts or ()))

    def batches(self, plan: PackPlan, *, quarantine: Path | str | None = None) -> VideoBatches:
        """The dataset of a plan's steps. quarantine: the file that lists bad clips (None: the list is held in memory)."""
        return VideoBatches(self, plan, quarantine=Quarantine(quarantine, clips=len(self), max_share=self.max_bad_share))


class VideoBatches(Dataset):
    """`[step] -> list[VideoPack]`, one for each pack of the plan's step. The plan replaces a clip that cannot be read."""

    def __init__(self, data: VideoData, plan: PackPlan, *, quarantine: Quarantine) -> None:
        self.data, self.plan, self.quarantine = data, plan, quarantine
        self._packs = FramePacks(data.indexes, plan, quarantine=quarantine, reader=data.reader, require=self._require)

    def __getitem__(self, step: int) -> list[VideoPack]:
        return self.share(step, ranks=1, rank=0)

    def share(self, step: int, *, ranks: int, rank: int) -> list[VideoPack]:
        """One rank's packs of a step."""
        return [self._pack(clips) for clips in self._packs.share(step, ranks=ranks, rank=rank)]

    def keys(self, step: int) -> dict[int, str]:
        """The keys of the clips that are planned for a step, by sample id."""
        return planned_keys(self.plan, self._packs.clips.key, step)

    def _require(self, number: int, row: int) -> None:
        require_caption(self.data.indexes[number], row, self.data.captions)

    def _pack(self, clips: Sequence[ClipFrames]) -> VideoPack:
        said = [self._said(clip) for clip in clips]
        return VideoPack(
            pixels=torch.from_numpy(np.concatenate([clip.frames.numpy().reshape(-1) for clip in clips])),
            shapes=tuple((clip.frames.shape[0], clip.frames.shape[1], clip.frames.shape[2]) for clip in clips),
            fps=tuple(clip.fps for clip in clips),
            captions=tuple(said),
            states=self._states(clips, said),
            given=tuple(self._given(clip) for clip in clips),
            sample_ids=tuple(clip.sample for clip in clips),
            epochs=tuple(clip.epoch for clip in clips),
        )

    def _said(self, clip: ClipFrames) -> str:
        draw = {"seed": self.data.seed, "epoch": clip.epoch, "sample": clip.sample}
        if not keep_caption(**draw, rate=self.data.drop):
            return ""
        number, row = self._packs.locate(clip.row)
        kinds = [(caption.kind, caption.text) for caption in self.data.indexes[number].captions(row)]
        return choose_caption(kinds, self.data.captions, **draw)

    def _states(self, clips: Sequence[ClipFrames], said: Sequence[str]) -> tuple[Tensor, ...] | None:
        if self.data.told is not None:
            places = [self._packs.locate(clip.row) for clip in clips]
            return tuple(all_told(self.data.told, self.data.indexes[number], row, self.data.captions) for number, row in places)
        if self.data.texts is None:
            return None
        return tuple(self.data.texts[self._packs.locate(clip.row)[0]].states(text) for clip, text in zip(clips, said, strict=True))

    def _given(self, clip: ClipFrames) -> bool:
        draw = generator("condition", seed=self.data.seed, epoch=clip.epoch, sample=clip.sample)
        return draw.random() < self.data.first_frame
