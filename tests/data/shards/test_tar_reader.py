"""The shard corpus: every way in which a tar can be damaged or hostile, walked, and what is told of it."""

import io
import subprocess
import sys
import tarfile

import pytest

from sora.data.shards.tar_reader import TarWalk, sample_of
from tests.data.making import tar


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


class Stream(io.BytesIO):
    def seek(self, *_):
        raise io.UnsupportedOperation

    tell = seek


def walked(content: bytes, *, stream=False):
    """[(name, content)], [(kind, place)]; a stream can neither be sought in nor asked for its size."""
    file = Stream(content) if stream else io.BytesIO(content)
    walk = TarWalk(file, size=None if stream else len(content))
    found = []
    for name, offset, size in walk:
        inside = walk.content()
        assert inside == content[offset : offset + size]
        found.append((name, inside))
    return found, [(trouble.kind, trouble.place) for trouble in walk.troubles]


MEMBERS = [(f"k{number}.{suffix}", bytes([65 + number]) * size) for number in range(4) for suffix, size in (("mp4", 900), ("json", 40))]
WHOLE = tar(MEMBERS)
ENDS = [512 * end for end in (3, 5, 8, 10, 13, 15, 18, 20)]  # of each member with its padding


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_whole_tars_of_every_format_are_read_as_tarfile_reads_them(kind, stream):
    names = ["a.mp4", f"{'d' * 60}/{'e' * 60}/b.mp4", "é.json", "./c.mp4"]
    if kind != tarfile.USTAR_FORMAT:
        names.append(f"{'x' * 300}.json")
    content = tar([(name, name.encode() * 30) for name in names], kind=kind)
    found, troubles = walked(content, stream=stream)
    assert found == [(name.removeprefix("./"), name.encode() * 30) for name in names]
    assert not troubles


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_at_any_byte_loses_no_whole_member_and_is_told(stream):
    for cut in [*range(512, 3000, 97), *ENDS, *(end + 1 for end in ENDS), *(end + 511 for end in ENDS)]:
        content = WHOLE[:cut]
        whole = [member for member, end in zip(MEMBERS, ENDS, strict=True) if end - (-len(member[1]) % 512) <= cut]
        try:
            found, troubles = walked(content, stream=stream)
        except ValueError as error:  # a stream notices in the middle of a member
            assert stream and "ends after" in str(error)
            continue
        assert found == whole
        assert [kind for kind, _ in troubles] in (["cut"], ["end"]), cut


def test_a_header_of_garbage_loses_its_member_alone_and_the_place_is_told():
    content = bytearray(WHOLE)
    content[ENDS[1] : ENDS[1] + 512] = b"\xa5" * 512
    for stream in (False, True):
        found, troubles = walked(bytes(content), stream=stream)
        assert found == [MEMBERS[0], MEMBERS[1], *MEMBERS[3:]]
        assert troubles == [("garbage", f"bytes {ENDS[1]} to {ENDS[2]}")]
    content[ENDS[6] : ENDS[6] + 512] = b"\xa5" * 512
    found, troubles = walked(bytes(content))
    assert found == [MEMBERS[0], MEMBERS[1], *MEMBERS[3:7]]
    assert [kind for kind, _ in troubles] == ["garbage", "garbage"]


def test_one_flipped_bit_of_a_header_is_noticed():
    for bit in range(0, 512 * 8, 37):
        content = bytearray(WHOLE)
        content[ENDS[1] + bit // 8] ^= 1 << bit % 8
        found, troubles = walked(bytes(content))
        assert set(MEMBERS) - set(found) in ({MEMBERS[2]}, set())
        assert troubles or found == MEMBERS  # spaces around the checksum mean nothing


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../etc/passwd", "leads out"),
        ("/etc/cron.d/x.mp4", "leads out"),
        ("a/../../b.mp4", "leads out"),
        ("..\\..\\b.mp4", "leads out"),
        ("C:\\x.mp4", "leads out"),
        ("a\nb.mp4", "control"),
        ("a\x1b[2J.mp4", "control"),
    ],
)
def test_names_that_lead_out_or_deceive_are_refused(name, why):
    content = tar([("a.mp4", b"1"), (name, b"2"), ("b.mp4", b"3")], kind=tarfile.PAX_FORMAT)
    walk = TarWalk(io.BytesIO(content), size=len(content))
    assert [found.name for found in walk] == ["a.mp4", "b.mp4"]
    (trouble,) = walk.troubles
    assert trouble.kind == "name" and why in trouble.reason and trouble.place.isprintable()


