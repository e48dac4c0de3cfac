"""Networks of transformers, tiny ones of our own: what they are given, what of them is a feature, how they are named."""

import pytest
import torch

from sora.metrics.extractors.pretrained import PretrainedFrames, PretrainedVideo

DRAW = torch.Generator().manual_seed(0)
VIDEOS = torch.randint(0, 256, (3, 6, 32, 32, 3), dtype=torch.uint8, generator=DRAW)
KEYS = {
    "revision": None,
    "size": 32,
    "kernel": "half_pixel",
    "crop": False,
    "mean": (0.5, 0.4, 0.3),
    "deviation": (0.2, 0.3, 0.4),
    "batch": 2,
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32, "patch_size": 16}


def made(folder, name):
    import transformers

    torch.manual_seed(0)
    config = {
        "VideoMAE": lambda: transformers.VideoMAEConfig(**SMALL, num_frames=4, decoder_num_hidden_layers=1),
        "CLIP": lambda: transformers.CLIPVisionConfig(**SMALL, projection_dim=12),
        "Dinov2": lambda: transformers.Dinov2Config(**SMALL, mlp_ratio=2),
        "VJEPA2": lambda: transformers.VJEPA2Config(
            hidden_size=24, num_hidden_layers=1, num_attention_heads=2, crop_size=32, patch_size=16, frames_per_clip=4,
            pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, num_pooler_layers=1,
        ),
    }[name]()  # fmt: skip
    model = {"CLIP": "CLIPVisionModelWithProjection"}.get(name, f"{name}Model")
    network = getattr(transformers, model)(config).eval()
    network.save_pretrained(folder / name)
    return network, folder / name


def pixels(videos):
    mean, deviation = torch.tensor(KEYS["mean"]), torch.tensor(KEYS["deviation"])
    return ((videos / 255 - mean) / deviation).permute(0, 1, 4, 2, 3)  # B T 3 h w


@pytest.mark.slow
def test_video_networks_give_the_mean_of_their_tokens(tmp_path):
    for name in ("VideoMAE", "VJEPA2"):
        network, folder = made(tmp_path, name)
        extractor = PretrainedVideo(label=name.lower(), source=str(folder), frames=4, **KEYS)
        chosen = pixels(VIDEOS)[:, [0, 2, 3, 5]]
        with torch.no_grad():
            given = {"pixel_values": chosen} if name == "VideoMAE" else {"pixel_values_videos": chosen}
            plain = network(**given).last_hidden_state.mean(dim=1)
        assert torch.allclose(extractor(VIDEOS), plain, atol=1e-5) and extractor.dimension == plain.shape[1]
        assert extractor.name == f"{name.lower()}-{extractor.fingerprint[:8]}" and extractor.minimum_frames == 4
        with pytest.raises(ValueError, match="extractor.frames=4 wants at least as many"):
            extractor(VIDEOS[:, :3])


@pytest.mark.slow
def test_frame_networks_give_the_mean_of_their_embeddings(tmp_path):
    for name, key in (("CLIP", "image_embeds"), ("Dinov2", "pooler_output")):
        network, folder = made(tmp_path, name)
        extractor = PretrainedFrames(label="x", source=str(folder), frames=None, **KEYS)
        with torch.no_grad():
            plain = network(pixel_values=pixels(VIDEOS).flatten(0, 1))[key].unflatten(0, (3, 6))
        assert torch.allclose(extractor.encode_frames(VIDEOS), plain, atol=1e-5) and extractor.dimension == plain.shape[2]
        assert torch.allclose(extractor(VIDEOS), plain.mean(dim=1), atol=1e-5)


@pytest.mark.slow
def test_other_weights_have_another_name(tmp_path):
    network, folder = made(tmp_path, "Dinov2")
    first = PretrainedFrames(label="x", source=str(folder), frames=None, **KEYS).name
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    network.save_pretrained(tmp_path / "again")
    assert PretrainedFrames(label="x", source=str(tmp_path / "again"), frames=None, **KEYS).name != first


def test_what_cannot_be_had_says_what_to_download(tmp_path):
    for source, told in (
        ("nobody/no-such-model", "hf download nobody/no-such-model.*choose extractor=rand3d"),
        (str(tmp_path), "holds no config"),
    ):
        with pytest.raises(ValueError, match=told):
            _ = PretrainedVideo(label="x", source=source, frames=4, **KEYS).fingerprint


@pytest.mark.slow
def test_captions_lie_in_the_space_of_frames_and_other_models_read_none(tmp_path):
    import transformers

    from tests.text.test_pretrained import WORDS, save_tokenizer

    torch.manual_seed(0)
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 5, "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    half = {key: value for key, value in SMALL.items() if key not in ("image_size", "patch_size")}
    joint = {"projection_dim": 12}
    config = transformers.CLIPConfig(text_config=half | text | joint, vision_config=SMALL | joint, **joint)
    network = transformers.CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    extractor = PretrainedFrames(label="clip", source=str(tmp_path), frames=None, **KEYS)
    captions = ["a red ball rolls left", "blue", ""]  # the first is too long by one and is cut
    states = extractor.encode_texts(captions)
    for caption, state in zip(captions, states, strict=True):
        words = [*[WORDS.index(word) for word in caption.split()][:4], 1]
        with torch.no_grad():
            alone = network.get_text_features(torch.tensor([words]))
            alone = alone if isinstance(alone, torch.Tensor) else alone.pooler_output
        assert torch.allclose(state, alone[0], atol=1e-5), caption
    assert extractor.encode_frames(VIDEOS).shape[2] == states.shape[1] == extractor.dimension
    _, folder = made(tmp_path, "Dinov2")
    with pytest.raises(ValueError, match="a model of kind dinov2, which reads no text; choose extractor=clip"):
        PretrainedFrames(label="x", source=str(folder), frames=None, **KEYS).encode_texts(["a"])
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        PretrainedFrames(label="x", source=str(tmp_path), frames=None, **KEYS).encode_texts(["a"])
