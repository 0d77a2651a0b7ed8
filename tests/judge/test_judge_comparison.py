"""Figures about a version of the judge, by hand, and the gate that they pass."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sgrec_core.judge.calls.drift import stability_index
from sgrec_core.judge.calls.requests import Call, Pair
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.labels import call_of, label_request
from sgrec_core.judge.versions.comparison import Answers, HeldOut, Row, against, decide, measures
from sgrec_core.settings import PROJECT_ROOT, JudgeSettings, Settings

RUBRIC = load_rubric(False, PROJECT_ROOT / "benchmarks" / "short_rubric.yaml")
TRUTH = [("A", "A", "A"), ("E", "C", "C"), ("A", "B", "C"), ("C", "B", "A")]


def sample(number: int, labels: tuple[str, ...]) -> dict[str, Any]:
    return {
        "sample_id": f"s{number}",
        "user_id": f"u{number // 2}",
        "history": [],
        "profile": None,
        "context": None,
        "item_text": f"item {number}",
        "labels": list(labels),
    }


SAMPLES = [sample(number, labels) for number, labels in enumerate(TRUTH)]
CALLS = [call_of(label_request(row)) for row in SAMPLES]
PAIRS = [Pair("p0", "u0", CALLS[0], CALLS[1]), Pair("p1", "u1", CALLS[2], CALLS[3])]
HELD = HeldOut(has_context=False, rubric=RUBRIC, samples=SAMPLES, pairs=PAIRS)
HOW = {"seed": 0, "resamples": 200}


def naming(levels: list[tuple[str, ...]], *, sure: float = 1.0, version: str = "v") -> Answers:
    """A judge that gives each sample these levels with probability ``sure``."""
    scores: dict[Call, np.ndarray] = {}
    probabilities: dict[Call, np.ndarray] = {}
    for call, given in zip(CALLS, levels, strict=False):
        parts = []
        for aspect, label in zip(RUBRIC.aspects, given, strict=True):
            rest = (1 - sure) / (len(aspect.levels) - 1)
            parts.append([sure if level.label == label else rest for level in aspect.levels])
        probabilities[call] = np.concatenate(parts)
        scores[call] = np.array([aspect.value_of[label] for aspect, label in zip(RUBRIC.aspects, given, strict=True)])
    return Answers(
        version=version,
        aspects=list(RUBRIC.aspects),
        scores=scores,
        probabilities=probabilities,
        failed=len(CALLS) - len(scores),
        missing=0,
    )


def found(rows: Any) -> dict[tuple[str, str, str], float]:
    return {(row.metric, row.aspect, row.bucket): row.value for row in rows}


def test_a_judge_that_is_right_and_sure() -> None:
    figures = found(measures(HELD, naming(TRUTH), **HOW))
    assert figures["point_acc", "all", "all"] == 1
    assert figures["calibration_error", "all", "all"] == 0
    assert figures["failed_share", "all", "all"] == 0
    assert figures["pair_auc", "all", "all"] == 0.75, "1 > -1/3, and (1 + .5 + 0) = (0 + .5 + 1): a tie"
    assert figures["confusion", "s0", "A > A"] == 1


def test_half_right_and_too_sure() -> None:
    """Every s0 right, every s1 wrong, s2 right in two of four; 90% sure."""
    wrong_s1 = {"A": "B", "B": "C", "C": "A"}
    levels = [(a, wrong_s1[b], c if number < 2 else "B") for number, (a, b, c) in enumerate(TRUTH)]
    figures = found(measures(HELD, naming(levels, sure=0.9), **HOW))
    assert figures["point_acc", "all", "all"] == pytest.approx(0.5)
    assert [figures["point_acc", f"s{number}", "all"] for number in range(3)] == [1, 0, 0.5]
    assert figures["calibration_error", "all", "all"] == pytest.approx(0.4)
    assert figures["calibration_error", "s1", "all"] == pytest.approx(0.9)
    assert figures["accuracy", "all", "0.9-1.0"] == 0.5
    assert figures["confidence", "all", "0.9-1.0"] == pytest.approx(0.9)
    assert figures["confusion", "s1", "B > C"] == 1
    assert figures["confusion", "s2", "C > B"] == 0.5


def test_failed_calls_count_as_wrong() -> None:
    figures = found(measures(HELD, naming(TRUTH[:3]), **HOW))
    assert figures["failed_share", "all", "all"] == 0.25
    assert figures["point_acc", "all", "all"] == 0.75
    assert figures["pair_auc", "all", "all"] == 0.75, "a pair with a failed call is half in order"


def test_versions_are_compared_where_both_answered() -> None:
    """The other one is right wherever it answers: nothing speaks for the first."""
    figures = found(against(HELD, naming(TRUTH), naming(TRUTH[:3]), **HOW))
    assert figures["difference_point_acc", "all", "all"] == 0
    assert figures["difference_pair_auc", "all", "all"] == 0
    assert figures["compared_users", "all", "all"] == 2


def test_calibration_is_of_answers() -> None:
    figures = found(measures(HELD, naming(TRUTH[:1], sure=0.8), **HOW))
    assert figures["calibration_error", "all", "all"] == pytest.approx(0.2)
    assert ("confidence", "all", "0.0-0.1") not in figures


def test_every_user_counts_once() -> None:
    """u0 has one sample more than u1, all wrong."""
    more = [*SAMPLES, {**sample(9, TRUTH[0]), "user_id": "u0"}]
    held = replace(HELD, samples=more)
    figures = found(measures(held, naming(TRUTH), **HOW))
    assert figures["point_acc", "all", "all"] == pytest.approx((2 / 3 + 1) / 2)


def test_agreement_between_versions() -> None:
    other = [("A", "A", "A"), ("E", "C", "C"), ("A", "B", "C"), ("A", "C", "C")]
    figures = found(against(HELD, naming(TRUTH), naming(other), **HOW))
    assert figures["agreement", "all", "all"] == 0.75
    assert figures["agreement", "s1", "all"] == 0.75
    assert figures["score_distance", "s0", "all"] == pytest.approx(0.25), "C is 0 and A is 1, of four"
    assert figures["difference_point_acc", "all", "all"] == pytest.approx(0.25)


def test_levels_of_a_judge_without_probabilities_are_those_of_its_scores() -> None:
    named = naming(TRUTH)
    scores_only = Answers(
        version="v", aspects=named.aspects, scores=named.scores, probabilities={}, failed=0, missing=0
    )
    assert found(measures(HELD, scores_only, **HOW))["point_acc", "all", "all"] == 1


def test_other_aspects_or_levels_are_compared_by_pairs_alone() -> None:
    """The other rubric has no s2: what it says is no label of these samples, yet it orders pairs."""
    ours, theirs = naming(TRUTH), naming(TRUTH, version="other")
    other = replace(
        theirs,
        aspects=theirs.aspects[:2],
        scores={call: scores[:2] for call, scores in theirs.scores.items()},
        probabilities={call: np.split(shares, [-3])[0] for call, shares in theirs.probabilities.items()},
    )
    figures = found(measures(HELD, other, **HOW))
    assert set(figures) == {("failed_share", "all", "all"), ("pair_auc", "all", "all")}
    assert figures["pair_auc", "all", "all"] == 1, "1 > -.5 and .75 > .25 without s2, which ties the second pair"
    metrics = {metric for metric, _, _ in found(against(HELD, ours, other, **HOW))}
    assert metrics == {"compared_users", "difference_pair_auc"}


def rows(
    points: tuple[float, float] | None,
    pairs: tuple[float, float] | None = (0.0, 0.1),
    failed: float = 0.0,
    users: int = 20,
) -> dict[str, list[Row]]:
    candidate = [
        Row(metric="failed_share", value=failed, count=10),
        Row(metric="compared_users", value=users, count=10),
    ]
    for metric, interval in (("difference_point_acc", points), ("difference_pair_auc", pairs)):
        if interval:
            lower, upper = interval
            candidate.append(Row(metric=metric, value=sum(interval) / 2, lower=lower, upper=upper, count=10))
    return {"candidate": candidate}


@pytest.mark.parametrize(
    ("given", "passed", "words"),
    [
        (rows((0.01, 0.05)), True, r"PointAcc \+0.0300 \[\+0.0100, \+0.0500\]"),
        (rows((0.01, 0.05), None), True, "PointAcc"),
        (rows((-0.01, 0.05)), False, "not surely better"),
        (rows((0.0, 0.0)), False, "not surely better"),
        (rows((0.01, 0.05), (-0.03, 0.01)), False, "SGREC_JUDGE_TRAINING__TOLERANCE"),
        (rows((0.01, 0.05), (-0.019, 0.01)), True, "PairAUC"),
        (rows((0.01, 0.05), failed=0.06), False, "SGREC_JUDGE__MAX_FAILED_SHARE"),
        (rows(None, (0.01, 0.05)), True, r"^PairAUC \+0.0300"),
        (rows(None, (-0.01, 0.05)), False, "not surely better"),
        (rows(None, None), False, "no pairs to compare"),
        (rows((0.01, 0.05), users=19), False, "SGREC_JUDGE_TRAINING__MIN_USERS"),
    ],
)
def test_the_gate_of_a_version(given: dict[str, list[Row]], passed: bool, words: str) -> None:
    decided = decide(given, Settings(judge=JudgeSettings()), "j1")
    assert decided.passed is passed
    import re

    assert re.search(words, decided.reason)


def test_the_stability_index_by_hand() -> None:
    low, high = np.full(10, -0.95), np.full(10, 0.95)
    assert stability_index(low, low) == 0
    assert stability_index(low, high) == pytest.approx(2 * (1 - 0.001) * np.log(1000), rel=1e-6)
    half = np.concatenate([low, high])
    expected = (0.5 - 1) * np.log(0.5) + (0.5 - 0.001) * np.log(500)
    assert stability_index(half, low) == pytest.approx(expected)
