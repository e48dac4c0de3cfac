"""Which checkpoint is meant: one is taken and named, several are the user's to choose from, and what is none is called what it is."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sora.dit.published import checkpoints
from sora.dit.published.files import CONFIG, INDEX, STEM, WEIGHTS
from tests.dit.published.test_checkpoints import weights
from tests.dit.published.test_options import FILL
from tests.dit.published.test_parity import pair

NAME = "wan_2_1_1_3b"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Our network, what it holds, and a folder with the same as diffusers writes it."""
    dit, model, *_ = pair(NAME, FILL[NAME])
    root = tmp_path_factory.mktemp("made")
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "shards", max_shard_size="40KB")
    return dit, weights(dit), root


def assert_taken(made, source, **more):
    dit, expected, _ = made
    for value in dit.parameters():
        torch.nn.init.zeros_(value)
    checkpoints.foresee(dit, source, patch=dit.patch, **more)
    found = checkpoints.load(dit, source, **more)
    assert all(torch.equal(value, expected[name]) for name, value in dit.state_dict().items())
    return found


def assert_refused(made, source, said, **more):
    dit, expected, _ = made
    dit.load_state_dict(expected)
    with pytest.raises(ValueError, match=said) as error:
        checkpoints.load(dit, source, **more)
    assert "\n" not in str(error.value)
    if "finite" not in said:  # told before the data are planned, by the headers of the files
        with pytest.raises(ValueError, match=said):
            checkpoints.foresee(dit, source, patch=dit.patch, **more)
    assert all(torch.equal(value, expected[name]) for name, value in dit.state_dict().items())


def test_a_file_is_compared_with_the_config_beside_it(made, tmp_path):
    folder = shutil.copytree(made[2] / "whole", tmp_path / "a")
    assert "whose config.json is of this network" in str(assert_taken(made, folder / WEIGHTS))
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"eps": 0.01}))
    for source in (folder, folder / WEIGHTS):
        assert_refused(made, source, r"a/config\.json is of another network: eps=0\.01 means dit\.block\.eps=0\.01 and not 1e-06")
    (folder / CONFIG).write_text("{")
    assert_refused(made, folder / WEIGHTS, r"config\.json is damaged")


def test_a_file_without_a_config_is_taken_with_a_word_on_what_nobody_compared(made, tmp_path):
    shutil.copy(made[2] / "whole" / WEIGHTS, tmp_path / "model.bf16.safetensors")
    for source in (tmp_path, tmp_path / "model.bf16.safetensors"):
        said = str(assert_taken(made, source))
        assert "model.bf16.safetensors; there is no config.json beside it" in said
        assert said.endswith("taken for num_attention_heads=2, attention_head_dim=24, eps=1e-06")


def test_even_alone_it_is_of_its_class_which_has_constants(made, tmp_path):
    shutil.copy(made[2] / "whole" / WEIGHTS, tmp_path / "alone.safetensors")
    other, *_ = pair(NAME, {**FILL[NAME], "rope": {"theta": 100.0}})
    made = other, weights(other), made[2]
    assert_refused(made, tmp_path, r"WanTransformer3DModel means dit\.rope\.theta=10000\.0 and not 100\.0; set dit\.rope\.theta=10000\.0")
    assert_taken(made, tmp_path, allowed=["dit.rope.theta"])
    assert_taken(made, tmp_path, allowed=["dit.rope"])
    assert_refused(made, tmp_path, r"init_allow names dit\.text\.fill, in which", allowed=["dit.rope.theta", "dit.text.fill"])
    assert_refused(made, tmp_path, r"init_allow names dit\.rop, in which", allowed=["dit.rop"])


def test_one_of_another_name_is_taken_and_named(made, tmp_path):
    folder = shutil.copytree(made[2] / "whole", tmp_path / "a")
    (folder / WEIGHTS).rename(folder / f"{STEM}.fp16.safetensors")
    assert f"{STEM}.fp16.safetensors" in str(assert_taken(made, folder))
    index = assert_taken(made, made[2] / "shards" / INDEX)
    assert index.config is not None and str(index.weights).endswith(INDEX)


def test_of_several_none_is_taken(made, tmp_path):
    """A whole file beside an index, a variant, an average, a second expert, a pipeline whose folder holds a file of its makers' too."""
    whole, shards = made[2] / "whole", made[2] / "shards"
    stale = shutil.copytree(shards, tmp_path / "stale")
    shutil.copy(whole / WEIGHTS, stale)
    assert_refused(made, stale, rf"holds 2 checkpoints.*init={stale / WEIGHTS}, init={stale / INDEX}")
    assert_taken(made, stale / INDEX)
    assert_taken(made, stale / WEIGHTS)
    for variant in ("fp16", "non_ema"):
        both = shutil.copytree(whole, tmp_path / variant)
        shutil.copy(whole / WEIGHTS, both / f"{STEM}.{variant}.safetensors")
        assert_refused(made, both, rf"holds 2 checkpoints.*{variant}\.safetensors")
    experts = tmp_path / "experts"
    for name in ("transformer", "transformer_2"):
        shutil.copytree(whole, experts / name)
    assert_refused(made, experts, r"holds 2 checkpoints.*experts/transformer/.*experts/transformer_2/")
    assert_taken(made, experts / "transformer_2")
    pipeline = tmp_path / "pipeline"
    shutil.copytree(shards, pipeline / "transformer")
    assert_taken(made, pipeline)
    shutil.copy(whole / WEIGHTS, pipeline / "model-0.9.safetensors")
    assert_refused(
        made, pipeline, r"holds 2 checkpoints.*model-0\.9\.safetensors.*transformer/diffusion_pytorch_model\.safetensors\.index\.json"
    )


