"""The laws of attention and of the step on a GPU; elsewhere they are skipped by name."""

from pathlib import Path

import pytest
import torch

from tests.gpu import attention, step
from tests.gpu.record import Place

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")]
PLACE = Place("cuda", False, Path("."))


@pytest.mark.parametrize("name", attention.CASES)
@pytest.mark.parametrize("backend", ["attend", "varlen", "flex", "per_segment", "chunked"])
def test_attention_is_the_formula(name, backend):
    case = attention.CASES[name]
    if backend == "varlen" and (case.reach is not None or case.width % 8):
        pytest.skip("varlen knows no masks and no odd widths")
    torch._dynamo.reset()
    assert attention.wrong(attention.backends("cuda")[backend], case, "cuda") <= attention.TOLERANCE


@pytest.mark.parametrize("name", step.NETWORKS)
def test_a_step_is_that_of_float32_on_the_cpu(name):
    loss, gradient = step.wrong(PLACE, name)
    assert loss <= step.LOSS and gradient <= step.GRADIENT


@pytest.mark.parametrize("name", step.NETWORKS)
def test_a_step_never_waits_for_the_device(name):
    assert step.waited(PLACE, name) == ""
