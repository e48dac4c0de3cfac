"""Requests to a server with faults: each answered or given a reason, within time and bytes, and the key stays with its server."""

import socket
import threading
import time
import zlib

import pytest

from sora.web.answers import AskFailed, unpacked
from sora.web.client import CircuitOpen
from sora.web.endpoint import Endpoint
from sora.web.limits import Retries
from sora.web.stub import FAULTS, StubServer
from sora.web.waiting import jitter, retry_after
from tests.web.asking import KEY, SECRET, Ask, client, reply


@pytest.fixture
def stub():
    made = []

    def start(**settings):
        made.append(StubServer(reply, **settings))
        return made[-1]

    yield start
    for server in made:
        server.close()


def outcomes(url, count=1, **settings):
    with client(url, **settings) as asking:
        return {one.ask.number: one for one in asking.each(map(Ask, range(count)))}


MENDED = ["status_429", "status_500", "status_503", "reset", "short", "html", "dated", "no_choice", "cut", "trailing", "empty", "gzip_bomb"]


@pytest.mark.parametrize("fault", MENDED)
def test_a_fault_that_passes_is_tried_again(stub, fault):
    found = outcomes(stub(first=(fault,)).url)[0]
    assert found.value["number"] == 0 and found.attempts == 2 and not found.reason


WHY = {
    "redirect": "answers 307 and points to 'elsewhere.example'",
    "echo_401": "answers 401: the key is not accepted",
    "brotli": "packed as 'br'",
    "endless": "more than the 1,048,576 bytes",
    "gzip_bomb": "more than the 1,048,576 bytes",
    "html": "no JSON",
    "loris": "longer than the 0.5 s of total_seconds",
    "late_headers": "longer than the 0.5 s of total_seconds",
    "status_503": "answers 503",
    "short": "broke the connection off",
}


@pytest.mark.parametrize("fault", WHY)
def test_a_fault_that_stays_is_one_reason_and_takes_its_time_at_most(stub, fault, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    server, began = stub(faults={fault: 1.0}), time.monotonic()
    slow = {"total": 0.5, "silent": 0.4} if fault in ("loris", "late_headers") else {"total": 20.0, "silent": 10.0}
    found = outcomes(server.url, key=KEY, attempts=2, **slow)[0]
    assert WHY[fault] in found.reason and found.value is None and SECRET not in found.reason and "\n" not in found.reason
    assert time.monotonic() - began < 10
    assert len(server.asked) == (1 if fault in ("redirect", "echo_401", "brotli") else 2)
    assert all(one.authorization == f"Bearer {SECRET}" for one in server.asked)


@pytest.mark.parametrize("kind", ["gzip", "deflate"])
def test_a_packed_answer_is_unpacked_piece_by_piece(kind):
    """64 MB come as 64 kB, and no piece is larger than is asked for at once; an answer that is cut is refused."""
    pack = zlib.compressobj(wbits=31 if kind == "gzip" else 15)
    packed = pack.compress(bytes(64 << 20)) + pack.flush()
    pieces = [len(piece) for piece in unpacked([packed[place : place + 9999] for place in range(0, len(packed), 9999)], kind)]
    assert sum(pieces) == 64 << 20 and max(pieces) <= 1 << 16
    with pytest.raises(AskFailed, match="ends early"):
        list(unpacked([packed[:-9]], kind))
    with pytest.raises(AskFailed, match="does not unpack"):
        list(unpacked([b"\0" + packed], kind))


def test_a_redirect_takes_the_key_nowhere(stub, monkeypatch):
    """A 307 to another server of this machine: the stock client would follow it with the key."""
    monkeypatch.setenv(KEY, SECRET)
    other = stub()
    monkeypatch.setitem(FAULTS, "redirect", lambda asked, good: _redirect(other.url))
    found = outcomes(stub(faults={"redirect": 1.0}).url, key=KEY)[0]
    assert not other.asked and "points to '127.0.0.1'" in found.reason


def _redirect(url):
    from sora.web.stub import http

    return http(307, b"", location=f"{url}/chat/completions")


def test_proxies_and_passwords_of_the_environment_are_not_used(stub, monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = stub()
    assert outcomes(server.url)[0].value and server.asked[0].authorization == ""


def test_every_request_ends_once_under_all_faults_together(stub):
    faults = dict.fromkeys(("status_429", "status_500", "reset", "cut", "html", "fenced", "dated", "no_choice"), 0.05)
    server = stub(faults=faults, seconds=0.002)
    found = outcomes(server.url, 300, attempts=8, most=16)
    assert sorted(found) == list(range(300)) and sum(not one.reason for one in found.values()) >= 299
    assert sum(server.good.values()) <= 300  # a good answer is not asked for again
    assert len(server.asked) > 380


def test_requests_are_taken_only_as_they_can_be_sent(stub):
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield Ask(number)

    with client(stub(seconds=0.01).url, most=4) as asking:
        for count, _ in enumerate(asking.each(source()), 1):
            assert len(taken) <= count + 5
    assert len(taken) == 100


def test_a_server_that_is_gone_stops_the_work_and_gives_what_was_in_flight(stub):
    server = stub(seconds=0.01)
    found = []
    with client(server.url, attempts=2, stop_after=6) as asking, pytest.raises(CircuitOpen, match=r"6 requests in a row failed.*goes on"):
        for one in asking.each(map(Ask, range(1000))):
            found.append(one)
            if len(found) == 20:
                server.faults = {"status_500": 1.0}
    good = [one for one in found if not one.reason]
    assert len(good) >= 20 and len({one.ask.number for one in found}) == len(found) < 100
    assert sum(server.good.values()) == len(good)  # what was answered is not lost


def test_nothing_listens(stub):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with client(f"http://127.0.0.1:{port}", attempts=2, stop_after=3) as asking, pytest.raises(CircuitOpen, match="does not answer"):
        list(asking.each(map(Ask, range(50))))


def test_a_mistake_of_the_caller_is_raised_where_outcomes_are_read(stub):
    class Wrong(Ask):
        def judge(self, answer):
            raise KeyError("mine")

    with client(stub().url) as asking, pytest.raises(KeyError, match="mine"):
        list(asking.each([Wrong(0)]))


def test_the_number_in_flight_falls_under_429_and_rises_again(stub):
    server, flying, most = stub(seconds=0.02), 0, 0
    lock = threading.Lock()

    class Counted(Ask):
        def body(self, attempt):
            nonlocal flying, most
            with lock:
                flying += 1
                most = max(most, flying)
            return super().body(attempt)

        def judge(self, answer):
            nonlocal flying
            with lock:
                flying -= 1
            return super().judge(answer)

    with client(server.url, most=16) as asking:
        list(asking.each(map(Counted, range(80))))
        assert most > 8 and asking.pace.allowed == 16
        server.faults = {"status_503": 1.0}
        asking.ask(Ask(1))
        assert asking.pace.allowed < 16
        server.faults = {}
        low = asking.pace.allowed
        list(asking.each(map(Ask, range(100, 400))))
        assert asking.pace.allowed > low


# Endpoints and keys


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.org/v1", "in the clear"),
        ("http://10.0.0.1/v1", "in the clear"),
        ("http://127.0.0.1.example.org/v1", "in the clear"),
        ("https://user:pass@example.org/v1", "holds a user"),
        ("https://example.org/v1?api_key=x", "a query"),
        ("ftp://example.org", "no address"),
        ("https://", "no address"),
        ("https://exa mple.org", "no address"),
        ("https://example.org/v1\r\nHost: evil", "no address"),
        ("http://[::1", "no URL"),
        ("http://localhost:99999", "no URL"),
        ("file:///etc/passwd", "no address"),
    ],
)
def test_an_address_that_is_none_is_refused(url, why):
    with pytest.raises(ValueError, match=why) as error:
        Endpoint(url)
    assert "pass" not in str(error.value).replace("passwd", "")


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.9.9.9", "http://[::1]:80/v1/", "https://example.org"])
def test_this_machine_and_https_are_taken(url):
    assert Endpoint(url).url == url.rstrip("/")


