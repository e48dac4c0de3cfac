"""Frozen networks through transformers: VideoMAE and V-JEPA 2 on whole clips, CLIP, DINO or an Inception frame by frame.

Weights come from a local folder, or from the Hugging Face hub if a network is available; safetensors only, and no code of a model runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sora.metrics.extractors.frames import evenly, over_frames
from sora.metrics.extractors.pixels import Preparation
from sora.metrics.extractors.weights import hashes
from sora.system import files as storage
from sora.system import hub

PATTERNS = ["config.json", "*.safetensors", "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json"]
# Image-text models have text encoders, which frames do not need.
FRAME_CLASSES = {"clip": "CLIPVisionModelWithProjection", "clip_vision_model": "CLIPVisionModelWithProjection"}


class PretrainedVideo:
    """The mean over all tokens of the last layer of a network for clips.

    label: begins the name in keys. source: a local folder, or a model of the Hugging Face hub, then pinned by `revision`. frames: how many
    the network sees, evenly spaced over a clip; shorter clips raise an error. size: of its square input. kernel, crop, mean, deviation: see
    `Preparation`. batch: clips at once.
    """

    logits, canonical = False, False

    def __init__(
        self,
        *,
        label: str,
        source: str,
        revision: str | None,
        frames: int,
        size: int,
        kernel: str,
        crop: bool,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        batch: int,
    ) -> None:
        self.label, self.source, self.revision = label, source, revision
        self.minimum_frames, self.batch = frames, batch
        self.preparation = Preparation(size=(size, size), kernel=kernel, crop=crop, mean=mean, deviation=deviation)
        self.settings: dict[str, Any] = {"frames": frames, "pooled": "mean over tokens of the last layer"}

    @property
    def name(self) -> str:
        return f"{self.label}-{self.fingerprint[:8]}"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self._folder)

    @cached_property
    def dimension(self) -> int:
        return width_of(self._folder)

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B D"]:
        model = self._model.to(videos.device)
        with torch.autocast(videos.device.type, enabled=False):
            return torch.cat([self._states(model, part).mean(dim=1) for part in videos.split(self.batch)])

    def _states(self, model: Any, videos: Tensor) -> Tensor:
        pixels = self.preparation(evenly(videos, self.minimum_frames)).transpose(1, 2)  # B T 3 h w
        if model.config.model_type == "vjepa2":  # without skipping, its forward would run the mask predictor too
            return model.get_vision_features(pixel_values_videos=pixels)
        return model(pixel_values=pixels).last_hidden_state

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self.source, self.revision)

    @cached_property
    def _model(self) -> Any:
        return load(self._folder, "AutoModel")


class PretrainedFrames:
    """The mean over frames of each frame's pooled embedding. frames: how many of a clip, evenly spaced; null for all. batch: frames at
    once. The other keys are those of `PretrainedVideo`."""

    minimum_frames, logits, canonical = 1, False, False

    def __init__(
        self,
        *,
        label: str,
        source: str,
        revision: str | None,
        frames: int | None,
        size: int,
        kernel: str,
        crop: bool,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        batch: int,
    ) -> None:
        self.label, self.source, self.revision = label, source, revision
        self.frames, self.batch = frames, batch
        self.preparation = Preparation(size=(size, size), kernel=kernel, crop=crop, mean=mean, deviation=deviation)
        self.settings: dict[str, Any] = {"frames": frames, "pooled": "mean over frames of the pooled embedding"}

    @property
    def name(self) -> str:
        return f"{self.label}-{self.fingerprint[:8]}"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self._folder)

    @cached_property
    def dimension(self) -> int:
        described = storage.read_json(self._folder / "config.json")
        return described.get("projection_dim") or width_of(self._folder)

    def encode_frames(self, videos: Tensor) -> Float[Tensor, "B T D"]:
        """Embeddings of every frame, for temporal consistency."""
        return over_frames(self._network, self.preparation, videos, self.batch)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Embeddings of captions, cut to the model's maximum length. Raises ValueError for a model without a text encoder."""
        if self._kind != "clip":
            raise ValueError(f"extractor.source={self.source} is a model of kind {self._kind}, which reads no text; choose extractor=clip")
        tokenizer, model = self._text
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=model.config.max_position_embeddings, return_tensors="pt")
        return model(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).text_embeds

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B D"]:
        return self.encode_frames(evenly(videos, self.frames)).mean(dim=1)

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self.source, self.revision)

    @property
    def _kind(self) -> str:
        return storage.read_json(self._folder / "config.json").get("model_type", "unknown")

    @cached_property
    def _network(self) -> PooledEmbedding:
        return PooledEmbedding(load(self._folder, FRAME_CLASSES.get(self._kind, "AutoModel")))

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        """The tokenizer and the text encoder, from the same folder."""
        # Without its files transformers silently makes an empty tokenizer.
        if not any((self._folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ValueError(f"extractor.source: {self._folder} holds no tokenizer.json or vocab.json beside its weights; put them there")
        tokenizer = hub.pretrained("AutoTokenizer", self._folder, key="extractor.source")
        return tokenizer, load(self._folder, "CLIPTextModelWithProjection")


class PooledEmbedding(nn.Module):
    """A model of transformers as a module from pixels (n, 3, h, w) to one embedding each."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n D"]:
        found = self.model(pixel_values=pixels)
        key = "image_embeds" if "image_embeds" in found else "pooler_output"
        return found[key].flatten(1)


def folder_of(source: str, revision: str | None) -> Path:
    """The local folder, or the hub's snapshot. Raises ValueError with what to download."""
    if Path(source).is_dir():
        return Path(source)
    instead = "choose extractor=rand3d, transnetv2 or efficientnet_lite0, which need none"
    return hub.snapshot(source, revision, PATTERNS, key="extractor.source", instead=instead)


def fingerprint_of(folder: Path) -> str:
    """A hash of every byte of config and weights."""
    files = sorted(path for path in folder.iterdir() if path.name == "config.json" or path.suffix == ".safetensors")
    if len(files) < 2:
        raise ValueError(f"extractor.source: {folder} holds no config.json with *.safetensors beside it; give a model's folder")
    return hashlib.sha256(json.dumps({path.name: hashes(path).sha256 for path in files}, sort_keys=True).encode()).hexdigest()


def width_of(folder: Path) -> int:
    """The width of the last layer, by the model's config."""
    described = storage.read_json(folder / "config.json")
    described = described.get("vision_config") or described
    width = described.get("hidden_size") or described.get("num_features")
    if not isinstance(width, int):
        raise ValueError(f"{folder / 'config.json'} names neither hidden_size nor num_features; extractor.source is no vision model")
    return width


def load(folder: Path, name: str) -> Any:
    """The model as a class of transformers, frozen, fp32. Raises ValueError for weights that do not fit or need another package."""
    try:
        model = hub.pretrained(name, folder, key="extractor.source", use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"extractor.source: the weights in {folder} cannot be loaded: {error}") from error
    return model.eval().requires_grad_(False)
