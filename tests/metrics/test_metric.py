"""The room's metrics in other people's loops: torchmetrics' own conventions about dtypes, ranks, copies, collections and plots."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torchmetrics import MetricCollection

from sora.metrics.clips.quality import VideoQuality
from sora.metrics.clips.reconstruction import Reconstruction
from sora.metrics.distribution.distribution import VideoDistribution
from sora.metrics.distribution.streamed import StreamedFrechet
from sora.metrics.extractors.efficientnet import EfficientNetLite0, Lite0
from sora.metrics.extractors.flow_histograms import FlowHistograms
from sora.metrics.extractors.frames import evenly
from sora.metrics.extractors.motion3d import Motion3D
from sora.metrics.extractors.pixels import Preparation
from sora.metrics.extractors.rand3d import Random3D
from sora.metrics.extractors.transnet import TransNetV2
from sora.metrics.extractors.weights import fill
from sora.world.judge.adherence import ASPECTS, PromptAdherence
from tests.metrics.ranks import on_two_ranks

DRAW = torch.Generator().manual_seed(0)
REAL, OTHER = (torch.randint(0, 256, (12, 5, 12, 12, 3), dtype=torch.uint8, generator=DRAW) for _ in range(2))
NET = Random3D()
KEY = "rand3d-v1@5f"


def distribution(**settings):
    return VideoDistribution(extractor=NET, layout="b t h w c", bootstrap=0, permutations=19, **settings)


def streamed(**settings):
    return StreamedFrechet(dimension=NET.dimension, key=KEY, **settings)


def fed(metric, real=REAL, fake=OTHER):
    for clips, side in ((real, True), (fake, False)):
        metric.update(NET(clips) if isinstance(metric, StreamedFrechet) else clips, real=side)
    return metric


@pytest.fixture
def wide():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", [distribution, streamed])
def test_the_default_dtype_changes_no_figure(make, wide):
    torch.set_default_dtype(torch.float32)
    expected = fed(make()).compute()
    for kind in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(kind)
        assert fed(make()).compute() == expected


def test_the_other_metrics_keep_their_digits_in_any_dtype(wide):
    moving = torch.stack([torch.roll(torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=DRAW), step, 1) for step in range(4)])
    verdicts = [dict.fromkeys(ASPECTS, True), dict.fromkeys(ASPECTS, False), dict.fromkeys(ASPECTS)]
    expected: list[dict[str, float]] = []
    for kind in (torch.float32, torch.float64, torch.float16):
        torch.set_default_dtype(kind)
        quality, pairs, adherence = VideoQuality(encoders={}), Reconstruction(), PromptAdherence()
        for _ in range(2):  # before, and after they were told to keep half the digits
            quality.update(moving[None], fps=8.0)
            pairs.update(REAL, OTHER)
            for metric in (quality, pairs):
                metric.set_dtype(torch.float16)
                assert all(getattr(metric, name).dtype == torch.float64 for name in metric.exact)
        adherence.set_dtype(torch.float16)
        adherence.update(verdicts)
        found = [metric.compute() for metric in (quality, pairs, adherence)]
        expected = expected or found
        assert found == expected


def test_networks_that_are_built_in_another_default_dtype_give_the_same_features(wide):
    torch.set_default_dtype(torch.float32)
    network = Lite0().eval()
    state, frames = network.state_dict(), Preparation(size=(224, 224), kernel="antialiased", deviation=(0.5,) * 3)(REAL[:1, :1])[:, :, 0]
    expected = network(frames)
    torch.set_default_dtype(torch.float64)
    again = Lite0()
    fill(again, state, Path("here"))
    seen = Preparation(size=(224, 224), kernel="antialiased", deviation=(0.5,) * 3)(REAL[:1, :1])[:, :, 0]
    assert seen.dtype == torch.float32 and torch.equal(again(seen), expected)


EXTRACTORS = {
    "rand3d": Random3D,
    "motion3d": Motion3D,
    "flow histograms": FlowHistograms,
    "transnetv2": lambda: TransNetV2(batch=4),
    "efficientnet": lambda: EfficientNetLite0(frames=4, batch=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", EXTRACTORS.values(), ids=list(EXTRACTORS))
def test_every_extractor_is_built_and_sees_the_same_in_any_default_dtype(make, wide):
    torch.set_default_dtype(torch.float32)
    videos = {"bytes": REAL[:2], "numbers": REAL[:2].float() / 255, "halves": REAL[:2].half() / 255}
    expected = {name: make()(given) for name, given in videos.items()}
    for kind in (torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(kind)
        network = make()
        for name, given in videos.items():
            found = network(given)
            assert found.dtype == torch.float32 and torch.equal(found, expected[name]), (kind, name)


def test_frames_are_chosen_alike_in_any_default_dtype(wide):
    """Numbers above 256 are not all whole ones in bfloat16."""
    for kind in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        torch.set_default_dtype(kind)
        places = evenly(torch.arange(4000)[None], 2000)[0]
        exact = [number * 3999 / 1999 for number in range(2000)]
        assert all(abs(place - at) < 0.501 for place, at in zip(places.tolist(), exact, strict=True)), kind


def test_set_dtype_changes_what_features_are_kept_in_and_nothing_else():
    exact = fed(distribution()).compute()
    double = distribution().set_dtype(torch.float64)
    assert isinstance(double, VideoDistribution) and fed(double, fake=OTHER[:6]).features(True).dtype == torch.float64
    double.update(OTHER[6:], real=False)
    assert double.compute() == exact
    half = fed(distribution(), fake=OTHER[:6]).set_dtype(torch.float16)
    half.update(OTHER[6:], real=False, fps=None)
    assert half.features(False).dtype == torch.float16 and half.shape == (5, 12, 12) and half.clip_shapes[0].dtype == torch.int64
    assert half.compute()[f"frechet/{KEY}"] == pytest.approx(exact[f"frechet/{KEY}"], rel=0.05)
    moments = fed(streamed()).set_dtype(torch.float32)
    assert moments.real_scatter.dtype == torch.float64 and moments.compute() == fed(streamed()).compute()
    moments.reset()
    assert moments.real_scatter.dtype == torch.float64 and moments.real_n.dtype == torch.int64


def _again(rank):
    """compute, then an update on one rank alone, then compute: of each metric, with the defaults and in double precision."""
    found = []
    for metric in (distribution(), streamed(), distribution().set_dtype(torch.float64)):
        fed(metric, REAL[rank * 6 : rank * 6 + 6], OTHER[rank * 4 : rank * 4 + 4])
        metric.compute()
        if rank == 0:
            metric.update(NET(OTHER[8:]), real=False)
        found.append(metric.compute())
    pairs = Reconstruction()
    pairs.update(REAL[:2], OTHER[:2])
    pairs.compute()
    if rank == 0:
        pairs.update(REAL[2:5], OTHER[2:5])
    return [*found, pairs.compute()]


def test_a_rank_without_an_update_since_the_last_compute_waits_with_the_others():
    whole, moments, pairs = fed(distribution()), fed(streamed()), Reconstruction()
    pairs.update(REAL[[0, 1, 0, 1, 2, 3, 4]], OTHER[[0, 1, 0, 1, 2, 3, 4]])
    for first, stream, double, kept in on_two_ranks(_again):
        assert first == whole.compute() == double
        assert stream == pytest.approx(moments.compute(), rel=1e-6) and kept == pytest.approx(pairs.compute(), rel=1e-9)


@pytest.mark.slow
def test_plots_are_drawn_of_one_result_and_of_many():
    from matplotlib import pyplot

    pairs = Reconstruction()
    pairs.update(REAL[:2], OTHER[:2])
    for metric, names in ((fed(distribution()), [f"frechet/{KEY}", f"frechet/{KEY}/floor"]), (pairs, None)):
        found = metric.compute()
        for drawn, points in ((metric.plot(), 1), (metric.plot(found), 1), (metric.plot([found, found, found]), 3)):
            figure, axes = drawn
            labels = axes.get_legend_handles_labels()[1]
            assert labels == ([name for name in found if name not in metric.undrawn] if names is None else names)
            assert axes.lines[0].get_ydata()[0] == pytest.approx(found[labels[0]], rel=1e-6)
            assert len(axes.lines[0].get_ydata()) == points
            pyplot.close(figure)
    figure, axes = pyplot.subplots()
    assert fed(distribution()).plot(ax=axes)[1] is axes
    pyplot.close(figure)


def test_copies_pickles_collections_and_merged_states_give_the_same_figures():
    metric = fed(distribution())
    expected = metric.compute()
    for other in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert other.compute() == expected
    both = MetricCollection({"one": distribution(), "two": distribution(seed=1)})
    both.update(REAL, real=True)
    both.update(OTHER, real=False)
    assert {name: value for name, value in both.compute().items() if "one" in name or "/" in name} | expected
    for make in (distribution, streamed):
        first, second = fed(make(), REAL[:5], OTHER[:9]), fed(make(), REAL[5:], OTHER[9:])
        first.merge_state(second)
        first.merge_state(fed(make(), REAL[:2], OTHER[:2]))
        doubled = fed(make(), REAL[[*range(12), 0, 1]], OTHER[[*range(12), 0, 1]])
        assert first.compute() == pytest.approx(doubled.compute(), rel=1e-6)


def test_a_batch_of_one_side_is_no_step_and_torchmetrics_settings_are_its_own():
    metric = distribution(sync_on_compute=False)
    assert metric.sync_on_compute is False
    with pytest.raises(ValueError, match=r"a batch of one side has no distance; call update\(…, real=…\)"):
        metric(REAL, real=True)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `bootsrap`"):
        distribution(bootsrap=3)


def test_parts_of_streamed_sets_have_the_floor_of_their_clips():
    """Within what eight parts a side can say of it; and in any split of updates, with ranks' states side by side or not."""
    draw = torch.Generator().manual_seed(3)
    real, fake = (torch.randn(160, 6, generator=draw).exp() for _ in range(2))  # far from Gaussian

    def of(real, fake, split=160, **settings):
        metric = StreamedFrechet(dimension=6, key="x", **{"parts": 8, **settings})
        for side, features in ((True, real), (False, fake)):
            for part in features.split(split):
                metric.update(part, real=side)
        return metric.compute()

    from sora.metrics.distribution.comparison import compare_features

    whole = compare_features(real, fake, key="x", ddof=1, seed=0, bootstrap=0, permutations=79, neighbours=5)
    found = of(real, fake)
    assert found["frechet/x"] == pytest.approx(whole["frechet/x"], rel=1e-6)
    assert found["frechet/x/floor"] == pytest.approx(whole["frechet/x/floor"], rel=0.2) and found["frechet/x/p"] > 0.05
    assert of(real, fake, split=13) == pytest.approx(found, rel=1e-9)
    assert of(real, fake + 4)["frechet/x/p"] == 1 / 80
    for bare in (of(real, fake[:100]), of(real, fake, parts=1), of(real[:12], fake[:12]), of(real, fake, permutations=0)):
        assert "frechet/x/floor" not in bare and "frechet/x/p" not in bare
    with pytest.raises(ValueError, match="parts=0"):
        of(real, fake, parts=0)
