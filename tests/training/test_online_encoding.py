"""A network that trains on stored videos sees what it would see of stored latents, whoever loads them and wherever a run is cut."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from sora import cli
from sora.assembly.data import diffusion_plan, online_encoder
from sora.assembly.training import diffusion_job
from sora.assembly.usual import asked_of_data, usual_of
from sora.config.compose import compose
from sora.data.index.index import Index
from sora.data.loading.loader import step_loader
from sora.data.loading.videos import VideoPack
from sora.parallel.mesh import AXES
from sora.runs import checkpoint, run
from sora.runs.jsonl import read
from sora.runs.run import open_run
from sora.system import files as storage
from sora.tokens import Batch
from sora.training.online_encoding import OnlineEncoder, share_encoding
from sora.vae import artefact
from sora.video.files import PYAV
from tests.data.making import flip
from tests.faults import terminated
from tests.trained import vae_artefact, world_dataset
from tests.training.groups import in_ranks
from tests.training.test_resume import lines

pytestmark = pytest.mark.slow
STEPS = 5
AREAS = "data.areas=[576,768]"  # the clips' own sizes
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("online")
    vae_artefact(folder / "vae")
    world_dataset(folder / "world", clips=24)
    assert cli.run("encode", [f"vae={folder}/vae", f"data={folder}/world", "text=byte", "threads=1"]) == 0
    return folder


def words(made: Path, *more: str, data: str = "videos") -> list[str]:
    areas = [AREAS] if data == "videos" else []
    given = [f"data={data}", f"data.folders=[{made}/world]", f"vae={made}/vae", "data.drop=0.3", "data.first_frame=0.5"]
    return ["experiment=toy", *given, *areas, "plan.budget=200", "trainer.threads=1", *more]


@cache
def config(*said: str):
    return compose("train", said).config


def planned(made: Path, *more: str, data: str = "videos"):
    found = diffusion_plan(config(*words(made, *more, data=data)))
    found.data.reader = PYAV  # the same without a process to start
    return found


def encoder(found) -> OnlineEncoder:
    return online_encoder(found, artefact.load(found.vae), near=1)


def clips_of(batch: Batch) -> dict[tuple[int, int], tuple]:
    """(patches, positions, conditions, text states) of each clip, by sample and epoch."""
    lengths = [grid.tokens for grid in batch.tokens.grids]
    bounds = batch.text.segments.cu_seqlens.tolist()
    columns = (batch.tokens.patches, batch.tokens.positions, batch.conditions)
    each = zip(*(column[: sum(lengths)].split(lengths) for column in columns), strict=True)
    return {
        (sample, epoch): (*clip, batch.text.states[bounds[place] : bounds[place + 1]])
        for place, (sample, epoch, clip) in enumerate(zip(batch.sample_ids, batch.epochs, each, strict=True))
    }


@pytest.mark.parametrize("text_cache", ["true", "false"])
def test_every_clip_is_what_it_is_as_stored_latents(made, text_cache):
    """By clip and epoch, as the two plans are of different columns; latents are stored as float16."""
    videos, latents = planned(made, f"data.text_cache={text_cache}"), planned(made, data="latents")
    encode, ours, theirs = encoder(videos), {}, {}
    frames, stored = videos.data.batches(videos.plan), latents.data.batches(latents.plan)
    step = -1
    while not len(ours) == len(theirs) == 12:
        step += 1
        ours |= {clip: found for pack in frames[step] for clip, found in clips_of(encode(pack, CPU)).items() if not clip[1]}
        theirs |= {clip: found for batch in stored[step] for clip, found in clips_of(batch).items() if not clip[1]}
    assert ours.keys() == theirs.keys()
    assert {len(found[3]) == 1 for found in ours.values()} == {True, False}, "some captions are dropped, some are not"
    assert any(found[2].any() for found in ours.values()) and not all(found[2].any() for found in ours.values())
    for clip, (patches, positions, conditions, states) in ours.items():
        assert torch.allclose(patches, theirs[clip][0], rtol=1e-3, atol=2e-3)
        for mine, other in zip((positions, conditions, states), theirs[clip][1:], strict=True):
            assert torch.equal(mine, other)


def test_clips_encoded_together_are_as_alone(made):
    found = planned(made)
    (pack,) = found.data.batches(found.plan)[0]
    together, alone = encoder(found), encoder(found)
    alone.batch = 1
    assert max(Counter(pack.shapes).values()) > 1
    assert torch.allclose(together(pack, CPU).tokens.patches, alone(pack, CPU).tokens.patches, atol=1e-5)


class Encodes(torch.nn.Module):
    def __init__(self, encode: OnlineEncoder) -> None:
        super().__init__()
        self.encode = encode


def fewer(pack: VideoPack, count: int) -> VideoPack:
    """The first clips of a pack."""
    size = sum(clip.numel() for clip in pack.frames[:count])
    columns = ("shapes", "fps", "captions", "given", "sample_ids", "epochs")
    return replace(pack, pixels=pack.pixels[:size], **{name: getattr(pack, name)[:count] for name in columns})


def held(value: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


@pytest.mark.parametrize(("sharded", "shared"), [("true", False), ("false", True), ("true", True)])
def test_ranks_that_share_the_vae_or_the_work_find_what_one_finds_alone(made, tmp_path, sharded, shared):
    """Ranks have other packs, the second less to do than the first; or the same pack, and encode different clips of it."""
    found = planned(made, f"data.shard_vae={sharded}", "data.vae_batch=1", "plan.packs=2")
    first, second = found.data.batches(found.plan)[0]
    packs = [first, fewer(second, len(first.shapes) - 3)]
    alone = [encoder(planned(made, "data.vae_batch=1"))(pack, CPU) for pack in packs]

    def work(rank: int) -> None:
        encode, encoded = encoder(found), []
        whole = sum(value.numel() for value in encode.vae.parameters())
        plain = type(encode.vae).posterior
        encode.vae.posterior = lambda frames: (encoded.append(frames.shape), plain(encode.vae, frames))[1]
        if shared:
            mesh = init_device_mesh("cpu", (1, 1, 1, 2), mesh_dim_names=AXES)
            share_encoding(Encodes(encode), mesh["context", "tensor"]._flatten("same_packs").get_group())
        for step, number in enumerate([0, 1] if shared else [rank]):
            batch = encode(packs[number], CPU)
            assert torch.equal(batch.tokens.patches, alone[number].tokens.patches), (rank, number, step)
        clips = sum(len(pack.shapes) for pack in packs) if shared else len(packs[rank].shapes)
        own = [shape for shape in encoded if tuple(shape[1:4]) != (1, *encode.vae.stride[1:])]
        assert (len(own) == clips) if not shared else abs(2 * len(own) - clips) <= 2
        kept = sum(held(value).numel() for value in encode.vae.parameters())
        assert kept == whole if sharded == "false" else kept < 0.6 * whole

    in_ranks(2, tmp_path, work)


def test_the_vae_is_no_part_of_what_trains(made, tmp_path):
    jobs = [diffusion_job(config(*words(made, data=data)), tmp_path) for data in ("videos", "latents")]
    online, stored = ({name: value.shape for name, value in job.task.named_parameters()} for job in jobs)
    assert online == stored
    assert jobs[0].task.state_dict().keys() == jobs[1].task.state_dict().keys()
    assert not any(value.requires_grad for value in jobs[0].task.encode.vae.parameters())


@pytest.mark.parametrize(
    ("plan", "ranks", "workers", "first"),
    [("packed", 1, 4, 0), ("packed", 4, 0, 2), ("packed", 2, 1, 1), ("bucketed", 2, 0, 2), ("padded", 2, 2, 1)],
)
def test_any_ranks_workers_and_cuts_load_the_same(made, plan, ranks, workers, first):
    def steps():
        found = planned(made, f"plan={plan}", "plan.packs=4", "plan.budget=120", "plan.window=2", "plan.max_clips=8")
        return found.data.batches(found.plan)

    def told(pack):
        return pack.sample_ids, pack.epochs, pack.shapes, pack.captions, pack.given, pack.pixels.numpy().tobytes()

    whole = steps()
    expected = [[told(pack) for pack in whole[step]] for step in range(first, 4)]
    for rank in range(ranks):
        loader = step_loader(steps(), first=first, last=4, workers=workers, ranks=ranks, rank=rank)
        assert [[told(pack) for pack in share] for share in loader] == [packs[rank::ranks] for packs in expected]


def test_a_clip_that_cannot_be_read_is_named_and_replaced(made, tmp_path):
    import shutil

    shutil.copytree(made / "world", tmp_path / "world")
    (tmp_path / "vae").symlink_to(made / "vae")
    index = Index.open(tmp_path / "world", "train")
    member = index.member(3)
    flip(tmp_path / "world" / member.shard, member.offset + member.size // 2)
    found = planned(tmp_path, "data.max_bad_share=0.1")
    steps = found.data.batches(found.plan, quarantine=tmp_path / "quarantine.jsonl")
    seen = Counter(sample for step in range(6) for pack in steps[step] for sample in pack.sample_ids)
    assert steps.quarantine.keys() == {member.key}
    clean = planned(made)
    batches = clean.data.batches(clean.plan)
    whole = {sample for step in range(6) for pack in batches[step] for sample in pack.sample_ids}
    assert len(whole - set(seen)) == 1 and not set(seen) - whole


def test_a_run_that_is_cut_and_resumed_is_bit_identical(made, tmp_path, capsys):
    run = (f"steps={STEPS}", "log_every=1", "checkpoint.every=100")
    assert cli.run("train", words(made, f"output={tmp_path}/whole", *run)) == 0
    with terminated(OnlineEncoder, "__call__", at=3):
        assert cli.run("train", words(made, f"output={tmp_path}/cut", "workers=2", *run)) == 128 + signal.SIGTERM
    assert cli.run("train", [f"resume={tmp_path}/cut", "reader.seconds=9"]) == 2
    assert "reader.seconds: 15 in the run, 9 now" in capsys.readouterr().err
    assert cli.run("train", [f"resume={tmp_path}/cut", "workers=0"]) == 0
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(read(tmp_path / "cut" / "metrics.jsonl")) == STEPS
    ends = [checkpoint.folder_of(tmp_path / name / "checkpoints", STEPS) for name in ("cut", "whole")]
    for name in ("model", "ema", "optimizer"):
        assert storage.file_hash(ends[0] / f"{name}.safetensors") == storage.file_hash(ends[1] / f"{name}.safetensors")


def test_sizes_are_on_the_ladder_and_told_before_the_run(made, capsys):
    capsys.readouterr()
    assert cli.run("plan", [word for word in words(made) if word != AREAS] + ["data.areas=[256,300000]", "plan.frames=5"]) == 0
    told = capsys.readouterr().out
    assert "a clip           5 to 5 frames" in told and "cut              12 clips to 5 frames" in told
    assert "sizes            16x16" in told and "24x" not in told.partition("sizes")[2].partition("steps")[0]
    found = planned(made, "data.areas=[256]", "plan.frames=5")
    packs = found.data.batches(found.plan)[0]
    assert {shape[0] for pack in packs for shape in pack.shapes} == {5}
    assert all(height * width <= 1.3 * 256 for pack in packs for _, height, width in pack.shapes)


@pytest.mark.parametrize(("said", "area", "rate"), [([AREAS], 576, 8), (["data.areas=[400,90000]", "data.rate=4"], 400, 4)])
def test_a_run_knows_what_it_was_trained_on_and_an_old_one_asks_its_data(made, tmp_path, said, area, rate):
    """Clips of one second, 9 frames at 8 a second and 5 at 4; of the plan's whole patches 24x24 is the nearest to an area of 400, too."""
    found = planned(made, *said)
    usual = usual_of(found, stride=artefact.load(found.vae).stride)
    assert (usual["fps"], usual["seconds"]) == (rate, (9 / 8, 5 / 4)[rate == 4]) and usual["area"] == 576
    told = OmegaConf.to_yaml(config(*words(made), *said))
    run.create(tmp_path / "old", config=told, info={"kind": "diffusion", "depends": {"data": found.data.fingerprint}})
    assert asked_of_data(open_run(tmp_path / "old")) == {**usual, "area": area}
