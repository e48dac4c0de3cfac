"""Generates clips for prompts as lossless files; existing files are not made again, on any number of processes.

    OUTPUT/generated/IDENTITY.mp4

A clip's bits depend on its whole pack, because rounding depends on what is multiplied together. So packs are filled in the order of
requests and run one at a time, and a file's identity includes its pack: a run that is killed, gets more requests or uses other ranks
continues with the same bits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora.evaluation.videos.made import MadeVideos
from sora.system import files as storage

if TYPE_CHECKING:
    from sora.generation.generator import Generator, Request
    from sora.system.work_sharing import Share


def packs_of(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """The indices of the requests in each pack, in order: a pack ends where the next clip does not fit. A clip over the budget is alone.

    More requests at the end change only the last pack.
    """
    packs: list[list[int]] = []
    room = 0
    for number, count in enumerate(tokens):
        if not packs or count > room:
            packs.append([])
            room = budget
        packs[-1].append(number)
        room -= count
    return packs


def identities(requests: Sequence[Request], packs: Sequence[Sequence[int]], about: Mapping[str, Any]) -> list[str]:
    """The identity of each request's clip, from all that determines its bits. about: networks, sampler, guidance, levels, device, code."""
    found: dict[int, str] = {}
    for pack in packs:
        asked = [_asked(requests[number]) for number in pack]
        for place, number in enumerate(pack):
            found[number] = storage.text_hash(json.dumps([about, asked, place], sort_keys=True))
    return [found[number] for number in range(len(requests))]


def _asked(request: Request) -> list[Any]:
    told = [request.prompt, request.frames, request.height, request.width, request.fps, request.seed, request.sample]
    return [*told, request.negative] if request.negative else told  # older identities have none


def generate(
    generator: Generator,
    requests: Sequence[Request],
    *,
    folder: Path,
    about: Mapping[str, Any],
    share: Share,
    progress: Callable[[int, int], None],
) -> MadeVideos:
    """Generate the clips that do not exist yet. Processes take packs in turn, and all return when every clip exists."""
    from sora.video.files import write

    tokens = [generator.patchifier.grid(*generator.vae.latent_shape(item.frames, item.height, item.width)).tokens for item in requests]
    packs = packs_of(tokens, generator.token_budget)
    names = identities(requests, packs, about)
    paths = [folder / f"{name[:32]}.mp4" for name in names]
    missing = share.of_first([pack for pack in packs if not all(paths[number].is_file() for number in pack)])
    mine = share.mine(len(missing))
    for done, place in enumerate(mine):
        pack, total = missing[place], len(mine)

        def report(step: int, steps: int, before: int = done, of: int = total) -> None:
            progress(before * steps + step, of * steps)

        clips = generator.generate([requests[number] for number in pack], progress=report)
        for number, clip in zip(pack, clips, strict=True):
            write(paths[number], clip.numpy(), requests[number].fps, lossless=True)
    share.together()
    return MadeVideos(requests, paths)


def vbench_names(prompts: Sequence[str]) -> list[str]:
    """The file names by which VBench finds prompts: PROMPT-0.mp4, PROMPT-1.mp4, …; ValueError for prompts that no file name can contain."""
    from sora.metrics.clips.quality import vbench_name

    seen: Counter[str] = Counter()
    names, refused = [], []
    for prompt in prompts:
        try:
            names.append(vbench_name(prompt, seen[prompt]))
        except ValueError as error:
            refused.append(str(error))
        seen[prompt] += 1
    if refused:
        many = f" (and so {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise ValueError(f"{refused[0]}{many}; leave vbench= out, or choose other prompts with data=, split= or caption=")
    return names


def check_vbench(folder: Path, prompts: Sequence[str], *, generated: Path) -> None:
    """Raise ValueError, before any work, for a folder that clips of these prompts cannot be exported to. VBench scores all files in it, so
    it may contain only clips that were exported from `generated`."""
    names = set(vbench_names(prompts))
    there = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    ours = {storage.file_hash(path) for path in generated.glob("*.mp4")} if there else set()
    if other := [path.name for path in there if path.name not in names or not path.is_file() or storage.file_hash(path) not in ours]:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise ValueError(f"vbench={folder} holds {other[0]!r}{more}, which this evaluation did not make; name another folder")


def export(videos: MadeVideos, folder: Path) -> list[Path]:
    """Copy the clips to the names of `vbench_names`; return the paths."""
    paths = [folder / name for name in vbench_names([str(videos.prompt(number)) for number in range(len(videos.paths))])]
    for path, made in zip(paths, videos.paths, strict=True):
        with storage.whole_file(path) as staging:
            staging.write_bytes(made.read_bytes())
    return paths
