"""Several processes do each number once and all know all of it; which process one is, is what its launcher says."""

import pytest

from sora.evaluation.sharing import Share, share_of
from tests.training.groups import in_ranks


def of_one(number):
    """Plain JSON, of a length of its own: what a rank says is as long as it is, and no number is rounded."""
    return {"number": number, "third": number / 3, "text": "größer \x00 " * number, "rest": [None, True, {"a": []}]}


@pytest.mark.slow
@pytest.mark.parametrize("total", [0, 1, 5])
def test_rows_are_those_of_one_process_and_nothing_is_left_behind(tmp_path, total):
    done = tmp_path / "done"
    done.mkdir()

    def work(rank):
        def of(number):
            (done / f"{number}-{rank}").touch()
            return of_one(number)

        rows = Share(rank, 3).rows(total, of)
        assert rows == Share().rows(total, of_one)

    in_ranks(3, tmp_path, work)
    assert sorted(path.name.partition("-")[0] for path in done.iterdir()) == [str(number) for number in range(total)]
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"done", "store"}


def test_every_number_is_somebodys():
    assert sorted(number for rank in range(4) for number in Share(rank, 4).mine(11)) == list(range(11))


def test_launchers_are_believed_only_within_a_step():
    assert share_of({}) == Share(0, 1)
    assert share_of({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}) == Share(3, 8, 1)
    assert share_of({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "1"}) == Share(2, 4, 0)
    assert share_of({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Share(0, 1)  # the batch script itself