def test_parts_and_files_of_other_kinds_are_called_what_they_are(made, tmp_path):
    whole, shards = made[2] / "whole", made[2] / "shards"
    first = sorted(shards.glob("*-of-*"))[0]
    assert_refused(made, first, "is one part of several; name their folder, or their index")
    lost = shutil.copytree(shards, tmp_path / "lost")
    (lost / INDEX).unlink()
    assert_refused(made, lost, f"of {first.name} and its like the index is missing")
    assert_refused(made, tmp_path / "nowhere", "nowhere does not exist")
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.ckpt")
    assert_refused(made, tmp_path / "model.ckpt", "is a file of torch.save, no safetensors file")
    (tmp_path / "old").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "old" / f"{STEM}.bin")
    assert_refused(made, tmp_path / "old", rf"old/{STEM}\.bin is no safetensors file.*save_pretrained")
    for name, begins, said in (
        ("wan.gguf", b"GGUF\x03\0\0\0", "is a GGUF file, whose weights are quantised"),
        ("renamed.safetensors", b"GGUF\x03\0\0\0", "is a GGUF file"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        ("cut.safetensors", (whole / WEIGHTS).read_bytes()[:-9], "cut.safetensors is damaged"),
        ("empty.safetensors", b"", "empty.safetensors is damaged"),
    ):
        (tmp_path / name).write_bytes(begins)
        assert_refused(made, tmp_path / name, said)
    (tmp_path / "unet" / "unet").mkdir(parents=True)
    assert_refused(made, tmp_path / "unet", "neither a safetensors file nor a folder.*it has the folders unet")


def test_quantised_and_broken_numbers_are_no_weights(made, tmp_path):
    state = load_file(made[2] / "whole" / WEIGHTS)
    name = "blocks.0.attn1.to_q.weight"
    for number, (value, said) in enumerate(
        (
            (state[name].to(torch.float8_e4m3fn), f"{name} in F8_E4M3: its weights are quantised"),
            ((state[name] * 10).to(torch.int8), f"{name} in I8: its weights are quantised"),
            (state[name] * float("nan"), f"damaged: {name} holds numbers that are not finite"),
        )
    ):
        save_file({**state, name: value}, tmp_path / f"{number}.safetensors")
        assert_refused(made, tmp_path / f"{number}.safetensors", said)


def test_a_tensor_that_two_files_hold_is_of_the_one_that_the_index_names(made, tmp_path):
    folder = shutil.copytree(made[2] / "shards", tmp_path / "a")
    files = sorted(folder.glob("*-of-*"))
    moved = load_file(files[0])
    name = sorted(moved)[0]
    save_file({**load_file(files[1]), name: moved[name] + 1}, files[1])
    assert_refused(made, folder, rf"knows nothing of {name} in {files[1].name}")


@pytest.mark.parametrize("front", ["model.diffusion_model.", "transformer.", "module._orig_mod."])
def test_a_word_in_front_of_all_names_is_taken_off(made, tmp_path, front):
    state = load_file(made[2] / "whole" / WEIGHTS)
    save_file({f"{front}{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    assert_taken(made, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["blocks.0.self_attn.q.weight", "head.head.weight"], r"of Wan's own repository \(blocks.*WanTransformer3DModel\.from_single_file"),
        (["model.diffusion_model.blocks.0.self_attn.q.weight"], "of Wan's own repository"),
        (["double_blocks.0.img_attn_qkv.weight"], "of HunyuanVideo's own repository"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "of FLUX's own repository"),
        (["model.diffusion_model.transformer_blocks.0.attn1.q_norm.weight"], "of LTX-Video's own files"),
        (["transformer.layers.0.attention.query_key_value.weight"], r"of CogVideoX's own repository \(SAT\).*no class of diffusers reads"),
        (["model.diffusion_model.mixins.final_layer.linear.weight"], "of CogVideoX's own repository"),
        (["y_embedder.embedding_table.weight"], "of DiT's, SiT's or Latte's own repository"),
        (["transformer.blocks.0.attn1.to_q.lora_A.weight"], "of a LoRA"),
        (["diffusion_model.blocks.0.self_attn.q.lora_down.weight"], "of a LoRA"),
        (["decoder.conv_in.weight"], "of a VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "of a text encoder"),
        (["who.knows"], r"no checkpoint of WanTransformer3DModel.*1 unknown \(who\.knows\)"),
    ],
)
def test_tensors_by_their_makers_names_are_called_theirs(made, tmp_path, names, said):
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "a.safetensors")
    assert_refused(made, tmp_path / "a.safetensors", said)


@pytest.mark.parametrize("config", [None, "WanModel"])
def test_a_makers_checkpoint_in_parts_is_not_to_be_given_as_one_file(made, tmp_path, config):
    """diffusers reads its makers' files one by one, or the tensors of all parts together; of one part it would make half a network."""
    names = ["blocks.0.self_attn.q.weight", "head.head.weight"]
    for number, name in enumerate(names, 1):
        save_file({name: torch.zeros(2)}, tmp_path / f"{STEM}-{number:05d}-of-00002.safetensors")
    weights = {name: f"{STEM}-{number:05d}-of-00002.safetensors" for number, name in enumerate(names, 1)}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    if config:
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": config}))
    told = r"Wan's own repository.*from_single_file\(TENSORS, of all parts in one dict\)"
    for source in (tmp_path, tmp_path / INDEX):
        assert_refused(made, source, told)
