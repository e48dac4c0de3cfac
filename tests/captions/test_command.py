"""`sora recaption`: its lines, its page, and what a hurried or hostile user or server does to them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from sora.cli import run
from sora.data.index.index import Index
from tests.captions.material import captions, dataset
from tests.web.asking import KEY, SECRET

QUICK = ["engine=serial", "frames.count=3", "frames.side=32", "captioner.seconds=0"]


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """A function that runs `sora recaption` in a folder of its own: its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    dataset(tmp_path / "set", 9)

    def recaption(*words):
        code = run("recaption", ["data=set", *(QUICK if "captioner=stub" in words else ()), *words])
        out, err = capfd.readouterr()
        return code, out + err

    return recaption


def test_a_dry_run_says_what_the_job_takes_and_pays_in_advance(call, tmp_path):
    code, told = call("captioner=stub", "dry=true", "price.input=1", "price.output=10")
    assert code == 0 and "9 clips of 9 asked for: 0 failed" in told
    assert "all: 9 requests, 8,100 tokens in, 1,080 out" in told and "cost 0.0189" in told
    assert not list(tmp_path.glob("set/captions-*"))
    code, told = call("captioner=stub")
    assert code == 0 and "0 requests sent, 9 answers known before" in told and "cost" not in told
    code, told = call("captioner=stub", "dry=true")
    assert "hours not known" in told and "cost" not in told


def test_the_command_ends_with_where_things_are_and_the_next_one(call, tmp_path):
    code, told = call("captioner=stub", "set=mine", "kinds=[short,dense,structured]")
    lines = told.strip().splitlines()
    assert code == 0 and "9 clips with captions, 0 without" in told
    assert lines[-1].startswith("next: sora train ") and "data.folders=[set]" in lines[-1]
    assert lines[-2].startswith("set mine in set;") and lines[-3].endswith("outputs/set_captions/mine/captions.html")
    page = (tmp_path / lines[-3]).read_text()
    assert "<script" not in page and page.count("data:image/jpeg") >= 18
    said = captions(tmp_path / "set", "mine")
    assert len(said) == 9 and all(set(one) == {"short", "dense", "structured"} for one in said.values())
    assert json.loads(next(iter(said.values()))["structured"])["actions"]
    assert Index.open(tmp_path / "set").captions(0)[0].text == "number 0"  # the original stays


@pytest.mark.parametrize("fault", ["script", "steering", "long", "surrogate", "echo_401", "html"])
def test_words_of_a_server_are_inert_in_terminal_page_and_table(call, tmp_path, fault, monkeypatch):
    code, told = call("captioner=stub", "set=mine", f"captioner.faults={{{fault}: 1.0}}", "captioner.retries.attempts=1", "max_failed=1")
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", told.replace("\r", "").replace("\x1b[2K", ""))
    pages = list(tmp_path.glob("outputs/set_captions/mine/captions.html"))
    if fault in ("long", "surrogate", "echo_401", "html"):  # nothing but failures: as many in a row end the job, or all are marked
        assert (code, len(pages)) in ((1, 0), (0, 1))
    for path in pages:
        page = path.read_text()
        assert "<script" not in page and "onerror=alert" not in page.replace("onerror=alert(1)&gt;", "") and "\u202e" not in page
    if fault == "steering":
        for one in captions(tmp_path / "set", "mine").values():
            assert one["short"] == "[2Jred derf 31m left"


def test_a_key_is_named_and_never_shown(call, monkeypatch, tmp_path):
    from sora.web.stub import StubServer

    monkeypatch.setenv(KEY, SECRET)
    server = StubServer(lambda body: json.dumps({"short": f"a {SECRET}", "dense": f"it says {SECRET} on a wall"}), faults={"echo_401": 0.3})
    words = [f"captioner.url={server.url}", "captioner.model=m", f"captioner.key_variable={KEY}", "engine=serial", "max_failed=1"]
    code, told = call(*words, "captioner.retries.attempts=1")
    server.close()
    assert code == 0 and SECRET not in told
    assert all(asked.authorization == f"Bearer {SECRET}" for asked in server.asked)
    for path in (tmp_path / "outputs").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert SECRET not in str(captions(tmp_path / "set", next((tmp_path / "set").glob("captions-*.json")).stem.removeprefix("captions-")))
    code, told = call(*words[:2], f"captioner.key_variable={SECRET}", "engine=serial")
    assert code == 2 and SECRET not in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["captioner=openai"], "captioner.model is needed"),
        (["captioner=openai", "captioner.model=m"], "captioner.url is needed"),
        (["captioner=openai", "captioner.model=m", "captioner.url=http://example.org/v1"], "in the clear"),
        (["captioner=stub", "captioner.faults={nonsense: 0.5}"], "there is no fault 'nonsense'"),
        (["captioner=stub", "kinds=[short,long]"], "kinds="),
        (["captioner=stub", "kinds=[]"], "holds nothing"),
        (["captioner=stub", "retry=all"], "only retry=failed"),
        (["captioner=stub", "passes=3"], "passes=3"),
        (["captioner=stub", "set=../x"], "is no name for a set of captions"),
        (["captioner=stub", "part=[3,2]"], "part=[3, 2] must be"),
        (["captioner=stub", "price.input=-1"], "input=-1"),
        (["captioner=stub", "output=set/inside"], "lies within"),
        (["captioner=stub", "selection=none"], "has no selection 'none'"),
        (["captioner=stub", "checks.language=en"], "py3langid"),
        (["captioner=stub", "captioner.form.parts=gif"], "parts=gif"),
    ],
)
def test_a_mistake_is_one_line_with_the_key_before_any_request(call, words, why, tmp_path, monkeypatch):
    import sys

    from sora.captions.checks import words as checking

    checking._classifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    code, told = call(*words)
    checking._classifier.cache_clear()
    last = told.strip().splitlines()[-1]
    assert code == 2 and why in last and last.startswith("sora recaption: "), told
    assert not list(tmp_path.glob("**/*.answers"))


