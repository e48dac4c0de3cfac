"""What ranks agree on before they train."""

import pytest
import torch

from sora.system import distributed as ranks
from tests.training.groups import in_ranks


def test_ranks_that_were_given_different_things_are_told_what_and_where(tmp_path):
    def work(rank: int) -> None:
        facts = {"the configuration": "seed: 0", "the code": "abc", "data": "x"}
        ranks.require_same(facts, torch.device("cpu"))
        facts |= {"the code": "abd" if rank == 2 else "abc", "data": "y" if rank else "x"}
        with pytest.raises(ValueError, match=r"the code on rank 2; data on rank 1, 2\. Start"):
            ranks.require_same(facts, torch.device("cpu"))
        assert ranks.highest([0, 15, 10][rank], torch.device("cpu")) == 15

    in_ranks(3, tmp_path, work)


def test_one_process_agrees_with_itself():
    ranks.require_same({"a": "b"}, torch.device("cpu"))
    assert ranks.highest(10, torch.device("cpu")) == 10
    ranks.together()
