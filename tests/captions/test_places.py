"""Where clips and work lie: behind a URL, in confined processes, in parts as jobs of an array; and what the page makes of it."""

from contextlib import closing

import pytest

from sora.captions.checks.checking import check_captions
from sora.captions.frames import FrameTaking
from sora.captions.taking import TakeFrames
from sora.data.index.index import Index
from sora.report.captions.page import write_page
from sora.report.captions.view import cause, view_of
from sora.system.guarded_pool import GuardedPool, Hold
from tests.captions.material import TAKING, Teller, captions, dataset, job, quiet, serial
from tests.captions.test_checks import checks
from tests.data.shards.test_stores import Server, here


def confined(function, items):
    with closing(GuardedPool(1, Hold(seconds=30.0, memory_gb=4.0))) as pool:
        yield from pool.as_done(function, items)


@pytest.mark.slow
def test_a_dataset_behind_a_url_is_captioned_alike_and_nothing_of_it_is_copied(tmp_path):
    """The processes that decode open no connection: they are given the bytes."""
    far = dataset(tmp_path / "far", 5)
    server = Server(tmp_path / "far")
    try:
        near = Index.open(here(server, tmp_path / "near").folder, sets=[])
        job(near, Teller(), tmp_path / "work", engine=confined).run(quiet)
    finally:
        server.close()
    job(far, Teller(), tmp_path / "work2").run(quiet)
    assert captions(tmp_path / "near") == captions(tmp_path / "far") and len(captions(tmp_path / "far")) == 5
    assert not list((tmp_path / "near").rglob("*.tar")) and not list((tmp_path / "work").rglob("*.tar"))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file() and path.suffix not in (".parquet", ".answers")]


def view(tmp_path, **more):
    index = dataset(tmp_path / "set", 6)
    made = job(index, Teller(wrong={"clip002"}), tmp_path / "work", **more)
    made.run(quiet)
    check_captions(index, made.rows, made.shards, checks(dense_words=(0, 80)))

    def take(rows):
        found = TakeFrames(index, FrameTaking(**TAKING), even=False)
        return ((one.item[0], one.result) for one in serial(found, [(row, None) for row in rows]))

    return view_of(index, made.rows, take, title="t", captioner="teller")


def test_the_page_adds_up_and_shows_old_beside_new(tmp_path):
    found = view(tmp_path, passes=2)
    assert (found.clips, found.captioned, found.requests) == (6, 5, 12)
    assert found.failures == {"it may not be seen": 1} and found.failed[0][0] == "clip002"
    assert (found.tokens_in, found.tokens_out) == (2 * (5 * 10 + 5), 2 * 5 * 2)
    shown = [*found.worst, *found.plain]
    assert len(shown) == 5 and {one.key for one in shown} == {f"clip{number:03d}" for number in (0, 1, 3, 4, 5)}
    for one in shown:
        assert one.old == [("original, original", f"number {int(one.key[4:])}")] and one.short.startswith("mean ") and one.frames
        assert one.second.endswith("pass 1")
    assert {(one.captioner, one.kind, len(one.lengths)) for one in found.words} == {
        ("original", "original", 5), ("teller", "short", 5), ("teller", "dense", 5),
    }  # fmt: skip
    found.commands = ["sora train x"]
    write_page(tmp_path / "page.html", found)
    text = (tmp_path / "page.html").read_text()
    for words in ("number 3", "it may not be seen", "sora train x", "Worst first" if found.worst else "Without a flag", "clip002"):
        assert words in text
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org", "")


def test_the_gravest_flag_comes_first(tmp_path):
    from sora.report.captions.view import _grade

    rows = [{"flags": flags} for flags in (["repaired"], ["too_short", "repaired"], ["refusal"], ["refusal", "repaired"], ["disagrees"])]
    ranked = sorted(rows, key=_grade, reverse=True)
    assert [row["flags"][0] for row in ranked] == ["refusal", "refusal", "disagrees", "too_short", "repaired"]
    assert ranked[0]["flags"] == ["refusal", "repaired"]


def test_failures_are_counted_by_cause_and_not_by_clip():
    assert (
        cause("dense has 1,050,000 characters, and 6,000 are the most")
        == cause("dense has 7,204 characters, and")
        == "dense has … characters"
    )
    assert cause("its frames could not be taken: clip a is cut") == "its frames could not be taken"
    assert cause("127.0.0.1:41373 answers 500 ('oops')") == cause("127.0.0.1:36101 answers 500") == "127.0.0.1:… answers 500"
