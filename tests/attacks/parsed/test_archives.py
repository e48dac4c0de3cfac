"""Tars of strangers, walked in this process: names and headers of every kind, none believed beyond its bytes, none waited for."""

import io
import tarfile
import time

import pytest

from sora.data.shards.tar_reader import TarWalk
from sora.ingest import survey as foreign
from sora.ingest.survey import Choices, survey_file
from sora.system.terminal import shown

SECONDS = 5.0  # of work, of what takes a tenth of it


def member(name: str | bytes, content: bytes = b"x" * 10, kind: bytes = b"0", *, size: bytes | None = None, link: bytes = b"") -> bytes:
    """A header with the right checksum, whatever it says, and what follows it."""
    head = bytearray(512)
    raw = name.encode() if isinstance(name, str) else name
    head[: len(raw[:100])] = raw[:100]
    head[124:136] = (b"%011o\0" % len(content) if size is None else size)[:12].ljust(12, b"\0")
    head[156:157], head[157 : 157 + len(link)], head[257:265] = kind, link, b"ustar\x0000"
    head[148:156] = b"%06o\0 " % (sum(head) + 8 * 32)
    return bytes(head) + content + bytes(-len(content) % 512)


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    lines = b""
    for key, value in records:
        line = f" {key}={value}\n".encode()
        length = len(line)
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        lines += str(length).encode() + line
    return member("PaxHeaders/x", lines, kind)


END = bytes(1024)


def walked(*parts: bytes):
    """The names that are files, and the kinds of trouble; every file lies in the shard."""
    content, began = b"".join(parts) + END, time.process_time()
    walk = TarWalk(io.BytesIO(content), size=len(content))
    found = list(walk)
    assert all(0 <= one.offset <= one.offset + one.size <= len(content) for one in found)
    assert time.process_time() - began < SECONDS
    for trouble in walk.troubles:
        told = shown(f"{trouble.place}: {trouble.reason}")
        assert len(told) < 2000 and not any(ord(letter) < 32 or letter in "\x7f\u202e\u2066" for letter in told)
    return [one.name for one in found], [trouble.kind for trouble in walk.troubles]


NAMES = {
    "absolute": "/etc/passwd.mp4",
    "climbing": "../../x.mp4",
    "climbing within": "a/../../x.mp4",
    "climbing in the end": "a/..",
    "of another system": "C:\\x.mp4",
    "climbing as another system does": "a\\..\\..\\x.mp4",
    "of a share": "\\\\host\\x.mp4",
    "a line": "a\nb.mp4",
    "an escape": "\x1b[2J.mp4",
    "a bell": "a\x07.mp4",
    "an end of line of Unicode": "a\u2028b.mp4",
    "a control of Latin": "a\x9b2J.mp4",
    "no UTF-8": b"\xff\xfe.mp4",
    "too long in bytes": b"a\xc0\xaf..\xc0\xafx.mp4",
    "half a character": b"\xed\xa0\x80.mp4",
    "nothing": "",
}


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("how", ["plain", "GNU", "pax"])
def test_a_name_that_leads_out_or_says_more_than_a_name_is_refused(what, how):
    name = NAMES[what]
    raw = name.encode() if isinstance(name, str) else name
    if how == "plain":
        first = member(name)
    elif how == "GNU":
        first = member("././@LongLink", raw + b"\0", b"L") + member("short.mp4")
    else:
        line = b" path=" + raw + b"\n"
        first = member("PaxHeaders/x", b"%d" % (len(line) + 2) + line, b"x") + member("short.mp4")
    names, troubles = walked(first, member("good.mp4"))
    if what == "nothing" and how != "plain":
        assert names == ["short.mp4", "good.mp4"]
        return
    assert names == ["good.mp4"] and troubles == ["name"]


KINDS = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device", b"S": "type", b"D": "type", b"M": "type", b"V": "type"}


@pytest.mark.parametrize("kind", [*KINDS, b"A", b"\x7f", b"Z"])
@pytest.mark.parametrize("target", [b"/etc/passwd", b"../../x", b"good.mp4"])
def test_what_is_no_file_is_named_and_gives_nothing(kind, target):
    content = b"" if KINDS.get(kind) in ("link", "device") else b"x" * 700
    names, troubles = walked(member("bad.mp4", content, kind, link=target), member("good.mp4"))
    assert names == ["good.mp4"] and troubles == [KINDS.get(kind, "type")]


SIZES = (
    b"77777777777\0",
    b"\x80" + b"\0" * 3 + b"\xff" * 8,
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"-0000000001\0",
    b"+0000000010",
    b"0x10",
)
MORE = (b"1e9", b"\xd9\xa3" * 6, b"           \0", b"\0" * 12, b"9999999999\0")


@pytest.mark.parametrize("size", [*SIZES, *MORE])
def test_a_size_is_believed_as_far_as_the_shard_goes(size):
    try:
        names, _ = walked(member("good.mp4"), member("bad.mp4", b"", size=size), member("last.mp4"))
    except ValueError as error:
        raise AssertionError(error) from error
    assert "good.mp4" in names


