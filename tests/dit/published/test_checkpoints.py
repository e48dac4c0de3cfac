"""Published checkpoints in and out: files, shards, and everything that may be wrong with them."""

import json
import shutil
from functools import partial

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from sora.dit.published import checkpoints, files
from sora.dit.published.keys import to_ours
from tests.dit.published.test_options import FILL
from tests.dit.published.test_parity import CASES, pair


def weights(dit):
    return {name: value.clone() for name, value in dit.state_dict().items()}


@pytest.fixture
def wan():
    dit, model, keys, *_ = pair("wan_2_1_1_3b", FILL["wan_2_1_1_3b"])
    return dit, model, keys


load, save = checkpoints.load, partial(checkpoints.save, dtype=torch.float32, shard_bytes=10**9)


def forget(dit):
    for value in dit.parameters():
        torch.nn.init.zeros_(value)


@pytest.mark.parametrize("most", ["1GB", "40KB"])
def test_what_diffusers_saves_is_read_whole_or_in_shards(wan, tmp_path, most):
    dit, model, _ = wan
    model.save_pretrained(tmp_path / "transformer", max_shard_size=most)
    assert (len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1) == (most == "40KB")
    expected = weights(dit)
    for source in (tmp_path, tmp_path / "transformer", *([tmp_path / "transformer" / files.WEIGHTS] if most == "1GB" else [])):
        forget(dit)
        load(dit, source)
        assert all(torch.equal(value, expected[name]) for name, value in dit.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("most", [10**9, 40_000])
def test_what_we_save_is_read_by_diffusers_and_by_us_as_it_was(name, most, tmp_path):
    dit, model, keys, *_ = pair(name, FILL.get(name))
    expected = weights(dit)
    checkpoints.save(dit, tmp_path / "out", dtype=torch.float32, shard_bytes=most)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (most == 40_000)
    read = getattr(diffusers, keys.kind).from_pretrained(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key
    forget(dit)
    taken = checkpoints.load(dit, tmp_path / "out")
    assert all(torch.equal(value, expected[key]) for key, value in dit.state_dict().items())
    checkpoints.save(dit, tmp_path / "again", dtype=torch.float32, shard_bytes=10**9, beside=taken.config)
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "out" / "config.json").read_text()


def test_what_no_prediction_depends_on_comes_out_as_it_went_in(tmp_path):
    dit, model, *_ = pair("latte_xl_2")  # of 3 frames and not the class's 16
    model.save_pretrained(tmp_path / "in")
    taken = checkpoints.load(dit, tmp_path / "in")
    checkpoints.save(dit, tmp_path / "out", dtype=torch.float32, shard_bytes=10**9, beside=taken.config)
    again = diffusers.LatteTransformer3DModel.from_pretrained(tmp_path / "out")
    assert again.config.video_length == 3
    assert {key: value for key, value in again.config.items() if key[0] != "_"} == {
        key: value for key, value in model.config.items() if key[0] != "_"
    }


def test_half_precision_goes_out_and_comes_back_rounded_once(wan, tmp_path):
    dit, _, _ = wan
    save(dit, tmp_path / "out", dtype=torch.bfloat16)
    expected = weights(dit)
    load(dit, tmp_path / "out")
    for name, value in dit.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name].bfloat16().float())


def test_tensors_that_do_not_fit_are_named(wan, tmp_path):
    dit, model, _ = wan
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["blocks.0.attn1.to_q.weights"] = state.pop("blocks.0.attn1.to_q.weight")
    state["proj_out.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "broken.safetensors")
    before = weights(dit)
    with pytest.raises(ValueError) as error:
        load(dit, tmp_path / "broken.safetensors")
    for said in (
        "no checkpoint of WanTransformer3DModel",
        "1 missing (blocks.0.attn1.to_q.weight)",
        "1 unknown (blocks.0.attn1.to_q.weights)",
        "1 of another shape (proj_out.bias [7] instead of [12])",
    ):
        assert said in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in dit.state_dict().items())


def test_copies_of_one_embedding_must_be_equal():
    dit, model, keys, *_ = pair("dit_xl_2")
    state = model.state_dict()
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight"
    state[name] = state[name] + 1
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1.*is not transformer_blocks\.0\.norm1.*one tensor here"):
        to_ours(keys, state, dit.state_dict())


@pytest.mark.parametrize("name", ["dit_xl_2", "latte_xl_2"])
def test_channels_that_predict_variances_are_left_behind(name):
    """The released networks predict a variance for each channel too; the first half of the channels is the mean."""
    dit, model, keys, *_ = pair(name)
    state, expected = dict(model.state_dict()), weights(dit)
    out = "proj_out_2" if name == "dit_xl_2" else "proj_out"
    for kind in ("weight", "bias"):
        mean = state[f"{out}.{kind}"].unflatten(0, (4, 3))  # p q c
        state[f"{out}.{kind}"] = torch.cat((mean, torch.randn_like(mean)), dim=1).flatten(0, 1)
    found = to_ours(keys, state, dit.state_dict())
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_another_network_is_refused_by_what_shapes_do_not_tell(wan, tmp_path):
    dit, model, _ = wan
    model.save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    others = {
        "_class_name": ("LTXVideoTransformer3DModel", "_class_name=LTXVideoTransformer3DModel, this dit is"),
        "num_attention_heads": (4, "num_attention_heads=4 means dit.heads=4 and not 2"),
    }
    for key, (value, said) in others.items():
        (tmp_path / "a" / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ValueError, match=said):
            load(dit, tmp_path / "a")


def test_folders_that_are_no_checkpoint_are_refused_by_name(wan, tmp_path):
    dit, model, _ = wan
    model.save_pretrained(tmp_path / "good", max_shard_size="40KB")
    index = json.loads((tmp_path / "good" / files.INDEX).read_text())
    first = next(iter(index["weight_map"].values()))

    def spoilt(name):
        return shutil.copytree(tmp_path / "good", tmp_path / name)

    (tmp_path / "empty").mkdir()
    (spoilt("gone") / first).unlink()
    (spoilt("cut") / first).write_bytes((tmp_path / "good" / first).read_bytes()[:-1])
    outside = spoilt("outside") / files.INDEX
    outside.write_text(json.dumps({"weight_map": {"proj_out.bias": "../good/" + first}}))
    (spoilt("text") / files.INDEX).write_text("[1")
    promised = spoilt("promised")
    kept = load_file(promised / first)
    lost = sorted(kept)[0]
    save_file({name: value for name, value in kept.items() if name != lost}, promised / first)
    for name, said in {
        "empty": "neither a safetensors file nor a folder with",
        "gone": f"{first} does not exist",
        "cut": f"{first} is damaged",
        "outside": "the name of a file in its folder fits",
        "text": "is damaged",
        "promised": f"promises 1 tensors that its files do not hold, such as {lost}",
    }.items():
        with pytest.raises(ValueError, match=said):
            load(dit, tmp_path / name)


def test_nothing_is_written_of_numbers_that_are_not_finite_or_over_what_exists(wan, tmp_path):
    dit, _, _ = wan
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        save(dit, tmp_path / "there")
    dit.out.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"proj_out\.bias holds numbers that are not finite in torch\.float16"):
        save(dit, tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()
