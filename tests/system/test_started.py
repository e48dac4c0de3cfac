"""Which of several processes one is: launchers are believed whole, and half of one, or two that differ, are refused by their variables."""

import os

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sora.system.started import PARENT, Started, rendezvous, started, starts_others

MEETING = {"MASTER_ADDR": "here", "MASTER_PORT": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x", **MEETING}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_PROCID": "3"}
STEP |= {"SLURM_LOCALID": "1"}


def open_mpi(rank, ranks, local, near):
    return {
        f"OMPI_COMM_WORLD_{name}": str(value)
        for name, value in zip(("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"), (rank, ranks, local, near), strict=True)
    }


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, Started()),
        ({"WORLD_SIZE": "1"}, Started()),
        ({"NODE_RANK": "0", **MEETING}, Started()),  # what some clouds set for everybody
        (TORCHRUN, Started(5, 8, 1, 4, "torchrun: WORLD_SIZE=8")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Started(0, 1, 0, 1, "torchrun: WORLD_SIZE=1")),
        (STEP, Started(3, 4, 1, 2, "srun: SLURM_STEP_NUM_TASKS=4")),
        # --ntasks without --ntasks-per-node
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_LOCALID": "3"}, Started(3, 4, 3, 4, "srun: SLURM_STEP_NUM_TASKS=4")),
        (BATCH, Started(allotted=4)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, Started(allotted=4)),  # a shell of salloc
        ({"SLURM_JOB_ID": "7"}, Started()),
        # two of the job's four tasks; an interactive shell of one
        (
            {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_PROCID": "1"},
            Started(1, 2, 1, 2, "srun: SLURM_STEP_NUM_TASKS=2"),
        ),
        ({**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, Started(0, 1, 0, 1, "srun: SLURM_STEP_NUM_TASKS=1")),
        ({**STEP, **TORCHRUN}, Started(5, 8, 1, 4, "torchrun: WORLD_SIZE=8")),  # one torchrun on each node, by srun
        ({**STEP, "WORLD_SIZE": "4"}, Started(3, 4, 1, 2, "srun: SLURM_STEP_NUM_TASKS=4")),  # scripts export it for others
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"}, Started(3, 4, 1, 2, "srun: SLURM_STEP_NUM_TASKS=4")),  # srun --mpi=pmi2
        ({**BATCH, **open_mpi(1, 2, 1, 2), **MEETING}, Started(1, 2, 1, 2, "mpirun: OMPI_COMM_WORLD_SIZE=2")),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", **MEETING},
            Started(1, 2, 0, 1, "mpiexec: PMI_SIZE=2"),
        ),
        (open_mpi(0, 1, 0, 1), Started(0, 1, 0, 1, "mpirun: OMPI_COMM_WORLD_SIZE=1")),
    ],
)
def test_a_launcher_is_believed_within_its_own_processes(said, found):
    assert started(said) == found


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"RANK": "1"}, r"RANK=1 is set, but not WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE.*unset RANK"),
        ({"RANK": "0"}, "RANK=0 is set, but not WORLD_SIZE"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 is set, but not RANK, WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2", **MEETING}, "but not LOCAL_RANK, LOCAL_WORLD_SIZE"),
        ({key: value for key, value in TORCHRUN.items() if key != "MASTER_PORT"}, "there is no MASTER_PORT"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8, number 1 of 4"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "does not fit"),
        ({**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no whole number"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK='-1' is no whole number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but no launcher said which RANK"),
        ({**STEP, "WORLD_SIZE": "2"}, "WORLD_SIZE=2, but srun: SLURM_STEP_NUM_TASKS=4 started 4"),
        ({**STEP, "RANK": "0", "WORLD_SIZE": "1"}, "RANK=0 of WORLD_SIZE=1, but srun: SLURM_STEP_NUM_TASKS=4 has this process as 3 of 4"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "starts 3,1 tasks on its nodes.*--ntasks-per-node"),
        ({**BATCH, "SLURM_PROCID": "1"}, "SLURM_PROCID=1, but no SLURM_STEP_ID"),
        (open_mpi(1, 2, 1, 2), "mpirun: OMPI_COMM_WORLD_SIZE=2, but there is no MASTER_ADDR and no MASTER_PORT"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", **MEETING}, "PMI_RANK=1 PMI_SIZE=2 is set, but not MPI_LOCALRANKID"),
    ],
)
def test_what_contradicts_itself_is_refused_by_the_variables(said, told):
    with pytest.raises(ValueError, match=told):
        started(said)


def test_ranks_that_a_trainer_of_ours_starts_know_of_one_another_and_nobody_else_believes_it():
    launched = {"WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": "1", **MEETING}
    child, parent = {**launched, PARENT: f"{os.getppid()} 2"}, {PARENT: f"{os.getpid()} 2"}
    assert started(child) == Started(1, 2, 1, 2, "by the first of them") and not starts_others(child)
    assert started(parent) == Started(0, 2, 0, 2, "by the first of them") == started({**launched, **parent}) and starts_others(parent)
    with pytest.raises(ValueError, match="LOCAL_RANK=1"):
        started({**launched, PARENT: "1 2"})  # of a process that is gone


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("one", "one"),
        ("a1,b2", "a1"),
        ("gpu[07-09,12]", "gpu07"),
        ("gpu[3]", "gpu3"),
        ("r[1,4]n[01-02]", "r1n01"),
        ("x-[2-3]-ib,y", "x-2-ib"),
    ],
)
def test_the_tasks_of_a_step_meet_on_its_first_node_at_a_port_of_its_own(nodes, first):
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": nodes}
    address, port = rendezvous(job)
    assert address == first
    assert {port} & {rendezvous({**job, **other})[1] for other in ({"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "8"})} == set()
    assert rendezvous({**job, **MEETING}) == ("here", 1)


def test_torchrun_is_left_the_line_that_a_rank_ends_with_and_it_holds_no_credential(tmp_path, monkeypatch, capsys):
    from sora.cli import guarded

    def refuse() -> None:
        raise ValueError("bootstrap=10, and s3://me:hunter2@host/set, are no good")

    (tmp_path / "rank").mkdir()
    for name, value in {**TORCHRUN, "TORCHELASTIC_ERROR_FILE": str(tmp_path / "rank" / "error.json")}.items():
        monkeypatch.setenv(name, value)
    assert guarded("evaluate", refuse) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("sora evaluate (rank 5 on ") and "bootstrap=10" in told and "hunter2" not in told
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(tmp_path / "rank" / "error.json"))
    assert told in ChildFailedError("sora.evaluate", {5: failure}).format_msg().splitlines()[-2]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    assert guarded("evaluate", refuse) == 2  # nowhere to leave it is no error of its own
