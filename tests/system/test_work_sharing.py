"""Several processes do each number once and all know all of it."""

import pytest

from sora.system.locks import alone_in
from sora.system.work_sharing import Share
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


@pytest.mark.slow
def test_what_the_first_sees_holds_for_all_and_a_folder_that_another_holds_is_refused_by_all_before_any_goes_on(tmp_path):
    """Two evaluations into one folder: ranks that did not ask for the lock wrote beside the one that holds it."""
    held, free = tmp_path / "held", tmp_path / "free"

    def work(rank):
        share = Share(rank, 3)
        assert share.of_first([rank, "ü"]) == [0, "ü"] and share.of_first(None if rank == 0 else rank) is None
        with share.held:
            share.hold(free)
            assert (free / ".lock").exists()
            with pytest.raises(ValueError, match=f"another process .* is evaluating into {held}"):
                share.hold(held)
                (held / f"written-{rank}").touch()
            share.together()

    with alone_in(held, "evaluating into"):
        in_ranks(3, tmp_path, work)
        assert [path.name for path in held.iterdir()] == [".lock"]


def test_every_number_is_somebodys():
    assert sorted(number for rank in range(4) for number in Share(rank, 4).mine(11)) == list(range(11))
