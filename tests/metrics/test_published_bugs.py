"""Mistakes that public evaluation code makes, each as a law of ours. The rest stand with what they are about: ranges, short clips, ranks,
rounding and protocols in test_distribution; grids in test_pixels; FVD's name in test_i3d."""

import ast
from pathlib import Path

import pytest
import torch

import sora.metrics
from sora.metrics.distribution.distribution import VideoDistribution
from sora.metrics.distribution.diversity import vendi_score
from sora.metrics.distribution.frechet import frechet_distance, frechet_floor, frechet_split
from sora.metrics.distribution.kernel import jedi_distance, kernel_distance
from sora.metrics.distribution.manifold import overlap
from sora.metrics.distribution.moments import Moments, frechet_of_moments
from sora.metrics.distribution.resampling import extrapolate, frechet_interval
from sora.metrics.extractors.rand3d import Random3D

DRAW = torch.Generator().manual_seed(0)
PAIRWISE = {
    "frechet": frechet_distance,
    "moments": lambda one, two: frechet_of_moments(Moments.of(one), Moments.of(two)),
    "kernel": kernel_distance,
    "jedi": jedi_distance,
    "overlap": overlap,
    "interval": lambda one, two: frechet_interval(one, two, repeats=20, seed=0),
    "extrapolation": lambda one, two: extrapolate(one, two, seed=0),
    "vendi": lambda one, two: (vendi_score(one), vendi_score(two)),
    "floor": lambda one, two: (frechet_floor(one, 5, 6), frechet_split(two, seed=0)),
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_no_score_changes_its_input(name):
    """One takes the mean off in place: the second score of the same features is another."""
    one, two = torch.randn(20, 6, generator=DRAW, dtype=torch.float64) + 3, torch.randn(17, 6, generator=DRAW, dtype=torch.float64)
    kept = one.clone(), two.clone()
    first = PAIRWISE[name](one, two)
    assert torch.equal(one, kept[0]) and torch.equal(two, kept[1]) and PAIRWISE[name](one, two) == first


@pytest.mark.parametrize("n", [2, 3, 8, 64, 300, pytest.param(2048, marks=pytest.mark.slow)])
def test_identical_sets_score_zero_whatever_their_size(n):
    """Square roots in float32 give 0.11 with fewer clips than dimensions, an epsilon on the diagonal gives -2 d times itself."""
    features = torch.randn(n, 100, generator=DRAW) + 5
    trace = float(features.double().var(0).sum())
    for score in (frechet_distance(features, features), PAIRWISE["moments"](features, features)):
        assert 0 <= score <= 1e-9 * trace


def test_a_common_offset_costs_nothing():
    """E[xx] - E[x]E[x], or a matrix square root in float32, loses digits as the mean grows."""
    one, two = torch.randn(128, 30, generator=DRAW, dtype=torch.float64), 1.4 * torch.randn(128, 30, generator=DRAW, dtype=torch.float64)
    for offset in (1e3, 1e6):
        assert frechet_distance(one + offset, two + offset) == pytest.approx(frechet_distance(one, two), rel=1e-9)
        assert PAIRWISE["moments"](one + offset, two + offset) == pytest.approx(frechet_distance(one, two), rel=1e-6)


def test_one_clip_has_no_distance_and_sets_of_two_sizes_have_one():
    """One returns the term of the means alone for a single clip; another reshapes one set by the other's size."""
    one, two = torch.randn(20, 4, generator=DRAW), torch.randn(7, 4, generator=DRAW)
    for score in (frechet_distance, kernel_distance, jedi_distance):
        with pytest.raises(ValueError, match="at least 2 clips"):
            score(one[:1], two)
        assert score(one, two) == pytest.approx(score(two, one))


def test_real_and_generated_are_not_swapped():
    """Distances hide it; precision and recall do not: copies of few real clips are all real, and miss most."""
    draw = torch.Generator().manual_seed(1)
    real = torch.randn(60, 5, generator=draw)
    fake = real[:10].repeat(3, 1) + 1e-3 * torch.randn(30, 5, generator=draw)
    found = overlap(real, fake, neighbours=2)
    assert found.precision == 1 and found.recall < 0.5


def test_a_mean_of_small_batches_is_not_the_distance():
    """One averages distances of two clips at a time, another those of every length; here all updates make one set."""
    videos = torch.randint(0, 256, (12, 5, 3, 12, 12), dtype=torch.uint8, generator=DRAW)
    fake = videos.flip(0)[:8] // 2
    whole, parts = (VideoDistribution(extractor=Random3D(), bootstrap=0) for _ in range(2))
    whole.update(videos, real=True)
    whole.update(fake, real=False)
    for batch in videos.split(2):
        parts.update(batch, real=True)
    for batch in fake.split(3):
        parts.update(batch, real=False)
    assert parts.compute() == whole.compute()
    assert all("rand3d-v1@5f" in key for key in whole.compute())


def test_no_clip_is_counted_twice_and_none_is_left_out():
    """One goes round the generated set again until it has the number it wants; samplers pad with repeated clips."""
    metric = VideoDistribution(extractor=Random3D(), bootstrap=0)
    videos = torch.randint(0, 256, (7, 5, 3, 12, 12), dtype=torch.uint8, generator=DRAW)
    metric.update(videos, real=True)
    metric.update(videos[:3], real=False)
    found = metric.compute()
    assert (found["n_real/rand3d-v1@5f"], found["n_fake/rand3d-v1@5f"]) == (7, 3)


def test_features_that_were_flattened_are_refused():
    """A squeeze on a single clip made features of one axis, and a distance of 1e-5 where 35 was right."""
    metric = VideoDistribution(extractor=Random3D(), bootstrap=0)
    for wrong in (torch.zeros(224), torch.zeros(1, 1, 224)):
        with pytest.raises(ValueError, match="have shape"):
            metric.update(wrong, real=True)
    with pytest.raises(ValueError, match="2 clips, \\(n, d\\)"):
        frechet_distance(torch.zeros(1, 224), torch.zeros(3, 224))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_keeps_no_old_result_and_forgets_no_setting():
    metric = VideoDistribution(extractor=Random3D(), bootstrap=0, reset_real_features=False, ddof=0)
    videos = torch.randint(0, 256, (6, 5, 3, 12, 12), dtype=torch.uint8, generator=DRAW)
    metric.update(videos, real=True)
    metric.update(videos // 2, real=False)
    first = metric.compute()
    metric.reset()
    with pytest.raises(ValueError, match="the second set has features of shape \\(0, 224\\)"):
        metric.compute()
    metric.update(videos // 2, real=False)
    assert metric.compute() == first and metric.ddof == 0


def test_nothing_asks_for_a_matrix_square_root_or_for_packages_that_break_others():
    """SciPy 1.18 took `disp` away from sqrtm, and with it most public FVD code; torch-fidelity alone breaks torchmetrics' import."""
    imported = set()
    for path in Path(sora.metrics.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported |= {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    assert not imported & {"torchvision", "torch_fidelity", "cv2", "cdfvd", "pickle"}
    assert "sqrtm" not in Path(sora.metrics.distribution.frechet.__file__).read_text()
