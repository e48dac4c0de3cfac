"""On the built-in world: the worse the damage, the higher the distances, in every kind of damage; time is seen as well as pixels."""

import pytest
import torch
from torch.nn import functional

from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.distribution.kernel import kernel_distance
from sora.metrics.extractors.rand3d import Random3D

pytestmark = pytest.mark.slow
CLIPS, FRAMES = 64, 9
NET = Random3D()
# Of nine frames: neighbours exchanged, threes turned round, all in disorder.
ORDERS = ((1, 0, 3, 2, 5, 4, 7, 6, 8), (2, 1, 0, 5, 4, 3, 8, 7, 6), (3, 7, 1, 8, 0, 5, 2, 6, 4))


def noise(videos, amount):
    draw = torch.Generator().manual_seed(5)
    return (videos + 255 * amount * torch.randn(videos.shape, generator=draw)).clamp(0, 255).round().to(torch.uint8)


def blur(videos, size):
    frames = functional.pad(videos.permute(0, 1, 4, 2, 3).flatten(0, 2)[:, None].float(), [size // 2] * 4, mode="replicate")
    frames = functional.avg_pool2d(frames, size, 1)[:, 0].unflatten(0, (len(videos), FRAMES, 3))
    return frames.permute(0, 1, 3, 4, 2).round().to(torch.uint8)


def frozen(videos, share):
    """From a place on, the frame stays."""
    start = round((FRAMES - 1) * (1 - share))
    return torch.cat([videos[:, :start], videos[:, start : start + 1].expand(-1, FRAMES - start, -1, -1, -1)], dim=1)


DAMAGE = {
    "noise": [lambda videos, amount=amount: noise(videos, amount) for amount in (0.05, 0.1, 0.2)],
    "blur": [lambda videos, size=size: blur(videos, size) for size in (3, 5, 9)],
    "frozen": [lambda videos, share=share: frozen(videos, share) for share in (0.5, 0.75, 1.0)],
    "shuffled": [lambda videos, order=order: videos[:, list(order)] for order in ORDERS],
}


@pytest.fixture(scope="module")
def sets():
    from sora.world.world import World

    world = World(motions=("linear",), seed=0, sizes=((32, 32),), seconds=(1.0,), rates=(8.0,), stride_time=4, image_share=0.0)
    clips = torch.stack([torch.from_numpy(world.clip(index).frames.copy()) for index in range(2 * CLIPS)])
    assert clips.shape[1] == FRAMES
    return NET(clips[:CLIPS]), clips[CLIPS:]


@pytest.mark.parametrize("name", DAMAGE)
def test_distances_rise_with_the_severity(sets, name):
    real, other = sets
    damaged = [NET(other), *(NET(damage(other)) for damage in DAMAGE[name])]
    for distance in (frechet_distance, kernel_distance):
        found = [distance(real, features) for features in damaged]
        assert found == sorted(found), (distance.__name__, found)
    assert frechet_distance(real, damaged[-1]) > 1.1 * frechet_distance(real, damaged[0])
