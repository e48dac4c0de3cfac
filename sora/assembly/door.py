"""The Python interface: a run, a VAE or a dataset in one call each. It does what the commands do, and returns objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.assembly.generation import generator_of, sampling
from sora.assembly.load import OWN, load_diffusion, load_vae
from sora.assembly.requests import plan_requests
from sora.config.compose import Composed, compose
from sora.config.own import naming
from sora.gate.sizes import refuse_numbers
from sora.generation.prompts import NUMBERS, Line, negative_of, refuse_unguided
from sora.system.devices import choose_device

if TYPE_CHECKING:
    from torch import nn

    from sora.assembly.load import LoadedDiffusion
    from sora.captioner import Attributes, CaptionNetwork, TrainedCaptioner, Words
    from sora.diffusion.objective import Objective
    from sora.generation.generator import Generator, Request
    from sora.patches.patchifier import Patchifier
    from sora.text.encoder import TextEncoder
    from sora.vae.vae import VideoVAE

# Keys and groups of `sora sample` that set how videos are made (RECIPE), and of which videos are made (REQUEST).
RECIPE = ("sampler", "guidance", "steps", "shift", "first", "budget")
REQUEST = ("size", "area", "seconds", "fps", "samples", "seed", "negative", "input", "input_frames", "clip_gb")


@dataclass(frozen=True)
class OpenedCaptioner:
    """A captioner's run with the weights of one of its checkpoints, in eval mode on a device.

    network: sees clips and writes. words: its vocabulary. attributes: what its heads answer. eyes: the VAE, or blocks of pixels, by which
    it sees frames. config: the run's configuration, as plain values.
    """

    folder: Path
    step: int
    config: dict[str, Any]
    network: CaptionNetwork
    words: Words
    attributes: Attributes
    eyes: Any
    patchifier: Patchifier
    device: str

    def captioner(self, *, beam: int = 1, most: int = 128) -> TrainedCaptioner:
        """What writes captions of frames. beam: candidates of a caption while it is written. most: words of a caption.

        Raises:
            ValueError: beam or most is below 1.
        """
        from sora.captioner.trained import TrainedCaptioner

        if min(beam, most) < 1:
            raise ValueError(f"beam={beam} and most={most} must be at least 1")
        parts = {name: getattr(self, name) for name in ("network", "words", "attributes", "eyes", "patchifier")}
        return TrainedCaptioner(**parts, beam=beam, most=most)


@dataclass(frozen=True)
class OpenedRun:
    """A diffusion run with the weights of one of its checkpoints, in eval mode on a device.

    dit: the denoising network. text: the module that maps packed caption states to the network's text states and is trained with it; the
    identity for frozen encoders. encoder: maps captions to states. config: the run's configuration, as plain values.
    """

    folder: Path
    step: int
    config: dict[str, Any]
    dit: nn.Module
    text: nn.Module
    encoder: TextEncoder
    vae: VideoVAE
    patchifier: Patchifier
    objective: Objective
    device: str
    loaded: LoadedDiffusion

    def generator(self, *words: str) -> Generator:
        """A generator of this run's networks. words: as for `sora sample`, such as "steps=12", "sampler=heun", "guidance.scale=6".

        Raises:
            ValueError: a word sets no key of how videos are made, or its value does not fit; the message names it.
        """
        return generator_of(self.loaded, sampling(_composed(words, RECIPE).config), self.device)

    def requests(self, prompts: str | Sequence[str], *words: str) -> list[Request]:
        """Requests for the generator: one clip of each prompt, of the size and length of the training clips unless `words` say otherwise.

        words: as for `sora sample`, such as "size=9:16", "seconds=4", "samples=2", "seed=3", "input=first.png".

        Raises:
            ValueError: a word sets no key of which videos are made, or its value does not fit; the message names it.
        """
        composed = _composed(words, REQUEST)
        refuse_numbers(composed.config, NUMBERS)
        lines = [Line(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        return plan_requests(lines, composed.config, self.loaded)


def open_captioner(
    folder: str | Path, step: int | None = None, *, ema: str | float = OWN, device: str = "auto", own: Sequence[str] = ()
) -> OpenedCaptioner:
    """The network and the vocabulary of a captioner's run, or of one of its checkpoints, and what it sees with; arguments as of `open_run`.

    Raises:
        ValueError: it is no captioner's run, has no such checkpoint, or a file of it is damaged; the message names it.
    """
    from sora.assembly.load_captioner import load_captioner

    with naming(own):
        loaded, where = load_captioner(Path(folder), step, ema=ema), choose_device(device)
        parts = {"words": loaded.words, "attributes": loaded.attributes, "patchifier": loaded.patchifier, "device": where}
        seeing = {"network": loaded.network.to(where), "eyes": loaded.eyes.to(where)}
        return OpenedCaptioner(loaded.run, loaded.step, loaded.config, **seeing, **parts)


def open_run(
    folder: str | Path, step: int | None = None, *, ema: str | float = OWN, device: str = "auto", own: Sequence[str] = ()
) -> OpenedRun | OpenedCaptioner:
    """The networks, the VAE, the text encoder and the objective of a diffusion run, or of one of its checkpoints; or a captioner.

    step: of the checkpoint; None for the newest whole one. ema: "own", the averages that the run keeps; "last", the weights of the last
    step; or the relative width of an average (ema=post_hoc). device: "auto", "cpu" or "cuda". own: modules or files with parts of your
    own that the run was made of (docs/own_code.md).

    Raises:
        ValueError: it is no diffusion run, has no such checkpoint, or a file of it is damaged; the message names it.
    """
    if is_captioner(Path(folder)):
        return open_captioner(folder, step, ema=ema, device=device, own=own)
    with naming(own):
        loaded, where = load_diffusion(Path(folder), step, ema=ema), choose_device(device)
        networks = {"dit": loaded.dit.to(where), "text": loaded.text.to(where), "vae": loaded.vae.to(where)}
        rest = {"encoder": loaded.encoder, "patchifier": loaded.patchifier, "objective": loaded.objective}
        return OpenedRun(loaded.run, loaded.step, loaded.config, **networks, **rest, device=where, loaded=loaded)


def is_captioner(folder: Path) -> bool:
    """Whether a folder, or the run of a checkpoint's folder, is the run of a captioner."""
    from sora.runs.run import Run, run_of

    place = run_of(folder)[0]
    return (place / "run.json").is_file() and Run(place).info["kind"] == "captioner"


def open_vae(folder: str | Path, step: int | None = None, *, ema: str | float = OWN, device: str = "auto") -> VideoVAE:
    """The VAE of a folder that `sora train task=vae` wrote, or of its run: finished, or of the checkpoint of `step`, in eval mode.

    Raises:
        ValueError: there is none, or a file of it is damaged; the message names it.
    """
    return load_vae(Path(folder), step, ema=ema).vae.to(choose_device(device))


def _composed(words: Sequence[str], keys: Sequence[str]) -> Composed:
    """The configuration of `sora sample WORDS`; raises ValueError for a word that sets none of `keys` (keys and groups)."""
    composed = compose("sample", ["checkpoint=run", *words])
    if other := next((name for name in composed.said if name.partition(".")[0] not in ("checkpoint", *keys)), None):
        raise ValueError(f"{other}= has no effect here; these words have: {', '.join(keys)}")
    config = composed.config
    refuse_unguided(negative_of(config.negative), (), config.guidance, composed.choices.get("guidance"))
    return composed
