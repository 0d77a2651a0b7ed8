"""Expected business value of lists, from the feedback that another policy logged.

Unit: an impression, an item at a position of a request. The item-position model (Li et al., KDD 2018,
arXiv 1804.10488): what an item does at a position does not hang on what stands around it, so that a policy that would
have shown the same item at the same place is told by the logged answer, weighed by one over the chance of that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sgrec_core.evaluation.off_policy import (
    direct_method,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    inverse_propensity,
    self_normalised,
)

DIRECT, DOUBLY_ROBUST, INVERSE_PROPENSITY, SELF_NORMALISED = ESTIMATORS = (
    "direct",
    "doubly_robust",
    "inverse_propensity",
    "self_normalised",
)
OUTCOMES = ("ecpm", "gmv", "dislikes")
LEAST_EFFECTIVE = 1000
"""Impressions of equal weight that logged answers must be worth before they correct the direct method: with fewer their
noise costs a verdict more than they tell (`make bench-gate`)."""
LEAST_COVERED = 0.8
"""Mean importance weight, 1 where the logging policy shows all that a policy would, from which on they do: what lacks
of it is told by the reward model alone, whatever the estimate is called."""

MOST_COVERED = 1.25
"""Mean importance weight above which propensities are wrong: a policy's cannot be above 1, but by chance."""


@dataclass(frozen=True)
class Logged:
    """N impressions that a logging policy showed, and what came of them."""

    users: np.ndarray
    """[N] user ids."""
    propensities: np.ndarray
    """[N] chance of the item at its position, NaN where it is not known."""
    rewards: Mapping[str, np.ndarray]
    """By outcome [N]."""
    predicted: Mapping[str, np.ndarray]
    """The reward model's, by outcome [N]."""
    places: int
    """Of the longest slate."""


@dataclass(frozen=True)
class Values:
    """What one policy is expected to earn an impression, of U users in ascending order."""

    users: np.ndarray
    """[U]"""
    per_user: Mapping[tuple[str, str], np.ndarray]
    """(outcome, estimator) -> [U], whose mean is the estimate."""
    effective: float
    """Impressions of equal weight that the logged answers are worth; 0 where propensities are not known."""
    covered: float
    """Mean importance weight; 0 where propensities are not known."""
    places: int
    """Of the longest slate that was logged."""

    @property
    def estimator(self) -> str:
        """The one that decides: doubly robust where logged answers tell enough, else the direct method."""
        told = self.effective >= LEAST_EFFECTIVE and LEAST_COVERED <= self.covered <= MOST_COVERED
        return DOUBLY_ROBUST if told else DIRECT


def common_estimator(policies: Iterable[Values]) -> str:
    """By which policies are compared: what each of them has enough logged answers for."""
    return DIRECT if any(one.estimator == DIRECT for one in policies) else DOUBLY_ROBUST


def estimate(logged: Logged, same: np.ndarray, expected: Mapping[str, np.ndarray], clip: float | None) -> Values:
    """Of a policy that shows its own item at the place of each logged impression.

    Args:
        same: [N] whether it is the logged item.
        expected: the reward model's value of it, by outcome [N].
        clip: largest importance weight.
    """
    users = logged.users
    found = {(outcome, DIRECT): direct_method(values, users) for outcome, values in expected.items()}
    effective = covered = 0.0
    # A policy cannot be weighed where the chance of what was shown is not known, if only of some.
    if np.isfinite(logged.propensities).all():
        weights = importance_weights(same.astype(np.float64), logged.propensities, clip=clip)
        effective, covered = effective_sample_size(weights), float(weights.mean())
        for outcome, values in expected.items():
            rewards, predicted = logged.rewards[outcome], logged.predicted[outcome]
            found[outcome, DOUBLY_ROBUST] = doubly_robust(rewards, weights, predicted, values, users)
            found[outcome, INVERSE_PROPENSITY] = inverse_propensity(rewards, weights, users)
            if weights.any():
                found[outcome, SELF_NORMALISED] = self_normalised(rewards, weights, users)
    return Values(np.unique(users), found, effective, covered, logged.places)
