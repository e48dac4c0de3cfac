"""Rules of a selection: one first reason each, an order that does not depend on how clips come, and settings that cannot mean anything."""

import itertools

import pytest

from sora.curation.inputs import SourceFacts
from sora.curation.selecting import KEPT, Candidate, SelectionRules
from sora.safety.claims import NO_CLAIMS, OriginClaims

NO_FACTS = SourceFacts()


def clip(number=0, *, content="a" * 64, source="a.mp4", seconds=2.0, facts=NO_FACTS, claims=NO_CLAIMS, guard="", reason="", **scores):
    return Candidate(source, content, number, seconds, scores, facts, claims, guard, reason)


def decided(selection, *clips, copy_of=""):
    decide = selection.deciding()
    return [decide(one, copy_of=copy_of).rule for one in clips]


def test_the_first_reason_is_the_first_in_the_order_of_the_rules(tmp_path):
    """Every clip has all faults; healing the first one shows the next."""
    out = tmp_path / "out.txt"
    out.write_text(f"# by letter\n\nsha256:{'A' * 64}\n")
    selection = SelectionRules(
        rules={"motion": (0.5, None), "text": (None, 0.1)}, opt_out=str(out), licences=("cc0",), consents=("given",), synthetic="refuse"
    )
    bad = {
        "claims": OriginClaims("unread", "notAllowed", True),
        "guard": "test 1",
        "reason": "too short: 3 frames",
        "motion": 0.0,
        "text": 0.5,
    }
    healed = [
        ({"reason": ""}, "too short"),
        ({"content": "c" * 64}, "opt-out"),
        ({"claims": OriginClaims("unread", "", True)}, "claim on training"),
        ({"claims": OriginClaims("valid", "allowed", True)}, "claims unread"),
        ({"claims": OriginClaims("valid", "allowed", False)}, "synthetic"),
        ({"facts": SourceFacts(licence="cc0")}, "licence"),
        ({"facts": SourceFacts(licence="cc0", consent="given")}, "consent"),
        ({"motion": 0.5}, "motion < 0.5"),
        ({"text": 0.1}, "text > 0.1"),
        ({"guard": ""}, "evaluation"),
    ]
    said = dict(bad)
    for change, rule in healed:
        assert decided(selection, clip(**said)) == [rule]
        said |= change
    assert decided(selection, clip(**said)) == [""]


def test_limits_are_part_of_what_is_kept_and_nan_is_no_score():
    selection = SelectionRules(rules={"motion": (0.5, 1.0)})
    assert decided(selection, clip(motion=0.5), clip(motion=1.0)) == ["", ""]
    assert decided(selection, clip(motion=0.5 - 1e-12), clip(motion=1.0 + 1e-12)) == ["motion < 0.5", "motion > 1"]
    assert decided(selection, clip(motion=float("nan")), clip(other=1.0)) == ["no motion", "no motion"]


def test_a_quota_counts_the_kept_ones_only_and_by_what_it_is_told():
    selection = SelectionRules(rules={"motion": (0.5, None)}, quota_by="source", quota_most=2)
    clips = [clip(number, motion=float(number % 2)) for number in range(8)]
    still, more = "motion < 0.5", "quota of source"
    assert decided(selection, *clips) == [still, "", still, "", still, more, still, more]
    selection = SelectionRules(quota_by="luma", quota_width=0.1, quota_most=1)
    assert decided(selection, clip(luma=0.11), clip(luma=0.19), clip(luma=0.21), clip(luma=-0.05)) == ["", "quota of luma", "", ""]


def test_patterns_of_sources_opt_out(tmp_path):
    out = tmp_path / "out"
    out.write_text("*://example.org/*\nfamily/*\n")
    selection = SelectionRules(opt_out=str(out))
    clips = [clip(source="family/a.mp4"), clip(facts=SourceFacts(origin="https://example.org/v/1")), clip(source="a/family/b.mp4"), clip()]
    assert decided(selection, *clips) == ["opt-out", "opt-out", "", ""]


@pytest.mark.parametrize("name", ["claims", "unread_claims", "duplicates"])
def test_what_is_ignored_leaves_no_clip_out(name):
    bad = {
        "claims": clip(claims=OriginClaims("valid", "constrained")),
        "unread_claims": clip(claims=OriginClaims("unread", why="damaged")),
        "duplicates": clip(),
    }[name]
    of = "b 1" if name == "duplicates" else ""
    assert decided(SelectionRules(), bad, copy_of=of) != [""] and decided(SelectionRules(**{name: "ignore"}), bad, copy_of=of) == [""]


def test_a_rule_about_a_score_that_no_clip_has_is_refused_with_the_nearest():
    decide = SelectionRules(rules={"sharpnes": (1, None)}).deciding()
    with pytest.raises(ValueError, match=r"select\.rules\.sharpnes: no clip has a score 'sharpnes'.*sharpness"):
        decide.refuse_unknown({"sharpness", "luma"})
    decide = SelectionRules(quota_by="lumma", quota_most=1).deciding()
    with pytest.raises(ValueError, match=r"select\.quota_by"):
        decide.refuse_unknown({"luma"})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"rules": {"motion": (2, 1)}}, "no score is at least 2 and at most 1"),
        ({"rules": {"motion": (1,)}}, r"no \[least, most\]"),
        ({"rules": {"motion": (float("nan"), None)}}, r"no \[least, most\]"),
        ({"claims": "yes"}, "none of refuse, ignore"),
        ({"quota_by": "source"}, "go together"),
        ({"quota_most": 3}, "go together"),
    ],
)
def test_settings_that_mean_nothing_are_refused(said, why):
    with pytest.raises(ValueError, match=why):
        SelectionRules(**said)


def test_the_settings_of_a_selection_know_the_lines_of_its_list_and_not_its_name(tmp_path):
    for name, text in (("a", "x/*\n"), ("b", "# a note\nx/*"), ("c", "y/*\n")):
        (tmp_path / name).write_text(text)
    a, b, c = (SelectionRules(opt_out=str(tmp_path / name)).described() for name in "abc")
    assert a == b != c


def test_keeping_all_is_what_no_rule_does():
    assert all(SelectionRules().deciding()(one) is KEPT for one in itertools.starmap(clip, [(0,), (1,)]))
