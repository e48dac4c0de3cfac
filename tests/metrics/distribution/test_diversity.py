"""The Vendi score counts different samples; the inception score has its closed forms and agrees with torchmetrics' arithmetic."""

from math import exp, log

import pytest
import torch

from sora.metrics.distribution.diversity import inception_score, vendi_score

DRAW = torch.Generator().manual_seed(0)


def test_vendi_counts():
    assert vendi_score(torch.ones(7, 4)) == pytest.approx(1)
    assert vendi_score(torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.eye(4).repeat(5, 1)) == pytest.approx(4)  # copies add nothing
    assert vendi_score(3 * torch.eye(4).repeat(1, 2)) == pytest.approx(4)  # nor does scale


def test_vendi_is_the_entropy_of_the_kernel():
    for n, d in ((5, 9), (9, 5)):
        features = torch.randn(n, d, dtype=torch.float64, generator=DRAW)
        unit = features / features.norm(dim=1, keepdim=True)
        values = torch.linalg.eigvalsh(unit @ unit.T / n).clamp_min(1e-300)
        assert vendi_score(features) == pytest.approx(float((-(values * values.log()).sum()).exp()))


def test_vendi_refuses_what_has_no_direction():
    with pytest.raises(ValueError, match=r"those of clips \[1\] of 3 are"):
        vendi_score(torch.tensor([[1.0, 0], [0, 0], [0, 1]]))


def test_the_inception_score_in_closed_form():
    assert inception_score(torch.zeros(8, 5))[0] == pytest.approx(1)
    certain = 1000 * torch.eye(5).repeat(4, 1)
    assert inception_score(certain) == (pytest.approx(5), 0.0)
    two = torch.log(torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    assert inception_score(two)[0] == pytest.approx(exp(log(2) + 0.75 * log(0.75) + 0.25 * log(0.25)))


def test_the_inception_score_is_what_torchmetrics_computes():
    """Its arithmetic without its network: mean over splits of exp(mean KL)."""
    logits = torch.randn(60, 7, generator=DRAW) * 2
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    scores = []
    for part in logits[order].chunk(4):
        p = part.double().softmax(1)
        scores.append((p * (p.log() - p.mean(0, keepdim=True).log())).sum(1).mean().exp())
    mean, deviation = inception_score(logits, splits=4, seed=3)
    assert mean == pytest.approx(float(torch.stack(scores).mean()))
    assert deviation == pytest.approx(float(torch.stack(scores).std(unbiased=False)))
    with pytest.raises(ValueError, match="do not make 61 parts"):
        inception_score(logits, splits=61)
