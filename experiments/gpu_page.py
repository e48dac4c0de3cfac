"""docs/gpu.md, and what README.md and docs/speed.md say of GPUs, from experiments/benchmarks/gpu.json: `python experiments/gpu_page.py`.

Without that file they say that nothing has run. A test holds the pages to what this makes of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND = ROOT / "experiments" / "benchmarks" / "gpu.json"
PAGE, README, SPEED = ROOT / "docs" / "gpu.md", ROOT / "README.md", ROOT / "docs" / "speed.md"
BETWEEN = re.compile(r"(<!-- from gpu\.json -->\n).*?(<!-- end -->)", re.DOTALL)
SECTIONS = {
    "ceilings": "what the device could do at most: products, copies, launches",
    "attention": "every backend beside the formula in float64 on ragged packs, its time and its share of the ceiling",
    "correctness": "loss and gradients of `b_2`, `xl_2` and Wan 2.1 1.3B (two blocks each) beside float32 on the CPU",
    "waiting": "whether a forward and a backward ever wait for the device",
    "speed": "time, MFU and memory of a step beside `sora plan`'s bill, by what is computed again",
    "compiling": "graphs over 20 packs; the plain block, the fused and the frugal one, eager and compiled, beside the plain one compiled",
    "batching": "packs against batches of one shape and against padding",
    "peer": "a step of Wan 2.1 beside that of diffusers' class",
    "training": "runs by command: losses beside the CPU's, where time goes, what the loop and the draws add, `kill -9` and resume",
    "mesh": "FSDP and tensor ranks of one GPU (nccl)",
    "vae": "decoding beside the CPU, a training step, ten seconds of video; decoding a minute as a stream is not there yet",
    "sampling": "ten seconds of 16:9 video",
    "evaluation": "features beside the CPU's",
}
GOALS = {
    "speed_mfu_xl_2_save_attention": ("MFU of `xl_2`", ">=", 0.5),
    "batching_packs_vs_buckets": ("packs over buckets", ">=", 1.15),
    "batching_packs_vs_padding": ("packs over padding", ">=", 3.0),
    "compiling_time_vs_plain_compiled_fused_compiled": ("the fused block over the plain one, both compiled", "<=", 1.0),
    "compiling_time_vs_plain_compiled_frugal_compiled": ("the frugal block over the plain one, both compiled", "<=", 1.0),
    "peer_wan_vs_diffusers": ("a step of Wan over diffusers'", "<=", 0.9),
    "speed_memory_vs_bill_b_2_none": ("peak memory of `b_2` over the bill", "within 5 %", 1.0),
    "training_loop_share_b_2": ("what the loop adds to steps of `b_2`", "<=", 0.02),
    "training_draws_share_b_2": ("noise and draws of `b_2` that steps wait for", "<=", 0.01),
    "training_data_share_b_2": ("wait for data of `b_2`", "<=", 0.02),
    "training_checkpoint_share_b_2": ("checkpoints of `b_2`", "<=", 0.01),
}


def loaded() -> dict[str, Any] | None:
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else None


def page(found: Mapping[str, Any] | None) -> str:
    """The text of docs/gpu.md."""
    lines = ["# On a GPU", ""]
    lines += [
        "`make gpu-check` runs one prepared script for some eight minutes on a machine with a GPU, Python and a torch of 2.10 or later,",
        "without installing anything: `make gpu-wheels` fetches what else it needs where there is a network (47 MB), and",
        "`outputs/gpu-wheels` is carried along. It writes `experiments/benchmarks/gpu.json` and `gpu.log` as it goes, so that a run",
        "that is cut off has told what it knew;",
        '`ARGS="minutes=4 only=attention,speed"` asks for less. `python experiments/gpu_page.py` then makes this page. On a CPU,',
        "`device=cpu` runs all of it at toy sizes, as the test suite does; such figures say nothing.",
        "",
        "What such a machine lacks is said as it begins: without pyarrow and Pillow, which the wheels leave out for their size,",
        "`training` and `mesh` do not run, without what diffusers needs `peer`, and without a compiler of C what is compiled fails.",
        "`only=` adds to the file of an earlier check of the same device and versions. Where git's history did not come along,",
        "`SORA_COMMIT=…` says which commit ran. A check that is killed takes its sections and their runs with it.",
        "",
    ]
    if found is None:
        lines += ["**Not run.** There is no file yet: nothing of this framework has run on a GPU.", ""]
    else:
        versions = found["versions"]
        lines += [
            f"Run on {found['when']} on {found['device']}, torch {versions['torch']}, CUDA {versions['cuda']},",
            f"driver {versions.get('driver') or 'unknown'}, Python {versions['python']}, at commit {_commit(found)}.",
            "",
        ]
    lines += ["| section | what it looks at | state |", "|---|---|---|"]
    for name, told in SECTIONS.items():
        entry = (
            {"status": "not run", "why": "", "seconds": 0}
            if found is None
            else found["sections"].get(name, {"status": "not run", "why": ""})
        )
        why = f": {entry['why'].splitlines()[-1][:160]}" if entry["why"] else ""
        if found is not None and entry["status"] != "not run" and _commit(entry) != _commit(found):
            why += f" (at commit {_commit(entry)}, {entry.get('when') or 'nobody knows when'})"
        lines.append(f"| `{name}` | {told} | {entry['status']}{why.replace('|', '/')} |")
    if found is not None:
        lines += ["", "| goal | asked | found |", "|---|---|---|"]
        lines += [
            f"| {told} | {how} {value if how != 'within 5 %' else ''} | {_number(found['figures'].get(key))} |"
            for key, (told, how, value) in GOALS.items()
        ]
        rows = [(name, row) for name, entry in found["sections"].items() for row in entry.get("rows", ()) if "fits" in row]
        if rows:
            lines += ["", "| tried | size | fits |", "|---|---|---|"]
            lines += [f"| `{name}`: {row['tried']} | {row['size']} | {'yes' if row['fits'] else 'no'} |" for name, row in rows]
        lines += ["", "| figure | value |", "|---|---|"]
        lines += [f"| `{name}` | {_number(value)} |" for name, value in found["figures"].items()]
    return "\n".join(lines) + "\n"


def _commit(of: Mapping[str, Any]) -> str:
    commit, _, changes = of.get("commit", "").partition(" ")
    return (commit[:12] or "unknown") + (f" {changes}" if changes else "")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"


def sentence(found: Mapping[str, Any] | None, *, link: str) -> str:
    """What other pages say."""
    if found is None:
        return (
            "Nothing here has run on a GPU: `trainer=ddp|fsdp|hsdp|cp|tp` and their products equal one process on 2 and 4 CPU processes\n"
            "(gloo), but neither they nor the CUDA attention backends have been executed on one. `make gpu-check` is ready for the first\n"
            f"one ([{link}]({link})).\n"
        )
    states = {name: entry["status"] for name, entry in found["sections"].items()}
    ran = [name for name, status in states.items() if status == "ran"]
    rest = [f"{name} ({status})" for name, status in states.items() if status != "ran"]
    return (
        f"On {found['device']} ({found['when']}, commit {_commit(found)}) ran: {', '.join(ran) or 'nothing'};\n"
        f"not: {', '.join(rest) or 'none'} ([{link}]({link})). Several GPUs have not been used: `trainer=ddp|fsdp|hsdp|cp|tp` equal one\n"
        "process on 2 and 4 CPU processes (gloo).\n"
    )


def pages() -> dict[Path, str]:
    """Each page and what it should hold."""
    found = loaded()
    texts = {PAGE: page(found)}
    for path, link in ((README, "docs/gpu.md"), (SPEED, "gpu.md")):
        text = path.read_text(encoding="utf-8")
        if not BETWEEN.search(text):
            raise ValueError(f"{path} has no place for what ran on a GPU: <!-- from gpu.json --> … <!-- end -->")
        told = sentence(found, link=link)
        texts[path] = BETWEEN.sub(lambda match, told=told: f"{match[1]}{told}{match[2]}", text)
    return texts


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
