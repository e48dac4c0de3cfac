"""Encoding while training: packs of frames and captions to packs of latent patches and token states, on the device that trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from sora.patches.packing import frame_times, pack, patch_times
from sora.patches.patchifier import Patchifier
from sora.system import distributed as ranks
from sora.text.encoder import TextEncoder
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid, TextTokens
from sora.vae.vae import VideoVAE

if TYPE_CHECKING:
    from sora.data.loading.videos import VideoPack  # a mesh reads no data, and needs nothing of what reads them


@runtime_checkable
class Encoding(Protocol):
    """What is asked of a task that may encode while it trains."""

    @property
    def encode(self) -> Callable[..., Any] | None: ...


class OnlineEncoder:
    """`(VideoPack, device) -> Batch`. The VAE and the text encoder are frozen and no part of the task, so no checkpoint holds them.

    budget, max_clips: of the plan. text_budget: text tokens of a pack (None: as many as there are). batch: clips of one shape that the
    VAE encodes at once; their number changes results by no more than rounding. shard_vae, shard_text: of several ranks each holds a part
    of the VAE or of the text encoder instead of all of it, and gathers the rest while it encodes; ranks then encode side by side, as often
    as the one with the most to do. near: ranks of a node, among which a text encoder is cut (where a node has one: among all). With
    shard_text it lies on the device that trains, else on the host.

    A rank encodes the packs that it reads and no others; ranks that read the same packs (`among`) share the work.
    """

    def __init__(
        self,
        *,
        vae: VideoVAE,
        text: TextEncoder,
        patchifier: Patchifier,
        budget: int,
        max_clips: int,
        text_budget: int | None,
        batch: int,
        shard_vae: bool,
        shard_text: bool,
        near: int,
    ) -> None:
        self.vae, self.text, self.patchifier = vae.eval().requires_grad_(False), text, patchifier
        self.budget, self.max_clips, self.text_budget, self.batch = budget, max_clips, text_budget, batch
        self._shard_vae, self._shard_text, self._near = shard_vae, shard_text, near
        self._spread = self._text_spread = False
        self._group: ProcessGroup | None = None

    def among(self, group: ProcessGroup) -> None:
        """The ranks of `group` read the same packs: each encodes its part of the clips, and they exchange latents."""
        self._group = group

    def __call__(self, clips: VideoPack, device: torch.device) -> Batch:
        found = self._latents(clips, device)
        grids = [self.patchifier.grid(latents.shape[1], latents.shape[2], latents.shape[3]) for latents in found]
        tokens = pack(
            [self.patchifier.patchify(latents) for latents in found],
            grids,
            seconds=[self._seconds(grid, fps) for grid, fps in zip(grids, clips.fps, strict=True)],
            budget=self.budget,
            max_clips=self.max_clips,
        )
        conditions = torch.zeros(self.budget, dtype=torch.bool)
        start = 0
        for grid, given in zip(grids, clips.given, strict=True):
            conditions[start : start + grid.h * grid.w] = given and grid.t > 1
            start += grid.tokens
        return Batch(tokens, self._packed_text(clips, device), conditions, sample_ids=clips.sample_ids, epochs=clips.epochs).to(device)

    def _latents(self, clips: VideoPack, device: torch.device) -> list[Float[Tensor, "C _ _ _"]]:
        """Whitened latents of each clip, in fp32 as the stored ones are made, whatever precision the network trains in."""
        frames, shapes = clips.frames, defaultdict(list)
        for number, shape in enumerate(clips.shapes):
            shapes[shape].append(number)
        together = [same[start : start + self.batch] for same in shapes.values() for start in range(0, len(same), self.batch)]
        turns, turn = (1, 0) if self._group is None else (self._group.size(), self._group.rank())
        found: dict[int, Float[Tensor, "B C _ _ _"]] = {}
        self._place(device)
        missing = _missing(len(range(turn, len(together), turns)), device) if self._shard_vae else 0
        with torch.autocast(device.type, enabled=False):
            for place in range(turn, len(together), turns):
                found[place] = self._encoded([frames[number] for number in together[place]], device)
            for _ in range(missing):
                self._encoded([torch.zeros(1, *self.vae.stride[1:], 3, dtype=torch.uint8)], device)
        if self._group is not None:
            for place, some in enumerate(together):
                found[place] = self._from(place % turns, found.get(place), clips.shapes[some[0]], len(some), device)
        latents = {number: each for place, some in enumerate(together) for number, each in zip(some, found[place], strict=True)}
        return [latents[number] for number in range(len(frames))]

    def _encoded(self, some: Sequence[UInt8[Tensor, "T H W 3"]], device: torch.device) -> Float[Tensor, "B C _ _ _"]:
        return self.vae.encode(torch.stack(list(some)).to(device, non_blocking=True)).float()

    def _place(self, device: torch.device) -> None:
        """The VAE on the device, once; in parts, if that was asked for and there are ranks to hold them."""
        if self._spread:
            return
        self.vae.to(device)
        if self._shard_vae and ranks.several():
            everyone = init_device_mesh(device.type, (dist.get_world_size(),))
            fully_shard(self.vae, mesh=everyone, reshard_after_forward=True)
            register_fsdp_forward_method(self.vae, "encode")
        self._spread = True

    def _place_text(self, device: torch.device) -> None:
        """As `_place`; a block of a model at a time is gathered."""
        if self._text_spread:
            return
        self.text.to(device)
        models = self.text.models()
        if not models:
            raise ValueError(f"data.shard_text=true: the text encoder {self.text.name} has no model to cut into parts; leave it out")
        if ranks.several():
            count = dist.get_world_size()
            near = self._near if self._near > 1 and count % self._near == 0 else count
            node = init_device_mesh(device.type, (count // near, near), mesh_dim_names=("nodes", "near"))["near"]
            for unit in [unit for model in models for unit in (*_blocks(model), model)]:
                fully_shard(unit, mesh=node, reshard_after_forward=True)
        self._text_spread = True

    def _from(
        self, owner: int, encoded: Tensor | None, shape: tuple[int, int, int], count: int, device: torch.device
    ) -> Float[Tensor, "B C _ _ _"]:
        """What one rank of the group has encoded, on all of it."""
        size = (count, self.vae.latent_channels, *self.vae.latent_shape(*shape))
        latents = torch.empty(size, device=device) if encoded is None else encoded.contiguous()
        dist.broadcast(latents, group_src=owner, group=self._group)
        return latents

    def _seconds(self, grid: Grid, fps: float) -> Float[Tensor, "t"]:
        size = self.patchifier.size.t
        return patch_times(frame_times(grid.t * size, fps, self.vae.stride[0]), size)

    def _packed_text(self, clips: VideoPack, device: torch.device) -> TextTokens:
        if clips.states is not None:
            return pack_text(clips.states, budget=self.text_budget, max_clips=self.max_clips)
        said, missing = dict.fromkeys(clips.captions), 0
        if self._shard_text:
            self._place_text(device)
            missing = _missing(len(said), device)
        # each caption alone and as float16: what a cache holds of it, so that both ways train on the same numbers
        known = {caption: self.text.encode([caption])[0].half().float() for caption in said}
        for _ in range(missing):
            self.text.encode([""])
        return pack_text([known[caption] for caption in clips.captions], budget=self.text_budget, max_clips=self.max_clips)


def _missing(calls: int, device: torch.device) -> int:
    """How much more often another rank encodes: whoever holds a part of what encodes has to be there."""
    return ranks.highest(calls, device) - calls if ranks.several() else 0


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of a model's lists, those that are in no other list."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{above}.") for above in found):
            found |= {f"{name}.{number}": block for number, block in enumerate(module)}
    return list(found.values())


def share_encoding(task: nn.Module, group: ProcessGroup) -> None:
    """Have the ranks of `group`, which read the same packs, share the work of encoding them, if the task encodes any."""
    if isinstance(task, Encoding) and isinstance(task.encode, OnlineEncoder):
        task.encode.among(group)
