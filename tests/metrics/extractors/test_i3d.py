"""I3D at its architecture: padding, pooling, names, how long a clip must be; and with the published files the published figures.

SORA_I3D_SCRIPT and SORA_I3D_STATE name the files; without them those tests are skipped.
"""

import os
from math import ceil

import pytest
import torch
from torch import nn
from torch.nn import functional

from sora.metrics.distribution.distribution import VideoDistribution
from sora.metrics.distribution.frechet import frechet_distance
from sora.metrics.extractors import i3d_files
from sora.metrics.extractors.i3d import I3D, MINIMUM_FRAMES, Mixed, pad_same, pool
from sora.metrics.extractors.i3d_files import I3DScript, I3DWeights
from sora.metrics.extractors.weights import hashes

DRAW = torch.Generator().manual_seed(0)


class StandIn(nn.Module):
    """Takes what the TorchScript I3D takes, and gives 400 numbers that say what came: mean, least and largest value, time, size."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> torch.Tensor:
        flat = x.flatten(1)
        said = [flat.mean(1), flat.amin(1), flat.amax(1), torch.full((x.shape[0],), float(x.shape[2])), x[:, 0].flatten(1).mean(1)]
        said.append(torch.full((x.shape[0],), float(x.shape[3])))
        said.append(torch.full((x.shape[0],), float(int(rescale) + 2 * int(resize) + 4 * int(return_features))))
        return torch.stack(said, dim=1).repeat(1, 58)[:, :400]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "stand_in.pt"
    torch.jit.script(StandIn()).save(path)
    return path


def settings(path):
    return {"path": str(path), "kernel": "half_pixel", "crop": False, "batch": 2}


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize(("size", "step"), [(7, 2), (3, 2), (2, 2), (3, 1), (1, 1)])
def test_padding_is_that_of_tensorflow(length, size, step):
    """Output i covers `size` places from i * step - total // 2 on; there are ceil(length / step) outputs."""
    x = torch.arange(1.0, length + 1).view(1, 1, length, 1, 1)
    padded = pad_same(x, (size, 1, 1), (step, 1, 1)).flatten()
    windows = padded.unfold(0, size, step)
    before = max((ceil(length / step) - 1) * step + size - length, 0) // 2
    assert len(windows) == ceil(length / step)
    for i, window in enumerate(windows.tolist()):
        assert window == [place + 1 if 0 <= place < length else 0 for place in range(i * step - before, i * step - before + size)]


def test_a_branch_is_its_convolutions_written_out():
    mixed = Mixed(5, (2, 3, 4, 2, 3, 1), epsilon=1e-3).eval()
    for module in mixed.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(generator=DRAW)
            module.running_var.uniform_(0.5, 2, generator=DRAW)
            module.weight.data.normal_(generator=DRAW)
    x = torch.rand(2, 5, 3, 6, 7, generator=DRAW)

    def unit(unit, x):
        y = functional.conv3d(x, unit.conv3d.weight, padding=unit.conv3d.kernel_size[0] // 2)
        scale = unit.bn.weight / (unit.bn.running_var + 1e-3).sqrt()
        return functional.relu(
            (y - unit.bn.running_mean[:, None, None, None]) * scale[:, None, None, None] + unit.bn.bias[:, None, None, None]
        )

    branches = [
        unit(mixed.b0, x),
        unit(mixed.b1b, unit(mixed.b1a, x)),
        unit(mixed.b2b, unit(mixed.b2a, x)),
        unit(mixed.b3b, functional.max_pool3d(x, 3, 1, 1)),
    ]
    assert torch.allclose(mixed(x), torch.cat(branches, dim=1), atol=1e-5)


def test_layers_have_the_published_names_and_sizes():
    state = I3D(epsilon=1e-3).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7) and shapes["logits.conv3d.bias"] == (400,)
    assert shapes["Mixed_4f.b2b.conv3d.weight"] == (128, 32, 3, 3, 3) and shapes["Mixed_5c.b3b.bn.running_var"] == (128,)
    # 57 convolutions of five tensors each and the head's two; the published state dict is a file of 50.9 MB
    assert len(shapes) == 57 * 5 + 2
    assert sum(value.numel() for value in state.values()) * 4 == pytest.approx(50.8e6, rel=0.01)


def test_time_is_halved_three_times_rounding_up():
    """The head pools two of what is left: nine frames are the least, eight too few."""
    assert MINIMUM_FRAMES == 9
    for frames in (8, 9, 16, 17, 32):
        x = torch.zeros(1, 1, frames, 1, 1)
        for kernel in ((7, 1, 1), (3, 1, 1), (2, 1, 1)):
            x = pool(x, kernel, (2, 1, 1))
        assert x.shape[2] == {8: 1, 9: 2, 16: 2, 17: 3, 32: 4}[frames]


def test_the_script_gets_values_from_minus_one_to_one_and_nothing_is_done_twice(script):
    """Others feed [0, 1] to a network of [-1, 1], or resize twice."""
    videos = torch.zeros(3, 9, 12, 20, 3, dtype=torch.uint8)
    videos[1:] = 255
    videos[2, ..., 1:] = 0  # red alone
    found = I3DScript(**settings(script))(videos)
    assert found.shape == (3, 400) and found[:, 3].tolist() == [9, 9, 9] and found[:, 5].tolist() == [224] * 3
    assert found[0, :3].tolist() == pytest.approx([-1, -1, -1]) and found[1, :3].tolist() == pytest.approx([1, 1, 1])
    assert found[2, 4] == pytest.approx(1.0) and found[2, 0] == pytest.approx(-1 / 3, abs=1e-5)  # red is the first channel
    assert found[:, 6].tolist() == [4] * 3  # neither rescale nor resize, but features


