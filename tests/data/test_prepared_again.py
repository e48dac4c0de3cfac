"""A prepare that is stopped, killed or shared by parts: it goes on, and ends in the bytes of one that was not."""

import os
import signal
from functools import partial

import pytest

from sora import prepare
from sora.config.compose import compose
from sora.data.index.index import DATASET
from sora.data.index.units import WHOLE, JobPart, Units
from sora.ingest import preparing
from sora.ingest.clip_texts import WORDS
from sora.ingest.preparing import keep
from sora.ingest.sources import FolderSource
from sora.system.guarded_pool import in_order
from tests.data.making import counting, muxed
from tests.data.preparing import QUIET, prepared, source


class Counted:
    """`in_order`, that counts what is made and stops by an error after some of it."""

    def __init__(self, most=None, workers=0):
        self.made, self.most, self.workers = 0, most, workers

    def __call__(self, function, items):
        for done in in_order(function, items, workers=self.workers, seconds=60, memory_gb=64):
            if isinstance(done.item, preparing._Step):
                if self.made == self.most:
                    raise KeyboardInterrupt
                self.made += 1
            yield done


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_call_that_is_stopped_goes_on_and_ends_in_the_same_bytes(tmp_path, videos, after):
    (videos / "page.mp4").write_text("<html>")
    made = partial(source, held_out=0.3, held_out_by="window")
    prepared(tmp_path / "whole", made(), folder=videos)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "out", made(), folder=videos, run=Counted(after))
    assert (tmp_path / "out").exists() == (after > 0)
    rest = Counted()
    prepared(tmp_path / "out", made(), folder=videos, run=rest)
    assert rest.made == 3 - after
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_what_a_call_had_joined_by_other_settings_is_no_part_of_the_next(tmp_path, videos, monkeypatch):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(preparing, "write_json", dies)
        prepared(tmp_path / "out", source(frames=5), folder=videos)
    assert (tmp_path / "out/video-000000.tar").exists()
    (tmp_path / "out/video-000001.tar").touch()
    prepared(tmp_path / "out", folder=videos)
    prepared(tmp_path / "whole", folder=videos)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_file_that_changed_meanwhile_is_made_anew(tmp_path, videos):
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "out", folder=videos, run=Counted(2))
    about = (videos / "a.mp4").stat()
    (videos / "a.mp4").write_bytes(muxed(counting(18), **QUIET))
    os.utime(videos / "a.mp4", ns=(about.st_atime_ns, about.st_mtime_ns))
    index, _, _ = prepared(tmp_path / "out", folder=videos)
    assert sum(index.row(number).source == "a.mp4" for number in range(len(index))) == 2


def test_parts_make_each_file_once_and_are_joined_to_the_same_bytes(tmp_path, videos):
    made = partial(source, held_out=0.3, held_out_by="window")
    prepared(tmp_path / "whole", made(), folder=videos)
    counts = []
    for number in (2, 0):  # the job of number 1 never ran
        run = Counted()
        with Units(tmp_path / "out", part=JobPart(number, 3), mark=DATASET, doing="preparing") as units:
            keep(made().job(folder=str(videos), captions=None, words=WORDS, count=None, run=run), units, run=run)
        counts.append(run.made)
    rest = Counted()
    prepared(tmp_path / "out", made(), folder=videos, run=rest)
    assert [*counts, rest.made] == [1, 1, 1]
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_the_most_clips_are_the_first_whatever_was_kept(tmp_path, videos):
    few, rest = Counted(), Counted()
    index, _, _ = prepared(tmp_path / "few", folder=videos, count=4, run=few)
    assert (len(index), few.made) == (4, 1)  # no file is made that no clip is taken of
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "out", folder=videos, run=Counted(2))
    again, _, _ = prepared(tmp_path / "out", folder=videos, count=4, run=rest)
    assert ([*again.keys], rest.made) == ([*index.keys], 0)


class Deadly(FolderSource):
    harmless = False

    def _make(self, unit):
        if unit.file == "c.webm" and not self.harmless:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._make(unit)


@pytest.mark.slow
def test_a_file_that_kills_its_process_is_named_and_tried_again_by_the_next_call(tmp_path, videos, monkeypatch):
    made = source()
    made.__class__ = Deadly
    guarded = Counted(workers=1)
    with Units(tmp_path / "out", part=WHOLE, mark=DATASET, doing="preparing") as units:
        kept, refused = keep(made.job(folder=str(videos), captions=None, words=WORDS, count=None, run=guarded), units, run=guarded)
        assert (len(kept), refused) == (3, [])
        told = units.records(kept[2].identity)
    assert "crashed" in told[0]["refused"]["reason"]
    monkeypatch.setattr(Deadly, "harmless", True)
    rest = Counted()
    index, report, _ = prepared(tmp_path / "out", made, folder=videos, run=rest)
    assert (rest.made, len(index), report["refused"]) == (1, 9, [])


@pytest.mark.parametrize(("made", "read"), [("in/out", "in"), ("link/out", "in"), ("in", "in/videos"), (".", "in")])
def test_what_is_made_and_what_it_is_made_of_do_not_lie_in_one_another(made, read, tmp_path, monkeypatch):
    (tmp_path / "in" / "videos").mkdir(parents=True)
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"output={made} lies within input={read}|input={read} lies within output={made}"):
        prepare.main(compose("prepare", [f"input={read}", f"output={made}"]))
    assert not (tmp_path / "in" / "out").exists()
