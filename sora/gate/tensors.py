"""Reads the headers of safetensors files, loads and writes such files, and checks that numbers are finite.

A file is 8 bytes with the length of a JSON header, the header (name: dtype, shape, data_offsets), and the numbers, without gaps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sora.gate.files import opened
from sora.gate.forms import Fields, Items, Named, Row, fitting, text, whole, word
from sora.gate.texts import FileLimit, json_of

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}  # bytes of one number
HEADER = FileLimit(64 << 20, 2_000_000, depth=4)
NAMES = 100_000  # tensors in one file
ABOUT = "__metadata__"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_TENSOR = {"dtype": word(*SIZES), "shape": Items(whole(), most=8), "data_offsets": Row((whole(), whole()))}


class Held(NamedTuple):
    """A tensor in a file: its dtype as the format names it, its shape, and the range of its bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The tensors of a file by name, and texts that its writer added."""

    tensors: Mapping[str, Held]
    about: Mapping[str, str]


def header(path: Path | str, *, within: Path | str | None = None) -> Header:
    """The header of a safetensors file, checked against the size of the file.

    within: see `sora.gate.files.regular`.

    Raises:
        ValueError: it is no regular file, or it is damaged: its header has another form, or does not fit the file's size.
    """
    with opened(path, within=within) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER.bytes):
            raise ValueError(f"{path} is damaged: it has {size:,} bytes, and its first say that its header has {length:,}")
        content = file.read(length)
    try:
        said = json_of(content.rstrip(b" "), limit=HEADER)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its header is none: {error}") from None
    about = fitting(said.pop(ABOUT, {}) if isinstance(said, dict) else {}, Named(text), f"{path}: {ABOUT}")
    if isinstance(said, dict) and len(said) > NAMES:
        raise ValueError(f"{path} says that it holds {len(said):,} tensors, and {NAMES:,} are the most of one file")
    fitting(said, Named(Fields(_TENSOR)), str(path))
    held = {name: Held(one["dtype"], tuple(one["shape"]), *one["data_offsets"]) for name, one in said.items()}
    _refuse_gaps(path, held, size - 8 - length)
    return Header(held, about)


def _refuse_gaps(path: Path | str, held: Mapping[str, Held], size: int) -> None:
    """Raise ValueError unless the tensors fill the file without gaps, each with the number of bytes of its shape."""
    end = 0
    for name, one in sorted(held.items(), key=lambda item: (item[1].begin, item[1].end)):
        if one.begin != end or one.end - one.begin != prod(one.shape) * SIZES[one.dtype]:
            raise ValueError(f"{path} is damaged: {name[:80]!a} does not lie in the bytes that its shape {list(one.shape)} takes")
        end = one.end
    if end != size:
        raise ValueError(f"{path} is damaged: its tensors take {end:,} bytes, and it has {size:,}")


def load(path: Path | str, *, within: Path | str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, see `header`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header(path, within=within)
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a dtype that torch does not know
        raise ValueError(f"{path} is damaged: {error}") from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path | str, about: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. A full disk raises OSError, which safetensors replaces by an error of its own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=None if about is None else dict(about))
    except SafetensorError as error:
        if (said := _OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1]))) from None


def refuse_not_finite(tensors: Mapping[str, Tensor], named: Path | str) -> None:
    """Raise ValueError, naming the tensor, if one holds a number that is not finite. Reads each tensor once."""
    for name, value in tensors.items():
        if not finite(value):
            raise ValueError(f"{named} holds numbers that are not finite, in {name}: it is damaged, or of a training that went wrong")


def finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; makes no copy."""
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = value.detach().aminmax()  # both are NaN if any number is
    return bool(low.isfinite() & high.isfinite())
