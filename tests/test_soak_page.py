"""What docs/checkpoints.md says of the long soak is what its file holds, and in that nothing grew."""

import json

from experiments import soak_page
from tests.training.soak_long import GROWTH, STEPS


def test_the_page_says_what_the_file_says_and_nothing_grew():
    found = json.loads(soak_page.FOUND.read_text(encoding="utf-8"))
    match = soak_page.BETWEEN.search(soak_page.PAGE.read_text(encoding="utf-8"))
    assert match is not None and match[0] == f"{match[1]}{soak_page.section(found)}{match[2]}", "run: python experiments/soak_page.py"
    assert (found["steps"], found["code"], found["left_behind"]) == (STEPS, 0, 0) and soak_page.PLOT.is_file()
    figures = found["figures"]
    for name, most in GROWTH.items():
        assert figures[f"{name}_last"] <= figures[f"{name}_first"] * (1 + most), name
