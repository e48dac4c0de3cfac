"""What goes with each published network, as its README lists it: the words of one command compose and fit one another."""

import ast
import re
from pathlib import Path

import diffusers
import pytest
import torch
from omegaconf import OmegaConf

from sora.config.build import build
from sora.config.compose import compose, require_all
from sora.diffusion.discrete import Discrete
from sora.diffusion.path import Straight
from sora.dit import published
from sora.dit.published.levels import level_and_pooled
from sora.text.packing import pack_text
from sora.text.pooled import PooledCaptions, PooledText
from sora.tokens import Segments, TextTokens
from tests.dit.published.test_parity import POOLED, STEPS, TEXT, apart, ours_of, pair

README = Path(published.__file__).with_name("README.md")
ROWS = re.findall(r"^\| `(\w+)` \| `(text=[^|]*)` \| `([^|]*)` \| `([^|]*)` \|$", README.read_text(), flags=re.MULTILINE)
LATENTS = {"ltx_video": 128, "latte_xl_2": 4, "dit_xl_2": 4}  # channels; 16 of the others


def test_every_published_network_has_its_row():
    nodes = [path for path in Path("conf/dit").glob("*.yaml") if "PublishedDiT" in path.read_text()]
    assert sorted(name for name, *_ in ROWS) == sorted(path.stem for path in nodes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text", "rest", "sampled"), ROWS, ids=[name for name, *_ in ROWS])
def test_the_words_of_a_fine_tune_compose_and_fit(name, text, rest, sampled):
    words = [f"dit={name}", *text.split(), *rest.split()]
    composed = compose("train", ["experiment=finetune", *words, "data.folders=[x]", "vae=y", "init=z"])
    require_all(composed, "train")
    assert compose("sample", [*sampled.split(), "checkpoint=x"]).config.checkpoint == "x"
    config = composed.config
    assert tuple(config.dit.patch) == tuple(config.patches.size)
    path = build(config.path)
    assert isinstance(path, Discrete if name in STEPS else Straight)
    build(config.objective, path=path, density=build(config.density))
    encoder = build(config.text)
    patch_channels = torch.Size(config.patches.size).numel() * LATENTS.get(name, 16)
    with torch.device("meta"):
        dit = build(config.dit, patch_channels=patch_channels, text_width=1001 if name == "dit_xl_2" else 4096)
    wanted = config.dit.level.get("pooled_width")
    assert (wanted is not None) == isinstance(encoder, PooledCaptions)
    assert name != "dit_xl_2" or encoder.width == 1001
    if "fill" in config.dit.text and config.dit.text.fill:
        assert config.text.max_tokens == config.dit.text.fill
    assert sum(value.numel() for value in dit.parameters()) > 6e8


def test_captions_of_hunyuan_video_stand_in_its_makers_instruction():
    """Word for word as diffusers' pipeline has it, read from its source, which is quicker than to import it."""
    source = Path(diffusers.__file__).parent / "pipelines/hunyuan_video/pipeline_hunyuan_video.py"
    (assigned,) = (
        node
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEFAULT_PROMPT_TEMPLATE"
    )
    expected = ast.literal_eval(assigned.value)
    states = compose("train", ["experiment=finetune", "text=hunyuan_video", "data.folders=[x]", "vae=y"]).config.text.states
    assert (states.template, states.crop) == (expected["template"], expected["crop_start"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hunyuan_video", "flux_dev"])
def test_a_vector_stored_as_a_row_is_the_vector_that_the_network_is_told(name, monkeypatch):
    """Packed as captions are, with room to spare, parted by the text module: the same predictions as from words and vectors by hand."""
    dit, _, _, _, clips = pair(name)
    expected = ours_of(dit, clips)
    rows = [torch.cat((torch.nn.functional.pad(clip.pooled, (0, TEXT - POOLED))[None], clip.words)) for clip in clips]
    packed = pack_text([row.detach() for row in rows], budget=40, max_clips=len(clips) + 1)
    monkeypatch.setattr("tests.dit.published.test_parity.TextTokens", lambda *_: PooledText(POOLED)(packed))
    for found, wanted in zip(ours_of(dit, clips), expected, strict=True):
        assert apart(found, wanted) <= 2e-6


def test_a_vector_of_another_width_is_refused_by_its_key():
    level = level_and_pooled(8, 4, waves=4, pooled_width=6, guidance=None)
    for pooled, given in ((None, "none"), (torch.zeros(1, 5), "5")):
        text = TextTokens(torch.zeros(1, 4), Segments.of([1]), pooled)
        with pytest.raises(ValueError, match=rf"vector of 6 numbers.*dit\.level\.pooled_width.*gives {given}.*text=flux"):
            level(torch.zeros(1), torch.zeros(1, dtype=torch.int64), text)


def test_the_first_and_last_step_are_told_by_their_numbers():
    """Level n / 1000 is step n - 1; data, before the first, is told as the first."""
    seen = []
    for before in (0, 1):
        config = OmegaConf.create({"_target_": "sora.dit.published_level", "waves": 4, "before": before})
        module = build(config)(8, 4)
        module.time.forward = lambda numbers: seen.append(numbers) or numbers[:, None]
        module(torch.tensor([0.0, 0.001, 0.25, 1.0]), torch.zeros(4, dtype=torch.int64), TextTokens(torch.zeros(0, 4), Segments.of([0])))
    torch.testing.assert_close(seen[0], torch.tensor([0.0, 1, 250, 1000]), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[1], torch.tensor([0.0, 0, 249, 999]), atol=1e-4, rtol=0)
