"""Laws of the causal VAE: causality, images as one-frame clips, shapes, whitening at the door."""

import pytest
import torch

from sora.vae.vae import Posterior, VideoVAE, from_uint8, to_uint8
from tests.vae.test_layers import haar

SETTINGS = {
    "toy": {"latent_channels": 3, "stem": [2, 4, 4], "widths": [8, 12], "blocks": [1, 1], "decoder_blocks": [1, 1],
            "strides": [[2, 1, 1]], "kernels": [[1, 3, 3], [2, 3, 3]], "noise": 0.05},
    "space": {"latent_channels": 5, "stem": [2, 2, 2], "widths": [6, 8, 10], "blocks": [1, 0, 1], "decoder_blocks": [1, 1, 1],
              "strides": [[1, 2, 2], [2, 2, 2]], "kernels": [[3, 3, 3]] * 3, "noise": 0.05},
    "one level": {"latent_channels": 4, "stem": [4, 4, 4], "widths": [8], "blocks": [1], "decoder_blocks": [1], "strides": [],
                  "kernels": [[3, 3, 3]], "noise": 0.05},
}  # fmt: skip


def awake(name: str) -> VideoVAE:
    """A VAE whose every parameter and buffer matters, unlike one at birth."""
    torch.manual_seed(0)
    vae = VideoVAE(**SETTINGS[name])
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        vae.shift.copy_(torch.randn_like(vae.shift))
        vae.scale.copy_(torch.rand_like(vae.scale) + 0.5)
    return vae.eval()


