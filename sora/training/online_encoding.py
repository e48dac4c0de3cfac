"""Encoding while training: packs of frames and captions become packs of latent patches and text states, on the training device."""

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

from sora.captioner.pixels import PixelBlocks
from sora.patches.packing import frame_times, pack, patch_times
from sora.patches.patchifier import Patchifier
from sora.system import distributed as ranks
from sora.text.encoder import TextEncoder
from sora.text.packing import pack_text
from sora.tokens import Batch, Grid, TextTokens
from sora.vae.vae import VideoVAE

if TYPE_CHECKING:
    from sora.data.loading.videos import VideoPack  # imported for types only: a mesh reads no data, and must not import what does


@runtime_checkable
class Encoding(Protocol):
    """A task whose `encode` may be an `OnlineEncoder`."""

    @property
    def encode(self) -> Callable[..., Any] | None: ...


class OnlineEncoder:
    """Maps (VideoPack, device) to a `Batch`. The VAE and the text encoder are frozen and not part of the task, so no checkpoint holds them.

    budget, max_clips: tokens and clips of a pack, as in the plan. text_budget: text tokens of a pack; None for as many as its captions
    have. batch: clips of one shape that the VAE encodes at once; it changes results by rounding only. shard_vae, shard_text: cut the
    weights of the VAE, or of the text encoder, among ranks, and gather them while encoding; every rank then encodes as often as the one
    with the most clips. With shard_text the text encoder lies on the training device, else on the host. near: ranks per node, among which a
    text encoder is cut; 1 cuts it among all ranks.

    text: None if all packs come with their states. A rank encodes only the packs that it reads; ranks that read the same packs (`among`)
    share the work.
    """

    def __init__(
        self,
        *,
        vae: VideoVAE | PixelBlocks,
        text: TextEncoder | None,
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
        """Share the work among the ranks of `group`, which read the same packs: each encodes some clips, and they exchange latents."""
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
        """The whitened latents of each clip, in fp32 like stored latents, whatever precision the network trains in."""
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
        """Move the VAE to the device, at the first call only; with shard_vae, cut its weights among the ranks."""
        if self._spread:
            return
        self.vae.to(device)
        if self._shard_vae and ranks.several():
            everyone = init_device_mesh(device.type, (dist.get_world_size(),))
            fully_shard(self.vae, mesh=everyone, reshard_after_forward=True)
            register_fsdp_forward_method(self.vae, "encode")
        self._spread = True

    def _place_text(self, device: torch.device) -> None:
        """Move the text encoder to the device, at the first call only, and cut its weights so that one block at a time is gathered."""
        if self._text_spread:
            return
        assert self.text is not None
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
        """Broadcast the latents that rank `owner` of the group has encoded, and return them on every rank of it."""
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
        assert self.text is not None
        said, missing = dict.fromkeys(clips.captions), 0
        if self._shard_text:
            self._place_text(device)
            missing = _missing(len(said), device)
        # Each caption is encoded alone and rounded to float16, as in a cache, so that both ways train on the same numbers.
        known = {caption: self.text.encode([caption])[0].half().float() for caption in said}
        for _ in range(missing):
            self.text.encode([""])
        return pack_text([known[caption] for caption in clips.captions], budget=self.text_budget, max_clips=self.max_clips)


def _missing(calls: int, device: torch.device) -> int:
    """How many more calls the busiest rank makes: each call gathers weights, so every rank must make as many."""
    return ranks.highest(calls, device) - calls if ranks.several() else 0


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The modules in a model's outermost module lists."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{above}.") for above in found):
            found |= {f"{name}.{number}": block for number, block in enumerate(module)}
    return list(found.values())


def share_encoding(task: nn.Module, group: ProcessGroup) -> None:
    """Let the ranks of `group`, which read the same packs, share the work of encoding them; does nothing if the task does not encode."""
    if isinstance(task, Encoding) and isinstance(task.encode, OnlineEncoder):
        task.encode.among(group)
