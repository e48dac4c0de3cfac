"""Averages under any power-function profile, made afterwards: against integrals, against averages that were really kept, against damage."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sora.assembly.load import weights_of
from sora.runs import checkpoint
from sora.runs import post_hoc_ema as profiles
from sora.runs.checkpoint import SNAPSHOTS, Saving, TrainingState, thinned
from sora.runs.jsonl import read
from sora.runs.post_hoc_ema import Profile, coefficients, gamma_of, overlaps
from sora.training.module import Counters
from sora.training.optim.ema import Average, PostHoc, power_decay
from tests.data.making import flip
from tests.training.stand_ins import fit
from tests.training.test_resume import lines

pytestmark = pytest.mark.slow

WIDTHS = (0.1, 0.05)
DOCUMENTED = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def density(profile: Profile):
    """By its definition: s^gamma up to the end, of integral 1."""
    gamma, end = gamma_of(profile.width), float(profile.updates)
    return lambda s: (gamma + 1) / end * (s / end) ** gamma if s <= end else 0.0


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_the_standard_deviation_of_a_profile_is_its_width(width):
    weigh = density(Profile(1, width))
    mean = quad(lambda s: s * weigh(s), 0, 1)[0]
    assert quad(weigh, 0, 1)[0] == pytest.approx(1)
    assert quad(lambda s: (s - mean) ** 2 * weigh(s), 0, 1)[0] ** 0.5 == pytest.approx(width, rel=1e-6)


def test_the_exponents_of_the_paper():
    assert (gamma_of(0.10), gamma_of(0.05)) == (pytest.approx(6.94, abs=5e-3), pytest.approx(16.97, abs=5e-3))
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-6)  # all updates alike
    for width in (0.0, -0.1, 0.29, 1.0):
        with pytest.raises(ValueError, match="no average has a relative width"):
            gamma_of(width)


def test_overlaps_are_the_integrals_of_products():
    some = [Profile(300, 0.1), Profile(1000, 0.05), Profile(1000, 0.2)]
    others = [Profile(700, 0.1), Profile(300, 0.03)]
    found = overlaps(some, others)
    assert found.shape == (3, 2)
    for (i, one), (j, other) in itertools.product(enumerate(some), enumerate(others)):
        first, second = density(one), density(other)
        whole = quad(lambda s, first=first, second=second: first(s) * second(s), 0, min(one.updates, other.updates), limit=200)[0]
        assert found[i, j] == pytest.approx(whole, rel=1e-6)


def walk(updates: int) -> list[torch.Tensor]:
    """Weights that wander, as weights do: in steps that get smaller."""
    draw = torch.Generator().manual_seed(0)
    moves = torch.randn(updates, 64, generator=draw, dtype=torch.float64) / torch.arange(1, updates + 1).sqrt()[:, None]
    return list(torch.cumsum(moves, 0).float())


def followed(average, weights: list[torch.Tensor], every: int = 0):
    """The averages after the last update, and those after every so many."""
    average.follow({"w": torch.zeros(64)})
    kept = {}
    for step, value in enumerate(weights, 1):
        average.update({"w": value}, step)
        if every and step % every == 0:
            kept[step] = {kind: found["w"].clone() for kind, found in average.kinds().items()}
    return average.shadow["w"], kept


@pytest.mark.parametrize(("width", "near"), [(0.03, 0.08), (0.07, 0.01), (0.1, 1e-5), (0.13, 0.01), (0.2, 0.03)])
def test_what_is_made_afterwards_is_what_would_have_been_kept(width, near):
    weights = walk(1024)
    posthoc = PostHoc(widths=WIDTHS)
    _, kept = followed(posthoc, weights, every=64)
    wanted, _ = followed(Average(partial(power_decay, gamma=gamma_of(width))), weights)
    names = posthoc.widths()
    shares, missed = coefficients([Profile(step, names[kind]) for step, each in kept.items() for kind in each], Profile(1024, width))
    made = sum(share * value.double() for share, value in zip(shares, (v for each in kept.values() for v in each.values()), strict=True))
    spread = (weights[-1] - wanted).norm()  # as far as it is from the weights of the last step
    assert (made - wanted).norm() < near * spread
    assert missed < 0.3
    assert shares.sum() == pytest.approx(1, abs=1e-9) and np.abs(shares).max() < 1e4


def test_weights_that_never_moved_are_their_own_average_under_every_profile():
    shares, _ = coefficients([Profile(step, width) for step in (10, 20, 30) for width in WIDTHS], Profile(25, 0.15))
    assert shares.sum() == pytest.approx(1, abs=1e-12)


def test_more_snapshots_miss_less_and_one_profile_misses_more_than_two():
    def missed(count: int, widths: tuple[float, ...]) -> float:
        return coefficients([Profile(960 * n // count, w) for n in range(1, count + 1) for w in widths], Profile(960, 0.03))[1]

    assert missed(64, WIDTHS) < missed(16, WIDTHS) < missed(4, WIDTHS)
    assert missed(16, WIDTHS) < missed(16, WIDTHS[:1])


def test_the_table_in_the_documentation_is_what_comes_out():
    rows = [line.strip("| ").split(" | ") for line in DOCUMENTED.read_text().splitlines() if re.match(r"\| (steps|\d+) \| ", line)]
    widths = [float(width) for width in rows[0][1:]]
    assert len(rows) == 5 and len(widths) == 7
    for count, *cells in rows[1:]:
        kept = [Profile(100_000 * number // int(count), width) for number in range(1, int(count) + 1) for width in WIDTHS]
        for width, cell in zip(widths, cells, strict=True):
            shares, missed = coefficients(kept, Profile(100_000, width))
            assert cell == f"{missed:.4f}, {np.abs(shares).max():.1f}", (count, width)


@pytest.mark.parametrize("most", [2, 3, 8])
def test_thinned_snapshots_are_few_and_evenly_spread_however_they_came(most):
    kept: list[int] = []
    for step in itertools.chain(range(10, 3000, 10), [1437]):
        kept = thinned([*kept, step], most)
        assert len(kept) <= most and kept == sorted(kept)
        assert kept[0] == 10 and kept[-1] == max(step, kept[-1])
    gaps = np.diff(kept)
    assert gaps.max() <= 4 * gaps.min()


def run(folder: Path, until: int = 12, **settings):
    return fit(folder, until=until, total=24, every=2, keep=2, average=PostHoc(widths=WIDTHS), **settings)


def steps(folder: Path) -> list[int | None]:
    return [checkpoint.step_of(path) for path in checkpoint.listed(folder)]


def test_a_run_keeps_the_averages_of_checkpoints_that_go_and_any_width_is_made_of_them(tmp_path):
    run(tmp_path / "run", snapshots=9)
    assert steps(tmp_path / "run" / "checkpoints") == [10, 12] and steps(tmp_path / "run" / SNAPSHOTS) == [2, 4, 6, 8]
    snapshot = tmp_path / "run" / SNAPSHOTS / "step-00000008"
    assert checkpoint.kinds(snapshot) == {"ema", "ema_2"}
    checkpoint.verify(snapshot)
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    for width in (0.05, 0.08, 0.1):
        fit(tmp_path / str(width), until=12, total=24, every=12, average=Average(partial(power_decay, gamma=gamma_of(width))))
        wanted = checkpoint.load(checkpoint.newest(tmp_path / str(width) / "checkpoints")).tensors
        told = []
        made = profiles.averaged(newest, width=width, report=told.append)
        assert "out of 6 steps" in told[0]
        assert made.keys() == wanted["ema"].keys()
        away = sum((wanted["model"][name] - wanted["ema"][name]).square().sum() for name in made) ** 0.5
        apart = sum((made[name] - wanted["ema"][name]).square().sum() for name in made) ** 0.5
        assert apart < (1e-5 if width in WIDTHS else 0.1) * away  # twelve updates are no continuum


def test_the_number_of_snapshots_is_bounded_and_none_means_none(tmp_path):
    run(tmp_path / "few", until=20, snapshots=3)
    assert len(steps(tmp_path / "few" / SNAPSHOTS)) == 3
    run(tmp_path / "none")
    assert steps(tmp_path / "none" / SNAPSHOTS) == []


def test_a_run_with_profiles_is_cut_and_goes_on_bit_by_bit(tmp_path):
    run(tmp_path / "whole", until=12)
    run(tmp_path / "cut", until=7)
    state = checkpoint.load(checkpoint.newest(tmp_path / "cut" / "checkpoints"))
    assert state.step == 6
    run(tmp_path / "cut", until=12, resumed=state)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    ends = [checkpoint.load(checkpoint.newest(tmp_path / name / "checkpoints")) for name in ("cut", "whole")]
    for kind in ("ema", "ema_2", "model", "optimizer"):
        assert all(torch.equal(ends[0].tensors[kind][name], value) for name, value in ends[1].tensors[kind].items())
    with pytest.raises(ValueError, match="choose the ema= that it was trained with"):
        fit(tmp_path / "cut", until=13, total=24, resumed=ends[0])


def test_the_words_for_weights(tmp_path):
    run(tmp_path / "run", snapshots=9)
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    tensors = checkpoint.load(newest).tensors
    name = "network.enter.weight"
    for word, wanted in (("own", "ema"), (True, "ema"), ("last", "model"), (False, "model")):
        found, step = weights_of(newest, ema=word)
        assert step == 12 and torch.equal(found[name], tensors[wanted][name]), word
    assert torch.allclose(weights_of(newest, ema=0.1)[0][name], tensors["ema"][name], atol=1e-6)
    assert torch.allclose(weights_of(newest, ema=0.05)[0][name], tensors["ema_2"][name], atol=1e-6)
    assert torch.equal(weights_of(newest, ema=0.08)[0]["network.scale"], torch.ones(6))  # a buffer has no average
    for word in ("mean", "raw", 3):
        with pytest.raises(ValueError, match="names no weights: choose own, last, or a relative width"):
            weights_of(newest, ema=word)
    with pytest.raises(ValueError, match="no average has a relative width of 0.5"):
        weights_of(newest, ema=0.5)
    with pytest.raises(ValueError, match=r"0\.002 cannot be made .* ask for one nearer to 0\.1 or 0\.05"):
        weights_of(newest, ema=0.002)
    fit(tmp_path / "plain", until=2, total=24, every=2)
    with pytest.raises(ValueError, match=r"holds no profiles .* train with ema=post_hoc, or choose ema=own"):
        weights_of(checkpoint.newest(tmp_path / "plain" / "checkpoints"), ema=0.08)


def test_a_damaged_snapshot_is_passed_over_by_name_and_a_damaged_end_is_refused(tmp_path):
    run(tmp_path / "run", snapshots=9)
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    flip(tmp_path / "run" / SNAPSHOTS / "step-00000006" / "ema_2.safetensors", 500)
    told = []
    profiles.averaged(newest, width=0.08, report=told.append)
    assert "step-00000006/ema_2.safetensors is damaged" in told[0] and "out of 5 steps" in told[1]
    flip(newest / "ema.safetensors", 500)
    with pytest.raises(ValueError, match=r"step-00000012/ema\.safetensors is damaged"):
        profiles.averaged(newest, width=0.08)


def test_a_damaged_checkpoint_whose_averages_cannot_be_kept_is_named_and_set_aside(tmp_path):
    folder = tmp_path / "run"
    run(folder, until=4, snapshots=9)
    checkpoints = folder / "checkpoints"
    state = checkpoints / "step-00000002" / "state.json"
    state.write_text(state.read_text().replace('"step": 2', '"step": -2'))
    run(folder, until=8, snapshots=9, resumed=checkpoint.load(checkpoint.newest(checkpoints)))
    assert steps(checkpoints) == [6, 8] and steps(folder / SNAPSHOTS) == [4]
    assert (checkpoints / "damaged-step-00000002" / "ema.safetensors").is_file()  # of which somebody may make something
    (event,) = [row for row in read(folder / "events.jsonl") if row["event"] == "kept otherwise"]
    assert "step-00000002 leaves no averages, and is set aside as damaged-step-00000002: " in event["reason"]
    assert "state.json is damaged: step is -2" in event["reason"]


def test_averages_that_several_ranks_wrote_are_kept_and_found_too(tmp_path):
    """Their files are named after the ranks, so a look for ema.safetensors would sample from the last step's weights without a word."""

    def save(step: int) -> None:
        tensors = {kind: {f"w{n}": torch.full((n + 2,), value + step) for n in range(5)} for kind, value in KINDS.items()}
        facts = {"counters": asdict(Counters(step=step, updates=step)), "profiles": dict(zip(("ema", "ema_2"), WIDTHS, strict=True))}
        state = TrainingState(step=step, samples=0, tokens=0, tensors=tensors, facts=facts)
        made = [Saving(tmp_path / "checkpoints", state, rank=rank, ranks=3) for rank in range(3)]
        for part in made:
            part.write()
        made[0].commit(keep=1, keep_every=0, snapshots=4)

    KINDS = {"model": 100.0, "ema": 200.0, "ema_2": 300.0}
    for step in (2, 4, 6):
        save(step)
    assert steps(tmp_path / SNAPSHOTS) == [2, 4]
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert weights_of(newest, ema="own")[0]["w3"].tolist() == [206.0] * 5
    assert weights_of(newest, ema="last")[0]["w3"].tolist() == [106.0] * 5
    assert weights_of(newest, ema=0.1)[0]["w4"].tolist() == pytest.approx([206.0] * 6, rel=1e-4)


