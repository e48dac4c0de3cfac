"""Features by the two I3D files of published Fréchet video distances; each file is recognised by its hash.

Neither can be shipped or downloaded from here: name a file with extractor.path. A file with another hash works too, under its own name, and
is not called FVD: I3D weights of other origin look alike and score differently (one gives 219 where 131 is published).
"""

from __future__ import annotations

import hashlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sora.metrics.extractors.i3d import CLASSES, I3D, MINIMUM_FRAMES
from sora.metrics.extractors.pixels import Preparation
from sora.metrics.extractors.weights import Hashes, fill, given_file, hashes, read_state
from sora.system.terminal import counted

SCRIPT = "93daef59c7ae0e9e8f76225521407e60cbafa6aa"
STATE = "a867b87ac3a9097d200598b1d48a1b890d8ec744"
WANTED = {
    SCRIPT: f"i3d_torchscript.pt, the TorchScript I3D of StyleGAN-V (51 MB, git blob SHA-1 {SCRIPT})",
    STATE: f"i3d_pretrained_400.pt, the I3D state dict of VideoGPT and TATS (51 MB, git blob SHA-1 {STATE})",
}
# Files that are mistaken for the above, by either hash; they get other names, so that no table mixes them up.
LOOK_ALIKES = {
    "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",  # rgb_imagenet.pt of video inpainting repositories, SHA-256
    "73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a",  # another repository's rgb_imagenet.pt, git blob
}


def name_of(found: Hashes) -> str:
    """`i3d-` and the hash's first eight digits; `i3d-imagenet-` for known files that are mistaken for the canonical ones."""
    alike = found.blob in LOOK_ALIKES or found.sha256 in LOOK_ALIKES
    return f"i3d-{'imagenet-' if alike else ''}{found.blob[:8]}"


class I3DScript:
    """I3D features by the TorchScript file. Its own resizing is not used: `kernel` and `crop` choose it, and are recorded.

    path: the file. kernel, crop: see `Preparation`; half_pixel without crop is the file's own choice. batch: videos at once. sha256: the
    hash that the file must have, hexadecimal; None for any. A TorchScript file is a program: name only files that you trust.
    """

    dimension, minimum_frames, logits = CLASSES, MINIMUM_FRAMES, True

    def __init__(self, *, path: str | None, kernel: str, crop: bool, batch: int, sha256: str | None = None) -> None:
        self.path, self.batch, self.sha256 = path, batch, sha256
        self.preparation = Preparation(size=(224, 224), kernel=kernel, crop=crop, low=-1.0, high=1.0)
        self.settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return name_of(self._hashes)

    @property
    def fingerprint(self) -> str:
        return self._hashes.sha256

    @property
    def canonical(self) -> bool:
        return self._hashes.blob == SCRIPT

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 400"]:
        network = self._network.to(videos.device)
        # Fusers compile anew for each length, and round differently from the published scores.
        with torch.autocast(videos.device.type, enabled=False), torch.jit.optimized_execution(False):
            found = [
                network(self.preparation(part), rescale=False, resize=False, return_features=True) for part in videos.split(self.batch)
            ]
        features = torch.cat(found)
        if features.shape != (len(videos), CLASSES):
            raise ValueError(
                f"{self.path} gives {tuple(features.shape)} for {counted(len(videos), 'video')}, not {CLASSES} numbers each; it is no I3D"
            )
        return features.float()

    @cached_property
    def _file(self) -> Path:
        return given_file(self.path, wanted=WANTED[SCRIPT])

    @cached_property
    def _hashes(self) -> Hashes:
        return hashes(self._file)

    @cached_property
    def _network(self) -> Any:
        content = self._file.read_bytes()  # hash the same bytes that run, even if the file changes
        found = hashlib.sha256(content).hexdigest()
        if found != (self.sha256 or self._hashes.sha256):
            raise ValueError(f"{self._file} has the SHA-256 {found}, not {self.sha256 or self._hashes.sha256}; it is another program")
        try:
            return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            told = str(error).strip().splitlines()[0]
            raise ValueError(f"{self._file} is no TorchScript file: {told}; this extractor needs {WANTED[SCRIPT]}") from error


class I3DWeights:
    """I3D features by the state dict, in the network of `i3d`. epsilon: of batch normalisation, 1e-5 in the ports with this file.

    path, kernel, crop, batch: as for `I3DScript`.
    """

    dimension, minimum_frames, logits = CLASSES, MINIMUM_FRAMES, True

    def __init__(self, *, path: str | None, epsilon: float, kernel: str, crop: bool, batch: int) -> None:
        self.path, self.epsilon, self.batch = path, epsilon, batch
        self.preparation = Preparation(size=(224, 224), kernel=kernel, crop=crop, low=-1.0, high=1.0)
        self.settings: dict[str, Any] = {"epsilon": epsilon}

    @property
    def name(self) -> str:
        return name_of(self._hashes)

    @property
    def fingerprint(self) -> str:
        return self._hashes.sha256

    @property
    def canonical(self) -> bool:
        return self._hashes.blob == STATE

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Float[Tensor, "B 400"]:
        network = self._network.to(videos.device)
        with torch.autocast(videos.device.type, enabled=False):
            return torch.cat([network(self.preparation(part)) for part in videos.split(self.batch)])

    @cached_property
    def _file(self) -> Path:
        return given_file(self.path, wanted=WANTED[STATE])

    @cached_property
    def _hashes(self) -> Hashes:
        return hashes(self._file)

    @cached_property
    def _network(self) -> I3D:
        network = I3D(epsilon=self.epsilon)
        fill(network, read_state(self._file), self._file)
        return network
