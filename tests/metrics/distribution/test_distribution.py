"""Random 3-D features rank corruptions by severity and see motion; the metric over them does not depend on batches."""

import numpy as np
import pytest
import torch

from sora.metrics.distribution.distribution import StreamedFrechet, VideoDistribution
from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.extractors.rand3d import Random3D
from tests.metrics.ranks import on_two_ranks


def moving_squares(n, seed):
    """uint8 (n, 9, 24, 24, 3): a coloured square on a grey ground, moving at a steady pace."""
    draw = np.random.default_rng(seed)
    videos = np.zeros((n, 9, 24, 24, 3))
    videos += draw.uniform(0.2, 0.6, (n, 1, 1, 1, 1))
    for video in videos:
        place, pace, colour = draw.uniform(5, 12, 2), draw.choice([-1, 1], 2) * draw.uniform(0.7, 1.2, 2), draw.uniform(0, 1, 3)
        for frame in range(9):
            y, x = (place + frame * pace).round().astype(int).clip(0, 17)
            video[frame, y : y + 6, x : x + 6] = colour
    return torch.from_numpy((videos * 255).round().astype(np.uint8))


REAL, OTHER = moving_squares(160, 0), moving_squares(160, 1)
NET = Random3D()
KEY = "rand3d-v1@9f"


def channels_first(videos):
    return videos.permute(0, 1, 4, 2, 3)


def metric_of(**settings):
    return VideoDistribution(extractor=NET, **{"bootstrap": 0, "layout": "b t h w c", **settings})


def distance(videos):
    return frechet_distance(NET(REAL), NET(videos))


def noisy(amount):
    draw = np.random.default_rng(5)
    return torch.from_numpy((OTHER.numpy() + draw.normal(0, 255 * amount, OTHER.shape)).clip(0, 255).round().astype(np.uint8))


@pytest.mark.slow
def test_corruptions_rank_by_severity_and_time_is_seen():
    same = distance(OTHER)
    assert same < distance(noisy(0.05)) < distance(noisy(0.1)) < distance(noisy(0.2))
    frozen = OTHER[:, :1].expand_as(OTHER)
    shuffled = OTHER[:, torch.tensor([3, 7, 1, 8, 0, 5, 2, 6, 4])]
    assert distance(shuffled) > 1.5 * same
    assert distance(frozen) > 1.3 * same


def test_weights_are_pinned():
    assert NET.fingerprint[:16] == "71f497f15edc53a0"
    assert Random3D(seed=1).fingerprint != NET.fingerprint
    assert (NET.name, Random3D(seed=1).name) == ("rand3d-v1", f"rand3d-{Random3D(seed=1).fingerprint[:8]}")  # keys tell them apart
    assert NET(REAL[:2]).shape == (2, NET.dimension)


def test_features_do_not_depend_on_the_batch():
    assert torch.equal(NET(REAL[:7])[5], NET(REAL[5:6])[0])


def test_batches_and_order_of_updates_change_nothing():
    """Bit for bit, the figures that are drawn at random too."""
    one, two = metric_of(bootstrap=20), metric_of(bootstrap=20)
    one.update(REAL[:40], real=True)
    one.update(OTHER[:30], real=False)
    two.update(OTHER[:13], real=False)
    two.update(REAL[1:40].flip(0), real=True)
    two.update(REAL[:1], real=True)
    two.update(OTHER[13:30], real=False)
    torch.manual_seed(5)  # the global draw is no part of it
    found = one.compute()
    torch.manual_seed(6)
    assert found == two.compute()
    assert found[f"n_real/{KEY}"] == 40 and found[f"n_fake/{KEY}"] == 30
    assert found[f"frechet/{KEY}/over_floor"] == pytest.approx(found[f"frechet/{KEY}"] / found[f"frechet/{KEY}/floor"])
    assert not any("fvd" in key.lower() for key in found)


