"""Counter-based randomness: every draw is a pure function of (seed, epoch, sample id) and the name of what is drawn.

Nothing here depends on a worker, a rank or the order of calls, so a run that is cut, resumed or moved to another number
of ranks draws exactly what the uninterrupted run would have drawn (Philox: Salmon et al. 2011).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def sample_id(key: str, window: int = 0) -> int:
    """The 63-bit id of a clip, from its key (and the window cut from it), the same in every process and re-sharding."""
    digest = blake2b(f"{key}\0{window}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(stream: str, *, seed: int, epoch: int, sample: int) -> np.random.Generator:
    """An independent random stream for one purpose ("noise", "level", "caption", ...) and one sample."""
    digest = blake2b(f"{stream}\0{seed}\0{epoch}\0{sample}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def normal(stream: str, shape: tuple[int, ...], *, seed: int, epoch: int, sample: int) -> Float[Tensor, "..."]:
    """Standard normal float32 noise of `shape` for one sample."""
    draw = generator(stream, seed=seed, epoch=epoch, sample=sample)
    return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))
