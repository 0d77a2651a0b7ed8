"""Ranking metrics and bootstrap intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.evaluation import metrics
from sgrec_core.evaluation.significance import (
    bootstrap,
    paired_bootstrap,
    relative_gain,
    student_quantile,
    two_proportions,
)

RANKED = np.array([[4, 2, 7], [1, 0, 3], [5, 6, -1]])
TARGETS = np.array([4, 3, 9])


def test_metrics_by_hand() -> None:
    ranks = metrics.target_ranks(RANKED, TARGETS)
    assert ranks.tolist() == [0, 2, math.inf]
    assert metrics.hit_rate(ranks, 1).tolist() == [1, 0, 0]
    assert metrics.hit_rate(ranks, 3).tolist() == [1, 1, 0]
    assert metrics.ndcg(ranks, 3).tolist() == [1, 0.5, 0]
    assert metrics.ndcg(ranks, 2).tolist() == [1, 0, 0]


def test_id_level_ranks_count_items_of_one_identity_as_one() -> None:
    identities = np.array([0, 0, 1, 1, 2, 3, 4, 5])
    ranked = np.array([[0, 1, 3, 4], [2, 3, 0, -1], [5, 6, 7, 4], [4, 5, -1, -1]])
    targets = np.array([2, 1, 0, -2])
    assert metrics.identity_ranks(ranked, targets, identities).tolist() == [1, 1, math.inf, math.inf]


@given(st.integers(0, 2**32 - 1))
def test_id_level_ranks_equal_item_level_ranks_without_collisions_and_are_never_worse_with_them(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ranked = np.stack([draw.permutation(30)[:8] for _ in range(20)])
    targets = draw.integers(0, 30, 20)
    item_level = metrics.target_ranks(ranked, targets)
    assert (metrics.identity_ranks(ranked, targets, draw.permutation(30)) == item_level).all()
    assert (metrics.identity_ranks(ranked, targets, draw.integers(0, 12, 30)) <= item_level).all()


def test_every_user_counts_once() -> None:
    assert metrics.per_user(np.array([1.0, 0, 0, 1]), np.array(["b", "a", "b", "a"])).tolist() == [0.5, 0.5]
    assert metrics.per_user(np.array([1.0, 1, 0]), np.array(["a", "a", "b"])).tolist() == [1, 0]


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 100))
def test_metrics_grow_with_the_cutoff_and_stay_in_range(users: int, items: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    ranked = np.argsort(draws.random((users, items)), axis=1)[:, :20]
    ranks = metrics.target_ranks(ranked, draws.integers(0, items, users))
    for measure in (metrics.hit_rate, metrics.ndcg):
        values = [measure(ranks, cutoff) for cutoff in metrics.CUTOFFS]
        assert all((low <= high).all() for low, high in zip(values, values[1:], strict=False))
        assert all(((value >= 0) & (value <= 1)).all() for value in values)
    assert (metrics.ndcg(ranks, 10) <= metrics.hit_rate(ranks, 10)).all()


def test_coverage_and_concentration() -> None:
    assert metrics.coverage(RANKED, 10, 3) == pytest.approx(0.8)
    assert metrics.coverage(RANKED, 10, 1) == pytest.approx(0.3)
    assert metrics.gini(np.array([[0, 1], [2, 3]]), 4, 2) == pytest.approx(0)
    assert metrics.gini(np.array([[0], [0]]), 4, 1) == pytest.approx(0.75)
    assert metrics.gini(np.array([[-1]]), 4, 1) == 0


def test_novelty_of_targets() -> None:
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    histories = np.array([[0, 3], [0, -1], [0, -1], [0, -1], [-1, -1]])
    buckets = metrics.novelty_buckets(histories, np.array([3, 1, 2, 3, 0]), codes)
    names = [metrics.NOVELTY_BUCKETS[index] for index in buckets]
    assert names == ["in_history", "shares_two_codes", "shares_one_code", "shares_none", "shares_none"]


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        interval = bootstrap(draws.normal(0.3, 1, 80), seed=seed, resamples=300)
        covered += interval.lower <= 0.3 <= interval.upper
    assert 0.88 <= covered / 200 <= 0.99


def test_pairing_removes_what_users_have_in_common() -> None:
    draws = np.random.default_rng(1)
    base = draws.normal(0, 10, 500)
    interval = paired_bootstrap(base + 0.1 + draws.normal(0, 0.1, 500), base, seed=0)
    assert interval.value == pytest.approx(0.1, abs=0.02)
    assert 0.08 < interval.lower < interval.value < interval.upper < 0.12
    assert paired_bootstrap(base, base, seed=0).upper == 0
    assert paired_bootstrap(base, base + 1, seed=0) == paired_bootstrap(base, base + 1, seed=0)


def test_unpaired_users_are_an_error() -> None:
    with pytest.raises(ValueError, match="same users"):
        paired_bootstrap(np.zeros(3), np.zeros(4), seed=0)


def test_a_relative_gain_of_all_seeds_and_users_is_found_and_noise_is_not() -> None:
    draw = np.random.default_rng(0)
    baseline = (draw.random((5, 4000)) < 0.1).astype(float)
    better = np.maximum(baseline, draw.random((5, 4000)) < 0.01)
    gain = relative_gain(better, baseline, seed=1)
    assert 0 < gain.lower < gain.value < gain.upper
    assert gain.value == pytest.approx(better.mean() / baseline.mean() - 1)
    same = relative_gain(draw.permuted(baseline, axis=1), baseline, seed=1)
    assert same.lower < 0 < same.upper


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)])
def test_student_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(expected, rel=2e-3)


def test_intervals_hold_the_truth_when_trainings_differ_more_than_users() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        baseline = np.full((5, 50), 1.0)
        gain = relative_gain(baseline + draw.normal(0, 0.1, (5, 1)), baseline, seed=0, resamples=50)
        covered += gain.lower <= 0 <= gain.upper
    assert covered >= 184


def test_a_gain_that_hangs_on_one_seed_is_not_sure() -> None:
    baseline = np.full((5, 1000), 0.1)
    lucky = baseline.copy()
    lucky[0] += 0.1
    lucky[1:] -= 0.001
    gain = relative_gain(lucky, baseline, seed=0)
    assert gain.value > 0.15
    assert gain.lower < 0


@pytest.mark.parametrize(
    ("challenger", "baseline", "message"),
    [(np.zeros((2, 3)), np.zeros((3, 2)), "one shape"), (np.zeros((2, 3)), np.zeros((2, 3)), "not zero throughout")],
)
def test_a_relative_gain_needs_pairs(challenger: np.ndarray, baseline: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relative_gain(challenger, baseline, seed=0)


def test_two_shares_differ_by_standard_errors() -> None:
    # (.3 - .2) / sqrt(.25 * .75 * (1 / 100 + 1 / 100))
    assert two_proportions((30, 20), (100, 100)) == pytest.approx(1.63299316)
    assert two_proportions((20, 30), (100, 100)) == pytest.approx(-1.63299316)
    assert two_proportions((0, 0), (100, 7)) == two_proportions((7, 0), (7, 0)) == two_proportions((5, 5), (5, 5)) == 0