def test_all_figures_come_from_one_pass_and_are_those_of_the_functions():
    from sora.metrics.distribution.comparison import compare_features, in_one_order
    from sora.metrics.distribution.diversity import vendi_score
    from sora.metrics.distribution.kernel import jedi_distance, kernel_distance
    from sora.metrics.distribution.manifold import overlap
    from sora.metrics.distribution.resampling import extrapolate

    passed = []

    class Counting:
        name, fingerprint, dimension, minimum_frames = "counting-1", "0" * 64, NET.dimension, 1
        logits, canonical, preparation, settings = False, True, NET.preparation, {}

        def __call__(self, videos):
            passed.append(len(videos))
            return NET(videos)

    metric = VideoDistribution(extractor=Counting(), layout="b t h w c", bootstrap=20)
    metric.update(REAL[:40], real=True)
    metric.update(OTHER[:30], real=False)
    found, real, fake = metric.compute(), NET(REAL[:40]), NET(OTHER[:30])
    assert passed == [40, 30]
    shares = overlap(real, fake, neighbours=5)
    for name, value in {
        "frechet": frechet_distance(real, fake),
        "fvd": frechet_distance(real, fake),  # these weights say that they are the ones
        "kvd": kernel_distance(real, fake),
        "jedi_formula": jedi_distance(real, fake),
        "precision": shares.precision,
        "coverage": shares.coverage,
        "vendi_fake": vendi_score(fake),
    }.items():
        assert found[f"{name}/counting-1@9f"] == pytest.approx(value, rel=1e-9)
    low, high = (found[f"frechet/counting-1@9f/{end}"] for end in ("low", "high"))
    assert low < found["frechet/counting-1@9f"] < high
    # 30 clips of 224 features: the 1/n law does not hold, and nothing is followed to infinity.
    assert (
        "frechet/counting-1@9f/infinite" not in found
        and found["frechet/counting-1@9f/infinite_error"] > 0.2 * found["frechet/counting-1@9f"]
    )
    low_real, low_fake = real[:, :2], fake[:, :2] * 3
    some = compare_features(low_real, low_fake, key="x", ddof=1, seed=0, bootstrap=0, permutations=19, neighbours=5)
    ordered = extrapolate(in_one_order(low_real), in_one_order(low_fake), seed=0)
    assert some["frechet/x/infinite"] == pytest.approx(ordered.infinite, rel=1e-6)


def test_what_videos_come_as_changes_nothing():
    """uint8 or float, this layout or that, floats a quarter step away: quantised by rounding, not by cutting off."""
    first, plain = metric_of(layout="b t c h w"), metric_of()
    third = metric_of(layout="b c t h w")
    floats = (OTHER[:12].float() + 0.25 * (-1) ** torch.arange(3)).clamp(0, 255) / 255
    for metric, real, fake in (
        (plain, REAL[:12], OTHER[:12]),
        (first, channels_first(REAL[:12]), channels_first(floats)),
        (third, REAL[:12].permute(0, 4, 1, 2, 3).double() / 255, floats.permute(0, 4, 1, 2, 3)),
    ):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    assert plain.compute() == first.compute() == third.compute()
    exact = metric_of(quantise=False)
    exact.update(REAL[:12].float() / 255, real=True)
    exact.update(floats, real=False)
    assert exact.compute()[f"frechet/{KEY}"] != plain.compute()[f"frechet/{KEY}"]
    assert exact.protocol({})["pixels"] != plain.protocol({})["pixels"]


def test_the_real_set_can_be_kept_and_the_extractor_is_no_state():
    metric = metric_of(reset_real_features=False)
    metric.update(REAL[:10], real=True)
    metric.update(OTHER[:10], real=False)
    metric.reset()
    assert len(metric.features(True)) == 10 and len(metric.features(False)) == 0
    assert not metric.state_dict() and not list(metric.parameters())
    with pytest.raises(ValueError, match="one length and size"):
        metric.update(OTHER[:4, :5], real=False)
    metric.train().half()
    metric.update(OTHER[:10], real=False)
    assert metric.compute()[f"frechet/{KEY}"] == pytest.approx(frechet_distance(NET(REAL[:10]), NET(OTHER[:10])), rel=1e-9)


