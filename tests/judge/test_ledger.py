"""What the ledger knows: who has paid, where a state was asked about, and what counts of a call that was made twice."""

from pathlib import Path

import pytest

from sgrec_core.judge.calls import scores
from sgrec_core.judge.calls.ledger import (
    Account,
    close_night,
    days_asked,
    has_judged_nights,
    judged_with,
    paid_before,
    uncounted_workers,
)
from sgrec_core.judge.calls.requests import Call
from sgrec_core.judge.calls.scores import find_scores, known_calls, publish_scores, scores_of_states, table_of
from sgrec_core.judge.request import JudgeResult
from sgrec_core.lake import Lake

DAY, NEXT, LATER = "2026-01-05", "2026-01-06", "2026-03-01"
ONE, OTHER = ("s1", "i1", "h"), ("s2", "i2", "h")
SCORED, FAILED = JudgeResult(scores=[0.5]), JudgeResult(failure="no answer", unanswered=True)
COLUMNS = ["state_id", "scores", "failure"]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def ask(lake: Lake, day: str, answers: dict[Call, JudgeResult], **account: str) -> None:
    """As a stage does: what failed before on the day is replaced."""
    _, failed = known_calls(lake, day, "v", answers)
    its = Account(judge_version="v", day=day, kind="k", **account)  # type: ignore[arg-type]
    publish_scores(lake, its, ["a"], answers, failed_before=failed)


def test_a_call_of_another_night_is_known_however_long_ago_and_only_its_days_are_read(lake: Lake) -> None:
    ask(lake, DAY, {ONE: SCORED})
    ask(lake, NEXT, {OTHER: SCORED})
    assert known_calls(lake, LATER, "v", [ONE]) == ({ONE}, set())
    assert days_asked(lake, "v", ["s1"]) == {DAY}
    assert known_calls(lake, LATER, "another", [ONE]) == (set(), set())
    assert find_scores(lake, DAY, "v", table_of([OTHER]), COLUMNS).num_rows == 1, "a past day finds what a later asked"


def test_a_failed_call_is_replaced_on_its_day_and_outweighed_on_another(lake: Lake) -> None:
    ask(lake, DAY, {ONE: FAILED, OTHER: FAILED})
    ask(lake, DAY, {ONE: SCORED})
    assert known_calls(lake, DAY, "v", [ONE, OTHER]) == ({ONE}, {OTHER})
    assert lake.count("aspect_scores") == 2
    assert known_calls(lake, NEXT, "v", [ONE, OTHER]) == ({ONE}, set()), "nothing of this day is to be replaced"
    ask(lake, NEXT, {OTHER: SCORED})
    assert lake.count("aspect_scores") == 3
    expected = [{"state_id": state, "scores": [0.5], "failure": None} for state in ("s1", "s2")]
    for day in (DAY, NEXT, LATER):
        assert find_scores(lake, day, "v", table_of([ONE, OTHER]), COLUMNS).to_pylist() == expected
        assert scores_of_states(lake, day, "v", ["s1", "s2"], COLUMNS).to_pylist() == expected


def test_other_days_are_looked_at_for_what_the_day_itself_does_not_answer(lake: Lake) -> None:
    """A state may be asked about other items, or other content of an item, on other days."""
    more, changed = ("s1", "i2", "h"), ("s1", "i1", "other content")
    ask(lake, DAY, {ONE: SCORED, changed: SCORED})
    ask(lake, NEXT, {more: SCORED})
    assert known_calls(lake, NEXT, "v", [ONE, more]) == ({ONE, more}, set())
    assert known_calls(lake, NEXT, "v", [changed]) == ({changed}, set())
    assert find_scores(lake, NEXT, "v", table_of([more]), COLUMNS).num_rows == 1, "only what was asked for"
    assert scores_of_states(lake, NEXT, "v", ["s1"], COLUMNS).num_rows == 3
    assert find_scores(lake, DAY, "v", table_of([]), COLUMNS).num_rows == 0


def test_the_ledger_is_not_read_where_the_day_itself_answers_everything(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(lake, DAY, {ONE: SCORED})
    monkeypatch.setattr(scores, "days_asked", None)
    assert find_scores(lake, DAY, "v", table_of([ONE]), COLUMNS).num_rows == 1


def test_what_was_asked_is_paid_even_where_its_scores_are_lost(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two commits."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scores, "rows_of", killed)
        ask(lake, DAY, {ONE: SCORED, OTHER: FAILED})
    assert paid_before(lake, DAY, "v") == 1, "of the two one was not answered"
    assert known_calls(lake, DAY, "v", [ONE, OTHER]) == (set(), set())


def test_labels_are_charged_to_no_night(lake: Lake) -> None:
    ask(lake, DAY, {ONE: SCORED}, purpose="labels")
    assert paid_before(lake, DAY, "v") == 0
    assert not has_judged_nights(lake, "v")
    assert known_calls(lake, DAY, "v", [ONE]) == ({ONE}, set())
    ask(lake, DAY, {OTHER: SCORED})
    assert (paid_before(lake, DAY, "v"), paid_before(lake, NEXT, "v")) == (1, 0)
    assert has_judged_nights(lake, "v")


def test_the_stage_tells_once_of_what_workers_spent(lake: Lake) -> None:
    assert judged_with(lake, DAY) is None
    ask(lake, DAY, {ONE: SCORED}, worker="0")
    assert uncounted_workers(lake, DAY, "v").asked == 1
    ask(lake, DAY, {("s3", "i", "h"): SCORED})
    close_night(lake, DAY, "v")
    assert uncounted_workers(lake, DAY, "v").asked == 0
    version = lake.version("judge_ledger")
    close_night(lake, DAY, "v")
    assert lake.version("judge_ledger") == version, "a re-run changes nothing"
    ask(lake, DAY, {OTHER: SCORED}, worker="1")
    assert uncounted_workers(lake, DAY, "v").asked == 1
    close_night(lake, DAY, "another")
    assert (judged_with(lake, DAY), judged_with(lake, NEXT)) == ("another", None)
