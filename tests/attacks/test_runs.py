"""A stranger's run: run.json, config.yaml, its checkpoints and its VAE, by every verb that opens one."""

import json

import pytest
import yaml

from tests.attacks.harness import BROKEN, DEEP, assert_refused, changed, content, fifo, in_turn, without

VERBS = {
    "sample": ("checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", "output={out}"),
    "evaluate": ("checkpoint={run}", "data={data}", "n=2", "steps=1", "output={out}"),
    "export": ("checkpoint={run}", "output={out}"),
    "report": ("{run}", "output={out}.html"),
    "train": ("resume={run}", "steps=4", "resume_allow=[steps]", "data.folders=[{data}]"),
}
ASKS = [verb for verb in VERBS if verb != "report"]  # that use the weights


@pytest.fixture
def attack(sora, material, made):
    """A run of this test's own is spoilt, and opened by a verb."""

    def attacked(verb, spoil, file=""):
        run = material.copy("live")
        spoil(run / file if file else run)
        words = [word.format(run=run, data=made / "data", out=run.parent / "out") for word in VERBS[verb]]
        return sora(verb, *words)

    return attacked


@pytest.mark.parametrize("verb", VERBS)
def test_a_sound_run_is_opened(attack, verb):
    ended = attack(verb, lambda run: None)
    assert ended.code == 0, ended.told


@pytest.mark.parametrize("file", ["run.json", "config.yaml"])
@pytest.mark.parametrize(("how", "verb"), in_turn([*BROKEN], [*VERBS], 2))
def test_its_small_files_are_regular_ones_of_their_form(attack, verb, file, how):
    assert_refused(attack(verb, BROKEN[how], file), "" if how == "folder" else file)


RUN_JSON = {
    "kind": ("diffusor", 1, None, ["vae"], "vae"),
    "depends": ([], None, {"vae": 3}, {"vae": "0" * 64}, "x"),
    "code": ([], {"sora": 1}, None),
    "usual": ({"fps": "fast"}, {"fps": -1, "area": 100, "seconds": 1}, {"fps": 1e308, "area": 1e308, "seconds": 1e308}, [1], 3),
    "place": ([], {"folder": 1, "from": 2}, {}),
    "datasets": ([], {"x": 1}),
    "saved": (-1, "x", 10**18),
    "exported": (1, {}, {"ema": None, "averaged": "maybe"}),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in RUN_JSON.items() for value in values])
@pytest.mark.parametrize("verb", ["sample"])
def test_run_json_holds_what_it_says(attack, verb, key, value):
    assert_refused(attack(verb, changed(key, value), "run.json"))


@pytest.mark.parametrize(
    ("verb", "key"), [(verb, key) for verb in VERBS for key in ("kind", "depends") if (verb, key) != ("report", "depends")]
)
def test_run_json_has_what_is_needed(attack, verb, key):
    assert_refused(attack(verb, without(key), "run.json"), "run.json", key)


def config(change):
    def spoil(run):
        path = run / "config.yaml"
        whole = yaml.safe_load(path.read_text())
        change(whole)
        path.write_text(yaml.safe_dump(whole))

    return spoil


NODES = ("patches", "text", "dit", "objective", "path", "density")


@pytest.mark.parametrize(("value", "node"), in_turn([None, 1, "x", [], {}, {"_target_": 1}, {"_target_": "os.system"}], NODES, 2))
def test_a_node_of_the_configuration_names_a_class(attack, node, value):
    ended = attack("sample", config(lambda whole: whole.update({node: value})))
    assert_refused(ended)
    assert node in ended.err or "_target_" in ended.err, ended.told


@pytest.mark.parametrize("node", NODES)
def test_a_node_of_the_configuration_is_there(attack, node):
    assert_refused(attack("sample", config(lambda whole: whole.pop(node))), "config.yaml", node)


TEXTS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n",
    "references": "kind: diffusion\n" + "".join(f"a{n}: ${{a{n + 1}}}${{a{n + 1}}}${{a{n + 1}}}\n" for n in range(40)) + "a40: x\n",
    "python": "kind: !!python/object/apply:os.system ['true']\n",
    "date": "kind: diffusion\nsteps: 2020-01-01\n",
    "bytes": "kind: !!binary aGVsbG8=\n",
    "set": "kind: diffusion\ndata: !!set {a, b}\n",
    "key": "kind: diffusion\n? [1, 2]\n: 3\n",
    "number key": "kind: diffusion\n1: 3\n",
    "wide": "kind: diffusion\nx: [" + "1," * 300_000 + "]\n",
    "megabytes": "kind: diffusion\n" + "".join(f"k{n}: value number {n}\n" for n in range(250_000)),
    "deep": "kind: diffusion\nx: " + DEEP + "\n",
    "deeper": "kind: diffusion\nx: " + "[" * 100_000,
    "digits": "kind: diffusion\nsteps: " + "9" * 20_000 + "\n",
    "nan": "kind: diffusion\nsteps: .nan\n",
    "two documents": "kind: diffusion\n---\nkind: vae\n",
    "tabs": "kind:\tdiffusion\n\t- x\n",
    "nul": "kind: diffusion\0\n",
}


