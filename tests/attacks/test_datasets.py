"""A stranger's dataset: dataset.json, its parquet files and columns, latents, caption states and sets, by every verb that opens one."""

import hashlib
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.attacks.harness import BROKEN, assert_refused, changed, content, elsewhere, fifo, in_turn, without
from tests.attacks.material import TRAIN

VERBS = {
    "plan": (*TRAIN, "data.folders=[{data}]", "vae={vae}", "steps=2"),
    "train": (*TRAIN, "data.folders=[{data}]", "vae={vae}", "steps=2", "output={out}"),
    "encode": ("data={data}", "vae={vae}", "text=byte"),
    "check": ("check", "{data}", "output={out}.json"),
    "show": ("show", "{data}", "output={out}.html"),
    "evaluate": ("checkpoint={data}", "data={data}", "n=2", "size=24x24", "output={out}"),
}
TRAINS, READS = ("plan", "train"), ("plan", "encode", "check", "show", "evaluate")


@pytest.fixture
def attack(sora, material, made):
    """A dataset of this test's own is spoilt, and opened by a verb."""

    def attacked(verb, spoil, file="", more=()):
        data = material.copy("data")
        spoil(data / file if file else data)
        words = [word.format(data=data, vae=made / "vae", out=data.parent / "out") for word in (*VERBS[verb], *more)]
        return sora("data" if verb in ("check", "show") else verb, *words)

    return attacked


@pytest.mark.parametrize("verb", VERBS)
def test_a_sound_dataset_is_opened(attack, verb):
    ended = attack(verb, lambda data: None)
    assert ended.code == 0, ended.told


@pytest.mark.parametrize(("how", "verb"), in_turn([*BROKEN], READS, 2))
def test_dataset_json_is_a_regular_file_of_its_form(attack, verb, how):
    assert_refused(attack(verb, BROKEN[how], "dataset.json"), "" if how == "folder" else "dataset.json")


SAYS = {
    "version": (0, 3, "2", 1.5, None),
    "fingerprint": (1, None, []),
    "totals": (1, {}, {"clips": 10**14, "frames": 1, "bytes": 1, "captions": 1}),
    "totals.clips": (-1, 1e9, "8", 10**18),
    "splits": (1, [], {"train": "x"}, {"train": 0}, {"train": 10**14}),
    "shards": (1, {}, [], [1], [{}]),
    "shards.0.shard": (1, "/etc/passwd", "../x.tar", "", "a/../../x.tar", "\0"),
    "shards.0.meta": (1, "/dev/zero", "../x.parquet", ""),
    "shards.0.meta_sha256": (1, "x", None),
    "shards.0.clips": (-1, "x", 10**14, 0),
    "shards.0.bytes": (-1, "x", 1 << 60),
    "columns": (1, [], {}, {"splits": 1}),
    "columns.splits": (1, [1], ["x"]),
    "columns.sha256": ([], {}, {"key_end": 1}),
    "captions": (1, [], {}, {"whole": 1, "splits": {}}),
    "captioned": (1, [], {"train": 1}, {"train": {"clips": "x", "without": 0, "kinds": {}}}),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SAYS.items() for value in values])
def test_dataset_json_holds_what_it_says(attack, key, value):
    assert_refused(attack("plan", changed(key, value), "dataset.json"), "dataset.json")


@pytest.mark.parametrize("key", [key for key in SAYS if key not in ("columns", "captioned", "captions")])
def test_dataset_json_has_what_is_needed(attack, key):
    assert_refused(attack("plan", without(key), "dataset.json"), "dataset.json", key.rpartition(".")[2])


def listed(data, name="meta-000000.parquet"):
    """dataset.json with the hash of a file that was changed: a stranger lists his own."""
    path = data / "dataset.json"
    whole = json.loads(path.read_text())
    whole["shards"][0]["meta_sha256"] = hashlib.sha256((data / name).read_bytes()).hexdigest()
    whole.pop("columns", None)
    path.write_text(json.dumps(whole))


def rows(change):
    """The rows of a shard, changed, and listed as if they were right."""

    def spoil(data):
        path = data / "meta-000000.parquet"
        pq.write_table(change(pq.read_table(path)), path)
        listed(data)

    return spoil


def column(name, values, kind=None):
    def change(table):
        place = table.column_names.index(name)
        array = pa.array([values] * table.num_rows, type=kind or table.schema.field(name).type)
        return table.set_column(place, name, array)

    return change


