"""Credentials in the command line, the environment, URLs and stored files: none is in any file, line or page afterwards."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.attacks.harness import Ended, assert_bounded, assert_refused
from tests.gate.test_credentials import SECRETS

WORD = "c4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4ry"
URL = f"https://user:{WORD}@127.0.0.1:9/set"
TOKEN = f"hf_{WORD}"


def assert_silent(ended: Ended, place: Path, secret: str = WORD) -> None:
    """The secret is in none of the lines, and in no file below a folder, by name or by content."""
    assert secret not in ended.out + ended.err, ended.told
    held = [path for path in place.rglob("*") if secret in path.name or (path.is_file() and secret.encode() in path.read_bytes())]
    assert not held, held


def verbs(material: object, out: Path, value: str) -> dict[str, list[str]]:
    folder = material.folder  # pyright: ignore[reportAttributeAccessIssue]
    train = [f"data.folders=[{folder / 'data'}]", f"vae={folder / 'vae'}", "experiment=toy", f"output={out / 'run'}"]
    return {
        "index": ["data", "index", value, f"output={out / 'index'}"],
        "cache": ["data", "index", str(folder / "tars"), f"output={out / 'index'}", f"cache={value}"],
        "licence": ["data", "index", str(folder / "tars"), f"output={out / 'index'}", f"licence={value}"],
        "check": ["data", "check", value],
        "train": ["train", *train, f"text.name={value}"],
        "folders": ["train", *train, f"data.folders=[{value}]"],
        "vae": ["train", *train, f"vae={value}"],
        "wandb": ["train", *train, "logger=wandb", f"logger.project={value}"],
        "tags": ["train", *train, "logger=wandb", f"logger.tags=[a,{value}]"],
        "launcher": ["train", *train, "launcher=slurm", "launcher.dry=true", f"launcher.options=[--comment={value}]"],
        "sweep": ["train", "-m", *train, "logger=wandb", f"logger.entity={value},b"],
        "submitted": ["train", "-m", *train, "launcher=slurm", "launcher.dry=true", "logger=wandb", f"logger.entity={value},b"],
        "plan": ["plan", *train, f"init={value}"],
        "sample": ["sample", f"checkpoint={folder / 'dit'}", f"prompt=a {value}", f"output={out / 'samples'}"],
        "negative": ["sample", f"checkpoint={folder / 'dit'}", "prompt=a", f"negative={value}", f"output={out / 'samples'}"],
        "checkpoint": ["sample", f"checkpoint={value}", "prompt=a"],
        "evaluate": ["evaluate", f"checkpoint={folder / 'videos'}", f"data={value}", f"output={out / 'scores'}"],
        "extractor": ["evaluate", f"checkpoint={folder / 'videos'}", "extractor=clip", f"extractor.source={value}", f"output={out / 's'}"],
        "encode": ["encode", f"data={folder / 'data'}", f"vae={value}"],
        "prepare": ["prepare", f"input={value}", f"output={out / 'set'}"],
        "export": ["export", f"checkpoint={folder / 'dit'}", f"output={out / value}"],
        "report": ["report", value],
        "compare": ["compare", value],
        "allow": ["data", "check", str(folder / "data"), "--allow", value],
        "mistyped": ["train", f"no_such_key={value}"],
        "group": ["train", f"dit={value}"],
        "config-dir": ["train", f"--config-dir={value}", *train],
        "verb": [value],
        "option": ["train", f"--{value}"],
    }


VERBS = tuple(verbs(type("", (), {"folder": Path("x")}), Path("y"), "z"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("value", [URL, TOKEN], ids=["url", "token"])
def test_no_secret_of_the_command_line_is_printed_or_kept(sora, material, tmp_path, verb, value):
    ended = sora(*verbs(material, tmp_path / "out", value)[verb], cwd=tmp_path)
    assert_bounded(ended)
    assert ended.code == 2, ended.told
    assert_silent(ended, tmp_path)


@pytest.mark.parametrize("kind", SECRETS)
def test_every_form_is_refused_with_the_way_to_give_it(sora, tmp_path, kind):
    text, secret = SECRETS[kind]
    ended = sora("train", "logger=wandb", f"logger.project={text}", "data.folders=[x]", "vae=y", cwd=tmp_path)
    assert_refused(ended, "logger.project holds", "; give it ")
    assert_silent(ended, tmp_path, secret)


def test_secrets_of_the_environment_stay_there(sora, material, tmp_path):
    env = {name: f"{name.lower()}-{WORD}" for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "CANARY")}
    run = material.copy("live")
    ended = sora("train", f"resume={run}", "steps=3", "resume_allow=[steps]", "logger=csv", env=env, seconds=120)
    assert ended.code == 0, ended.told
    assert_silent(ended, tmp_path)
    ended = sora("sample", f"checkpoint={run}", "prompt=x", "seconds=0.5", "steps=1", env=env, seconds=60)
    assert ended.code == 0, ended.told
    assert_silent(ended, tmp_path)
    assert_silent(sora("report", str(run), env=env), tmp_path)


def test_secrets_in_stored_files_go_no_further(sora, material, tmp_path):
    run, data = material.copy("live"), material.copy("data")
    (data / "remote.json").write_text(json.dumps({"url": URL}))
    ended = sora("data", "check", str(data), "--allow", "https://127.0.0.1:9/set")
    assert ended.code == 2 and WORD not in ended.out + ended.err, ended.told
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["logger"] = {
        "_target_": "sora.training.Wandb",
        "project": TOKEN,
        "entity": None,
        "mode": "offline",
        "tags": [],
        "timeout": 1.0,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for words in (["train", f"resume={run}", f"--allow={run}"], ["report", str(run)], ["sample", f"checkpoint={run}", "prompt=x"]):
        ended = sora(*words)
        assert WORD not in ended.out + ended.err, ended.told
    pages = [path for path in (*run.rglob("*.html"), *run.rglob("events.jsonl"), *run.rglob("wandb/**/*")) if path.is_file()]
    assert pages and not [path for path in pages if WORD.encode() in path.read_bytes()]


def test_a_password_is_given_in_a_file_by_name(sora, material, tmp_path):
    """~/.netrc, or the file that NETRC names, as curl and git have it."""
    asked = []
    shared = material.copy("tars")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, *, body=True):
            asked.append(self.headers.get("Authorization"))
            path = shared / self.path.lstrip("/")
            known = self.headers.get("Authorization") == "Basic " + base64.b64encode(f"user:{WORD}".encode()).decode()
            content = path.read_bytes() if known and path.is_file() else b""
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            self.send_response(401 if not known else 206 if content and "Range" in self.headers else 200 if content else 404)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            if content:
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
            self.end_headers()
            if body:
                self.wfile.write(part)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/netrc").write_text(f"machine 127.0.0.1 login user password {WORD}\n")
    env = {"NETRC": str(tmp_path / "home/netrc")}
    url, index = f"http://127.0.0.1:{server.server_port}", tmp_path / "out/index"
    ended = sora("data", "index", url, "shards={00000..00000}.tar", f"output={index}", env=env, seconds=60)
    assert ended.code == 0, ended.told
    assert sora("data", "check", str(index), env=env, seconds=60).code == 0
    assert_silent(ended, tmp_path / "out")
    refused = sora("data", "check", str(index), seconds=60)
    server.shutdown()
    assert refused.code and None in asked and "Traceback" not in refused.err, refused.told
