"""Scores by networks of torch: ImageNet classes by EfficientNet-Lite0, and how well a caption fits by CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from sora.curation.scores.scorer import shrunk, spread

if TYPE_CHECKING:
    from sora.metrics.extractors.efficientnet import Lite0
    from sora.metrics.extractors.pretrained import PretrainedFrames

SIDE = 224  # pixels a side of Lite0's input


class Lite0Scorer:
    """Scores clips by EfficientNet-Lite0 (Tan and Le 2019), trained on the 1,000 classes of ImageNet, with weights from a package.

    From the mean over frames of the classes' probabilities: `lite0_top` is the greatest one, in [0, 1]; `lite0_entropy` their entropy, in
    nats, in [0, 6.9]; `lite0_class` the number of the greatest, 0 to 999, by which quotas can be set. count: frames of a clip, spread
    evenly.
    """

    names, needs_text = ("lite0_top", "lite0_entropy", "lite0_class"), False

    def __init__(self, *, count: int) -> None:
        spread(1, count)
        self._count = count

    def identity(self) -> str:
        from sora.metrics.extractors.efficientnet import EfficientNetLite0

        return f"lite0 {EfficientNetLite0(frames=None, batch=1).fingerprint} {self._count} frames"

    def frames(self, count: int) -> list[int]:
        return spread(count, self._count)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return shrunk(height, width, SIDE)

    def __call__(self, frames: UInt8[ndarray, "T H W 3"], *, text: str | None) -> dict[str, float]:
        """The scores of a clip. Raises ValueError where the package with the weights is missing."""
        import torch

        from sora.metrics.extractors.efficientnet import EfficientNetLite0

        del text
        with torch.no_grad():
            pixels = EfficientNetLite0.preparation(torch.from_numpy(frames.copy())[None])[0].transpose(0, 1)
            shares = self._network.classify(pixels).double().softmax(dim=1).mean(dim=0)
        entropy = -torch.special.xlogy(shares, shares).sum()
        return {"lite0_top": float(shares.max()), "lite0_entropy": float(entropy), "lite0_class": float(shares.argmax())}

    @cached_property
    def _network(self) -> Lite0:
        from sora.metrics.extractors.efficientnet import FILE, INSTALL, PACKAGE, Lite0
        from sora.metrics.extractors.weights import fill, package_file, read_state

        network, path = Lite0(), package_file(PACKAGE, FILE, install=INSTALL)
        fill(network, read_state(path), path)
        return network


class ClipScorer:
    """Scores how well a clip's caption fits its frames, by a CLIP (Radford et al. 2021) of transformers from a local folder.

    `clip_match` is the cosine between the caption and the mean of the frames' embeddings, in [-1, 1]; captions are cut to the model's
    length. source: a local folder, or a model of the Hugging Face hub, then pinned by `revision`. count: frames of a clip, spread evenly.
    side, kernel, crop, mean, deviation, batch: see `PretrainedFrames`.
    """

    names, needs_text = ("clip_match",), True

    def __init__(
        self,
        *,
        source: str,
        revision: str | None,
        count: int,
        side: int,
        kernel: str,
        crop: bool,
        mean: Sequence[float],
        deviation: Sequence[float],
        batch: int,
    ) -> None:
        spread(1, count)
        self._count, self._side = count, side
        self._settings: dict[str, Any] = {"side": side, "kernel": kernel, "crop": crop, "mean": [*mean], "deviation": [*deviation]}
        self._given: dict[str, Any] = {"label": "clip", "source": source, "revision": revision, "frames": None, "size": side}
        self._given |= {"kernel": kernel, "crop": crop, "mean": tuple(mean), "deviation": tuple(deviation), "batch": batch}

    def identity(self) -> str:
        """What the scores depend on. Raises ValueError where the model is neither a local folder nor in the hub's local cache."""
        try:
            fingerprint = self._model.fingerprint
        except ValueError as error:
            source = self._given["source"]
            if Path(source).is_dir():
                raise
            raise ValueError(
                f"a scorer's source={source} is no local folder and no model at hand: download it (hf download {source}), or give "
                "a folder as `source` in an option of your own, DIR/scorer/NAME.yaml, and call it with --config-dir=DIR scorers=[NAME]"
            ) from error
        return f"clip {fingerprint} {self._count} frames {json.dumps(self._settings, sort_keys=True)}"

    def frames(self, count: int) -> list[int]:
        return spread(count, self._count)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return shrunk(height, width, self._side)

    def __call__(self, frames: UInt8[ndarray, "T H W 3"], *, text: str | None) -> dict[str, float]:
        """The score of a clip. Raises ValueError for a clip without a caption, or a folder that holds no CLIP."""
        if text is None:
            raise ValueError(
                "clip_match compares a clip with its caption, and this clip has none; caption it first, or leave the scorer out"
            )
        caption = self._model.encode_texts([text])[0].double().numpy()
        return {"clip_match": float(self.embed(frames) @ caption / max(float(np.linalg.norm(caption)), 1e-12))}

    def embed(self, frames: UInt8[ndarray, "T H W 3"]) -> Float[ndarray, " D"]:
        """The mean of the frames' embeddings, each of length 1, as one vector of length 1."""
        import torch

        found = self._model.encode_frames(torch.from_numpy(frames.copy())[None])[0].double().numpy()
        mean = (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)).mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    @cached_property
    def _model(self) -> PretrainedFrames:
        from sora.metrics.extractors.pretrained import PretrainedFrames

        return PretrainedFrames(**self._given)
