"""Optical flow without a trained network: pyramids of local least squares (Lucas and Kanade 1981; Bouguet 2001), dense, on grey.

Accurate to a fraction of a pixel on texture that moves by up to about an eighth of the frame; zero on flat ground. Scores over this flow
are called lite: published ones use trained networks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)
COARSEST = 16  # pixels of the shorter side at the top of the pyramid
REACH = 3  # pixels, either way, to search at the top
ROUNDS = 6  # rounds of refinement on each level
WINDOW, SIGMA = 9, 2.0  # pixels over which motion is assumed constant
STIFFNESS = 1e-4  # of [0, 1] values squared; a window with less texture does not move


def grey(frames: Tensor) -> Float[Tensor, "n 1 h w"]:
    """uint8 or float [0, 1] frames (n, h, w, 3) as one channel in [0, 1]."""
    scale = 255 if frames.dtype == torch.uint8 else 1
    frames = frames.float() / scale
    return (frames * frames.new_tensor(GREY)).sum(dim=-1)[:, None]


def warp(frames: Float[Tensor, "n c h w"], flow: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n c h w"]:
    """Frames sampled at each pixel's position plus its flow (columns, rows) in pixels: bilinear, with border values outside."""
    height, width = frames.shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=frames.device, dtype=frames.dtype),
        torch.arange(width, device=frames.device, dtype=frames.dtype),
        indexing="ij",
    )
    places = torch.stack([(columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1, (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1], dim=-1)
    return functional.grid_sample(frames, places, mode="bilinear", padding_mode="border", align_corners=True)


def optical_flow(one: Float[Tensor, "n 1 h w"], two: Float[Tensor, "_ 1 _ _"]) -> Float[Tensor, "n 2 h w"]:
    """The displacement of each pixel from `one` to `two`, (columns, rows) in pixels: two(x + flow(x)) = one(x)."""
    if one.shape != two.shape or one.ndim != 4 or one.shape[1] != 1:
        raise ValueError(f"grey frames of {tuple(one.shape)} and {tuple(two.shape)} have no flow; give two of (n, 1, h, w)")
    pyramid = [(one, two)]
    while min(pyramid[-1][0].shape[2:]) >= 2 * COARSEST:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    flow = _searched(*pyramid[-1])
    for first, second in reversed(pyramid):
        size = first.shape[2:]
        if flow.shape[2:] != size:
            scale = torch.tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]], device=flow.device, dtype=flow.dtype)
            flow = functional.interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale[:, None, None]
        for _ in range(ROUNDS):
            flow = _blurred(flow + _step(first, warp(second, flow)))
    return flow


def visible(flow: Float[Tensor, "n 2 h w"], back: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n 1 h w"]:
    """1 where a pixel is seen in both frames, 0 where it is hidden or left the frame: forward and backward flow must cancel.

    Sundaram, Brox and Keutzer 2010, eq. 5.
    """
    returned = warp(back, flow)
    gap = (flow + returned).square().sum(dim=1, keepdim=True)
    allowed = 0.01 * (flow.square().sum(dim=1, keepdim=True) + returned.square().sum(dim=1, keepdim=True)) + 0.5
    height, width = flow.shape[2:]
    columns = torch.arange(width, device=flow.device) + flow[:, :1]
    rows = torch.arange(height, device=flow.device)[:, None] + flow[:, 1:]
    inside = (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1)
    return ((gap <= allowed) & inside).to(flow.dtype)


def _searched(first: Tensor, second: Tensor) -> Tensor:
    """The flow in whole pixels, the best displacement within REACH, to start least squares from. Zero wins unless another is better."""
    tried = [(0, 0)] + [(x, y) for x in range(-REACH, REACH + 1) for y in range(-REACH, REACH + 1) if (x, y) != (0, 0)]
    shifts = torch.tensor(tried, device=first.device, dtype=first.dtype)
    costs = []
    for shift in shifts:
        moved = warp(second, shift[None, :, None, None].expand(len(first), 2, *first.shape[2:]))
        costs.append(_blurred((moved - first).square()))
    cost = torch.cat(costs, dim=1)  # n tried h w
    cost[:, 0] = cost[:, 0] * 0.9 - 1e-6  # on flat ground all costs are equal but for rounding
    best = shifts[cost.argmin(dim=1)]  # n h w 2
    return _blurred(best.permute(0, 3, 1, 2))


def _step(first: Tensor, warped: Tensor) -> Tensor:
    """The remaining flow, by least squares over each window; at most one pixel."""
    across, down = ((_gradient(first, axis) + _gradient(warped, axis)) / 2 for axis in (3, 2))
    change = warped - first
    xx, yy, xy = (_blurred(product) for product in (across * across, down * down, across * down))
    xt, yt = _blurred(across * change), _blurred(down * change)
    xx, yy = xx + STIFFNESS, yy + STIFFNESS
    determinant = xx * yy - xy * xy
    return torch.cat([(xy * yt - yy * xt) / determinant, (xy * xt - xx * yt) / determinant], dim=1).clamp(-1, 1)


def _gradient(x: Tensor, axis: int) -> Tensor:
    """Central differences, one-sided at borders."""
    return torch.gradient(x, dim=axis)[0]


def _halved(x: Tensor) -> Tensor:
    return functional.interpolate(x, size=[-(-length // 2) for length in x.shape[2:]], mode="bilinear", antialias=True)


def _blurred(x: Tensor) -> Tensor:
    places = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    line = torch.exp(-(places**2) / (2 * SIGMA**2))
    line = (line / line.sum()).expand(x.shape[1], 1, 1, WINDOW)
    half = WINDOW // 2
    x = functional.conv2d(functional.pad(x, (half, half, 0, 0), mode="replicate"), line, groups=x.shape[1])
    return functional.conv2d(functional.pad(x, (0, 0, half, half), mode="replicate"), line.transpose(2, 3), groups=x.shape[1])