def test_a_server_that_is_gone_ends_the_command_with_one_line(call):
    words = ["captioner.model=m", "captioner.url=http://127.0.0.1:9/v1", "captioner.retries.attempts=1", "captioner.stop_after=3"]
    code, told = call(*words, "engine=serial")
    last = told.strip().splitlines()[-1]
    assert code == 1 and "3 requests in a row failed" in last and "the same command goes on" in last and "Traceback" not in told


def test_only_selected_clips_are_captioned(call, tmp_path):
    from sora.data.index.set_writers import SelectionWriter

    index = Index.open(tmp_path / "set")
    writer = SelectionWriter(index, "some")
    for shard in range(len(index.described["shards"])):
        writer.write(shard, {key: "" if key in ("clip001", "clip008") else "dull" for key in index.shard_keys(shard)})
    writer.finish({})
    code, told = call("captioner=stub", "selection=some", "set=mine")
    assert code == 0 and "2 requests sent" in told and captions(tmp_path / "set", "mine").keys() == {"clip001", "clip008"}


def test_a_captioner_of_ones_own_is_named_by_own(call, tmp_path):
    (tmp_path / "my.py").write_text(
        "from sora.captions import CaptionFields, CaptionResult\n"
        "class Loud:\n"
        "    name, even_frames, reads = 'loud', False, ()\n"
        "    def __init__(self, *, word: str): self.word = word\n"
        "    def identity(self): return {'loud': self.word}\n"
        "    def __call__(self, requests):\n"
        "        for one in requests:\n"
        "            yield CaptionResult(id=one.id, fields=CaptionFields(short=self.word, dense=f'{self.word} {len(one.frames)}'))\n"
        "    def close(self): pass\n"
    )
    (tmp_path / "options" / "captioner").mkdir(parents=True)
    (tmp_path / "options" / "captioner" / "loud.yaml").write_text("_target_: my.Loud\nword: OYEZ\n")
    code, told = call("--config-dir", "options", "own=my.py", "captioner=loud", "engine=serial", "set=mine")
    assert code == 0, told
    assert {one["short"] for one in captions(tmp_path / "set", "mine").values()} == {"OYEZ"}


def test_the_documents_selection_by_flags_keeps_the_others(tmp_path, monkeypatch):
    """The block of docs/captions.md, on clips of which one refuses."""
    from sora.captions.checks.checking import check_captions
    from tests.captions.material import Teller, job, quiet
    from tests.captions.test_checks import checks

    class Refusing(Teller):
        def __call__(self, requests):
            for one in super().__call__(requests):
                refuses = len(self.asked) == 3 and one.fields is not None
                yield replace(one, fields=replace(one.fields, dense="I'm sorry, but I cannot see it.")) if refuses else one

    index = dataset(tmp_path / "data" / "mine", 6)
    made = job(index, Refusing(), tmp_path / "outputs" / "mine_captions", name="colours")
    made.run(quiet)
    check_captions(index, made.rows, made.shards, checks(dense_words=(0, 80)))
    block = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "captions.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    kept = Index.open(tmp_path / "data" / "mine", selection="fair")
    assert [kept.key(row) for row in range(len(kept))] == [f"clip{number:03d}" for number in (0, 1, 3, 4, 5)]


def test_the_documents_own_captioner_is_one():
    from sora.captions.captioner import Captioner

    block = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "captions.md").read_text(), re.DOTALL)[1]
    found: dict = {}
    exec(block, found)
    assert isinstance(found["Loud"](), Captioner)
