"""The journal of answers: what was put is got, whatever cuts or changes its files, and a torn line costs that line alone."""

import hashlib
import random

import pytest

from sora.captions.captioner import CaptionFields, CaptionResult
from sora.captions.journal import SUFFIX, AnswerJournal


def result(number, *, error="", **more):
    fields = (
        None if error else CaptionFields(short=f"s{number} é\n\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), dense="d")
    )
    return CaptionResult(id=hashlib.sha256(str(number).encode()).hexdigest(), fields=fields, error=error, **more)


def filled(folder, count=5):
    journal = AnswerJournal(folder)
    for number in range(count):
        journal.put(result(number, tokens_in=number))
    journal.close()
    (path,) = folder.glob(f"*{SUFFIX}")
    return path


def test_what_was_put_is_got(tmp_path):
    filled(tmp_path)
    journal = AnswerJournal(tmp_path)
    assert len(journal) == 5 and journal.dropped == 0
    assert [journal.get(result(number).id) for number in range(5)] == [result(number, tokens_in=number) for number in range(5)]
    assert not journal.has(result(9).id)
    with pytest.raises(KeyError):
        journal.get(result(9).id)


def test_a_failure_never_stands_in_for_an_answer(tmp_path):
    one, two = AnswerJournal(tmp_path), AnswerJournal(tmp_path)
    one.put(result(1))
    two.put(result(1, error="no"))
    two.put(result(2, error="no"))
    one.close()
    two.close()
    journal = AnswerJournal(tmp_path)
    assert journal.get(result(1).id).fields is not None and journal.has(result(2).id) and not journal.has(result(2).id, failed=False)
    journal.put(result(2))
    journal.close()
    assert AnswerJournal(tmp_path).has(result(2).id, failed=False)


def test_a_file_cut_anywhere_loses_the_last_line_at_most(tmp_path):
    content = filled(tmp_path).read_bytes()
    (tmp_path / "cut").mkdir()
    ends = [place + 1 for place, byte in enumerate(content) if byte == 10]
    for cut in range(0, len(content), 11):
        (tmp_path / "cut" / f"a{SUFFIX}").write_bytes(content[:cut])
        journal = AnswerJournal(tmp_path / "cut")
        whole = sum(end <= cut for end in ends)
        assert len(journal) == whole and journal.dropped == (cut not in (0, *ends))
        journal.put(result(99))  # goes on in a file of its own
        journal.close()
        assert len(AnswerJournal(tmp_path / "cut")) == whole + 1
        for path in (tmp_path / "cut").iterdir():
            path.unlink()


def test_a_flipped_byte_costs_its_line_alone(tmp_path):
    path = filled(tmp_path)
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(60):
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        journal = AnswerJournal(tmp_path)
        assert len(journal) >= 3  # a line end that is lost joins two
        for number in range(5):
            if journal.has(result(number).id):
                assert journal.get(result(number).id) == result(number, tokens_in=number)
        journal.close()


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path):
    path = filled(tmp_path)
    journal = AnswerJournal(tmp_path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match="has changed while it was in use"):
        journal.get(result(2).id)


def test_a_link_in_the_folder_leads_nowhere(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "work" / f"a{SUFFIX}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link out of"):
        AnswerJournal(tmp_path / "work")