def test_a_file_is_named_by_its_hash_and_called_fvd_only_if_it_is_the_one(script, monkeypatch):
    blob = hashes(script).blob
    extractor = I3DScript(**settings(script))
    assert extractor.name == f"i3d-{blob[:8]}" and not extractor.canonical
    videos = torch.randint(0, 256, (4, 16, 3, 8, 8), dtype=torch.uint8, generator=DRAW)

    def keys():
        metric = VideoDistribution(extractor=extractor, bootstrap=0)
        metric.update(videos, real=True)
        metric.update(videos, real=False)
        return set(metric.compute())

    assert f"frechet/i3d-{blob[:8]}@16f" in keys() and f"inception_score/i3d-{blob[:8]}@16f" in keys()
    assert not any("fvd" in key for key in keys())
    monkeypatch.setattr(i3d_files, "SCRIPT", blob)
    assert f"fvd/i3d-{blob[:8]}@16f" in keys()
    monkeypatch.setattr(i3d_files, "SCRIPT", "0" * 40)
    monkeypatch.setattr(i3d_files, "LOOK_ALIKES", {hashes(script).sha256})
    assert extractor.name == f"i3d-imagenet-{blob[:8]}"


def test_missing_and_foreign_files_say_what_to_download(tmp_path, script):
    (tmp_path / "page.pt").write_text("<html>too many downloads</html>")
    for extractor, blob in (
        (I3DScript(path=None, kernel="legacy", crop=False, batch=1), "93daef59c7ae0e9e8f76225521407e60cbafa6aa"),
        (I3DWeights(path=None, epsilon=1e-5, kernel="legacy", crop=False, batch=1), "a867b87ac3a9097d200598b1d48a1b890d8ec744"),
    ):
        with pytest.raises(ValueError, match=f"extractor.path is not set; .*git blob SHA-1 {blob}.*extractor.path=FILE"):
            _ = extractor.fingerprint
    videos = torch.zeros(1, 9, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no TorchScript file.*git blob SHA-1"):
        I3DScript(**settings(tmp_path / "page.pt"))(videos)
    with pytest.raises(ValueError, match="no state dict"):
        I3DWeights(**settings(tmp_path / "page.pt"), epsilon=1e-5)(videos)

    with pytest.raises(ValueError, match="extractor.kernel=cubic"):
        I3DScript(**{**settings(script), "kernel": "cubic"})


@pytest.mark.slow
def test_a_state_dict_fills_the_network(tmp_path):
    network = I3D(epsilon=1e-3)
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    state["logits.conv3d.bias"] = torch.arange(400.0)
    torch.save(state, tmp_path / "state.pt")
    torch.save({name: value for name, value in state.items() if name != "Mixed_5b.b2b.bn.bias"}, tmp_path / "part.pt")
    extractor = I3DWeights(**settings(tmp_path / "state.pt"), epsilon=1e-3)
    assert not extractor.canonical and extractor.name == f"i3d-{hashes(tmp_path / 'state.pt').blob[:8]}"
    filled, times = extractor._network, []
    assert all(torch.equal(value, filled.state_dict()[name]) for name, value in state.items())
    filled.Mixed_5c.register_forward_hook(lambda module, given, found: times.append(tuple(found.shape[2:])))
    found = extractor(torch.randint(0, 256, (1, MINIMUM_FRAMES, 20, 30, 3), dtype=torch.uint8, generator=DRAW))
    assert times == [(2, 7, 7)] and found.shape == (1, 400)
    assert float((found - torch.arange(400.0)).abs().max()) < 10  # an untrained network adds little to the bias
    with pytest.raises(ValueError, match="Mixed_5b.b2b.bn.bias is missing"):
        _ = I3DWeights(**settings(tmp_path / "part.pt"), epsilon=1e-3)._network


BLACK, WHITE = (torch.full((8, 15, 64, 64, 3), value, dtype=torch.uint8) for value in (0, 255))


@pytest.mark.slow
@pytest.mark.skipif("SORA_I3D_SCRIPT" not in os.environ, reason="SORA_I3D_SCRIPT names no i3d_torchscript.pt")
def test_the_published_script_gives_its_published_figures():
    extractor = I3DScript(**settings(os.environ["SORA_I3D_SCRIPT"]))
    assert extractor.canonical and extractor.name == "i3d-93daef59"
    # 15 frames, black against white: 133.703 in the PyTorch port, about 131 in TensorFlow
    assert frechet_distance(extractor(BLACK), extractor(WHITE)) == pytest.approx(133.703, abs=1)


@pytest.mark.slow
@pytest.mark.skipif("SORA_I3D_STATE" not in os.environ, reason="SORA_I3D_STATE names no i3d_pretrained_400.pt")
def test_the_published_state_dict_gives_its_published_figures():
    extractor = I3DWeights(**settings(os.environ["SORA_I3D_STATE"]), epsilon=1e-3)
    assert extractor.canonical and extractor.name == "i3d-a867b87a"
    assert frechet_distance(extractor(BLACK), extractor(WHITE)) == pytest.approx(133, abs=4)
