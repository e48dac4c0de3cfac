"""Files are known by the hashes that others know them by, read as tensors only, and refused by name where they do not fit."""

import subprocess

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sora.metrics.extractors.weights import fill, given_file, hashes, package_file, read_state


def test_hashes_are_those_of_sha256_and_of_git(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    found = hashes(tmp_path / "a")
    assert found.blob == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert found.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    large = tmp_path / "b"
    large.write_bytes(bytes(range(256)) * 5000)  # more than one part
    git = subprocess.run(["git", "hash-object", "--no-filters", large], capture_output=True, text=True, check=True)
    assert hashes(large).blob == git.stdout.strip()


def test_state_dicts_are_read_from_either_kind_and_cut_to_a_prefix(tmp_path):
    state = {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(2), "b.weight": torch.randn(1)}
    torch.save(state, tmp_path / "x.pt")
    save_file(state, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        found = read_state(tmp_path / name, prefix="a.")
        assert set(found) == {"weight", "bias"} and torch.equal(found["weight"], state["a.weight"])


class Runs:
    def __reduce__(self):
        return print, ("a weights file ran code",)


def test_a_file_that_would_run_something_or_is_no_state_dict_is_refused(tmp_path, capsys):
    torch.save({"weight": Runs()}, tmp_path / "evil.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    for name in ("evil.pt", "list.pt", "text.pt"):
        with pytest.raises(ValueError, match="no state dict"):
            read_state(tmp_path / name)
    assert "ran code" not in capsys.readouterr().out


def test_weights_that_do_not_fit_are_named(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    good = {name: value + 1 for name, value in network.state_dict().items() if "num_batches" not in name}
    fill(network, good, tmp_path)
    assert torch.equal(network[0].weight, good["0.weight"]) and not network.training and not network[0].weight.requires_grad
    for wrong, told in (
        ({**good, "0.weight": torch.zeros(2, 4)}, r"0\.weight has shape \(2, 4\), not \(2, 3\)"),
        ({name: value for name, value in good.items() if name != "0.bias"}, r"0\.bias is missing"),
        ({**good, "2.bias": torch.zeros(1)}, r"2\.bias is unknown"),
    ):
        with pytest.raises(ValueError, match=told):
            fill(network, wrong, tmp_path)


def test_what_is_not_there_says_what_to_get(tmp_path):
    for path, told in ((None, "extractor.path is not set"), (str(tmp_path / "no.pt"), "no.pt does not exist")):
        with pytest.raises(ValueError, match=f"{told}.*needs the file F.*set extractor.path=FILE"):
            given_file(path, wanted="the file F")
    with pytest.raises(ValueError, match="package no_such_package, which is not installed: pip install it"):
        package_file("no_such_package", "x", install="pip install it")
