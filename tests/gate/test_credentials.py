"""What is a credential is told by its form and its name; what only looks like one in a hurry stays as it is."""

import time

import pytest
import yaml

from sora.config.compose import config_dir
from sora.gate import credentials

C = "c0FFee1234567890c0FFee1234567890c0FF"
SECRETS = {
    "url with password": (f"https://user:{C}@host/set", C),
    "url with user": (f"s3://{C}@bucket/set", C),
    "ftp": (f"FTP://u:{C}@h", C),
    "azure with key": (f"abfss://box:{C}@account.dfs.core.windows.net/x", C),
    "signed, amazon": (f"https://h/s?X-Amz-Credential=a&X-Amz-Signature={C}", C),
    "signed, azure": (f"https://h/s?sv=1&sig={C}", C),
    "query token": (f"https://h/s?a=1&token={C}", C),
    "query key": (f"https://h/s?api_key={C}", C),
    "hugging face": ("hf_" + C, C),
    "openai": ("sk-" + C, C),
    "openai project": ("sk-proj-" + C, C),
    "anthropic": ("sk-ant-api03-" + C, C),
    "amazon": ("AKIA" + "A1B2C3D4E5F6G7H8", "A1B2C3D4E5F6G7H8"),
    "amazon, temporary": ("ASIA" + "A1B2C3D4E5F6G7H8", "A1B2C3D4E5F6G7H8"),
    "github": ("ghp_" + C, C),
    "github, app": ("ghs_" + C, C),
    "github, fine": ("github_pat_" + C, C),
    "gitlab": ("glpat-" + C, C),
    "wandb": ("wandb_v1_" + C, C),
    "nvidia": ("nvapi-" + C, C),
    "replicate": ("r8_" + C, C),
    "google": ("AIza" + C[:35], C[:35]),
    "google, bearer": ("ya29." + C, C),
    "slack": ("xoxb-" + C, C),
    "npm": ("npm_" + C, C),
    "pypi": ("pypi-" + C + C, C),
    "json web token": (f"eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.{C}", C),
    "private key": (f"-----BEGIN RSA PRIVATE KEY-----\n{C}\n-----END RSA PRIVATE KEY-----", C),
}
NAMED = {
    "password": f"wandb.password={C}",
    "api key": f"logger.api_key={C}",
    "token": f"HF_TOKEN={C}",
    "json": f'{{"secret": "{C}"}}',
    "python": f"{{'aws_secret_access_key': '{C}'}}",
}
HONEST = [
    *("abfs://box@account.dfs.core.windows.net/set", "s3://bucket/set", "hf://datasets/owner/name@main/x", "https://h/a@b?page=2"),
    *(
        "plan.token_budget=4096",
        "key_with_shard=false",
        "max_tokens: 77",
        "tokens=3",
        "token=12",
        "monkey=banana",
        "git@github.com:a/b.git",
    ),
    *(
        "outputs/sk-learn-2026-11-29-experiments",
        "task-0123456789abcdef01234567",
        "hf_cache/models",
        "AKIA",
        "revision=" + "0123456789" * 4,
    ),
    *("a secret: garden, her token of love", "the password is swordfish", "captions.keys={dense: long text, file: clip}", "ghp_short"),
]


@pytest.mark.parametrize("kind", SECRETS)
def test_a_credential_is_masked_and_refused_wherever_it_stands(kind):
    text, secret = SECRETS[kind]
    for around in ("{}", "before {} after", "'{}'", "a={}, b", "[{}]"):
        assert secret not in credentials.masked(around.format(text)), around
    assert credentials.masked(credentials.masked(text)) == credentials.masked(text)
    with pytest.raises(ValueError, match=r"here: a\.b holds .*; give it (in|by) ") as told:
        credentials.refuse({"a": {"b": ["x", f"y {text}"]}}, said_by="here")
    assert secret not in str(told.value)


@pytest.mark.parametrize("kind", NAMED)
def test_what_stands_behind_the_name_of_a_credential_is_masked(kind):
    assert C not in credentials.masked(f"a {NAMED[kind]} b")


@pytest.mark.parametrize(
    "key", ["api_key", "wandb_key", "token", "auth_token", "secret", "password", "aws_secret_access_key", "apikey", "passwd"]
)
def test_a_key_that_is_called_like_a_credential_holds_no_text(key):
    with pytest.raises(ValueError, match=f"logger.{key} is a credential by its name") as told:
        credentials.refuse({"logger": {key: "swordfish"}}, said_by="here")
    assert "swordfish" not in str(told.value)
    credentials.refuse({"logger": {key: None}, key: "", "other": {key: 3}}, said_by="here")


@pytest.mark.parametrize("text", HONEST)
def test_honest_words_are_neither_masked_nor_refused(text):
    assert credentials.masked(text) == text
    credentials.refuse({"a": text, "tokens": "t", "keys": {"dense": "b"}, "token_budget": "1", "monkey": "x"}, said_by="here")


def test_no_file_of_conf_holds_what_is_taken_for_a_credential():
    files = sorted(config_dir().rglob("*.yaml"))
    assert len(files) > 100
    for path in files:
        credentials.refuse(yaml.safe_load(path.read_text()), said_by=str(path))
        assert credentials.masked(path.read_text()) == path.read_text(), path


NEARLY = (
    *("a", "a@", "a-", "a_", "A", "0", ".", "-", "_", " ", "\n", "://", "a://", "http:/", "https://a:", "https://a:b", "a:/:", "a:/b:c:"),
    *("?key=", "&sig", "sk-", "-sk-a", "hf_", "AKIA", "gho_", "glpat-", "wandb_v1", "ya29.", "xoxb-", "eyJ", "eyJ-", "eyJaaaaaaaaaa."),
    *("-eyJ.eyJ", "-----BEGIN ", "-----BEGIN PRIVATE KEY", "PRIVATE KEY ", "key=", "_key", "token", "secret:", '"token": '),
    *("password=null ", "\\\"'", "\u202e", "e\u0301"),
)


@pytest.mark.slow
@pytest.mark.parametrize("part", NEARLY)
def test_a_text_of_strangers_is_masked_in_a_time_that_grows_with_its_length_alone(part):
    for text in (part * (150_000 // len(part)), "sk-" + part * (150_000 // len(part)) + "!", "a:/" + part * (150_000 // len(part)) + "\n"):
        began = time.process_time()
        credentials.masked(text)
        credentials.kind_of(text)
        assert time.process_time() - began < 1.5


def test_a_token_of_parts_is_one_where_a_part_is_long():
    long = "Ab0" * 6
    for text in (f"sk-{long}", f"sk-proj-a_b-{long}-c", f"x sk-ant-api03-{'a-' * 200}{long}", f"sk-sk-{long}"):
        assert long not in credentials.masked(text) and credentials.kind_of(text) is not None
    for text in ("sk-learn", "sk-a-b-c-d-e-f-g-h-i-j-k-l-m-n", f"ask-{long}"):
        assert credentials.masked(text) == text and credentials.kind_of(text) is None
