"""What was started against what a trainer lays out: whatever differs is refused before a step, by the key and the value that fit."""

import os
from functools import partial

import pytest
import torch

from sora import cli
from sora.config.build import build
from sora.config.compose import compose
from sora.parallel.mesh import MeshStrategy
from sora.system.started import PARENT
from sora.training import launching, trainers
from tests.system.test_started import BATCH, MEETING, STEP, TORCHRUN

CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
TWO = {**TORCHRUN, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", PARENT)


@pytest.fixture
def told(monkeypatch):
    """Lays a trainer out under a launcher's variables and seats it: the line that is told, or the error."""
    monkeypatch.setattr(launching, "own", lambda: True)
    monkeypatch.setattr(launching.rank_zero_only, "rank", 0)

    def lay(words, said):
        for name in [name for name in os.environ if name.startswith("SLURM_") or name in (*VARIABLES, *MEETING)]:
            monkeypatch.delenv(name)
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        trainer = build(compose("train", words).config.trainer)(callbacks=[])
        launching.take_seats(trainer)
        return launching.told(trainer)

    yield lay
    os.environ.pop(PARENT, None)


@pytest.mark.parametrize(
    ("words", "said", "line"),
    [
        ([], {}, "training in 32-true: one process on one CPU"),
        (["trainer=cpu"], {}, "training in 32-true: one process on one CPU"),
        (["trainer.precision=bf16-mixed"], {}, "training in bf16-mixed: one process on one CPU"),
        ([], TWO, r"32-true: 2 ranks \(torchrun: WORLD_SIZE=2\) on 1 x 2 CPUs as trainer=ddp of replicate 2"),
        ([], STEP, r"32-true: 4 ranks \(srun: SLURM_STEP_NUM_TASKS=4\) on 2 x 2 CPUs as trainer=ddp of replicate 4"),
        (["trainer=fsdp", *CPU], STEP, "4 ranks .* on 2 x 2 CPUs as a mesh of shard 4"),
        (["trainer=cp", "trainer.context=2", *CPU], STEP, "as a mesh of replicate 2 x context 2"),
        (["trainer=ddp", *CPU], {}, "1 rank .*one rank"),
        (["trainer=ddp", "trainer.devices=2", *CPU], {}, r"2 ranks \(by the first of them\) on 1 x 2 CPUs"),
        (["trainer=ddp", "trainer.devices=4", *CPU], BATCH, r"4 ranks \(by the first of them\)"),
        (["trainer.devices=2"], {}, r"2 ranks \(by the first of them\)"),
    ],
)
def test_what_fits_is_told_in_a_line(told, words, said, line):
    import re

    assert re.search(line, told(words, said))
    assert launching.rank_zero_only.rank == int(said.get("RANK", said.get("SLURM_PROCID", 0)))


@pytest.mark.parametrize(
    ("words", "said", "why"),
    [
        (
            ["trainer=cpu"],
            TWO,
            "2 ranks were started .*WORLD_SIZE=2.*, but trainer=cpu lays out 1 rank; trainer=ddp trainer.accelerator=cpu",
        ),
        (["trainer=cpu"], STEP, "4 ranks were started .*SLURM_STEP_NUM_TASKS=4.*trainer=cpu.*trainer=ddp"),
        (["trainer=cpu"], BATCH, "SLURM_NTASKS=4, this process was started without srun.*SLURM_NTASKS=1 before"),
        (
            [],
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},
            "SLURM_NTASKS=2, this process was started without srun.*start the ranks with srun",
        ),
        (
            ["trainer=ddp", "trainer.devices=8", *CPU],
            TWO,
            "trainer.devices=8 x trainer.nodes=1 lays out 8 ranks; set trainer.devices=2 trainer.nodes=1",
        ),
        (["trainer=ddp", "trainer.devices=4", "trainer.nodes=1", *CPU], STEP, "set trainer.devices=2 trainer.nodes=2, or null"),
        (["trainer.devices=1"], TWO, "trainer=cpu lays out 1 rank"),
        (["trainer=hsdp", *CPU], TWO, "has 8 ranks, but 2 are trainer.devices=2 x trainer.nodes=1"),
        (
            ["trainer=ddp", "trainer.devices=2", *CPU],
            {"RANK": "0", "WORLD_SIZE": "1"},
            "1 rank was started .*torchrun --standalone --nproc-per-node=2",
        ),
        (["trainer=ddp", "trainer.devices=2", "trainer.nodes=2", *CPU], {}, "on 2 nodes, and only this process was started"),
        (["trainer.devices=0"], {}, "trainer.devices=0"),
        (["trainer=ddp", "trainer.devices=-1", *CPU], {}, "trainer.devices=-1"),
        ([], {"RANK": "1"}, "RANK=1 is set, but not WORLD_SIZE"),
    ],
)
def test_what_was_started_otherwise_is_refused_by_key(told, words, said, why):
    with pytest.raises(ValueError, match=why):
        told(words, said)
    assert PARENT not in os.environ


def test_a_process_that_is_not_our_command_starts_no_others(told, monkeypatch):
    monkeypatch.setattr(launching, "own", lambda: False)
    with pytest.raises(ValueError, match="torchrun --standalone --nproc-per-node=2"):
        told(["trainer=ddp", "trainer.devices=2", *CPU], {})


def test_idle_gpus_are_told_and_too_few_are_refused(told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert told(["trainer=cpu"], {}).endswith("; 4 GPUs of this machine lie idle: trainer=auto trains on one")
    assert told(["trainer=ddp", *CPU], TWO).endswith("4 GPUs of this machine lie idle: trainer=auto trains on one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trainers.present() == "gpu" and trainers.numerics(None) == {"precision": "bf16-mixed", "deterministic": False}
    with pytest.raises(ValueError, match=r"8 ranks of a machine need 8 GPUs, and torch sees 4.*trainer\.devices"):
        told(["trainer=ddp", "trainer.devices=8"], {})


def test_a_priced_mesh_is_not_that_of_this_machine(told, monkeypatch):
    told([], TWO)
    node = compose("plan", ["trainer=fsdp", *CPU]).config.trainer
    made = partial(build(node), devices=8, nodes=64)(callbacks=[])
    assert isinstance(made.strategy, MeshStrategy) and made.strategy.sizes.ranks == 512


@pytest.mark.parametrize(
    "words", [["train", "launcher=slurm"], ["train", "-m"], ["prepare", "input=a"], ["sample", "checkpoint=a", "prompt=b"]]
)
def test_work_of_one_process_is_refused_to_several(told, capsys, tmp_path, monkeypatch, words):
    told([], TWO)
    monkeypatch.chdir(tmp_path)
    given = ["output=o", "vae=v", "data.folders=[w]"] if words[0] == "train" else ["output=o"]
    assert cli.run(words[0], [*words[1:], *given]) == 2
    said = capsys.readouterr().err
    assert f"2 ranks were started (torchrun: WORLD_SIZE=2), and sora {words[0]}" in said and not list(tmp_path.iterdir())


def test_a_part_of_the_work_may_be_each_ranks_own(told):
    told([], TWO)
    cli.refuse_ranks("sora encode", part=[0, 2])
    with pytest.raises(ValueError, match="part="):
        cli.refuse_ranks("sora encode")
