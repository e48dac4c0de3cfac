"""Coordinate checks (Yang et al. 2022, D.1): what a step changes keeps its size when the network grows wider, in muP and not without."""

from functools import partial

import pytest
import torch

from sora.dit.attention.fastest import fastest_attention
from sora.dit.attention.patterns import full_attention
from sora.dit.dit import DiT, cross_block, gelu, layer_norm, rms_per_head
from sora.dit.layers.modulation import LoRAModulation, SingleModulation, ZeroModulation
from sora.dit.layers.rope import AxialRope, wave_positions
from sora.dit.mup import Scale, mup_scale, named, scale_of, standard_scale
from sora.training.optim.optimizers import adamw, muon
from tests.dit.test_dit import TEXT, Clip, P, packed

HEAD, BASE = 16, 32
ADAMW = partial(adamw, lr=4e-3, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.0)
MUON = partial(
    muon, lr=1e-2, momentum=0.9, weight_decay=0.0, iterations=5, within="blocks.", splits={"qkv": 3, "kv": 2}, other_lr=2e-3,
    betas=(0.9, 0.99), eps=1e-12,
)  # fmt: skip


def make(width, heads, modulation=None):
    return DiT(
        patch_channels=P, text_width=TEXT, width=width, depth=2, heads=heads, kv_heads=None, mlp=gelu, mlp_ratio=2.0, pooled_text=True,
        rope=AxialRope(axes=[4, 6, 6], time_scale=4.0, theta=100.0), position=partial(wave_positions, count=4, time_scale=4.0),
        norm=partial(layer_norm, eps=1e-6), qk_norm=partial(rms_per_head, eps=1e-6), modulation=modulation or SingleModulation(),
        attention=fastest_attention, pattern=full_attention, block=cross_block,
    )  # fmt: skip


def of_width(width, parametrization, modulation=None, seed=0):
    torch.manual_seed(seed)
    network = make(width, width // HEAD, modulation)
    return network, parametrization(network, partial(make, modulation=modulation))


def sizes(network, inputs):
    """The output of every block, of its parts, and of what surrounds them."""
    found = {}
    wanted = ("embed_text", "embed_level", "embed_pooled", "modulation", "final_modulation", "out")
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.detach()}))
        for name, module in network.named_modules()
        if name in wanted or (name.startswith("blocks.") and name.split(".")[-1] in ("attention", "cross", "mlp", "own"))
    ]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return found


def slopes(parametrization, optimizer, widths, *, steps=3, seeds=2, modulation=None):
    """d log(size of the change after some steps) / d log(width), for every activation."""
    inputs = packed([Clip(number) for number in range(4)], budget=22, max_clips=4)
    target = torch.randn(22, P, generator=torch.Generator().manual_seed(5))
    changes = {}
    for width in widths:
        for seed in range(seeds):
            network, scales = of_width(width, parametrization, modulation, seed)
            before = sizes(network, inputs)
            steppers = optimizer(dict(network.named_parameters()), scales=scales)
            for _ in range(steps):
                (network(*inputs) - target).square().mean().backward()
                for stepper in steppers:
                    stepper.step()
                    stepper.zero_grad()
            for name, value in sizes(network, inputs).items():
                changes.setdefault(name, {}).setdefault(width, []).append((value - before[name]).double().square().mean().sqrt().log())
    x = torch.tensor(widths).double().log()
    x = x - x.mean()
    means = {name: torch.stack([torch.stack(seen[width]).mean() for width in widths]) for name, seen in changes.items()}
    return {name: float((x * y).sum() / x.square().sum()) for name, y in means.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "modulation"),
    [(ADAMW, None), (MUON, None), (ADAMW, ZeroModulation()), (MUON, LoRAModulation(4))],
    ids=["adamw", "muon", "adamw-zero", "muon-lora"],
)
def test_in_mup_no_change_grows_or_shrinks_with_the_width(optimizer, modulation):
    found = slopes(partial(mup_scale, base_width=64), optimizer, (64, 128, 256), modulation=modulation)
    assert len(found) >= 11 and max(map(abs, found.values())) < 0.3, found


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon"])
def test_the_standard_parametrization_fails_the_same_check(optimizer):
    found = slopes(standard_scale, optimizer, (64, 128, 256))
    assert found["out"] > 0.5 and found["blocks.0.mlp"] > 0.35, found


def test_a_network_of_the_base_width_is_as_without():
    (one, scales), (other, none) = (of_width(BASE, how) for how in (partial(mup_scale, base_width=BASE), standard_scale))
    assert scales == none == {}
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


def test_weights_start_at_the_size_that_their_inputs_ask_for():
    """One over the root of the fan-in, in proportion to the base width's, whatever Xavier makes of the fan-out."""
    wide, scales = of_width(128, partial(mup_scale, base_width=BASE))
    base, _ = of_width(BASE, standard_scale)
    for name, value in wide.named_parameters():
        before = base.get_parameter(name)
        if value.ndim == 2 and before.abs().max() > 0:
            grown = (value.shape[1] / before.shape[1]) ** -0.5
            assert (value.std() / before.std()).item() == pytest.approx(grown, rel=0.15), name
    # queries, keys and values: inputs four times as many; patches and captions come in as many numbers as ever
    assert scales["blocks.0.attention.qkv.weight"] == Scale(adam=0.25, muon=1.0, decay=4.0)
    for name in ("embed.weight", "embed_text.1.weight", "embed_level.mlp.0.weight", "blocks.0.table", "embed.bias"):
        assert scale_of(scales, name).adam == scale_of(scales, name).decay == 1, name
    assert scales["out.weight"].adam == 0.25


def test_optimisers_take_the_scales_and_rate_times_decay_stays():
    network, scales = of_width(128, partial(mup_scale, base_width=BASE))
    parameters = {f"dit.{name}": value for name, value in network.named_parameters()}
    names = {value: name for name, value in parameters.items()}
    for stepper in [*adamw(parameters, lr=0.1, betas=(0.9, 0.9), eps=1e-8, weight_decay=0.2, scales=named(scales, "dit."))]:
        assert stepper.param_groups[0]["lr"] == 0.1  # the one that is logged
        for group in stepper.param_groups:
            for value in group["params"]:
                name = names[value]
                assert group["lr"] == 0.1 * scales.get(name.removeprefix("dit."), Scale(1, 1, 1)).adam
                decays = value.ndim >= 2 and name.endswith("weight")
                assert group["lr"] * group["weight_decay"] == pytest.approx(0.02 if decays else 0.0)


def test_heads_must_make_up_the_base_width():
    with pytest.raises(ValueError, match=r"base_width=40 does not divide into heads of 16 channels, as dit\.width=64 does"):
        of_width(64, partial(mup_scale, base_width=40))