ROWS = {
    "an offset below zero": column("offset", -5),
    "an offset of a petabyte": column("offset", 1 << 50),
    "a size of a petabyte": column("size", 1 << 50),
    "a size below zero": column("size", -1),
    "no hash": column("sha256", None),
    "a short hash": column("sha256", "ab"),
    "no frames": column("frames", 0),
    "frames below zero": column("frames", -3),
    "very many frames": column("frames", 2**31 - 1),
    "no height": column("height", 0),
    "a height below zero": column("height", -4),
    "a rate that is no number": column("fps", float("nan")),
    "an endless rate": column("fps", float("inf")),
    "no rate": column("fps", 0.0),
    "no key": column("key", None),
    "one key": column("key", "a"),
    "a key that leads out": column("key", "../../x"),
    "texts for numbers": column("frames", "many", pa.string()),
    "numbers for texts": column("key", 3, pa.int64()),
    "a split that nobody has": column("split", "mine"),
    "no captions column": lambda table: table.drop_columns(["captions"]),
    "no size column": lambda table: table.drop_columns(["size"]),
    "half the rows": lambda table: table.slice(0, 4),
    "no row": lambda table: table.slice(0, 0),
    "deep extra": column("extra", "[" * 900 + "]" * 900),
    "extra that is none": column("extra", "{"),
    "a caption without a text": lambda table: column("captions", [{"kind": "dense", "text": None, "captioner": "x"}])(table),
}


@pytest.mark.parametrize(("what", "verb"), in_turn([*ROWS], ["plan", "check", "plan", "show"], 2))
def test_rows_of_the_index_are_possible(attack, verb, what):
    ended = attack(verb, rows(ROWS[what]))
    told = (0, 1, 2) if verb == "check" else (0, 2)  # a check that finds faults ends with 1, and lists them
    assert "Traceback" not in ended.err and not ended.ended_for and ended.code in told, ended.told
    assert ended.code != 1 or re.search(r" faults? \(", ended.out), ended.told
    assert ended.seconds < 30 and ended.peak_mb < 2048, ended.told


def claims(data):
    """A footer that claims 10^14 rows, in Thrift's own words."""
    path = data / "meta-000000.parquet"
    whole = bytearray(path.read_bytes())
    rows_of = pq.read_metadata(path).num_rows
    places = [place for place in range(len(whole) - 4000, len(whole)) if whole[place] == 2 * rows_of]
    for place in places:
        whole[place] ^= 0x7E
    path.write_bytes(bytes(whole))
    listed(data)


def bomb(name, text):
    def spoil(data):
        path = data / "meta-000000.parquet"
        table = pq.read_table(path)
        big = pa.concat_tables([table] * 1000)
        big = big.set_column(big.column_names.index(name), name, pa.array([text] * big.num_rows))
        pq.write_table(big, path, compression="zstd", dictionary_pagesize_limit=1 << 30)
        listed(data)

    return spoil


BOMBS = {
    "a footer that claims": claims,
    "a long text many times": bomb("source", os.urandom(200_000).hex()),
    "a page that unpacks": bomb("source", "x" * 200_000),
    "nothing but a footer": lambda data: (content(b"PAR1" + b"\0" * 8 + b"PAR1")(data / "meta-000000.parquet"), listed(data)),
    "a footer of gigabytes": lambda data: (content(b"PAR1" + b"\xff\xff\xff\x7fPAR1")(data / "meta-000000.parquet"), listed(data)),
    "a cut file": lambda data: (
        (data / "meta-000000.parquet").write_bytes((data / "meta-000000.parquet").read_bytes()[:-100]),
        listed(data),
    ),
}


@pytest.mark.parametrize(("what", "verb"), in_turn([*BOMBS], ["plan", "show"]))
def test_parquet_is_believed_as_far_as_the_file_bears_it_out(attack, verb, what):
    assert_refused(attack(verb, BOMBS[what]), "meta-000000.parquet")


@pytest.mark.parametrize(("how", "verb"), in_turn(["fifo", "zeros", "elsewhere", "empty", "binary", "folder"], ["plan", "encode", "show"]))
def test_parquet_files_are_regular_ones_in_the_folder(attack, verb, how):
    assert_refused(attack(verb, BROKEN[how], "meta-000000.parquet"), "meta-000000.parquet")


@pytest.mark.parametrize(("how", "verb"), in_turn(["fifo", "zeros", "empty", "folder"], ["encode", "check", "show", "evaluate"], 2))
def test_shards_are_regular_files(attack, verb, how):
    ended = attack(verb, BROKEN[how], "video-000000.tar")
    assert_refused(ended, "video-000000.tar")


def manifest(data, kind):
    return next(path for path in data.glob(f"{kind}-????????.json"))


@pytest.mark.parametrize("kind", ["latents", "text"])
@pytest.mark.parametrize("how", BROKEN)
def test_manifests_of_what_was_encoded_are_regular_files_of_their_form(attack, kind, how):
    ended = attack("plan", lambda data: BROKEN[how](manifest(data, kind)))
    assert_refused(ended, "" if how in ("folder", "fifo", "zeros", "elsewhere") else f"{kind}-")


