"""Evidence over nights: valid whenever somebody looks, and it finds what is there."""

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_core.evaluation.sequential import (
    Differences,
    e_value,
    evidence,
    lower_bound,
    night_weights,
    smallest_detectable,
)

VALUES = np.array([-1.0, -0.3, 0.2, 1.0])


def expected_e_value(probabilities: np.ndarray, margin: float) -> float:
    """Over all outcomes of users who draw from `VALUES` with probabilities [U, 4]."""
    return sum(
        float(np.prod(probabilities[np.arange(len(outcome)), outcome])) * e_value(VALUES[list(outcome)], margin)
        for outcome in itertools.product(range(4), repeat=len(probabilities))
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_the_expectation_is_at_most_one_under_the_null_also_when_users_differ(
    users: int, slack: float, seed: int
) -> None:
    """By enumeration, at the edge of the null hypothesis and inside it."""
    probabilities = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), users)
    margin = float(np.clip((probabilities @ VALUES).mean() + slack, -0.99, 0.99))
    assert expected_e_value(probabilities, margin) <= 1 + 1e-9


def test_the_expectation_is_at_most_one_for_users_who_are_certain() -> None:
    """Of opposite expectations: what one wins, another loses more of."""
    opposite = np.array([[0.0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    assert expected_e_value(opposite, 0.0) < 1
    assert expected_e_value(opposite, -0.1) < 1.2  # outside of the null, and only just


def test_one_e_value_by_hand() -> None:
    # A bettor with share s has (1 + s)(1 - s / 2); shares 1/2^j with capital 1 / ((j + 1)(j + 2)), in all 10 / 11.
    by_hand = sum((1 + 2.0**-j) * (1 - 2.0**-j / 2) / ((j + 1) * (j + 2)) for j in range(10)) * 11 / 10
    assert e_value(np.array([1.0, -0.5]), 0.0) == pytest.approx(by_hand)
    assert e_value(np.array([]), 0.3) == pytest.approx(1)
    assert e_value(np.ones(10_000), 0.0) > 1e290


@given(st.lists(st.floats(-1, 1), max_size=30), st.floats(-0.99, 0.98), st.floats(0, 0.5))
def test_capital_is_never_negative_falls_in_the_margin_and_knows_no_order(
    values: list[float], margin: float, more: float
) -> None:
    found = e_value(np.array(values), margin)
    assert np.isfinite(found)
    assert found >= 0
    assert e_value(np.array(values), min(margin + more, 0.99)) <= found * (1 + 1e-9)
    assert e_value(np.array(values[::-1]), margin) == found


def test_weights_add_up_to_one_over_all_nights() -> None:
    for nights in (1, 7, 1000):
        assert night_weights(nights).sum() == pytest.approx(1 - 1 / np.sqrt(nights + 1))
    assert (np.diff(night_weights(100)) < 0).all()
    assert night_weights(100)[7:].sum() == pytest.approx(0.25, abs=0.01)


USERS, NIGHTS, PANELS = 40, 12, 1500


def skewed(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of mean 0: often a small loss, seldom a large gain, or the other way round for all."""
    return np.where(draw.random(shape) < 0.2, 0.8, -0.2) * draw.choice([-1, 1])


def repeated(draw: np.random.Generator) -> np.ndarray:
    return np.repeat(skewed(draw, (1, USERS)), NIGHTS, axis=0)


def independent(draw: np.random.Generator) -> np.ndarray:
    return skewed(draw, (NIGHTS, USERS))


def with_user_effect(draw: np.random.Generator) -> np.ndarray:
    return np.where(draw.random((NIGHTS, USERS)) < 0.5, repeated(draw), independent(draw))


@pytest.mark.parametrize("panel", [repeated, independent, with_user_effect])
def test_looking_every_night_rejects_a_true_null_at_most_as_often_as_the_level_says(
    panel: Callable[[np.random.Generator], np.ndarray],
) -> None:
    draw, alpha = np.random.default_rng(0), 0.2
    rejected = 0
    for _ in range(PANELS):
        present = draw.random((NIGHTS, USERS)) < 0.8
        nights = [(np.flatnonzero(here), row[here]) for here, row in zip(present, panel(draw), strict=True)]
        rejected += (evidence(nights) >= 1 / alpha).any()
    assert rejected / PANELS <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / PANELS)


def noisy_nights(draw: np.random.Generator, mean: float, users: int, nights: int) -> list[Differences]:
    """Differences of deviation .29 and the given mean; a fifth of the users is missing every night."""
    found = []
    for _ in range(nights):
        here = np.flatnonzero(draw.random(users) < 0.8)
        ids = np.array([f"u{user}" for user in here])
        found.append((ids, draw.uniform(-0.5, 0.5, len(here)) + mean))
    return found


def test_a_difference_that_one_night_does_not_show_is_found_within_ten() -> None:
    """It is three quarters of what one night's interval shows; a night alone does not reject it."""
    users, mean = 200, 0.045
    assert mean == pytest.approx(0.75 * smallest_detectable(0.29, users), rel=0.1)
    draw = np.random.default_rng(0)
    runs = [evidence(noisy_nights(draw, mean, users, 10)) for _ in range(40)]
    assert np.mean([run[-1] >= 20 for run in runs]) >= 0.9
    assert np.mean([run[0] >= 20 for run in runs]) <= 0.2


def test_few_users_do_not_show_a_small_difference_in_any_number_of_nights() -> None:
    """Not even one that is the same for all: `evidence` says about 4 / users."""
    users = np.arange(100)
    assert evidence([(users, np.full(100, 0.03))] * 1000)[-1] < 20 < evidence([(users, np.full(100, 0.04))] * 100)[-1]


def test_the_bound_rises_with_the_nights_and_stays_below_the_truth() -> None:
    nights = noisy_nights(np.random.default_rng(1), 0.1, 200, 20)
    bounds = [lower_bound(nights[:count]) for count in (1, 5, 20)]
    assert bounds[0] < bounds[1] < bounds[2] < 0.1
    assert bounds[1] > 0
    upper = -lower_bound([(users, -differences) for users, differences in nights])
    assert 0.1 < upper < 0.2


def test_the_bound_is_the_largest_margin_that_is_rejected() -> None:
    nights = noisy_nights(np.random.default_rng(2), 0.05, 100, 5)
    bound = lower_bound(nights, alpha=0.1)
    assert evidence(nights, bound)[-1] >= 10 > evidence(nights, bound + 2e-6)[-1]
    assert lower_bound(nights, alpha=0.01) < bound
    assert lower_bound([]) == -1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_order_of_rows_does_not_matter_and_past_evidence_stays(seed: int) -> None:
    draw = np.random.default_rng(seed)
    nights = noisy_nights(draw, 0.1, 30, 5)
    shuffled = []
    for users, differences in nights:
        order = draw.permutation(len(users))
        shuffled.append((users[order], differences[order]))
    found = evidence(nights)
    assert found.tolist() == evidence(shuffled).tolist()
    assert found[:3].tolist() == evidence(nights[:3]).tolist()
    assert (np.diff(found) >= 0).all()


def test_a_users_nights_are_averaged_and_missing_ones_left_out() -> None:
    nights = [
        (np.array(["a", "b"]), np.array([0.5, -0.1])),
        (np.array([], dtype=str), np.array([])),
        (np.array(["c", "a"]), np.array([0.2, 0.1])),
    ]
    first, third = e_value(np.array([0.5, -0.1]), 0.05), e_value(np.array([0.3, -0.1, 0.2]), 0.05)
    expected = np.cumsum(night_weights(3) * [first, first, third])
    np.testing.assert_allclose(evidence(nights, 0.05), expected)
    assert evidence([]).shape == (0,)


def test_smallest_detectable_is_found_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    difference = smallest_detectable(0.3, 150)
    samples = draw.normal(difference, 0.3, (4000, 150))
    shown = samples.mean(axis=1) - 1.96 * samples.std(axis=1, ddof=1) / np.sqrt(150) > 0
    assert shown.mean() == pytest.approx(0.8, abs=0.02)
    assert smallest_detectable(0.3, 600) == pytest.approx(difference / 2)
    assert smallest_detectable(0.3, 150, power=0.9) > difference


def night(differences: Sequence[float], users: Sequence[str] = ("a", "b")) -> list[Differences]:
    return [(np.array(["a"]), np.zeros(1)), (np.array(users), np.array(differences))]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: e_value(np.array([0.0, 1.1]), 0.0), "row 1 is 1.1; a difference lies in [-1, 1]"),
        (lambda: e_value(np.array([np.nan]), 0.0), "row 0 is nan"),
        (lambda: e_value(np.zeros((2, 2)), 0.0), "not an array of shape (2, 2)"),
        (lambda: e_value(np.zeros(2), -1.0), "between -1 and 1, not at -1.0"),
        (lambda: e_value(np.zeros(2), np.nan), "between -1 and 1, not at nan"),
        (lambda: evidence(night([0.0, -2.0])), "night 2: row 1 is -2.0"),
        (lambda: evidence(night([0.0])), "night 2 has users (2,) and differences (1,)"),
        (lambda: evidence(night([0.0, 0.1], ("a", "a"))), "night 2 has user a 2 times"),
        (lambda: lower_bound(night([0.0, np.nan])), "night 2: row 1 is nan"),
        (lambda: lower_bound(night([0.0, 0.1]), alpha=0.0), "between 0 and 1, not at 0.0"),
        (lambda: smallest_detectable(-1.0, 10), "-1.0, 10, 0.8 and 0.05"),
        (lambda: smallest_detectable(np.nan, 10), "nan, 10"),
        (lambda: smallest_detectable(1.0, 0), "1 or more users"),
        (lambda: smallest_detectable(1.0, 10, power=1.0), "power and alpha between 0 and 1"),
    ],
)
def test_what_cannot_be_used_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
