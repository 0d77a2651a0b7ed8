"""Estimates from logged feedback, against all outcomes of a small world."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.evaluation.off_policy import (
    direct_method,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    inverse_propensity,
    self_normalised,
)
from sgrec_core.evaluation.significance import paired_bootstrap

CONTEXTS = np.array([0.5, 0.3, 0.2])
LOGGING = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
TARGET = np.array([[0.1, 0.1, 0.8], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]])
REWARDS = np.array([0.0, 0.5, 1.0])
OF_REWARDS = np.array(
    [
        [[0.2, 0.3, 0.5], [0.8, 0.1, 0.1], [0.4, 0.0, 0.6]],
        [[0.1, 0.1, 0.8], [0.6, 0.4, 0.0], [0.3, 0.3, 0.4]],
        [[1.0, 0.0, 0.0], [0.5, 0.2, 0.3], [0.1, 0.8, 0.1]],
    ]
)
"""[context, action, reward]"""
MEAN_REWARDS = OF_REWARDS @ REWARDS
VALUE = float(CONTEXTS @ (TARGET * MEAN_REWARDS).sum(axis=1))
WRONG_MODEL = MEAN_REWARDS + np.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3], [0.2, 0.1, -0.1]])

CONTEXT, ACTION, DRAWN = (index.ravel() for index in np.indices((3, 3, 3)))
PROBABILITY = (CONTEXTS[:, None, None] * LOGGING[:, :, None] * OF_REWARDS).ravel()
REWARD = REWARDS[DRAWN]
ROWS = np.arange(len(REWARD))
"""Every outcome of one logged decision, each by a user of its own: an expectation is a sum over rows."""


def weights(logging: np.ndarray = LOGGING, clip: float | None = None) -> np.ndarray:
    return importance_weights(TARGET[CONTEXT, ACTION], logging[CONTEXT, ACTION], clip=clip)


def robust(model: np.ndarray, weight: np.ndarray) -> float:
    values = (TARGET * model).sum(axis=1)[CONTEXT]
    return float(PROBABILITY @ doubly_robust(REWARD, weight, model[CONTEXT, ACTION], values, ROWS))


def test_inverse_propensity_is_unbiased() -> None:
    assert PROBABILITY.sum() == pytest.approx(1)
    assert PROBABILITY @ inverse_propensity(REWARD, weights(), ROWS) == pytest.approx(VALUE, abs=1e-12)


def test_doubly_robust_is_unbiased_if_either_the_propensities_or_the_model_are_right() -> None:
    wrong = LOGGING[::-1]
    assert robust(WRONG_MODEL, weights()) == pytest.approx(VALUE, abs=1e-12)
    assert robust(MEAN_REWARDS, weights(wrong)) == pytest.approx(VALUE, abs=1e-12)
    assert abs(robust(WRONG_MODEL, weights(wrong)) - VALUE) > 0.01


def test_the_direct_method_is_biased_by_the_models_error() -> None:
    error = float(CONTEXTS @ (TARGET * (WRONG_MODEL - MEAN_REWARDS)).sum(axis=1))
    estimate = PROBABILITY @ direct_method((TARGET * WRONG_MODEL).sum(axis=1)[CONTEXT], ROWS)
    assert estimate - VALUE == pytest.approx(error, abs=1e-12)
    assert abs(error) > 0.01


def test_self_normalised_is_the_value_where_outcomes_are_as_frequent_as_probable() -> None:
    # All probabilities are multiples of a thousandth.
    often = np.rint(PROBABILITY * 1000).astype(int)
    np.testing.assert_allclose(often / 1000, PROBABILITY, atol=1e-12)
    reward, weight = np.repeat(REWARD, often), np.repeat(weights(), often)
    estimate = self_normalised(reward, weight, np.arange(1000)).mean()
    assert estimate == pytest.approx(VALUE, abs=1e-12)
    # A common factor of all propensities cancels out, which it does not for inverse propensity.
    assert self_normalised(reward, 3 * weight, np.arange(1000)).mean() == pytest.approx(estimate)


@given(st.integers(0, 2**32 - 1))
def test_self_normalised_stays_within_the_rewards(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rewards, users = draw.normal(size=20), draw.integers(0, 6, 20)
    estimate = self_normalised(rewards, draw.exponential(size=20) ** 3, users).mean()
    assert rewards.min() - 1e-9 <= estimate <= rewards.max() + 1e-9


def test_resampling_self_normalised_users_gives_the_interval_of_the_ratio() -> None:
    draw = np.random.default_rng(0)
    rewards, weight = draw.random(400) + 1, draw.exponential(size=400)
    ratios = []
    for _ in range(2000):
        rows = draw.integers(0, 400, 400)
        ratios.append((weight[rows] @ rewards[rows]) / weight[rows].sum())
    found = self_normalised(rewards, weight, np.arange(400))
    assert found.std() / 20 == pytest.approx(np.std(ratios), rel=0.1)


def test_clipping_underestimates_by_what_it_cuts_off() -> None:
    full, clipped = weights(), weights(clip=2.0)
    assert clipped.max() == 2
    lost = VALUE - PROBABILITY @ inverse_propensity(REWARD, clipped, ROWS)
    assert lost == pytest.approx(PROBABILITY @ ((full - clipped) * REWARD), abs=1e-12)
    assert lost > 0.01
    # Doubly robust loses the model's error only.
    assert robust(MEAN_REWARDS, clipped) == pytest.approx(VALUE, abs=1e-12)
    error = (full - clipped) * (REWARD - WRONG_MODEL[CONTEXT, ACTION])
    assert VALUE - robust(WRONG_MODEL, clipped) == pytest.approx(PROBABILITY @ error, abs=1e-12)


def test_every_user_counts_once() -> None:
    users = np.array(["b", "a", "b"])
    rewards, weight = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.5, 2.0])
    assert inverse_propensity(rewards, weight, users).tolist() == [1, 3.5]
    assert direct_method(rewards, users).tolist() == [2, 2]
    assert doubly_robust(rewards, weight, np.ones(3), rewards, users).tolist() == [2.5, 4]
    assert self_normalised(rewards, weight, users).mean() == pytest.approx((1 + 3.5) / (0.5 + 1.5))


def test_two_policies_are_compared_in_pairs() -> None:
    draw = np.random.default_rng(0)
    users, logging = np.repeat(np.arange(300), 2), np.full(600, 0.5)
    action = draw.integers(0, 2, 600)
    rewards = (draw.random(600) < np.where(action, 0.6, 0.2)).astype(float)
    better, worse = (
        inverse_propensity(rewards, importance_weights(np.where(action, likes, 1 - likes), logging), users)
        for likes in (0.9, 0.1)
    )
    interval = paired_bootstrap(better, worse, seed=0)
    assert 0 < interval.lower < 0.32 < interval.upper


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_sample_size(np.array([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert effective_sample_size(np.array([1e200, 1e200])) == pytest.approx(2)
    assert effective_sample_size(np.zeros(3)) == 0


ONE, TWO = np.ones(1), np.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: importance_weights(TWO, np.array([0.5, 0.0])), "row 1 has logging propensity 0.0; it must be above 0"),
        (lambda: importance_weights(TWO, np.array([1.5, 1.0])), "row 0 has logging propensity 1.5; it must be above 0"),
        (lambda: importance_weights(np.array([1.0, -0.1]), TWO), "row 1 has target probability -0.1; it must be from"),
        (lambda: importance_weights(np.array([1.0, np.nan]), TWO), "row 1 has target probability nan"),
        (lambda: importance_weights(TWO, TWO, clip=0.0), "above 0, not at 0.0"),
        (lambda: importance_weights(TWO, TWO, clip=np.nan), "above 0, not at nan"),
        (lambda: importance_weights(TWO, ONE), "target probability (2,), logging propensity (1,)"),
        (lambda: inverse_propensity(TWO, TWO, ONE), "reward (2,), weight (2,), user (1,)"),
        (lambda: inverse_propensity(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1))), "one entry per row"),
        (lambda: inverse_propensity(np.array([0.0, np.inf]), TWO, TWO), "row 1 has reward inf"),
        (lambda: inverse_propensity(TWO, np.array([-1.0, 1.0]), TWO), "row 0 has weight -1.0; it must be 0 or more"),
        (lambda: self_normalised(TWO, np.zeros(2), TWO), "none of the logged actions"),
        (lambda: direct_method(ONE[:0], ONE[:0]), "no logged decisions"),
        (lambda: doubly_robust(TWO, TWO, ONE, TWO, TWO), "predicted reward (1,)"),
        (lambda: effective_sample_size(np.array([np.nan])), "row 0 has weight nan"),
    ],
)
def test_what_cannot_be_used_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