ENCODED = {
    "latents": {
        "stride": (1, [1], [0, 1, 1], ["x", 1, 1]),
        "shards": (1, {}, [], [1]),
        "shards.0.meta": (1, "../x", "/x", "x"),
        "shards.0.shard": ("../x", 3),
        "shards.0.bytes": (-1, "x"),
        "columns": (1, [], {"offset": 1}),
    },
    "text": {
        "shards": (1, {}, [1], [{}]),
        "shards.0.file": (1, "../x.safetensors", "/x.safetensors", "x"),
        "shards.0.captions": (-1, "x", 10**14),
        "shards.0.bytes": (-1, "x"),
        "shards.0.cut": (1, [1], [{"key": 1}]),
        "places": (1, [], {}, {"file": "x", "sha256": "y", "shards": 1}),
        "places.file": ("../x.npy", 1),
    },
}
CASES = [(kind, key, value) for kind, keys in ENCODED.items() for key, values in keys.items() for value in values]


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_manifests_of_what_was_encoded_hold_what_they_say(attack, kind, key, value):
    ended = attack("train", lambda data: changed(key, value)(manifest(data, kind)))
    assert_refused(ended, f"{kind}-")


CAPTION_SET = {
    "version": 1,
    "name": "more",
    "files": [{"shard": 0, "file": "captions-more-000000.parquet", "sha256": "0" * 64}],
    "about": {},
}


def caption_set(**changes):
    def spoil(data):
        whole = json.loads((data / "dataset.json").read_text())
        said = {**CAPTION_SET, "dataset": whole["fingerprint"]}
        said["files"] = [{**said["files"][0], "captions": "0" * 64, "clips": 1, **changes}]
        (data / "captions-more.json").write_text(json.dumps(said))

    return spoil


@pytest.mark.parametrize(
    "change", [{"file": "/etc/passwd"}, {"file": "../x"}, {"shard": -1}, {"sha256": "x"}, {"captions": 1}, {"shard": "x"}]
)
def test_a_set_of_captions_names_files_beside_it(attack, change):
    assert_refused(attack("plan", caption_set(**change)), "captions-more.json", next(iter(change)))


@pytest.mark.parametrize("how", BROKEN)
def test_a_set_of_captions_is_a_regular_file_of_its_form(attack, how):
    def spoil(data):
        caption_set()(data)
        BROKEN[how](data / "captions-more.json")

    assert_refused(attack("plan", spoil), "captions-more.json")


def selection(**changes):
    """A selection whose one file is what an attacker likes, and a manifest to it."""

    def spoil(data):
        whole = json.loads((data / "dataset.json").read_text())
        files = [
            {"shard": number, "file": f"selection-more-{number:06d}.parquet", "sha256": "0" * 64, "reason": "0" * 64}
            for number in range(len(whole["shards"]))
        ]
        said = {"version": 1, "name": "more", "dataset": whole["fingerprint"], "files": files, "clips": "x"}
        said |= {"captions": {"whole": "x", "splits": {}}, **changes}
        (data / "selection-more.json").write_text(json.dumps(said))

    return spoil


@pytest.mark.parametrize(
    "change",
    [
        {"clips": 1},
        {"captions": {"whole": "x", "splits": {"../x": 1}}},
        {"captions": {"whole": "x", "splits": {"nowhere": "x"}}},
        {"files": []},
        {"files": [{"shard": 0, "file": "/etc/passwd", "sha256": "0" * 64, "reason": "x"}]},
        {"name": "other"},
        {"dataset": "f" * 64},
        {"version": 2},
        {},
    ],
    ids=str,
)
def test_a_selection_is_of_its_form_and_of_this_dataset(attack, change):
    assert_refused(attack("plan", selection(**change), more=["data.selection=more"]), "selection-more")


@pytest.mark.parametrize("how", BROKEN)
def test_a_selection_is_a_regular_file_of_its_form(attack, how):
    def spoil(data):
        selection()(data)
        BROKEN[how](data / "selection-more.json")

    assert_refused(attack("plan", spoil, more=["data.selection=more"]), "selection-more.json")


@pytest.mark.parametrize("value", [1, [], {}, {"url": 1}, {"url": "x", "other": 1}, {"url": "http://127.0.0.1:9/x", "cache_mb": "x"}])
def test_where_the_shards_lie_is_of_its_form(attack, value):
    assert_refused(attack("plan", lambda data: (data / "remote.json").write_text(json.dumps(value))), "remote.json")


@pytest.mark.parametrize("name", ["offset", "sha256", "shape"])
def test_mapped_numbers_that_are_another_file_are_refused(attack, name):
    folder = "latents-*/"

    def spoil(data):
        path = next(data.glob(f"{folder}{name}.bin"))
        np.zeros(path.stat().st_size, np.uint8).tofile(path)

    ended = attack("train", spoil)
    assert_refused(ended)


@pytest.mark.parametrize("name", ["dataset.json", "meta-000000.parquet"])
def test_no_other_file_of_the_disk_is_read_through_a_link(attack, name):
    assert_refused(attack("show", elsewhere, name), name, "link out of")


def test_a_pipe_among_the_latents_is_not_waited_for(attack):
    assert_refused(attack("train", lambda data: fifo(next(data.glob("latent-*.tar")))), "latent-")
