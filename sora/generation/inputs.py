"""Reads the given first frames of a clip from an image or a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sora.system.terminal import counted

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_input(path: Path, *, size: tuple[int, int], frames: int, fps: float) -> Any:
    """The first frames of an image or video at a size, as a uint8 tensor (K, H, W, 3)."""
    import torch

    from sora.video.files import CONFINED

    if not path.is_file():
        raise ValueError(f"input={path} does not exist")
    if path.suffix.lower() in PICTURES:
        if frames != 1:
            raise ValueError(f"input={path} is one image, input_frames={frames} asks for more")
        return torch.from_numpy(read_picture(path, size=size))[None]
    found = CONFINED.read(path, frames=frames, fps=None if frames == 1 else fps, size=size, name=f"input={path}")
    if len(found.frames) < frames:
        raise ValueError(f"input={path} has {counted(len(found.frames), 'frame')}, input_frames={frames} asks for more")
    return torch.from_numpy(found.frames.copy())


def read_picture(path: Path, *, size: tuple[int, int]) -> Any:
    """An image that fills (height, width), uint8: scaled with its aspect ratio, cropped at the centre, upright, on white."""
    import numpy as np
    from PIL import Image, ImageOps

    from sora.gate.files import opened
    from sora.video.demuxing.kinds import HEAD, kind_of
    from sora.video.files import CONFINED

    with opened(path) as file:
        head = file.read(HEAD)
        if head.startswith(b"BM"):
            file.seek(0)
            flat = read_bmp(file, f"input={path}")
        elif kind_of(head).picture:
            flat = Image.fromarray(CONFINED.read(path, frames=1, name=f"input={path}").frames[0])
        else:  # Pillow runs external programs for some file formats
            raise ValueError(f"input={path} cannot be read as an image: it is {kind_of(head).what}")
    return np.array(ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.LANCZOS))


def read_bmp(file: Any, named: str) -> Any:
    """A BMP image, the one format that no video reader takes. It has no orientation and little compression."""
    from PIL import Image

    try:
        with Image.open(file, formats=["BMP"]) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise ValueError(f"{named} cannot be read as an image: {error}") from None
