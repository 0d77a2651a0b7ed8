"""Propensities of the simulator's logging policy: the probabilities with which it shows what it shows."""

from copy import deepcopy
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from sgrec_core import simulator
from sgrec_core.evaluation.off_policy import importance_weights, inverse_propensity
from sgrec_core.evaluation.significance import Interval, paired_bootstrap
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.propensities import position_probabilities

FIRST_DAY = "2026-01-05"


def every_item_at_every_position(log_rates: np.ndarray, slate: int, **explores: float) -> np.ndarray:
    """[N, slate]: row i shows item i first, then the next ones, so that each position has each item once."""
    count = len(log_rates)
    shown = (np.arange(count)[:, None] + np.arange(slate)) % count
    found = position_probabilities(np.tile(log_rates, (count, 1)), shown, **explores)
    probability = np.empty_like(found)
    for position in range(slate):
        probability[shown[:, position], position] = found[:, position]
    return probability


def enumerated(log_rates: np.ndarray, slate: int, explored: float, log_boost: float) -> np.ndarray:
    """The same, from all subsets of items that may be explored and all orders in which items may arrive."""
    probability = np.zeros((len(log_rates), slate))
    for subset in product([False, True], repeat=len(log_rates)):
        rates = np.exp(log_rates + log_boost * np.array(subset))
        of_subset = np.prod(np.where(subset, explored, 1 - explored))
        for order in permutations(range(len(rates)), slate):
            left = rates.sum() - np.concatenate([[0.0], rates[list(order)].cumsum()[:-1]])
            # The last one left: rounding must not make its rate differ from what is left.
            of_order = np.prod(np.minimum(rates[list(order)] / left, 1.0))
            probability[list(order), range(slate)] += of_subset * of_order
    return probability


@pytest.mark.parametrize(
    ("log_rates", "slate"),
    [
        ([0.0, 0.0], 2),
        ([0.3, -1.0, 2.0], 1),
        ([0.3, -1.0, 2.0, 0.1, -4.0], 2),
        ([0.3, -1.0, 2.0, 0.1, -4.0], 5),
        ([5.0, -1.0, 5.0, 0.0, 3.0, 0.2], 4),
    ],
)
@pytest.mark.parametrize(("explored", "log_boost"), [(0.2, 20 / 1.5), (0.01, 3.0), (0.5, 1.0), (0.0, 5.0)])
def test_they_are_what_counting_all_orders_gives(
    log_rates: list[float], slate: int, explored: float, log_boost: float
) -> None:
    rates = np.array(log_rates)
    found = every_item_at_every_position(rates, slate, explored=explored, log_boost=log_boost)
    np.testing.assert_allclose(found, enumerated(rates, slate, explored, log_boost), rtol=1e-3)


@pytest.mark.parametrize("slate", [1, 8, 40])
def test_at_each_position_some_item_stands(slate: int) -> None:
    log_rates = np.random.default_rng(slate).normal(0, 2, 120)
    found = every_item_at_every_position(log_rates, slate, explored=1 / 120, log_boost=20 / 1.5)
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=3e-4)
    assert found.min() > 0


def test_they_are_how_often_the_policy_shows_the_items() -> None:
    draws, market = 4000, SimulatorSettings(users=30, items=40)
    requests = next(simulator.day_requests(market, FIRST_DAY, FIRST_DAY))
    # As likely ones as not: of the best 16 items, each slate has others.
    best = np.argsort(-requests.utility, axis=1)[:, :16]
    random = np.random.default_rng(1)
    shown = random.permuted(best, axis=1)[:, : requests.slate]
    expected = draws * simulator.logging_propensities(requests, shown)
    again = replace(requests, random=random)
    times = sum((simulator.logging_policy(again) == shown).astype(int) for _ in range(draws))
    deviation = (times - expected) / np.sqrt(expected)
    assert expected.min() > 2
    assert np.abs(deviation).max() < 5
    assert (deviation**2).mean() == pytest.approx(1, abs=0.3)
    assert times.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_they_change_nothing_that_happens() -> None:
    settings = SimulatorSettings(users=60, items=60)
    plain = simulator.simulate_day(settings, FIRST_DAY, FIRST_DAY)
    told = simulator.simulate_day(settings, FIRST_DAY, FIRST_DAY, propensities=simulator.logging_propensities)
    assert plain.propensity is None
    assert told.propensity.shape == told.shown.shape
    for name in ("shown", "clicked", "converted", "disliked", "time", "user"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(told, name))
    rows = simulator.event_rows(plain, FIRST_DAY), simulator.event_rows(told, FIRST_DAY)
    assert {row["propensity"] for row in rows[0]} == {None}
    of_impressions = {(row["request_id"], row["item_id"]): row["propensity"] for row in rows[1]}
    for before, row in zip(*rows, strict=True):
        assert row == {**before, "propensity": of_impressions[row["request_id"], row["item_id"]]}
        assert 0 < row["propensity"] <= 1


def test_clicks_of_another_policy_are_estimated_without_bias() -> None:
    """The best items by the users' true utility, told from what the logging policy showed, against the truth."""
    settings = SimulatorSettings(users=600, items=40)
    matches, truth = [], []

    def policy(requests: simulator.Requests) -> np.ndarray:
        best = np.argsort(-requests.utility, axis=1, kind="stable")[:, : requests.slate]
        twin = replace(requests, state=deepcopy(requests.state), random=np.random.default_rng(0))
        truth.append((requests.user, requests.time, twin.show(best).click_probability))
        shown = simulator.logging_policy(requests)
        matches.append(shown == best)
        return shown

    day = simulator.simulate_day(
        settings, FIRST_DAY, FIRST_DAY, policy=policy, propensities=simulator.logging_propensities
    )
    user, time, clicks = (np.concatenate(column) for column in zip(*truth, strict=True))
    order = np.lexsort((time, user))
    target = np.concatenate(matches)[order].astype(float)
    users = np.repeat(day.user, day.shown.shape[1])
    true = inverse_propensity(clicks[order].ravel(), np.ones(clicks.size), users)

    def difference(propensity: np.ndarray) -> Interval:
        weights = importance_weights(target.ravel(), propensity.ravel())
        estimate = inverse_propensity(day.clicked.ravel().astype(float), weights, users)
        return paired_bootstrap(estimate, true, seed=0)

    found = difference(day.propensity)
    assert found.lower < 0 < found.upper
    assert found.upper - found.lower < 0.5 * true.mean()
    assert difference(np.full(day.shown.shape, 1 / 40)).lower > 0, "uniform propensities are wrong"
