"""Show what a training run will hold and cost before it starts: clips, steps, balance, memory, hours, money."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora.system import terminal
from sora.system.terminal import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from omegaconf import DictConfig
    from torch import nn

    from sora.assembly.data import Planned
    from sora.config.compose import Composed
    from sora.cost.bill import Bill
    from sora.cost.price import Launch, PackOf, Wanted
    from sora.cost.price_vae import WantedCrops
    from sora.data.plan.crops import CropPlan
    from sora.data.plan.plan import TokenPlan

EXAMPLES = (
    "sora plan experiment=quickstart data.folders=[data/world] vae=outputs/vae calibrate=true",
    "sora plan dit=xl_2 data.folders=[data/mine] vae=outputs/vae plan=bucketed plan.packs=64 ranks=[8,64]",
    "sora plan dit=14b trainer=fsdp cluster=h100x512 vae=outputs/vae data.folders=[data/mine] plan.packs=512 plan.budget=32768",
)


def main(composed: Composed) -> None:
    """Print the figures; a ValueError when an epoch would be empty."""
    from pathlib import Path

    from sora.assembly.data import captions_told, diffusion_plan
    from sora.config.check import require_given
    from sora.config.command_line.idle import refuse_idle
    from sora.system import files as storage

    config = composed.config
    require_given(config, "plan")
    if config.figures:
        storage.refuse_no_file(Path(config.figures), f"figures={config.figures}")
    if config.get("cluster") is None:
        refuse_idle(config, composed.said, ("priced", "fit"), why="without cluster=, which prices the run")
    if config.kind == "vae":
        if config.calibrate:
            raise ValueError("calibrate=true measures the denoising network; with task=vae a step's crops are alike and need no cost")
        tell_of_crops(config)
        return
    if config.kind == "captioner":
        tell_of_captions(config)
        return
    planned = diffusion_plan(config)
    if config.calibrate:
        calibrate(config, planned)
        return
    tell_of_selections(planned.data)
    found: dict[str, Any] = {"figures": told(config, planned.plan)}
    for line in captions_told(config, planned):
        terminal.say(f"captions         {line}")
    if config.get("cluster") is not None:
        ends = planned.plan.windows_of_epoch() is not None
        bill = priced(config, planned, epoch=found["figures"][0]["steps"] if ends else None)
        print("\n" + "\n".join(bill.lines()))
        found["price"] = bill.figures
    if config.figures:
        storage.write_json(Path(config.figures), found)


def tell_of_crops(config: DictConfig) -> None:
    """Print what a VAE is trained on, and what that costs."""
    from pathlib import Path

    from sora.assembly.data import vae_plan
    from sora.system import files as storage

    data, plan = vae_plan(config)
    tell_of_selections(data)
    print("\n".join(plan.lines([storage.called(index.folder) for index in data.indexes])))
    print(f"a step: {counted(plan.batch, 'crop')} in {counted(plan.packs, 'pack')}; every shape in turn")
    found: dict[str, Any] = {}
    if config.get("cluster") is not None:
        from sora.cost import price_vae

        bill = price_vae.bill(wanted_crops(config, plan, clips=sum(map(len, data.indexes)) - sum(plan.skipped.values())))
        print("\n" + "\n".join(bill.lines()))
        found["price"] = bill.figures
    if config.figures:
        storage.write_json(Path(config.figures), found)


def tell_of_captions(config: DictConfig) -> None:
    """Print the packs that a captioner is trained on; captioners are not priced."""
    from pathlib import Path

    from sora.assembly.captioning import caption_clips, caption_plan
    from sora.system import files as storage

    if config.calibrate or config.get("cluster") is not None:
        said = "calibrate=true" if config.calibrate else "cluster="
        raise ValueError(f"{said} is for task=diffusion and task=vae: captioners are small, and are not priced; leave it out")
    clips = caption_clips(config)
    tell_of_selections(clips.data)
    found = {"figures": told(config, caption_plan(config, clips))}
    if config.figures:
        storage.write_json(Path(config.figures), found)


def tell_of_selections(data: Any) -> None:
    """Print how many clips of each dataset its selection keeps."""
    from sora.data.loading.caption_checks import selections_told

    terminal.say(*selections_told(data.indexes))


def told(config: DictConfig, plan: TokenPlan) -> list[dict[str, Any]]:
    """Print the figures of every stage, and give them as plain values."""
    from dataclasses import asdict

    from sora.data.plan.report import figures, lines

    ranks = list(config.ranks) if config.ranks else sorted({1, plan.packs})
    found = []
    for number, stage in enumerate(plan.stages):
        if len(plan.stages) > 1:
            until = f"until {counted(stage.until, 'clip')}" if stage.until else "from there on"
            print(f"{'' if number == 0 else chr(10)}stage {number}, {until}")
        seen = figures(plan, ranks=ranks, windows=config.windows, stage=number)
        print("\n".join(lines(plan, seen, stage=number)))
        found.append(asdict(seen))
    return found


def calibrate(config: DictConfig, planned: Any) -> None:
    """Measure forward and backward passes of the configured network over clips of several lengths, and fit the cost to them."""
    from sora.assembly.network import network
    from sora.cost.calibration import seconds_per_token
    from sora.data.plan.cost import fitted_cost
    from sora.system.devices import choose_device

    dit = network(config.dit, planned.given).to(choose_device(config.device))
    budget = config.plan.budget
    lengths = sorted({max(1, budget // parts) for parts in (1, 2, 4, 8, 16)})
    measured = seconds_per_token(dit, lengths=lengths, budget=budget, repeats=config.repeats)
    cost = fitted_cost(lengths, measured)
    for length, seconds in zip(lengths, measured, strict=True):
        print(f"clips of {length:>7,} tokens: {1e6 * seconds:.2f} microseconds a token")
    print(f"plan.cost.linear={cost.linear:.4g} plan.cost.quadratic={cost.quadratic:.4g}")


# ---- what is priced


def priced(config: DictConfig, planned: Planned, *, epoch: float | None) -> Bill:
    """The price of a run on a plan. epoch: its steps."""
    from dataclasses import replace

    from sora.cost.price import bill, packs_of, unseen_stages

    steps = max(1, config.priced // planned.plan.packs)
    packs = packs_of(planned, steps=steps, text_tokens=config.text.get("max_tokens", 1))
    found = bill(wanted(config, planned.given, packs, planned.encoder.text_module, epoch=epoch))
    online = "data=videos: the VAE and the text encoder work while the network trains; what they hold and take is not in this price"
    return replace(found, warnings=[*found.warnings, *unseen_stages(planned, steps=steps), *([online] if planned.online else [])])


def wanted(
    config: DictConfig, given: Mapping[str, int], packs: Sequence[PackOf], text: Callable[[], nn.Module], *, epoch: float | None
) -> Wanted:
    """A denoising network on packs, to be priced. given: what it is made for. text: makes the module that captions go through."""
    from functools import partial

    from sora.assembly.network import flops_of, outline
    from sora.assembly.training import traced_module
    from sora.cost.price import Wanted

    return Wanted(
        launch=launch_of(config),
        given=given,
        packs=packs,
        budget=config.plan.budget,
        max_clips=config.plan.max_clips,
        text_budget=config.data.text_budget,
        pooled=(config.dit.get("level") or {}).get("pooled_width"),
        flops=flops_of(config.dit, given),
        depth=config.dit.get("depth", 0),
        period=config.recompute.get("n", 1),
        module=partial(traced_module, config, given, text),
        outline=partial(outline, config.dit, given),
        epoch=epoch,
    )


def wanted_crops(config: DictConfig, plan: CropPlan, *, clips: int) -> WantedCrops:
    """A VAE on crops, to be priced. clips: that the crops are from."""
    from functools import partial

    from sora.assembly.network import outline
    from sora.assembly.training import training_module, vae_task
    from sora.cost.price_vae import WantedCrops

    return WantedCrops(
        launch_of(config), plan, lambda: training_module(config, vae_task(config)), partial(outline, config.vae, {}), clips=clips
    )


def launch_of(config: DictConfig) -> Launch:
    from pathlib import Path

    from sora.config.build import build, plain
    from sora.cost.price import Launch, kept_of

    kept = {key: config.checkpoint[key] for key in ("every", "keep", "keep_every")}
    fit = None if config.fit is None else Path(config.fit)
    return Launch(
        build(config.cluster), plain(config.trainer), config.steps, config.plan.packs, checkpoints=kept_of(config.steps, **kept), fit=fit
    )


if __name__ == "__main__":
    from sora.cli import run

    raise SystemExit(run("plan"))
