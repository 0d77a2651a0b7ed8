"""The suite of incidents: its labels, and how what was seen is held against them. No night is run."""

import random
import re

import pytest
import yaml

from benchmarks import oncall
from benchmarks.oncall_fault import FAULTS
from benchmarks.oncall_judge import CONSTANT, FAVOURING, INVERTED, WELL, place_of
from benchmarks.oncall_report import LABELS, Label, claims_of_clean, claims_of_faults, held_against, read_labels
from benchmarks.oncall_world import Seen
from sgrec_core.lake.contracts import SCHEMAS

OWNERS = set(re.findall(r"^owner: (\S+)", "\n".join(path.read_text() for path in SCHEMAS.glob("*.yaml")), re.MULTILINE))


def test_every_fault_has_a_label_that_can_be_held_against_it() -> None:
    labels = read_labels()
    assert labels.keys() == FAULTS.keys()
    for label in labels.values():
        assert set(label.verdict) <= {"green", "warned", "amber", "red"}
        assert set(label.ends) <= {"green", "amber"}
        assert set(label.owner) <= OWNERS
        assert label.mend in ("command", "person", "again", "accept", "none")
        assert bool(label.by) == (label.mend in ("person", "again", "accept")), label.name
        # A person's part is needed where the label says so, and only there.
        assert (FAULTS[label.name].mend is not None) == bool(label.by), label.name
        for pattern in (*label.cause, *label.wrong_cause):
            re.compile(pattern)


def test_half_of_the_faults_are_held_out_by_the_draw_that_the_file_names() -> None:
    labels = read_labels()
    order = sorted(labels)
    random.Random(yaml.safe_load(LABELS.read_text())["seed"]).shuffle(order)
    assert {name for name, label in labels.items() if label.held_out} == set(order[: len(order) // 2])


LABEL = Label(
    name="a_bot",
    area="raw logs",
    what="one user has a third of the events",
    verdict=("amber", "warned"),
    may_promote=False,
    cause=("user", "share|busiest"),
    wrong_cause=(r"\bprice",),
    owner=("data-platform",),
    mend="person",
    by="the right files",
    ends=("green",),
    held_out=False,
)


def seen(verdict: str, cause: str | None = None, *, promoted: bool = False, warnings: tuple[str, ...] = ()) -> Seen:
    return Seen(
        exit_code=0,
        verdict=verdict,
        step=None,
        cause=cause,
        owner="data-platform",
        command="sgrec nightly",
        promoted=promoted,
        warnings=list(warnings),
        status_exit_code=0,
    )


def test_an_alarm_with_the_right_words_is_right_in_all() -> None:
    found = held_against(LABEL, seen("amber", "top_user 0.33: share of the busiest User"), "green")
    assert (found.noticed, found.severity, found.cause, found.owner) == (True, True, True, True)
    assert (found.promoted, found.mended) == (False, True)


@pytest.mark.parametrize(
    ("cause", "right"),
    [("top_user share", True), ("users fell", False), ("price, and top_user share", False), (None, False)],
)
def test_a_cause_needs_all_words_and_none_of_the_wrong_ones(cause: str | None, right: bool) -> None:
    assert held_against(LABEL, seen("amber", cause), None).cause is right


def test_a_warning_counts_where_it_names_the_cause() -> None:
    warned = held_against(LABEL, seen("green", warnings=("other", "top_user: share 0.4")), None)
    assert (warned.noticed, warned.severity, warned.cause, warned.owner) == (True, True, True, None)
    silent = held_against(LABEL, seen("green", warnings=("top_user", "share")), None)
    assert (silent.noticed, silent.severity, silent.cause, silent.mended) == (False, False, False, False)


def test_severity_and_promotion_are_told_apart() -> None:
    assert not held_against(LABEL, seen("red", "user share"), None).severity
    assert held_against(LABEL, seen("green", promoted=True), None).promoted


def test_claims_count_what_applies() -> None:
    found = [
        held_against(LABEL, seen(verdict, "user share"), "green") for verdict in ("amber", "amber", "red", "green")
    ]
    claims = {claim.name: claim for claim in claims_of_faults("held_out", found)}
    noticed = claims["held out faults: noticed (3 of 4)"]
    assert (noticed.value, noticed.met) == (75, False)
    assert "held out faults: its owner named (3 of 3)" in claims
    assert claims["held out faults: promoted though they must not (0 of 4)"].met


@pytest.mark.parametrize(
    ("amber", "red", "met"),
    [(0, 0, [True, True]), (1, 0, [True, True]), (2, 0, [False, True]), (0, 1, [True, False])],
)
def test_one_of_sixty_clean_nights_may_be_amber_and_none_red(amber: int, red: int, met: list[bool]) -> None:
    verdicts = ["amber"] * amber + ["red"] * red + ["green"] * (50 - amber - red)
    assert [claim.met for claim in claims_of_clean("tiny", verdicts)] == met


def test_the_judges_moods_differ() -> None:
    prompt = "<history>\nlinen sheet set\n</history>\n<item>\nlinen sheet\n</item>\nfuture interest"
    other = prompt.replace("<item>\nlinen sheet", "<item>\nwool blanket")
    assert place_of(prompt, WELL) == 0
    assert place_of(other, WELL) == 2
    assert [place_of(one, INVERTED) for one in (prompt, other)] == [2, 0]
    assert [place_of(one, CONSTANT) for one in (prompt, other)] == [1, 1]
    assert [place_of(one, FAVOURING) for one in (prompt, other)] == [2, 0]


def test_a_short_run_leaves_alone_what_is_held_out() -> None:
    assert not any(read_labels()[name].held_out for name in oncall.SHORT)
