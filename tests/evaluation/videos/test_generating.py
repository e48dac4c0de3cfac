"""Clips are made once, whatever stops the command, on however many processes, and have the bits that they would have had."""

import hashlib
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sora.evaluation.videos.generating import check_vbench, export, generate, identities, packs_of
from sora.generation.generator import Request
from sora.system.work_sharing import Share
from sora.video.files import read
from tests.faults import Countdown, die, in_child, injected
from tests.training.groups import in_ranks

SIZES = [(5, 8, 8), (1, 16, 8), (5, 8, 16), (9, 8, 8), (5, 8, 8), (1, 8, 8), (5, 16, 16)]
REQUESTS = [Request(f"a thing {number % 3}", *size, fps=8.0, seed=0, sample=number) for number, size in enumerate(SIZES)]
ABOUT = {"checkpoint": {"hashes": {"checkpoint": "ab"}}, "steps": 2}


class Pixels:
    """A generator whose clips hang on everything in their pack, as rounding makes those of a real one. made: prompts so far."""

    token_budget = 640

    def __init__(self):
        self.made = []
        self.vae = SimpleNamespace(latent_shape=lambda *size: size)
        self.patchifier = SimpleNamespace(grid=lambda *size: SimpleNamespace(tokens=size[0] * size[1] * size[2]))

    def generate(self, requests, *, progress):
        progress(1, 1)
        self.made += [request.sample for request in requests]
        pack = repr([(request.prompt, request.sample) for request in requests])
        found = []
        for request in requests:
            seed = int.from_bytes(hashlib.sha256(f"{pack}{request.sample}".encode()).digest()[:4], "big")
            draw = np.random.default_rng(seed).integers(0, 256, (request.frames, request.height, request.width, 3), dtype=np.uint8)
            found.append(torch.from_numpy(draw))
        return found


def made(folder, requests=REQUESTS, share=Share(), about=ABOUT, generator=None):  # noqa: B008  a value
    given = {"folder": folder, "about": about, "share": share, "progress": lambda done, total: None}
    return generate(generator or Pixels(), requests, **given)


def contents(videos):
    return [path.read_bytes() for path in videos.paths]


def test_a_file_holds_the_very_pixels(tmp_path):
    videos = made(tmp_path)
    packs = packs_of([height * width * frames for frames, height, width in SIZES], Pixels.token_budget)
    for pack in packs:
        wanted = Pixels().generate([REQUESTS[number] for number in pack], progress=lambda done, total: None)
        for number, frames in zip(pack, wanted, strict=True):
            assert (videos.read(number, 0, len(frames)) == frames.numpy()).all() and videos.prompt(number) == REQUESTS[number].prompt
    assert (videos.read(3, 2, 4) == videos.read(3, 0, 9)[2:6]).all()


def test_nothing_is_made_twice_and_more_clips_change_none_of_the_full_packs(tmp_path):
    few, generator = made(tmp_path, REQUESTS[:5]), Pixels()
    assert contents(made(tmp_path, REQUESTS[:5], generator=generator)) == contents(few) and generator.made == []
    more = made(tmp_path, generator=generator)
    packs = packs_of([height * width * frames for frames, height, width in SIZES[:5]], Pixels.token_budget)
    kept = sum(map(len, packs[:-1]))
    assert kept and contents(more)[:kept] == contents(few)[:kept] and min(generator.made) == kept
    whole = made(tmp_path / "anew")
    assert contents(whole) == contents(more) and [path.name for path in whole.paths] == [path.name for path in more.paths]


@pytest.mark.parametrize("change", ["about", "seed", "prompt", "size", "negative"])
def test_other_clips_have_other_files(tmp_path, change):
    first, requests, about = made(tmp_path), list(REQUESTS), ABOUT
    if change == "about":
        about = {**ABOUT, "steps": 3}
    else:
        values = dict(vars(REQUESTS[0]))
        values |= {"seed": {"seed": 1}, "prompt": {"prompt": "b"}, "size": {"height": 16}, "negative": {"negative": "n"}}[change]
        requests[0] = Request(**values)
    other = made(tmp_path, requests, about=about)
    assert first.paths[0] != other.paths[0]
    assert (first.paths[-1] == other.paths[-1]) == (change != "about")  # of another pack


