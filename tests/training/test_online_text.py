"""A text encoder that ranks hold in parts reads captions as one that each has whole."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor

from sora.config.build import build
from sora.data.loading.videos import VideoPack
from sora.text.byte import ByteEncoder
from sora.training.online_encoding import OnlineEncoder
from tests.text.test_pretrained import encoder, save_tokenizer, tiny
from tests.trained import option
from tests.training.groups import in_ranks

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
SAID = [("a red ball", "left", "", "blue ball rolls"), ("right", "right")]  # by rank: the second has less to read


def online(text, *, shard: bool) -> OnlineEncoder:
    torch.manual_seed(0)
    sizes = {"budget": 64, "max_clips": 8, "text_budget": 32, "batch": 1}
    vae, patches = build(option("vae", "toy")), build(option("patches", "1x2x2"))
    return OnlineEncoder(vae=vae, text=text, patchifier=patches, **sizes, shard_vae=False, shard_text=shard, near=1)


def pack(captions) -> VideoPack:
    count, numbers = len(captions), tuple(range(len(captions)))
    pixels = torch.arange(count * 16 * 16 * 3, dtype=torch.float32).mul(7).remainder(251).to(torch.uint8)
    shared = {"fps": (8.0,) * count, "given": (False,) * count, "sample_ids": numbers, "epochs": (0,) * count}
    return VideoPack(pixels=pixels, shapes=((1, 16, 16),) * count, captions=captions, states=None, **shared)


@pytest.mark.parametrize("kind", ["umt5", "clip"])
def test_ranks_read_what_one_reads_and_hold_half_of_it_each(kind, tmp_path):
    torch.manual_seed(0)
    tiny(kind).save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(tmp_path / "tokenizer")
    folders = {"model_folder": "text_encoder", "tokenizer_folder": "tokenizer"}
    alone = online(encoder(tmp_path, **folders), shard=False)
    expected = [alone(pack(said), CPU) for said in SAID]

    def work(rank: int) -> None:
        text = encoder(tmp_path, **folders)
        (model,) = text.models()
        whole = sum(value.numel() for value in model.parameters())
        ours = online(text, shard=True)
        for turn in range(2):
            found = ours(pack(SAID[(rank + turn) % 2]), CPU)
            wanted = expected[(rank + turn) % 2]
            assert torch.equal(found.text.states, wanted.text.states), (rank, turn)
            assert torch.equal(found.tokens.patches, wanted.tokens.patches)
            kept = [value.to_local() if isinstance(value, DTensor) else value for value in model.parameters()]
            assert sum(value.numel() for value in kept) < 0.6 * whole, "what was gathered stayed"

    in_ranks(2, tmp_path, work)


def test_an_encoder_without_a_model_is_not_cut():
    text = ByteEncoder(width=8, depth=1, reach=1, max_tokens=8)
    assert len(online(text, shard=False)(pack(("a",)), CPU).text.segments.lengths) > 0
    with pytest.raises(ValueError, match="data.shard_text=true: the text encoder byte has no model to cut"):
        online(text, shard=True)(pack(("a",)), CPU)
