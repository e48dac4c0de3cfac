"""A client of a stub server, and requests for it."""

import json
from dataclasses import dataclass, field

from sora.web.answers import AskFailed
from sora.web.client import ServerClient
from sora.web.endpoint import Endpoint
from sora.web.limits import AnswerLimits, Retries
from sora.web.pace import Pace

KEY, SECRET = "SORA_TEST_KEY", "sk-test-0123456789abcdefABCDEF"


@dataclass
class Ask:
    """A request with a number, whose answer's JSON content is its value."""

    number: int
    path: str = "/chat/completions"
    tries: list[int] = field(default_factory=list)

    @property
    def id(self):
        return f"ask {self.number}"

    def body(self, attempt):
        self.tries.append(attempt)
        return json.dumps({"number": self.number}).encode()

    def judge(self, answer):
        try:
            return json.loads(json.loads(answer.body)["choices"][0]["message"]["content"])
        except (ValueError, LookupError) as error:
            raise AskFailed(f"no JSON: {answer.body[:60]!r}", again=True) from error


def reply(body):
    return json.dumps({"number": body["number"], "short": "a", "dense": "b"})


def client(url, *, key=None, most=8, attempts=4, total=10.0, silent=5.0, bytes_=1 << 20, stop_after=5, first=0.001):
    return ServerClient(
        Endpoint(url, key_variable=key),
        limits=AnswerLimits(connect_seconds=2.0, silent_seconds=silent, total_seconds=total, most_bytes=bytes_),
        retries=Retries(attempts=attempts, first_seconds=first, most_seconds=0.05),
        pace=Pace(start=min(4, most), most=most, hold=50.0),
        stop_after=stop_after,
    )
