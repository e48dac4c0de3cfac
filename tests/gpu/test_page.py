"""What the documents say of GPUs follows from the file of the check, and from nothing else."""

import json

import pytest

from experiments import gpu_page
from tests.gpu.sections import SECTIONS


def test_pages_say_what_the_file_says():
    for path, text in gpu_page.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"run: python {gpu_page.__name__.replace('.', '/')}.py"


def test_every_section_is_told():
    assert list(gpu_page.SECTIONS) == [section.name for section in SECTIONS]


@pytest.mark.parametrize("status", ["ran", "failed", "cut off", "not run"])
def test_a_page_claims_no_more_than_ran(status):
    sections = {name: {"status": status, "why": "no memory" if status == "failed" else "", "seconds": 1.0} for name in gpu_page.SECTIONS}
    about = {"when": "2026-11-30", "device": "a GPU", "commit": "c" * 40, "versions": {"torch": "2.11", "cuda": "13", "python": "3.12"}}
    found = {"figures": {"speed_mfu_xl_2_save_attention": 0.41, "vae_gb": None}, "sections": sections, **about}
    text, said = gpu_page.page(json.loads(json.dumps(found))), gpu_page.sentence(found, link="docs/gpu.md")
    assert text.count(f"| {status}") == len(sections)
    assert ("0.41" in text) and ("not known" in text)
    assert ("ran: nothing" in said) == (status != "ran")
    assert "has run on a GPU" not in said


def test_without_a_file_nothing_is_claimed():
    assert "**Not run.**" in gpu_page.page(None) and gpu_page.page(None).count("| not run |") == len(gpu_page.SECTIONS)
    assert "Nothing here has run on a GPU" in gpu_page.sentence(None, link="docs/gpu.md")