@pytest.mark.parametrize(("what", "verb"), in_turn([*TEXTS], ["sample", "train"]))
def test_yaml_is_plain_and_small(attack, verb, what):
    assert_refused(attack(verb, content(TEXTS[what]), "config.yaml"), "config.yaml")


STORED = {
    "kind": ("vae", "x", 3),
    "steps": (-1, "many", 10**18, 2.5, None),
    "seed": ("x", 1 << 70, [1]),
    "data": (1, [], {"folders": 1}, {"folders": [1]}, {"folders": {}}),
    "optimizer": (None, {}, 1),
    "schedule": (None, [], "x"),
    "ema": (1, {}),
    "guard": (1, {}, {"_target_": "sora.training.Guard", "patience": "x"}),
    "plan": (1, {}),
    "trainer": (1, {}, "cpu"),
    "checkpoint": (1, None, {"every": "x"}, {}, []),
    "watchdog": (None, 1, {"limit": "x"}),
    "tracker": (1, [], {"patience": {}}),
    "log_every": ("x", 0, None, []),
    "max_grad_norm": ("x", -1, []),
    "workers": ("x", -1, 10**9),
    "level_bins": ("x", 0, 10**9),
    "compile": ("x", 3),
    "resume_allow": (1, "x"),
    "init": (1, [1]),
    "vae": (1, [1], {}),
    "evaluation": (1, "x", {"videos": 1}, {}, {"every": 100}, {"every": 100, "videos": {}}),
    "recompute": (1, {}),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in STORED.items() for value in values])
def test_a_resumed_run_has_values_of_their_kinds(attack, key, value):
    ended = attack("train", config(lambda whole: whole.update({key: value})))
    if ended.code == 0:  # what this command line says itself, or what says nothing of training
        assert key in ("steps", "data", "resume_allow", "compile", "init", "vae") or value == {}, ended.told
        return
    assert_refused(ended)


@pytest.mark.parametrize("key", ["log_every", "data", "kind", "plan", "watchdog", "guard", "init", "evaluation"])
def test_a_resumed_run_that_lacks_a_key_says_so(attack, key):
    ended = attack("train", config(lambda whole: whole.pop(key, None)))
    if ended.code:
        assert_refused(ended, key)


def newest(run):
    return max((run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("file", ["manifest.json", "state.json"])
@pytest.mark.parametrize(("how", "verb"), in_turn([*BROKEN], ["sample", "sample", "sample", "train"]))
def test_files_of_a_checkpoint_are_regular_ones_of_their_form(attack, verb, file, how):
    """A damaged checkpoint is passed over for the one before it, and said so; links and pipes are, too."""
    ended = attack(verb, lambda run: BROKEN[how](newest(run) / file))
    assert "Traceback" not in ended.err and not ended.ended_for, ended.told
    assert ended.code == 2 or "passed over" in ended.out, ended.told


@pytest.mark.parametrize("how", BROKEN)
def test_the_card_of_its_vae_is_a_regular_file_of_its_form(attack, how):
    assert_refused(attack("sample", BROKEN[how], "vae/vae.json"), "" if how == "folder" else "vae.json")


@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl", "goodput.jsonl", "quarantine.jsonl"])
def test_no_pipe_is_waited_for_anywhere_in_a_run(attack, file):
    assert_refused(attack("report", fifo, file), file)


LINES = {
    "metrics.jsonl": (1, {"step": "x"}, {"step": -1}, {}, [1]),
    "goodput.jsonl": ({}, {"began": 1}, 1, [1]),
    "events.jsonl": (1, {}, {"event": 1}),
    "quarantine.jsonl": (1, {"key": 1, "reason": "x"}),
}


@pytest.mark.parametrize(("file", "line"), [(file, line) for file, lines in LINES.items() for line in lines])
def test_lines_of_logs_are_of_their_form(attack, file, line):
    assert_refused(attack("report", content(json.dumps(line) + "\n"), file), file)
