"""What is counted of a step is what lies in memory, is computed and is sent: against closed forms and torch's own allocator."""

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sora.cost.tally import CostCounter


@pytest.fixture(scope="module", autouse=True)
def _no_others_garbage():
    """A tally searches all objects for garbage, again and again: those of other tests take seconds, and are none of its."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def linear_step(size: int = 64) -> tuple[CostCounter, nn.Module]:
    with CostCounter() as tally:
        net, x = nn.Linear(size, 3 * size, bias=False), torch.ones(5, size)
        tally.restart()
        net(x).square().sum().backward()
    return tally, net


def test_bytes_come_and_go_with_their_tensors():
    with CostCounter() as tally:
        first = torch.zeros(10, 3)
        assert tally.alive == 120
        view, copy = first[:5], first.clone()
        assert tally.alive == 240, view.shape
        del first, view
        assert tally.alive == 120
        copy.untyped_storage().resize_(0)
        assert (tally.alive, tally.largest) == (0, 240)
        copy.untyped_storage().resize_(60)
        assert tally.alive == 60
    assert torch.UntypedStorage.resize_ is not None
    tensor = torch.zeros(4)
    tensor.untyped_storage().resize_(0)  # as torch has it again
    assert tally.alive == 60


@pytest.mark.slow
def test_numbers_or_none_it_counts_the_same():
    real, _ = linear_step()
    with FakeTensorMode():
        fake, net = linear_step()
        assert type(net.weight.data).__name__ == "FakeTensor"
    assert (fake.alive, fake.largest, fake.flops) == (real.alive, real.largest, real.flops)


@pytest.mark.slow
def test_products_are_those_of_torchs_counter():
    tally, _ = linear_step()
    with FlopCounterMode(display=False) as counter:
        linear_step()
    assert tally.flops == counter.get_total_flops() == 2 * 2 * 5 * 64 * 192  # forwards, and for the weight; nobody wants that of x


def test_what_the_host_knows_stays_known():
    known = torch.tensor([0, 3, 7])
    with FakeTensorMode(allow_non_fake_inputs=True), CostCounter():
        assert known.diff().tolist() == [3, 4]
        assert int(torch.tensor([5, 6])[1]) == 6
        assert torch.zeros(3)[known.clamp(max=2)].shape == (3,)


def test_a_step_that_asks_for_a_number_goes_on():
    with FakeTensorMode(), CostCounter():
        assert torch.ones(2).sum().item() == 0
    with pytest.raises(Exception, match="local_scalar_dense"), FakeTensorMode():
        torch.ones(2).sum().item()
