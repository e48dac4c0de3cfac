"""Random 3-D features rank corruptions by severity and see motion; the metric over them does not depend on batches."""

import numpy as np
import pytest
import torch

from sora.metrics.distribution import VideoDistribution
from sora.metrics.frechet import frechet_distance
from sora.metrics.rand3d import Random3D


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
    assert NET(REAL[:2]).shape == (2, NET.dimension)


def test_features_do_not_depend_on_the_batch():
    assert torch.equal(NET(REAL[:7])[5], NET(REAL[5:6])[0])


def test_batches_and_order_of_updates_change_nothing():
    one, two = VideoDistribution(extractor=NET), VideoDistribution(extractor=NET)
    one.update(REAL[:40], real=True)
    one.update(OTHER[:30], real=False)
    two.update(OTHER[:13], real=False)
    two.update(REAL[:1], real=True)
    two.update(REAL[1:40], real=True)
    two.update(OTHER[13:30], real=False)
    found = one.compute()
    assert found == pytest.approx(two.compute(), rel=1e-12)
    assert found["n_real/rand3d-v1@9f"] == 40 and found["n_fake/rand3d-v1@9f"] == 30
    assert found["frechet/rand3d-v1@9f/over_floor"] == pytest.approx(found["frechet/rand3d-v1@9f"] / found["frechet/rand3d-v1@9f/floor"])
    assert not any("fvd" in key.lower() for key in found)


def test_the_real_set_can_be_kept_and_the_extractor_is_no_state():
    metric = VideoDistribution(extractor=NET, reset_real_features=False)
    metric.update(REAL[:10], real=True)
    metric.update(OTHER[:10], real=False)
    metric.reset()
    assert len(metric.features(True)) == 10 and len(metric.features(False)) == 0
    assert not metric.state_dict() and not list(metric.parameters())


def test_mixed_or_wrong_videos_are_refused():
    metric = VideoDistribution(extractor=NET)
    metric.update(REAL[:4], real=True)
    with pytest.raises(ValueError, match="one length and size"):
        metric.update(OTHER[:4, :5], real=False)
    with pytest.raises(ValueError, match="uint8"):
        metric.update(OTHER[:4].float(), real=False)
    with pytest.raises(ValueError, match="at least 2 clips"):
        metric.compute()


def test_features_given_later_count_and_no_old_result_is_kept():
    metric = VideoDistribution(extractor=NET)
    metric.update(NET(REAL[:20]), real=True)
    metric.update(NET(OTHER[:10]), real=False)
    first = metric.compute()
    metric.update(NET(OTHER[10:20]), real=False)
    assert metric.compute()["n_fake/rand3d-v1@mixed"] == 20 and metric.compute() != first


def _rank(rank, port, queue):
    """Rank 0 makes two updates, rank 1 makes one real update and none of generated clips."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    metric = VideoDistribution(extractor=NET)
    if rank == 0:
        metric.update(REAL[:7], real=True)
        metric.update(OTHER[:9], real=False)
    else:
        metric.update(REAL[7:10], real=True)
    queue.put(metric.compute())
    torch.distributed.destroy_process_group()


def test_ranks_with_uneven_updates_or_none_agree_with_one_process():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, port, queue), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    alone = VideoDistribution(extractor=NET)
    alone.update(REAL[:10], real=True)
    alone.update(OTHER[:9], real=False)
    for _ in range(2):
        assert queue.get() == pytest.approx(alone.compute(), rel=1e-9)
