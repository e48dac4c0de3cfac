"""Laws of the whitening, the objective and the artefact on disk."""

import re

import pytest
import torch

from sora.vae import artefact, whitening
from sora.vae.losses import VaeObjective
from sora.vae.vae import VideoVAE, from_uint8
from tests.vae.test_vae import SETTINGS, awake, clips


def test_whitened_latents_have_mean_zero_and_deviation_one_whatever_the_raw_scale():
    vae = awake("toy")
    batches = [clips(4, 9, 16, 16, seed=seed) for seed in range(4)]
    whitening.whiten(vae, batches)
    latents = torch.cat([vae.encode(frames) for frames in batches])
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 1e-2
    assert not whitening.unlike(latents)


def test_measuring_ignores_the_whitening_that_is_there_and_decoding_undoes_it():
    vae, plain = awake("toy"), awake("toy")
    frames = clips(4, 9, 16, 16)
    before = whitening.measure(vae, [frames])
    whitening.whiten(vae, [frames])
    assert torch.equal(torch.stack(before), torch.stack(whitening.measure(vae, [frames])))
    assert torch.allclose(vae.decode_float(vae.encode(frames)), plain.decode_float(plain.encode(frames)), atol=1e-4)


def test_batches_of_different_shapes_count_by_their_latents():
    vae = awake("toy")
    both = whitening.measure(vae, [clips(1, 9, 16, 16, seed=1), clips(2, 1, 24, 8, seed=2)])
    raw = [vae.posterior(clips(1, 9, 16, 16, seed=1)).mean, vae.posterior(clips(2, 1, 24, 8, seed=2)).mean]
    flat = torch.cat([part.detach().transpose(0, 1).flatten(1) for part in raw], dim=1)
    assert torch.allclose(both[0], flat.mean(1), atol=1e-5) and torch.allclose(both[1], flat.std(1, correction=0), atol=1e-5)


def test_another_scale_or_a_lost_shift_is_told_with_the_numbers():
    latents = torch.randn(8, 3, 4, 4, 4)
    assert not whitening.unlike(latents)
    assert not whitening.unlike([*latents[:4], torch.randn(3, 1, 9, 2)])  # of any sizes
    for wrong in (
        latents * 2,
        latents * 0.5,
        latents + 0.5,
        latents * torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1, 1),
        latents * float("nan"),
    ):
        told = whitening.unlike(wrong)
        assert told and all(re.fullmatch(r"channel \d: mean \S+ std \S+", row) for row in told)
    shifted = latents + torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
    (only,) = whitening.unlike(shifted)
    assert only.startswith(("channel 1: mean 1.0", "channel 1: mean 0.9"))


def test_a_dead_channel_and_an_empty_dataset_are_refused():
    vae = VideoVAE(**SETTINGS["toy"])
    with pytest.raises(ValueError, match="at least one batch"):
        whitening.measure(vae, [])
    with pytest.raises(ValueError, match="dead"):
        whitening.measure(vae, [torch.zeros(2, 5, 16, 16, 3, dtype=torch.uint8)])


def test_the_objective_is_the_weighted_sum_of_what_it_reports():
    vae, frames = awake("toy"), clips(2, 5, 16, 16)
    noise = torch.randn(2, 3, *vae.latent_shape(5, 16, 16))
    weights = {"l1": 1.0, "l2": 2.0, "edge": 3.0, "kl": 0.1}
    terms = VaeObjective(**weights)(vae, frames, noise)
    assert torch.allclose(terms["total"], sum(weights[name] * terms[name] for name in weights))
    error = vae.decode_float(vae.whiten(vae.posterior(frames).sample(noise))) - from_uint8(frames)
    assert torch.allclose(terms["l2"], error.square().mean()) and torch.allclose(terms["l1"], error.abs().mean())