def test_autocast_and_grad_do_not_reach_the_extractor():
    metric = metric_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(REAL[:3], real=True)
    assert torch.equal(metric.features(True), NET(REAL[:3])) and not metric.features(True).requires_grad


@pytest.mark.parametrize(
    ("videos", "told"),
    [
        (channels_first(OTHER[:4]), "channels if their axes are b t h w c: swapped axes"),
        (OTHER[:4, :5], "one length and size"),
        (OTHER[:4, :, :12], "one length and size"),
        (OTHER[:4].long(), "torch.int64"),
        (OTHER[0], "have shape"),
        (OTHER[:0], "hold nothing"),
        (OTHER[:4].float(), r"clips 0, 1, 2, 3 of this batch .* \[0, 1\]; divide by 255"),
        (torch.cat([OTHER[:3] / 255, OTHER[3:4] / 255 - 0.9]), r"clips 3 of this batch \(number 5 of the fake set\) lie in \[-"),
        (torch.where(torch.arange(4)[:, None, None, None, None] == 2, torch.nan, OTHER[:4].float() / 255), "clips 2 .* not numbers"),
    ],
)  # fmt: skip
def test_wrong_videos_are_refused_by_number(videos, told):
    metric = metric_of()
    metric.update(REAL[:4], real=True)
    metric.update(OTHER[:2], real=False)
    with pytest.raises(ValueError, match=told):
        metric.update(videos, real=False)
    assert len(metric.features(False)) == 2


def test_too_short_videos_too_few_clips_and_mixed_rates_are_refused():
    class Patient:
        name, fingerprint, dimension, minimum_frames = "patient", "0" * 64, NET.dimension, 10
        logits, canonical, preparation, settings = False, False, NET.preparation, {}
        __call__ = NET.forward

    with pytest.raises(ValueError, match="videos of 9 frames; patient needs at least 10, and repeats none"):
        VideoDistribution(extractor=Patient(), layout="b t h w c").update(REAL[:4], real=True)
    metric = metric_of()
    metric.update(REAL[:4], real=True, fps=8)
    with pytest.raises(ValueError, match="at least 2 clips"):
        metric.compute()
    with pytest.raises(ValueError, match="videos of 24 fps among videos of 8 fps"):
        metric.update(OTHER[:4], real=False, fps=24)
    with pytest.raises(ValueError, match="name the axes"):
        metric_of(layout="b t h w")
    with pytest.raises(ValueError, match="ddof=2"):
        metric_of(ddof=2)


def test_features_given_later_count_and_no_old_result_is_kept():
    metric = metric_of()
    metric.update(NET(REAL[:20]), real=True)
    metric.update(NET(OTHER[:10]), real=False)
    first = metric.compute()
    metric.update(NET(OTHER[10:20]), real=False)
    assert metric.compute()["n_fake/rand3d-v1@mixed"] == 20 and metric.compute() != first
    with pytest.raises(ValueError, match="224 a clip"):
        metric.update(torch.zeros(3, 7), real=False)