def test_the_key_is_a_name_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    made = Endpoint("https://example.org", key_variable=KEY)
    assert SECRET not in repr(made) + str(vars(Endpoint)) and made.scrubbed(f"a {SECRET}.") == "a ***."
    with pytest.raises(ValueError) as error:
        Endpoint("https://example.org", key_variable=SECRET)
    assert SECRET not in str(error.value)
    for held in ("", "two words", "line\nbreak", "ü"):
        monkeypatch.setenv(KEY, held)
        with pytest.raises(ValueError, match=KEY) as error:
            Endpoint("https://example.org", key_variable=KEY)
        assert not held or held not in str(error.value).replace(KEY, "")


# Waiting


def test_waits_are_functions_of_their_arguments_and_bounded():
    retries = Retries(attempts=9, first_seconds=1.0, most_seconds=20.0)
    for asked in (None, -1e9, 0.0, 3.0, 1e12):
        waits = [retries.wait(f"{n}", n % 8 + 1, seed=3, asked=asked) for n in range(200)]
        assert waits == [retries.wait(f"{n}", n % 8 + 1, seed=3, asked=asked) for n in range(200)]
        assert min(waits) >= 0 and max(waits) <= 20 and len(set(waits)) > (150 if asked != 1e12 else 0)
    assert retries.wait("a", 1, seed=0, asked=3.0) >= 3
    draws = [jitter(str(n), 1, seed=0) for n in range(4000)]
    assert 0.48 < sum(draws) / 4000 < 0.52 and min(draws) >= 0 and max(draws) < 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "-7"}, -7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:10 GMT"}, 10),
        ({"retry-after": "Wed, 21 Oct 2037 07:28:10 GMT", "date": "Wed, 21 Oct 2037 07:28:04 GMT"}, 6),
        ({"retry-after": "Wed, 99 Oct 2037 07:28:10 GMT"}, None),
        ({"retry-after": "9" * 400}, None),
    ],
)
def test_retry_after_is_a_number_or_a_date_by_the_servers_own_clock(headers, seconds):
    found = retry_after(headers, now=1445412480.0)
    assert found == seconds or (len(headers.get("retry-after", "")) > 99 and found is not None)