def test_the_objective_does_not_depend_on_the_whitening():
    frames, noise = clips(2, 5, 16, 16), torch.randn(2, 3, 2, 4, 4)
    objective, vae = VaeObjective(l1=1.0, l2=1.0, edge=1.0, kl=0.1), awake("toy")
    before = objective(vae, frames, noise)["total"]
    whitening.whiten(vae, [frames])
    assert torch.allclose(before, objective(vae, frames, noise)["total"], rtol=1e-4)


def test_a_constant_offset_has_no_edge_error_and_a_lost_corner_has():
    from sora.vae.losses import edge_error

    assert edge_error(torch.full((2, 3, 2, 8, 8), 0.7)) == 0
    corner = torch.zeros(2, 3, 2, 8, 8)
    corner[..., 3, 3] = 1.0
    assert torch.isclose(edge_error(corner), torch.tensor(2 / 56))  # two of 56 differences, in rows and in columns


def test_a_negative_weight_names_its_key():
    with pytest.raises(ValueError, match=r"objective\.edge"):
        VaeObjective(l1=1.0, l2=1.0, edge=-1.0, kl=0.0)


def test_training_beats_the_linear_code_it_starts_from():
    torch.manual_seed(0)
    vae, frames = VideoVAE(**SETTINGS["toy"]), clips(2, 5, 8, 8).float()
    frames = torch.nn.functional.interpolate(frames.flatten(0, 1).permute(0, 3, 1, 2), (16, 16)).permute(0, 2, 3, 1)
    frames = frames.reshape(2, 5, 16, 16, 3).byte()
    objective, optimizer = VaeObjective(l1=0.0, l2=1.0, edge=0.0, kl=1e-5), torch.optim.AdamW(vae.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        terms = objective(vae, frames, torch.randn(2, 3, 2, 4, 4))
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        losses.append(float(terms["l2"].detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def saved(tmp_path):
    vae = awake("space")
    digest = artefact.save(vae, tmp_path / "vae", config={"run": "here"})
    return vae, tmp_path / "vae", digest


def test_what_was_saved_is_what_is_loaded_bit_for_bit(saved):
    vae, folder, digest = saved
    loaded, frames = artefact.load(folder), clips(2, 5, 16, 16)
    assert torch.equal(vae.encode(frames), loaded.encode(frames))
    assert torch.equal(vae.decode(vae.encode(frames)), loaded.decode(loaded.encode(frames)))
    assert loaded.settings == vae.settings and not loaded.training
    assert artefact.artefact_hash(folder) == digest
    assert sorted(path.name for path in folder.iterdir()) == ["vae.json", "vae.safetensors"]


def test_the_hash_follows_weights_and_whitening_and_not_the_provenance(saved, tmp_path):
    vae, _, digest = saved
    assert artefact.save(vae, tmp_path / "again", config={"run": "elsewhere"}) == digest
    vae.scale[0] *= 2
    assert artefact.save(vae, tmp_path / "other", config={"run": "here"}) != digest


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.json"])
@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_a_flipped_byte_anywhere_names_the_file(saved, name, place):
    _, folder, _ = saved
    content = bytearray((folder / name).read_bytes())
    content[int(len(content) * place)] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=name):
        artefact.load(folder)


def test_cut_and_missing_files_name_themselves(saved):
    _, folder, _ = saved
    weights = folder / "vae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"vae\.safetensors"):
        artefact.load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"vae\.safetensors does not exist"):
        artefact.load(folder)
    (folder / "vae.json").unlink()
    with pytest.raises(ValueError, match=r"is no VAE: it has no vae\.json"):
        artefact.load(folder)


def test_a_folder_is_never_overwritten_and_a_failed_save_leaves_nothing(saved, tmp_path):
    vae, folder, _ = saved
    with pytest.raises(ValueError, match="exists already"):
        artefact.save(vae, folder, config={})
    with pytest.raises(TypeError):
        artefact.save(vae, tmp_path / "new", config={"not json": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