PAX = {
    "a size beyond the shard": pax(("size", str(10**15))),
    "a size of very many digits": pax(("size", "9" * 5000)),
    "a size below zero": pax(("size", "-5")),
    "a size of another script": pax(("size", "٣")),
    "a sparse file": pax(
        ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(10**15)), ("GNU.sparse.name", "x.mp4")
    ),
    "an older sparse file": pax(("GNU.sparse.size", str(10**15)), ("GNU.sparse.numblocks", "9999999"), ("GNU.sparse.map", "0,1" * 999)),
    "a path twice": pax(("path", "../x.mp4"), ("path", "y.mp4")),
    "another charset": pax(("hdrcharset", "BINARY"), ("path", "y.mp4")),
    "a length of nothing": member("p", b"0 path=x\n", b"x"),
    "a length beyond": member("p", b"99999999 path=x\n", b"x"),
    "a length that lies": member("p", b"3 path=../x\n", b"x"),
    "a length of very many digits": member("p", b"9" * 5000 + b" path=x\n", b"x"),
    "no equals sign": member("p", b"8 path\n\n", b"x"),
    "for all that follow": pax(("path", "../x.mp4"), ("size", "0"), kind=b"g"),
    "megabytes": member("p", b"", b"x", size=b"77777777777\0"),
    "a name of megabytes": member("././@LongLink", b"a" * 1_000_000, b"L"),
    "a megabyte of small records": member("p", b"5 a=\n" * 200_000, b"x"),
    "a megabyte without a space": member("p", b"1" * 1_000_000, b"x"),
    "header behind header": b"".join(pax(("path", f"{number}.mp4")) for number in range(2000)),
}


@pytest.mark.parametrize("what", PAX)
def test_extended_headers_are_read_within_limits_and_lead_nowhere(what):
    names, _ = walked(member("good.mp4"), PAX[what], member("next.mp4"))
    assert names[0] == "good.mp4" and not any(".." in name for name in names)


class Counting(io.BytesIO):
    taken = 0

    def read(self, size=-1, /):
        found = super().read(size)
        self.taken += len(found)
        return found


@pytest.mark.parametrize("garbage", [1, 3000])
def test_headers_among_garbage_are_found_by_reading_each_byte_a_few_times(garbage):
    count = 3000 // garbage
    content = b"".join([member("good.mp4", b""), *[b"x" * 512 * garbage, member("more.mp4", b"")] * count, END])
    file = Counting(content)
    walk = TarWalk(file, size=len(content))
    assert len(list(walk)) == count + 1 and [trouble.kind for trouble in walk.troubles] == ["garbage"] * count
    assert file.taken < 5 * len(content)


def surveyed(*parts: bytes):
    content = b"".join(parts) + END
    return survey_file(io.BytesIO(content), len(content), "a.tar", Choices())


def test_names_that_differ_by_case_alone_are_two_and_suffixes_that_do_are_one():
    found = surveyed(*(member(name) for name in ("A.mp4", "a.mp4", "b.mp4", "b.MP4", "c.mp4", "c.txt", "c.TXT")))
    assert sorted(sample.name for sample in found.samples) == ["A", "a", "b", "c"]
    assert sorted(refusal.key for refusal in found.refused if refusal.kind == "duplicate") == ["b", "c"]
    assert len({sample.key for sample in found.samples}) == 4


@pytest.mark.parametrize("name", ["a\u202egpj", "\u2066evil", "a\u200bb", "é\u0301", "🎈", "-rf", "~", "$(x)", "a b", "a%s{0}", "w" * 90])
def test_a_key_is_letters_that_steer_no_terminal_no_shell_and_no_path(name):
    (sample,) = surveyed(member(f"{name}.mp4")).samples
    assert sample.key.replace("-", "").replace("_", "").isascii() and not sample.key.startswith("-")
    assert all(letter.isalnum() or letter in "-_" for letter in sample.key)


def test_texts_of_a_shard_are_held_within_a_limit_and_those_beyond_it_are_named(monkeypatch):
    """A file of holes has as many as it likes, and takes no room on a disk."""
    monkeypatch.setattr(foreign, "MOST_HELD", 5000)
    parts = [part for number in range(9) for part in (member(f"k{number}.mp4"), member(f"k{number}.txt", b"word " * 200))]
    found = surveyed(*parts)
    assert [sample.name for sample in found.samples] == ["k0", "k1", "k2", "k3", "k4"]
    assert len(found.refused) == 4 and all("too many to read" in refusal.reason for refusal in found.refused)


@pytest.mark.parametrize("how", ["w:gz", "w:bz2", "w:xz"])
def test_a_packed_tar_is_no_tar(how):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=how) as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(ValueError, match="compressed by"):
        list(TarWalk(file, size=len(file.getvalue())) if not file.seek(0) else ())


def test_a_tar_in_a_tar_in_a_tar_is_a_member_without_a_use():
    inner = member("deep.mp4") + END
    for _ in range(20):
        inner = member("a.tar", inner) + END
    found = surveyed(member("a.tar", inner), member("good.mp4"))
    assert [sample.name for sample in found.samples] == ["good"] and [refusal.key for refusal in found.refused] == ["a"]