def test_links_devices_and_sparse_files_are_refused_and_followed_nowhere():
    kinds = [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")]
    members = [(special(f"x{number}.mp4", kind, "/etc/passwd"), b"") for number, (kind, _) in enumerate(kinds)]
    found, troubles = walked(tar([("a.mp4", b"1"), *members, (special("folder", tarfile.DIRTYPE), b""), ("b.mp4", b"2")]))
    assert found == [("a.mp4", b"1"), ("b.mp4", b"2")]
    assert troubles == [(told, f"x{number}.mp4") for number, (_, told) in enumerate(kinds)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed by gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed by zstd"),
        (b"PK\x03\x04" + bytes(600), "compressed by zip"),
        (b"<html>not found</html>", "no tar file: it has 22 bytes"),
        (b"<html>" * 1000, "no tar file: it has no header"),
    ],
)
def test_what_is_no_tar_is_refused(content, why):
    with pytest.raises(ValueError, match=why):
        walked(content)


def test_joined_shards_are_told_since_no_tar_reader_reads_the_second():
    found, troubles = walked(WHOLE + WHOLE)
    assert found == MEMBERS
    assert [kind for kind, _ in troubles] == ["behind"]


@pytest.mark.parametrize("field", [b"9" * 12, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-1".ljust(12, b"\0")])
def test_a_size_that_cannot_be_is_no_way_out_of_the_shard(field):
    content = bytearray(tar([("a.mp4", b"1" * 600), ("b.mp4", b"2")]))
    content[124:136] = field
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    found, troubles = walked(bytes(content))
    assert found in ([], [("b.mp4", b"2")])
    assert troubles


def test_a_pax_header_that_lies_does_no_harm():
    for record in (b"9999999999 path=x\n", b"0 path=x\n", b"no number\n", b"12 size=-99\n", b"20 size=9999999999\n"):
        pax = tarfile.TarInfo("pax")
        pax.type, pax.size = tarfile.XHDTYPE, len(record)
        content = pax.tobuf() + record + bytes(512 - len(record)) + tar([("a.mp4", b"1"), ("b.mp4", b"2")])
        found, troubles = walked(content)
        assert {name for name, _ in found} <= {"a.mp4", "b.mp4", "x"}
        assert len(found) == 2 or troubles


TINY = """
import tarfile, sys, time
from sora.data.shards.tar_reader import TarWalk
one = bytearray(tarfile.TarInfo("aaaaaa.txt").tobuf(tarfile.USTAR_FORMAT))
one[124:136] = b"00000000001\\0"
with open(sys.argv[1], "wb") as file:
    for number in range(100_000):
        one[:6], one[148:156] = b"%06d" % number, b" " * 8
        one[148:156] = b"%06o\\0 " % sum(one)
        file.write(one + b"x" + bytes(511))
    file.write(bytes(1024))
with open(sys.argv[1], "rb") as file:
    start = time.process_time()
    walk = TarWalk(file, size=102_401_024)
    print(sum(walk.content() == b"x" for _ in walk), len(walk.troubles), time.process_time() - start)
"""


@pytest.mark.slow
def test_a_hundred_thousand_tiny_members_are_walked_in_seconds(tmp_path):
    """Without the checks of annotations, which take a hundred times as long."""
    done = subprocess.run([sys.executable, "-c", TINY, str(tmp_path / "tiny.tar")], capture_output=True, text=True, check=True)
    count, troubles, seconds = done.stdout.split()
    assert (count, troubles) == ("100000", "0")
    assert float(seconds) < 20


def test_keys_and_suffixes_are_those_of_webdataset():
    assert sample_of("a/b.c.mp4") == ("a/b", "c.mp4")
    assert sample_of("x.y/z.MP4") == ("x.y/z", "mp4")
    assert sample_of("none") is None
    assert sample_of("a/.hidden") is None
