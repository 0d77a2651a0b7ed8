"""Expected values of lists from logged answers: every slate of a tiny market enumerated."""

import itertools

import numpy as np
import pytest

from sgrec_core.evaluation.value import (
    DIRECT,
    DOUBLY_ROBUST,
    INVERSE_PROPENSITY,
    LEAST_EFFECTIVE,
    SELF_NORMALISED,
    Logged,
    Values,
    common_estimator,
    estimate,
)

CLICK = np.array([0.2, 0.5, 0.8])
POSITION = np.array([1.0, 0.5])


def logged(predicted: np.ndarray, propensities: np.ndarray | None = None) -> tuple[Logged, np.ndarray, np.ndarray]:
    """All slates of two of three items, as often as a policy shows them that prefers the first; their expected clicks.

    Returns the log, items [N] and positions [N].
    """
    slates = list(itertools.permutations(range(3), 2))
    chance = np.array([6, 3, 2, 1, 2, 1]) / 15
    at = np.zeros((2, 3))
    for slate, share in zip(slates, chance, strict=True):
        at[[0, 1], slate] += share
    repeats = np.rint(chance * 15 * 600).astype(int)
    items = np.repeat(np.array(slates), repeats, axis=0).reshape(-1)
    positions = np.tile([0, 1], repeats.sum())
    log = Logged(
        users=np.repeat([f"u{number:05d}" for number in range(repeats.sum())], 2),
        propensities=at[positions, items] if propensities is None else propensities,
        rewards={"ecpm": CLICK[items] * POSITION[positions]},
        predicted={"ecpm": predicted[items] * POSITION[positions]},
        places=2,
    )
    return log, items, positions


@pytest.mark.parametrize("target", list(itertools.permutations(range(3), 2)))
@pytest.mark.parametrize("predicted", [CLICK, np.array([0.4, 0.4, 0.4]), 1 - CLICK])
def test_doubly_robust_is_right_whatever_the_reward_model_thinks(
    target: tuple[int, int], predicted: np.ndarray
) -> None:
    log, items, positions = logged(predicted)
    ours = np.array(target)[positions]
    expected = {"ecpm": predicted[ours] * POSITION[positions]}
    found = estimate(log, ours == items, expected, clip=None)
    truth = (CLICK[list(target)] * POSITION).mean()
    for estimator in (DOUBLY_ROBUST, INVERSE_PROPENSITY):
        assert found.per_user["ecpm", estimator].mean() == pytest.approx(truth)
    assert found.per_user["ecpm", DIRECT].mean() == pytest.approx((predicted[list(target)] * POSITION).mean())
    assert found.per_user["ecpm", SELF_NORMALISED].mean() == pytest.approx(truth, rel=0.3)
    assert found.estimator == DOUBLY_ROBUST


def test_one_unknown_propensity_leaves_the_direct_method() -> None:
    known, items, positions = logged(CLICK)
    propensities = known.propensities.copy()
    propensities[3] = np.nan
    log, *_ = logged(CLICK, propensities)
    found = estimate(log, items == 0, {"ecpm": np.ones(len(items))}, clip=None)
    assert found.estimator == DIRECT
    assert set(found.per_user) == {("ecpm", DIRECT)}


def test_weights_that_are_cut_leave_the_rest_to_the_model_and_do_not_count() -> None:
    """Items that stood where they do once in five to fifteen slates, cut to a weight of 2."""
    log, items, positions = logged(CLICK)
    ours = np.array([2, 1])[positions]
    expected = {"ecpm": CLICK[ours] * POSITION[positions]}
    whole, cut = (estimate(log, ours == items, expected, clip) for clip in (None, 2.0))
    assert (whole.covered, whole.estimator) == (pytest.approx(1), DOUBLY_ROBUST)
    assert cut.covered < 0.8
    assert cut.estimator == DIRECT


def test_a_policy_that_shows_what_was_hardly_ever_shown_is_told_by_the_direct_method() -> None:
    log, items, positions = logged(CLICK)
    same = np.zeros(len(items), dtype=bool)
    same[:5] = True
    assert estimate(log, same, {"ecpm": np.ones(len(items))}, clip=None).estimator == DIRECT


def test_propensities_that_are_too_small_correct_nothing() -> None:
    """As of the whole slate, or of another policy: weights of a mean above 1 cannot be."""
    right, items, positions = logged(CLICK)
    wrong, *_ = logged(CLICK, right.propensities / 10)
    ours = np.array([0, 1])[positions]
    expected = {"ecpm": CLICK[ours] * POSITION[positions]}
    assert estimate(right, ours == items, expected, clip=None).estimator == DOUBLY_ROBUST
    assert estimate(wrong, ours == items, expected, clip=None).estimator == DIRECT


def told_by(effective: float, covered: float = 1.0) -> Values:
    return Values(np.array(["u"]), {}, effective, covered, places=1)


def test_policies_are_compared_by_what_all_of_them_have_enough_answers_for() -> None:
    enough, few = told_by(LEAST_EFFECTIVE), told_by(LEAST_EFFECTIVE - 1)
    assert (enough.estimator, few.estimator) == (DOUBLY_ROBUST, DIRECT)
    assert common_estimator([enough, enough]) == DOUBLY_ROBUST
    assert common_estimator([enough, few]) == common_estimator([few, enough]) == DIRECT
    assert LEAST_EFFECTIVE == 1000, "what `make bench-gate` was run with: run it again where this changes"