def test_where_a_signal_stopped_the_run_does_not_change_its_profiles(tmp_path):
    """What a signal left stays while it is the newest, and its averages go with it."""
    tensors = {"model": {"w": torch.ones(3)}, "ema": {"w": torch.ones(3)}, "ema_2": {"w": torch.zeros(3)}}
    for name, saved in (("whole", (4, 8, 12, 16)), ("stopped", (4, 5, 8, 11, 12, 13, 16))):
        for step in saved:
            facts = {"counters": asdict(Counters(step=step, updates=step)), "profiles": dict(zip(("ema", "ema_2"), WIDTHS, strict=True))}
            state = TrainingState(step=step, samples=0, tokens=0, tensors=tensors, facts=facts)
            saving = Saving(tmp_path / name / "checkpoints", state, rank=0, ranks=1)
            saving.write()
            saving.commit(keep=1, keep_every=0, snapshots=9, every=4)
        assert steps(tmp_path / name / SNAPSHOTS) == [4, 8, 12]
        assert steps(tmp_path / name / "checkpoints") == [16]


def test_profiles_need_two_different_widths():
    for widths in ([], [0.1], [0.1, 0.1], [0.1, 0.4]):
        with pytest.raises(ValueError, match=r"ema\.widths|no average has a relative width"):
            PostHoc(widths=widths)
