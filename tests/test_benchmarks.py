"""Benchmarks follow the names of what they measure; none of them runs in the tests, but their arithmetic does."""

import importlib
import pkgutil

import numpy as np
import pytest

import benchmarks
from benchmarks.gate_months import (
    EACH_NIGHT,
    HELD,
    NIGHTS,
    WHOLE_NIGHT,
    Month,
    Panel,
    draw_month,
    first_night,
    loading,
    nights_of,
    turned,
    wilson,
)
from benchmarks.gate_nights import Power, clear, close_to_best, correlations, rank_correlations, why_not
from sgrec_core.evaluation.gate import Evidence
from sgrec_core.evaluation.score import Weights
from sgrec_core.night.evaluation import evidence_by_night

NDCG = Weights(ndcg=1.0, ecpm=0.0, gmv=0.0, dislikes=0.0)
BOTH = Weights(ndcg=1.0, ecpm=0.5, gmv=0.0, dislikes=0.0)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_a_benchmark_imports_what_it_measures(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def panel(weights: Weights = NDCG, users: int = 3000, days: int = 3, absent: float = 0.2) -> Panel:
    """Figures of two generators that differ, some users missing on some days, some without a decision."""
    draw = np.random.default_rng(1)
    gone, undecided = draw.random((days, users)) < absent, draw.random((days, users)) < absent
    sides = []
    for _ in range(2):
        ndcg = np.where(draw.random((days, users)) < 0.3, draw.random((days, users)), 0.0)
        ecpm = draw.gamma(2.0, 100.0, (days, users))
        sides.append({"ndcg": np.where(gone | undecided, np.nan, ndcg)})
        if weights.ecpm:
            sides[-1]["ecpm"] = np.where(gone, np.nan, ecpm)
    return Panel(*sides, weights)


@pytest.mark.parametrize("weights", [NDCG, BOTH])
@pytest.mark.parametrize("coin", [EACH_NIGHT, HELD])
@pytest.mark.parametrize("effect", [0.0, 0.1, -0.1])
def test_a_coin_makes_the_optimised_policy_as_much_better_as_was_asked_for(
    weights: Weights, coin: str, effect: float
) -> None:
    lists = panel(weights)
    month = draw_month(lists, 10_000, effect, coin, np.random.default_rng(2))
    day = month.days[0]
    ours, theirs = (side["ndcg"][day, month.users] for side in (lists.ours, lists.theirs))
    swapped = month.swapped[0]
    optimised, supervised = np.where(swapped, theirs, ours), np.where(swapped, ours, theirs)
    assert np.nanmean(optimised + supervised) == pytest.approx(np.nanmean(ours + theirs))
    nights = nights_of(lists, month)
    found = float(np.mean([scores.mean() for _, scores in nights])) / np.nanmean(supervised)
    assert found == pytest.approx(effect, abs=0.035)


def test_a_coin_for_the_whole_night_swaps_all_users_or_none() -> None:
    month = draw_month(panel(), 50, 0.0, WHOLE_NIGHT, np.random.default_rng(3))
    assert set(month.swapped.mean(axis=1).tolist()) == {0.0, 1.0}


def test_swapping_changes_signs_alone_and_leaves_out_who_is_not_there() -> None:
    lists = Panel({"ndcg": np.array([[0.5, np.nan, 0.2]])}, {"ndcg": np.array([[0.1, np.nan, 0.3]])}, NDCG)
    swapped = np.array([[False, True, True], [True, False, False]])
    nights = nights_of(lists, Month(np.array([0, 1, 2]), np.zeros(2, dtype=int), swapped))
    assert [users.tolist() for users, _ in nights] == [[0, 2], [0, 2]]
    np.testing.assert_allclose([differences for _, differences in nights], [[0.4, 0.1], [-0.4, -0.1]])


def test_what_turns_is_as_much_worse_as_it_was_better() -> None:
    lists = panel()
    month = draw_month(lists, 500, 0.2, EACH_NIGHT, np.random.default_rng(5))
    before, after = nights_of(lists, month), nights_of(lists, turned(month, 10))
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        np.testing.assert_allclose(one[1], other[1] if number < 10 else -other[1])


def test_no_coin_makes_more_of_two_lists_than_they_differ() -> None:
    alike = Panel({"ndcg": np.array([[0.5, 0.5]])}, {"ndcg": np.array([[0.5, 0.49]])}, NDCG)
    with pytest.raises(ValueError, match="more than these lists differ"):
        loading(alike, 0.2, EACH_NIGHT)
    assert loading(alike, 0.0, EACH_NIGHT) == 0


def test_a_month_in_which_every_night_promotes_none_does_or_the_fifth_does() -> None:
    def month(value: float) -> list[Evidence]:
        return [Evidence(nights=n + 1, users=9, value=value, against=0.1, needed=20) for n in range(NIGHTS)]

    assert first_night(month(25), lambda night: True) == 1
    assert first_night(month(25), lambda night: night >= 4) == 5
    assert first_night(month(25), lambda night: False) == 0
    assert first_night(month(2), lambda night: True) == 0


def test_planted_evidence_is_found_on_the_night_that_has_it() -> None:
    users = np.arange(400)
    better, nothing = np.full(400, 0.2), np.where(users % 2, 0.2, -0.2)
    found = evidence_by_night([(users, nothing), *[(users, better)] * 3], alpha=0.05)
    assert [one.is_enough for one in found] == [False, True, True, True]
    worse = evidence_by_night([(users, -better)] * 4, alpha=0.05)
    assert not any(one.is_enough for one in worse)
    assert worse[0].against > 20


def test_a_truth_is_clear_above_twice_what_the_night_detects() -> None:
    truth, detectable = np.array([0.3, -0.3, 0.1, 0.2]), np.array([0.1, 0.1, 0.1, 0.1])
    assert clear(truth, detectable).tolist() == [True, True, False, False]


def test_power_of_users_and_nights() -> None:
    draw = np.random.default_rng(4)
    found = Power.of(draw.normal(0, 0.1, 4000) + draw.normal(0, 0.1, (4, 4000)), 0.2)
    assert found.deviation == pytest.approx(0.02**0.5, rel=0.02)
    assert found.lasting == pytest.approx(0.5, abs=0.03)
    users = found.users_for(0.05)
    assert found.detectable(users) <= 0.05 < found.detectable(users - 1)
    assert found.nights_for(0.05, users) == 1
    # Half of the variance stays however many nights there are.
    assert found.nights_for(0.05, int(users * 0.4)) == float("inf")
    assert found.detectable(1000, nights=10**9) == pytest.approx(found.detectable(2000), rel=0.05)


def test_rank_correlations_by_hand() -> None:
    order = np.array([1.0, 2, 3, 4])
    assert [float(one) for one in rank_correlations(order, order * 7)] == [1, 1]
    assert [float(one) for one in rank_correlations(order, -order)] == [-1, -1]
    assert [float(one) for one in rank_correlations(order, np.array([2.0, 1, 3, 4]))] == pytest.approx([0.8, 2 / 3])


def test_correlations_leave_out_who_was_not_there() -> None:
    level = np.array([0.1, 0.2, 0.3])[:, None]
    values = np.tile(level, (1, 50))
    values[:, ::2] = np.nan
    spearman, kendall = correlations(values, np.tile(level, (1, 50)), np.ones((3, 50)), resamples=20)
    assert (spearman.value, spearman.lower, kendall.upper) == (1, 1, 1)


def test_close_to_best_knows_what_better_means() -> None:
    assert close_to_best(np.array([1.0, 0.96, 0.9]), "CTR").tolist() == [0, 1]
    assert close_to_best(np.array([1.0, 0.96, 0.9]), "dislike rate").tolist() == [2]


def test_wilson_by_the_book() -> None:
    found = wilson(30, 30)
    assert (found.value, found.upper) == (1, 1)
    assert found.lower == pytest.approx(0.8865, abs=1e-4)
    assert np.isnan(wilson(0, 0).value)


def test_refusals_are_told_apart() -> None:
    assert why_not("supervised policy better: NDCG@10") == ""
    assert why_not("supervised policy not: not better: NDCG@10 .1") == "not better"
    assert why_not("supervised policy not: better, but not surely: NDCG") == "better, but not surely"
    assert why_not("supervised policy not: hit_rate@50 surely worse: -0.1") == "@50 surely worse"