def clips(batch: int, frames: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (batch, frames, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(SETTINGS))
def vae(request) -> VideoVAE:
    return awake(request.param)


def test_later_frames_never_change_earlier_latents(vae):
    frames = clips(3, 13, 24, 16)
    changed = frames.clone()
    changed[:, 5:] = clips(3, 8, 24, 16, seed=2)  # latent frames 2 and 3
    before, after = vae.encode(frames), vae.encode(changed)
    assert (before[:, :, :2] - after[:, :, :2]).abs().max() <= 1e-6
    assert (before[:, :, 2] - after[:, :, 2]).abs().max() > 1e-2


def test_later_latents_never_change_earlier_frames(vae):
    latents = torch.randn(2, vae.latent_channels, 4, 2, 3)
    changed = latents.clone()
    changed[:, :, 2:] += 1.0
    before, after = vae.decode_float(latents), vae.decode_float(changed)
    assert before.shape[2] == 13
    assert (before[:, :, :5] - after[:, :, :5]).abs().max() <= 1e-5
    assert (before[:, :, 5] - after[:, :, 5]).abs().max() > 1e-2


def test_the_first_frame_of_a_clip_encodes_and_decodes_as_the_image(vae):
    frames = clips(2, 9, 16, 24)
    image, clip = vae.encode(frames[:, :1]), vae.encode(frames)
    assert image.shape[2] == 1
    assert (image - clip[:, :, :1]).abs().max() <= 2e-6 * clip.abs().max()  # other shapes, so other orders of summation
    decoded = vae.decode_float(clip)
    assert (vae.decode_float(image) - decoded[:, :, :1]).abs().max() <= 2e-6 * decoded.abs().max()


def test_clips_do_not_see_their_neighbours_in_the_batch(vae):
    frames = clips(3, 5, 16, 16)
    assert (vae.encode(frames)[1:2] - vae.encode(frames[1:2])).abs().max() <= 2e-6 * vae.encode(frames).abs().max()


def test_every_frame_of_a_group_reaches_its_latent_and_comes_back(vae):
    frames = clips(1, 5, 16, 16)
    plain = vae.encode(frames)
    for frame in range(1, 5):
        changed = frames.clone()
        changed[:, frame] = 255 - changed[:, frame]
        moved = (vae.encode(changed) - plain).abs()
        assert moved[:, :, 0].max() <= 1e-6 and moved[:, :, 1].max() > 1e-3


def test_shapes_agree_with_the_stride_at_sizes_where_axes_could_be_confused(vae):
    for batch, frames, height, width in [(1, 1, 8, 16), (3, 5, 24, 8), (vae.latent_channels, 9, 16, 40)]:
        latents = vae.encode(clips(batch, frames, height, width))
        assert latents.shape == (batch, vae.latent_channels, *vae.latent_shape(frames, height, width))
        decoded = vae.decode(latents)
        assert decoded.shape == (batch, frames, height, width, 3) and decoded.dtype == torch.uint8


@pytest.mark.parametrize(("frames", "height", "width", "what"), [(4, 16, 16, "crop the clip to 1"), (8, 16, 16, "crop the clip to 5"),
                                                                (5, 18, 16, "16x18"), (5, 16, 2, "2x16")])  # fmt: skip
def test_clips_that_do_not_fit_the_stride_say_what_does(frames, height, width, what):
    with pytest.raises(ValueError, match=what):
        awake("toy").encode(clips(1, frames, height, width))


def test_at_birth_the_vae_is_the_coarse_haar_code():
    vae = VideoVAE(**SETTINGS["one level"])
    frames = clips(2, 9, 16, 16)
    pixels = torch.cat([from_uint8(frames)[:, :, :1].expand(-1, -1, 3, -1, -1), from_uint8(frames)], dim=2)
    assert torch.allclose(vae.encode(frames), haar((4, 4, 4))[0](pixels)[:, :4], atol=1e-5)
    flat = torch.full((1, 5, 16, 16, 3), 77, dtype=torch.uint8)
    assert torch.equal(vae.decode(vae.encode(flat)), flat)  # three channels carry the mean colour, the rest are zero


def test_every_parameter_learns():
    vae = awake("space")
    posterior = vae.posterior(clips(2, 9, 16, 16))
    vae.decode_float(vae.whiten(posterior.sample(torch.randn_like(posterior.mean)))).square().mean().backward()
    idle = [name for name, parameter in vae.named_parameters() if parameter.grad is None or parameter.grad.abs().max() == 0]
    assert idle == []


def test_latents_of_another_width_are_refused():
    with pytest.raises(ValueError, match="4 channels, this VAE has 3"):
        awake("toy").decode(torch.randn(1, 4, 1, 2, 2))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks", [1], "blocks"),
        ("strides", [], "strides"),
        ("stem", [2, 3, 4], "powers of two"),
        ("kernels", [[1, 2, 3], [3, 3, 3]], "odd"),
        ("latent_channels", 0, "latent_channels"),
        ("latent_channels", 193, "latent_channels"),
        ("noise", 0.0, "noise"),
    ],
)
def test_wrong_settings_name_their_key(key, value, message):
    with pytest.raises(ValueError, match=message):
        VideoVAE(**{**SETTINGS["toy"], key: value})


def test_pixels_survive_the_way_to_floats_and_back():
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 1, 16, 16, 3)
    assert torch.equal(to_uint8(from_uint8(frames)), frames)
    assert to_uint8(torch.tensor([-9.0, 9.0, 0.0]).reshape(1, 3, 1, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_the_divergence_is_that_of_two_normals():
    mean, logvar = torch.tensor([0.0, 1.5, -0.3], dtype=torch.float64), torch.tensor([0.0, -2.0, 0.7], dtype=torch.float64)
    shape = (1, 3, 1, 1, 1)
    ours = Posterior(mean=mean.view(shape), logvar=logvar.view(shape)).kl().flatten()
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(torch.zeros(3).double(), 1.0)
    )
    assert torch.allclose(ours, reference, atol=1e-12)
    draws = Posterior(mean=mean.view(shape), logvar=logvar.view(shape)).sample(torch.randn(20000, 3, 1, 1, 1, dtype=torch.float64))
    assert torch.allclose(draws.std(0).flatten(), (0.5 * logvar).exp(), rtol=0.05)