@pytest.mark.slow
def test_killed_at_any_write_it_goes_on_with_the_same_bits(tmp_path):
    whole = made(tmp_path / "whole")
    with injected(Countdown(-1, die)) as counted:
        made(tmp_path / "counted")
    for cut in range(2, counted.seen, 7):
        folder = tmp_path / str(cut)

        def work(cut=cut, folder=folder):
            with injected(Countdown(cut, die)):
                made(folder)

        assert in_child(work) == -9
        generator = Pixels()
        assert contents(made(folder, generator=generator)) == contents(whole)
        assert [path.name for path in made(folder).paths] == [path.name for path in whole.paths]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_that_share_make_what_one_makes(tmp_path, ranks):
    whole = made(tmp_path / "whole")

    def work(rank):
        generator = Pixels()
        videos = made(tmp_path / "shared", share=Share(rank, ranks), generator=generator)
        assert contents(videos) == contents(whole) and 0 < len(generator.made) < len(REQUESTS)

    in_ranks(ranks, tmp_path, work)


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others_and_any_number_goes_on_with_the_same_bits(tmp_path):
    whole = made(tmp_path / "whole")
    (tmp_path / "ranks").mkdir()

    def one_dies(rank):
        with injected(Countdown(4, die)) if rank else nullcontext():
            made(tmp_path / "shared", share=Share(rank, 2))

    with pytest.raises(AssertionError, match="Connection (closed|reset) by peer"):
        in_ranks(2, tmp_path / "ranks", one_dies)
    (error,) = (tmp_path / "ranks").glob("error-0")  # told by the death of the other, not by a timeout
    error.unlink()
    before = {path.name for path in (tmp_path / "shared").glob("*.mp4")}
    assert 0 < len(before) < len(REQUESTS)

    def work(rank):
        generator = Pixels()
        assert contents(made(tmp_path / "shared", share=Share(rank, 5), generator=generator)) == contents(whole)
        (tmp_path / f"made-{rank}").write_text(str(len(generator.made)))

    in_ranks(5, tmp_path / "ranks", work)
    shares = [int((tmp_path / f"made-{rank}").read_text()) for rank in range(5)]
    assert 0 in shares and sum(shares) < len(REQUESTS)  # less was left than there are processes
    in_ranks(2, tmp_path / "ranks", lambda rank: made(tmp_path / "shared", share=Share(rank, 2)))


def test_packs_keep_the_order_and_the_budget():
    assert packs_of([4, 4, 4, 20, 1, 1], 8) == [[0, 1], [2], [3], [4, 5]]
    assert packs_of([], 8) == [] and packs_of([9], 8) == [[0]]
    one, two = identities(REQUESTS[:2], [[0, 1]], ABOUT), identities(REQUESTS[:2], [[0], [1]], ABOUT)
    assert not set(one) & set(two)  # a clip that was made beside another may have other bits


def test_a_damaged_file_is_told(tmp_path):
    videos = made(tmp_path)
    videos.paths[1].write_bytes(videos.paths[0].read_bytes())
    with pytest.raises(ValueError, match="delete it, and it is made again"):
        videos.read(1, 0, 1)


def test_a_folder_for_vbench_is_refused_before_any_work_unless_all_in_it_is_this_evaluation_s(tmp_path):
    videos, prompts = made(tmp_path / "a"), [request.prompt for request in REQUESTS]
    check_vbench(tmp_path / "b", prompts, generated=tmp_path / "a")  # not there yet
    for bad in (["a cat and/or a dog"], [""], ["ü" * 130], ["🎈" * 64]):
        with pytest.raises(ValueError, match=r"cannot be part of a file name, .*; leave vbench= out"):
            check_vbench(tmp_path / "b", [*prompts, *bad], generated=tmp_path / "a")
    with pytest.raises(ValueError, match=r"\(and so 1 more\)"):
        check_vbench(tmp_path / "b", ["a/b", "a/b"], generated=tmp_path / "a")
    paths = export(videos, tmp_path / "b")
    (tmp_path / "b/.hidden").touch()
    check_vbench(tmp_path / "b", prompts, generated=tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds 'a thing 0-2\.mp4', which this evaluation did not make"):  # of a prompt that is gone
        check_vbench(tmp_path / "b", prompts[:-1], generated=tmp_path / "a")
    paths[1].write_bytes(paths[0].read_bytes() + b"another run's")
    with pytest.raises(ValueError, match=r"holds 'a thing 1-0\.mp4', which this"):
        check_vbench(tmp_path / "b", prompts, generated=tmp_path / "a")


def test_vbench_finds_prompts_and_the_very_pixels(tmp_path):
    videos = made(tmp_path / "a")
    paths = export(videos, tmp_path / "b")
    assert [path.name for path in paths] == [f"a thing {number % 3}-{number // 3}.mp4" for number in range(7)]
    assert all((read(path).frames == videos.read(number, 0, 99)).all() for number, path in enumerate(paths))