def test_features_of_a_real_set_are_kept_with_their_protocol(tmp_path):
    about = {"dataset": "abc", "split": "train", "stride": 1}
    metric = metric_of()
    metric.update(REAL[:20], real=True, fps=8)
    metric.update(OTHER[:20], real=False, fps=8)
    metric.save_real(tmp_path / "real.safetensors", about=about)
    again = metric_of()
    again.load_real(tmp_path / "real.safetensors", about=about, shape=(9, 24, 24), fps=8)
    again.update(OTHER[:20], real=False, fps=8)
    assert again.compute() == metric.compute()
    with pytest.raises(ValueError, match="20 real clips were given already"):
        again.load_real(tmp_path / "real.safetensors", about=about, shape=None)
    for settings, wanted, shape, told in (
        ({}, {**about, "stride": 3}, (9, 24, 24), "data.stride: 3 here, 1 there"),
        ({}, {**about, "dataset": "xyz"}, (9, 24, 24), 'data.dataset: "xyz" here, "abc" there'),
        ({}, about, (17, 24, 24), "clips.frames: 17 here, 9 there"),
        ({"quantise": False}, about, (9, 24, 24), 'pixels: "as given" here'),
        ({"extractor": Random3D(seed=1)}, about, (9, 24, 24), "extractor.sha256: "),
    ):
        fresh = VideoDistribution(**{"extractor": NET, **settings})
        with pytest.raises(ValueError, match=told):
            fresh.load_real(tmp_path / "real.safetensors", about=wanted, shape=shape, fps=8)
        assert len(fresh.features(True)) == 0


RANKS = [{True: [REAL[:3], REAL[3:7]], False: [OTHER[:9]]}, {True: [REAL[7:10]], False: []}]


def feed(metric, parts):
    for real, batches in parts.items():
        for batch in batches:
            metric.update(batch, real=real)


def _together(rank):
    metric = metric_of(bootstrap=20)
    feed(metric, RANKS[rank])
    first = metric.compute()
    metric.update(OTHER[9 + rank : 10 + rank], real=False)  # after the gathering each rank still has its own
    streamed = StreamedFrechet(dimension=NET.dimension, key=KEY)
    feed(streamed, {real: [NET(batch) for batch in batches] for real, batches in RANKS[rank].items()})
    idle = metric_of()
    if rank == 0:
        feed(idle, {True: [REAL[:4]], False: [OTHER[:4]]})  # and rank 1 brings nothing at all
    return first, len(metric.features(False)), streamed.compute(), idle.compute()


def _apart(rank):
    metric = metric_of()
    feed(metric, {True: [REAL[:4, : 9 - rank]], False: [OTHER[:4, : 9 - rank]]})
    try:
        metric.compute()
    except ValueError as error:
        return str(error)


def test_ranks_with_uneven_updates_or_none_agree_with_one_process():
    alone, streamed, idle = metric_of(bootstrap=20), StreamedFrechet(dimension=NET.dimension, key=KEY), metric_of()
    feed(alone, {True: [REAL[:10]], False: [OTHER[:9]]})
    feed(streamed, {True: [NET(REAL[:10])], False: [NET(OTHER[:9])]})
    feed(idle, {True: [REAL[:4]], False: [OTHER[:4]]})
    for first, own, moments, lonely in on_two_ranks(_together):
        assert first == alone.compute()
        assert moments == pytest.approx(streamed.compute(), rel=1e-6)
        assert lonely == idle.compute()
        assert own in (10, 1)


def test_ranks_that_saw_different_lengths_are_told():
    assert all("ranks saw clips of different" in told for told in on_two_ranks(_apart))


def test_streamed_moments_agree_with_all_features_in_any_split():
    exact, streamed = metric_of(), StreamedFrechet(dimension=NET.dimension, key=KEY)
    feed(exact, {True: [REAL[:40]], False: [OTHER[:30]]})
    for features in NET(REAL[:40]).split(7):
        streamed.update(features, real=True)
    streamed.update(NET(OTHER[:30]), real=False)
    found = streamed.compute()
    assert found[f"frechet/{KEY}"] == pytest.approx(exact.compute()[f"frechet/{KEY}"], rel=1e-5)
    assert (found[f"n_real/{KEY}"], found[f"n_fake/{KEY}"]) == (40, 30)
    streamed.reset()
    streamed.update(NET(OTHER[:1]), real=False)
    with pytest.raises(ValueError, match="no covariance"):
        streamed.compute()
