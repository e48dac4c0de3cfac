"""Reads and writes safetensors files tensor by tensor, hashing while it writes, so that a checkpoint needs no second copy in memory.

The format is safetensors (an 8-byte length, a JSON header, the raw bytes), and its library reads the files. We write them ourselves,
because the library's writer needs every tensor on the host at once, and so that a test can cut the file at any byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Write `tensors` to `path` and return the file's "bytes" and "sha256". The file is not staged, because the caller stages its folder.

    Raises:
        ValueError: a tensor holds a number that is not finite, or has a dtype that safetensors lacks.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {}, 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which a checkpoint does not hold; it holds {', '.join(NAMES.values())}")
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # safetensors aligns the data to 8 bytes
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        _put(file, digest, len(head).to_bytes(8, "little") + head)
        for name in order:
            _put(file, digest, _bytes(name, tensors[name]))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": 8 + len(head) + end, "sha256": digest.hexdigest()}


def _bytes(name: str, tensor: Tensor) -> memoryview:
    tensor = tensor.detach()
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds numbers that are not finite; a checkpoint of them is never written")
    flat = tensor.to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return np.ascontiguousarray(flat.numpy()).data


def _put(file: IO[bytes], digest: Any, data: bytes | memoryview) -> None:
    file.write(data)
    digest.update(data)
